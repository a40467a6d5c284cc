"""Window databases and packs that exist already: what they hold, and whether others may replace them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from sharded_eden.errors import DatabaseError, UsageError, printable
from sharded_eden.format.commands import precompute_command, sibling
from sharded_eden.format.fingerprint import fingerprint_of_rows
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import READ_ERRORS, is_mutable_now, open_read_only, table_columns
from sharded_eden.format.window_db import WindowDatabase


@dataclass(frozen=True)
class ExistingPacks:
    """The packs of a window database, which are about to be replaced."""

    path: Path
    seed: int | None
    """None where the database does not record it, as for the fingerprint."""
    fingerprint: int | None

    def check_seed(self, seed: int | None) -> None:
        """Refuse packs of another seed, and None, which stands for no packs.

        Raises:
            UsageError: with both seeds.
        """
        if seed is None:
            raise self._refusal("which the new one would not have without --pack (pack=True)")
        if self.seed is not None and seed != self.seed:
            raise self._refusal(f"pack_seed={self.seed}, not {seed}")

    def check_fingerprint(self, fingerprint: int) -> None:
        """Refuse packs, complete but not published, that are not the same.

        Raises:
            UsageError: they differ.
        """
        if fingerprint != self.fingerprint:
            raise self._refusal("and the new ones differ")

    def _refusal(self, what: str) -> UsageError:
        return UsageError(
            f"{printable(self.path)}: this window database has packs, {what}. Checkpoints are tied to the packs that they "
            "were trained on, so they are not replaced. Write packs to a copy of it or to another window database; or "
            "replace them with --force (overwrite=True)"
        )


def existing_packs(state: WindowDatabase, database: apsw.Connection) -> ExistingPacks | None:
    """Return the packs of a window database without problems; None where it neither has nor records any."""
    seed, fingerprint = state.metadata.get("pack_seed"), state.metadata.get("pack_fingerprint")
    if fingerprint is None:
        has_packs = table_columns(database, "packs") and database.execute("SELECT 1 FROM packs LIMIT 1").get
        if not has_packs:
            return None
    return ExistingPacks(state.path, seed, fingerprint)


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
    packs: ExistingPacks | None

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
        other = sibling(self.path, str(wanted.window_size))
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
            packs = existing_packs(state, database)
            return Existing(path, split, state.geometry, fingerprint, of_rows, packs)
    except (DatabaseError, *READ_ERRORS) as error:
        raise UsageError(
            f"{printable(path)}: there is a file with this name, which is not a window database or a damaged one "
            f"({printable(str(error), 200)}). Write to another name, or replace it with --force (overwrite=True)"
        ) from error
