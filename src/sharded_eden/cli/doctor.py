"""`doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharded_eden.doctor.report import examine


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="A folder of databases: its file system is examined, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show versions, limits, file system and what is missing: exit status 0, or 1 where something needed is broken.

    Where this command itself does not start, `python -m sharded_eden.doctor` names the broken package.
    """
    report = examine(folder)
    print(report.json() if as_json else report.text(), end="")
    if not report.is_ok:
        raise typer.Exit(1)
