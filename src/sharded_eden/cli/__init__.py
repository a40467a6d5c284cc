"""The command line: parse arguments, call one function, print the result.

Results go to stdout; progress, warnings and errors to stderr. Exit status of every command: 0 done; 1 findings, or an error
in the data or the machine; 2 wrong use (a wrong command line, or a `UsageError`); 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import apsw
import polars as pl
import typer

from sharded_eden import __version__
from sharded_eden.cli import build, checks, doctor, export, fetch, index, report, rows, split, stats, windows
from sharded_eden.cli.command import add_commands, similar_paths
from sharded_eden.errors import EdenError, EdenWarning, UsageError, WriteError, printable

INTERRUPTED = 130
"""The exit status after Ctrl-C."""

STOPPED = "interrupted: no file is half-written. Run the same command again; build and fetch keep what is complete"

app = typer.Typer(
    name="sharded-eden",
    help="Prepare DNA for genomic language models: FASTA to SQLite sequence databases (build), "
    "splits (split) and window databases (precompute).",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
)


def main(argv: Sequence[str] | None = None, prog_name: str = "sharded-eden") -> int:
    """Run a command line and return its exit status.

    Args:
        argv: the arguments, without the program's name; None: those of this process.
        prog_name: the program's name in help texts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", EdenWarning)
        warnings.showwarning = _show_warning
        try:
            typer.main.get_command(app).main(args=argv, prog_name=prog_name)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
            if status == INTERRUPTED:
                _say(STOPPED)
            return status
        except (EdenError, OSError, apsw.Error, pl.exceptions.PolarsError) as error:
            _say(f"error: {error}")
            if "no such" in str(error):
                for path in similar_paths(sys.argv[1:] if argv is None else argv, str(error)):
                    _say(f"Did you mean {printable(path)}?")
            return 2 if isinstance(error, UsageError) and not isinstance(error, WriteError) else 1
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}")


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
        windows.precompute,
        index.index,
        fetch.fetch,
        export.export,
        windows.pack,
        checks.bench,
        checks.verify,
        stats.stats,
        rows.show,
        report.report,
        doctor.doctor,
    ),
)
