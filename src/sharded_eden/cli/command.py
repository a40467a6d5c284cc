"""What all commands share: `--json`, `--quiet`, `--verbose`, and how their result is printed.

A command is a function that returns an `Output`; `add_commands` gives it the common options and prints what it returns.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.text import Text

from sharded_eden.cli.help import COMMON, HelpCommand
from sharded_eden.cli.level import LEVEL, Level, traced
from sharded_eden.cli.reference import KEPT, PRINTS_RESULT, epilog
from sharded_eden.jobs import connect_polars_to_numpy

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


class Interrupted(Exception):
    """A command was stopped with Ctrl-C.

    Args:
        kept: what a second run finds.
    """

    def __init__(self, kept: str) -> None:
        super().__init__(f"interrupted: no file is half-written. To go on, run the same command again: {kept}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """The result of a command, for people and for programs."""

    lines: Iterable[str | Text]
    """What is printed without `--json`."""
    data: Callable[[], dict[str, Any]]
    """Makes the object of `--json`; paths are printed as text."""
    indent: int | None = 2
    """Of the JSON; None for one line."""
    next: Sequence[str] = ()
    """What to run next."""
    status: int = 0
    """The exit status."""


def _common(
    *,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=COMMON, help="Print the result as one JSON object, and nothing else."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=COMMON, help="No progress, warnings and summaries.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            rich_help_panel=COMMON,
            help="Print what a report of a fault needs: versions, files, times, and the traceback of an error.",
        ),
    ] = False,
) -> None:
    """Hold the options of all commands."""


def add_commands(app: typer.Typer, functions: Sequence[Callable[..., Output]]) -> None:
    """Add functions to an application as commands."""
    for function in functions:
        app.command(cls=HelpCommand, epilog=epilog(function.__name__))(_command(function))


def _command(function: Callable[..., Output]) -> Callable[..., None]:
    """Return a function with the parameters of another and the common ones, which prints the result of the other."""

    @functools.wraps(function)
    def command(*, as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose exclude each other")
        LEVEL.set(Level.QUIET if quiet else Level.VERBOSE if verbose else Level.NORMAL)
        try:
            connect_polars_to_numpy()
            with traced(arguments):
                output = function(**arguments)
        except KeyboardInterrupt as error:
            raise Interrupted(KEPT.get(function.__name__, "it begins again")) from error
        if as_json or not quiet or function.__name__ in PRINTS_RESULT:
            _print(output, as_json=as_json)
        if output.status:
            raise typer.Exit(output.status)

    parameters, annotations = [], {}
    for source in (function, _common):
        hints = get_type_hints(source, include_extras=True)
        for name, parameter in inspect.signature(source).parameters.items():
            annotations[name] = hints[name]
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=kind))
    command.__annotations__ = annotations
    vars(command)["__signature__"] = inspect.Signature(parameters)
    return command


def _print(output: Output, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(output.data(), indent=output.indent, default=os.fspath))
        return
    console = None
    for line in output.lines:
        if isinstance(line, Text):
            console = console or Console(highlight=False, soft_wrap=True)
            console.print(line)
        else:
            print(line)
    for command in output.next:
        print(f"Next: {command}")
    sys.stdout.flush()
