"""The command `doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sharded_eden.cli.command import Output
from sharded_eden.doctor.report import examine


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="A folder of databases: its file system is examined, too.")
    ] = None,
) -> Output:
    """Show versions, limits, file system and what is missing: exit status 0, or 1 where something needed is broken.

    Where this command itself does not start, `python -m sharded_eden.doctor` names the broken package.
    """
    report = examine(folder)
    return Output(
        lines=[report.text().rstrip("\n")], data=lambda: json.loads(report.json()), status=0 if report.is_ok else 1
    )
