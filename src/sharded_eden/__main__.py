"""The program `sharded-eden`, and `python -m sharded_eden`: the command line.

Ctrl-C ends in one line at any time, also while modules are loaded.
"""

import sys


def main(prog_name: str = "sharded-eden") -> int:
    """Run the command line of this process and return its exit status.

    Args:
        prog_name: the program's name in help texts.
    """
    status = 130
    try:
        from sharded_eden.cli import main as run

        status = run(prog_name=prog_name)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted. To go on, run the same command again\n")
    if status == 130:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would show a traceback of what runs at exit
    return status


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m sharded_eden"))
