"""Existing window databases: their geometry and fingerprint, and whether another one may replace them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from sharded_eden.errors import DatabaseError, UsageError, printable
from sharded_eden.format.commands import precompute_command, sibling
from sharded_eden.format.fingerprint import fingerprint_of_rows
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import READ_ERRORS, is_mutable_now, open_read_only
from sharded_eden.format.window_db import WindowDatabase


@dataclass(frozen=True)
class Existing:
    """A window database that is about to be replaced."""

    path: Path
    split: Path
    """The split file of the new database, for the command in messages."""
    geometry: WindowGeometry
    fingerprint: int | None
    """None where the database does not record one."""
    fingerprint_of_rows: int

    def check_geometry(self, wanted: WindowGeometry) -> None:
        """Raise an error for a new database of another geometry.

        Raises:
            UsageError: with the values that differ.
        """
        old, new = self.geometry.as_metadata(), wanted.as_metadata()
        if differing := [key for key in old if old[key] != new[key]]:
            raise self._refusal(
                f"another geometry ({', '.join(f'{key}={old[key]}, not {new[key]}' for key in differing)})", wanted
            )

    def check_contigs(self, database: apsw.Connection, fingerprint: int, windows: int) -> None:
        """Raise an error for a new database, complete but not published, that has other contigs or windows.

        Raises:
            UsageError: they differ.
        """
        if self.fingerprint is not None:
            is_same = self.fingerprint == fingerprint
        else:
            metadata = self.geometry.as_metadata()
            is_same = self.fingerprint_of_rows == fingerprint_of_rows(database, metadata, windows)
        if not is_same:
            raise self._refusal("other contigs or windows", self.geometry)

    def _refusal(self, what: str, wanted: WindowGeometry) -> UsageError:
        suffixes = (str(wanted.window_size), *(f"{wanted.window_size}-{k}" for k in range(2, 100)))
        others = (sibling(self.path, suffix) for suffix in suffixes)
        other = next((path for path in others if not path.exists()), self.path.with_name("WINDOWS.db"))
        return UsageError(
            f"{printable(self.path)}: this window database exists and has {what}. Checkpoints are tied to the windows that "
            f"they were trained on, so it is not replaced. Write to another name: "
            f"{precompute_command(other, split=self.split, geometry=wanted)}; or replace it with --force (overwrite=True)"
        )


def existing_windows(path: Path, split: Path) -> Existing | None:
    """Return the existing window database at a path; None where there is none, or where `publishing` raises the error.

    Raises:
        UsageError: it is not a window database, or a damaged one.
    """
    if not path.is_file() or path.stat().st_size == 0 or is_mutable_now(path):
        return None
    try:
        with closing(open_read_only(path, io="read")) as database:
            state = WindowDatabase(database, path)
            for problem in state.problems():
                raise problem.error(path)
            assert state.geometry is not None  # noqa: S101 - narrows the type
            fingerprint, total = state.metadata.get("fingerprint"), state.total_windows
            of_rows = 0 if fingerprint is not None else fingerprint_of_rows(database, state.metadata, total)
            return Existing(path, split, state.geometry, fingerprint, of_rows)
    except (DatabaseError, *READ_ERRORS) as error:
        raise UsageError(
            f"{printable(path)}: there is a file with this name, which is not a window database or a damaged one "
            f"({printable(str(error), 200)}). Write to another name, or replace it with --force (overwrite=True)"
        ) from error
