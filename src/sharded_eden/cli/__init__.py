"""The command line: parse arguments, call one function, print the result.

Results go to standard output; progress, warnings and errors to standard error. Exit status of every command: 0 done;
1 findings, or an error in the data or the machine; 2 wrong use (a wrong command line, or a `UsageError`); 130 stopped with
Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import apsw
import polars as pl
import typer

from sharded_eden import __version__
from sharded_eden.cli import (
    bench,
    build,
    doctor,
    export,
    fetch,
    index,
    pack,
    precompute,
    report,
    show,
    split,
    stats,
    verify,
)
from sharded_eden.cli.command import INTERRUPTED, Interrupted, add_commands
from sharded_eden.cli.help import HelpGroup
from sharded_eden.cli.level import LEVEL, Level, say
from sharded_eden.cli.suggest import similar_paths
from sharded_eden.errors import EdenError, EdenWarning, UsageError, WriteError, printable

HOME = Path(__file__).resolve().parents[1]
ISSUES = "https://github.com/sharded-eden/sharded-eden/issues"

app = typer.Typer(
    name="sharded-eden",
    cls=HelpGroup,
    help="Prepare DNA for genomic language models: FASTA to SQLite sequence databases (build), "
    "splits (split) and window databases (precompute).",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


def main(argv: Sequence[str] | None = None, prog_name: str = "sharded-eden") -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the arguments, without the program's name; None: those of this process.
        prog_name: the program's name in help texts.

    Raises:
        KeyboardInterrupt: Ctrl-C before or after the command itself, which turns it into exit status 130.
    """
    level = LEVEL.set(Level.NORMAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", EdenWarning)
            warnings.showwarning = _show_warning
            typer.main.get_command(app).main(args=argv, prog_name=prog_name)
    except Interrupted as error:
        say(str(error))
        return INTERRUPTED
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer turns Ctrl-C into it
            raise KeyboardInterrupt from end
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        return _failed(error, sys.argv[1:] if argv is None else argv)
    finally:
        LEVEL.reset(level)
    return 0


def _failed(error: Exception, argv: Sequence[str]) -> int:
    """Print an error and return the exit status."""
    is_verbose = LEVEL.get() is Level.VERBOSE
    if is_verbose:
        say("".join(traceback.format_exception(error)))
    if not isinstance(error, (EdenError, OSError, apsw.Error, pl.exceptions.PolarsError)):
        what = f"{type(error).__name__}: {printable(str(error), 300)}{_place(error)}"
        say(f"error: unexpected {what}. This is a fault of sharded-eden.")
        say(
            f"Please report it with {'this output' if is_verbose else 'the output of this command with --verbose'}: {ISSUES}"
        )
        return 1
    say(f"error: {error}")
    if "no such" in str(error):
        for path in similar_paths(argv, str(error)):
            say(f"Did you mean {printable(path)}?")
    return 2 if isinstance(error, UsageError) and not isinstance(error, WriteError) else 1


def _place(error: Exception) -> str:
    """Return where in this package an error came from."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if HOME in Path(each.filename).parents]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).relative_to(HOME)}, line {frames[-1].lineno})"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if LEVEL.get() is not Level.QUIET:
        say(f"warning: {message}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sharded-eden {__version__}")
        raise typer.Exit


@app.callback()
def _sharded_eden(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


add_commands(
    app,
    (
        build.build,
        split.split,
        precompute.precompute,
        index.index,
        fetch.fetch,
        export.export,
        pack.pack,
        bench.bench,
        verify.verify,
        stats.stats,
        show.show,
        report.report,
        doctor.doctor,
    ),
)
