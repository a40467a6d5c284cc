"""The help of commands: options in groups, types in words, examples as they are written; wrong values named in the same words.

Everything that is printed is made here, so it does not depend on the version of Typer.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from sharded_eden.cli.reference import GROUPS, program_epilog
from sharded_eden.errors import shown

COMMON = "All commands"
"""The heading of the options that every command has."""

MORE, SIMILAR = "More options", "Similar contigs"
"""Headings of options that are not needed every day."""

Records = list[tuple[str, str]]
"""Names and their explanations."""

_METAVARS: dict[Any, str] = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_WORDS: dict[Any, tuple[str, str]] = {int: ("a whole number", "8"), float: ("a number", "0.5")}
"""What a value is, in words, and an example."""


def did_you_mean(word: str, known: list[str]) -> str:
    """Return a suggestion, with a space before it; empty where no known word is similar."""
    found = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""


class HelpCommand(TyperCommand):
    """A command whose help and errors name types in words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hints = get_type_hints(inspect.unwrap(self.callback)) if self.callback else {}
        self.types = {name: _value_type(hint) for name, hint in hints.items()}
        for param in self.params:
            if param.param_type_name == "option" and param.metavar is None and param.name in self.types:
                param.metavar = _metavar(self.types[param.name])
            _explain_wrong_values(param, self.types.get(str(param.name)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; a mistyped option gets a suggestion."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # Typer 0.19 takes it from click, later ones have their own
                name = vars(error)["option_name"]
                known = [option for param in self.get_params(ctx) for option in param.opts if option.startswith("--")]
                vars(error)["message"] = f"No such option: {name}.{did_you_mean(name, known)}"
                vars(error)["possibilities"] = None
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return `[OPTIONS]` and the arguments: `SEQDB [WINDOWS.db]...`."""
        pieces = [str(self.options_metavar)]
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = str(param.metavar) if param.required else f"[{param.metavar}]"
                pieces.append(f"{name}..." if param.nargs == -1 else name)
        return pieces

    def sections(self, ctx: Any) -> Iterator[tuple[str, Records]]:
        """Yield the sections of the help: arguments, everyday options, other options by their headings."""
        found: dict[str, Records] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            is_argument = param.param_type_name == "argument"
            heading = getattr(param, "rich_help_panel", None) or (COMMON if param.name == "help" else "Options")
            found.setdefault("Arguments" if is_argument else heading, []).append(_record(param))
        if COMMON in found:
            found[COMMON] = found.pop(COMMON)  # it is the last one
        yield from ((heading, records) for heading, records in found.items() if records)

    def legend(self, ctx: Any) -> str:
        """Return what the values of the options are, in words; empty where no option takes a number."""
        lines = []
        for type_, (words, example) in _WORDS.items():
            params = [each for each in self.get_params(ctx) if each.metavar and self.types.get(str(each.name)) is type_]
            names = list(dict.fromkeys(str(each.metavar) for each in params))
            defaults = [each.default for each in params if each.default not in (None, 0)]
            if names:
                lines.append(f"{', '.join(names)}: {words}, such as {defaults[0] if defaults else example}.")
        return " ".join(lines)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections."""
        for heading, records in self.sections(ctx):
            with formatter.section(heading):
                formatter.write_dl(records)
        if legend := self.legend(ctx):
            formatter.write_paragraph()
            formatter.write_text(legend)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the epilog without joining its lines."""
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


class HelpGroup(TyperGroup):
    """The program: its commands under headings, with whole summaries; a mistyped command gets a suggestion."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the epilog."""
        formatter.write(f"\n{program_epilog()}")

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in the order of the headings."""
        return [name for names in GROUPS.values() for name in names]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        with formatter.section("Options"):
            formatter.write_dl([_record(param) for param in self.get_params(ctx)])
        for heading, names in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, summary(self.commands[name])) for name in names])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if type(error).__name__ == "UsageError" and args and args[0] not in self.commands:
                vars(error)["message"] = f"No such command: {shown(args[0])}.{did_you_mean(args[0], [*self.commands])}"
            raise


def summary(command: Any) -> str:
    """Return the first paragraph of the help of a command, on one line."""
    return str(command.help or "").split("\n\n", maxsplit=1)[0].replace("\n", " ")


def _value_type(hint: Any) -> Any:
    """Return what a parameter takes without `None` and lists around it."""
    origin = get_origin(hint)
    if origin is None or origin is Literal:
        return hint
    return next((_value_type(each) for each in get_args(hint) if each is not NoneType), None)


def _metavar(type_: Any) -> str | None:
    """Return the name of the value of an option; None for switches."""
    return "|".join(map(str, get_args(type_))) if get_origin(type_) is Literal else _METAVARS.get(type_)


def _record(param: Any) -> tuple[str, str]:
    """Return the name of a parameter as it is typed, and its help with its default."""
    if param.param_type_name == "argument":
        name = str(param.metavar)
    else:
        name = ", ".join([*sorted(param.opts, key=len), *param.secondary_opts])
        name += f" {param.metavar}" if param.metavar else ""
    words = getattr(param, "help", None) or ""
    if param.required:
        return name, f"{words}  [required]"
    is_shown = getattr(param, "show_default", True) and not getattr(param, "is_flag", False)
    return name, f"{words}  [default: {param.default}]" if is_shown and param.default not in (None, (), []) else words


def _explain_wrong_values(param: Any, type_: Any) -> None:
    """Let the error about a value name the value, and what is expected in words."""
    if type_ in _WORDS:
        words, example = _WORDS[type_]
        expected = f"{words}, such as {param.default or example}"
    elif get_origin(type_) is Literal:
        expected = f"one of {', '.join(map(str, get_args(type_)))}"
    else:
        return
    process: Callable[[Any, Any], Any] = param.process_value

    def process_value(ctx: Any, value: Any) -> Any:
        try:
            return process(ctx, value)
        except typer.BadParameter as error:
            if value is None or type(error) is not typer.BadParameter:
                raise
            known = list(map(str, get_args(type_)))
            text = f"{shown(value)} is not {expected}.{did_you_mean(str(value), known)}"
            raise typer.BadParameter(text, ctx=ctx, param=param) from error

    vars(param)["process_value"] = process_value
