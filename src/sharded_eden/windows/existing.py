"""Window databases that exist already: what they hold, and whether another one may replace them.

A database may come from another program. Its triggers and views never run, and values of other types than the specified ones
are errors.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from sharded_eden.errors import DatabaseError, UsageError, printable, shown
from sharded_eden.format.commands import precompute_command, sibling
from sharded_eden.format.fingerprint import fingerprint_of_rows
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sqlite import is_mutable_now, open_read_only, table_columns, unreadable

TABLES = {
    "metadata": {"key", "value"},
    "window_mappings": {"window_idx", "sequence_id", "window_in_seq_idx"},
    "contig_lengths": {"first_window_idx", "length"},
    "packs": {"pack_idx", "windows"},
}
OPTIONAL = {"contig_lengths", "packs"}
MOST_KEYS = 10_000
"""More rows of metadata than any program writes."""


def run_no_schema_code(database: apsw.Connection) -> None:
    """Keep a connection from running what the database itself brings: triggers, views and functions with side effects."""
    for option, value in (
        (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
        (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),
        (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0),
        (apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0),
    ):
        database.config(option, value)


def check_tables(database: apsw.Connection, path: Path) -> None:
    """Refuse a database without the tables of a window database, or with views or virtual tables in their place.

    Raises:
        DatabaseError: names the table.
    """
    try:
        for table, columns in TABLES.items():
            entries = database.execute(
                "SELECT type, rootpage FROM sqlite_schema WHERE type IN ('table', 'view') AND lower(name) = ?", (table,)
            ).fetchall()
            if any(kind != "table" or not rootpage for kind, rootpage in entries):
                raise DatabaseError(f"{printable(path)}: its {table} is a view or a virtual table; it must be a table")
            found = table_columns(database, table)
            if (entries or table not in OPTIONAL) and not columns <= set(found):
                there_is = f"has the columns {shown(found, 200)}" if entries else "is missing"
                raise DatabaseError(f"{printable(path)}: not a window database: its table {table} {there_is}")
    except apsw.Error as error:
        raise unreadable(path, error) from error
    except UnicodeError as error:
        raise DatabaseError(f"{printable(path)}: a name in its schema is not UTF-8") from error


def read_metadata(database: apsw.Connection, path: Path) -> dict[str, int]:
    """Return the integers of the table `metadata`, and refuse other values under the keys of the geometry.

    Raises:
        DatabaseError: window_size or stride is missing, a value has another type, or the values contradict each other.
    """
    known = {*WindowGeometry().as_metadata(), "total_windows", "fingerprint"}
    metadata: dict[str, int] = {}
    try:
        rows = database.execute(
            "SELECT CAST(key AS BLOB), typeof(value), iif(typeof(value) IN ('integer', 'real'), value, NULL) "
            f"FROM metadata LIMIT {MOST_KEYS}"
        ).fetchall()
    except apsw.Error as error:
        raise unreadable(path, error) from error
    for stored, kind, value in rows:
        key = str(bytes(stored) if isinstance(stored, bytes) else b"", "utf-8", "replace")
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            if metadata.setdefault(key, int(value)) != int(value):
                raise DatabaseError(f"{printable(path)}: metadata has {shown(key)} twice, {metadata[key]} and {value}")
        elif key in known:
            raise DatabaseError(f"{printable(path)}: metadata {key} is {kind}, not an integer")
    if missing := [key for key in ("window_size", "stride") if key not in metadata]:
        raise DatabaseError(f"{printable(path)}: its table metadata lacks {' and '.join(missing)}")
    try:
        WindowGeometry.from_metadata(metadata)
    except UsageError as error:
        raise DatabaseError(f"{printable(path)}: its metadata is invalid: {error}") from error
    return metadata


@dataclass(frozen=True)
class Existing:
    """A window database that is about to be replaced."""

    path: Path
    split: Path
    """The split file of the new one, for the command in messages."""
    geometry: WindowGeometry
    total_windows: int | None
    fingerprint: int | None
    """None where the database does not record one."""
    fingerprint_of_rows: int

    def check_geometry(self, wanted: WindowGeometry) -> None:
        """Refuse a new database whose windows are cut in another way.

        Raises:
            UsageError: with the values that differ.
        """
        old, new = self.geometry.as_metadata(), wanted.as_metadata()
        if differing := [key for key in old if old[key] != new[key]]:
            raise self._refusal(
                f"another geometry ({', '.join(f'{key}={old[key]}, not {new[key]}' for key in differing)})", wanted
            )

    def check_contigs(self, database: apsw.Connection, fingerprint: int, windows: int) -> None:
        """Refuse a new database, complete but not published, that has other contigs or windows.

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
    """Return what is at the path of a new window database, None where nothing is, or what `publishing` refuses.

    Raises:
        UsageError: it is not a window database, or a damaged one.
    """
    if not path.is_file() or path.stat().st_size == 0 or is_mutable_now(path):
        return None
    try:
        with closing(open_read_only(path, io="read")) as database:
            run_no_schema_code(database)
            check_tables(database, path)
            metadata = read_metadata(database, path)
            total = metadata.get("total_windows")
            if total is None:
                total = int(database.execute("SELECT count(*) FROM window_mappings").get)
            fingerprint = metadata.get("fingerprint")
            return Existing(
                path,
                split,
                WindowGeometry.from_metadata(metadata),
                total,
                fingerprint,
                0 if fingerprint is not None else fingerprint_of_rows(database, metadata, total),
            )
    except (DatabaseError, apsw.Error, UnicodeError) as error:
        raise UsageError(
            f"{printable(path)}: there is a file with this name, which is not a window database or a damaged one "
            f"({printable(str(error), 200)}). Write to another name, or replace it with --force (overwrite=True)"
        ) from error
