"""The manifest of an output folder: which samples were built, from which inputs, with which settings.

    inputs          path, size, modification time, hash     of every file that was read
    samples         settings, contigs, bases, bytes, hash   of every sample that was built
    sample_inputs   which of the inputs hold records of it, in their order

`OUT/manifest.sqlite` is replaced as a whole. Between two replacements each finished task writes a receipt (`staging.py`), so
that a killed process loses nothing. Needs some 200 bytes a sample; a build reads only the rows that it needs.

A path that is not UTF-8 is stored as a BLOB of its bytes. The function `rows_hash` computes the hash of a sample again from its
database, which finds any change of its rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw
import xxhash

from sharded_eden.build.sample import SampleResult
from sharded_eden.build.source import FileState
from sharded_eden.errors import DatabaseError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.publish import copy_database, create_database, publishing
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, unreadable

VERSION = 1

CREATE = f"""
CREATE TABLE inputs (
    input INTEGER PRIMARY KEY,
    path TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    hash TEXT NOT NULL,
    complete_with TEXT,
    UNIQUE (path, hash)
);
CREATE TABLE samples (
    sample TEXT PRIMARY KEY,
    settings TEXT NOT NULL,
    contigs INTEGER NOT NULL,
    bases INTEGER NOT NULL,
    bytes_on_disk INTEGER NOT NULL,
    rows_hash TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE sample_inputs (
    sample TEXT NOT NULL,
    position INTEGER NOT NULL,
    input INTEGER NOT NULL,
    PRIMARY KEY (sample, position)
) WITHOUT ROWID;
CREATE INDEX samples_of_input ON sample_inputs(input);
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A sample that a task has finished."""

    result: SampleResult
    staged: str
    """The name of its database in the staging folder, until it is renamed."""
    inputs: tuple[int, ...]
    """Which of the receipt's inputs have records of it, by position."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The samples that a task has finished, and their inputs."""

    settings: str
    inputs: tuple[FileState, ...]
    built: tuple[Built, ...]

    def to_json(self) -> str:
        """Return the receipt as text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Receipt:
        """Return the receipt in a text."""
        found = json.loads(text)
        return Receipt(
            settings=found["settings"],
            inputs=tuple(FileState(*each) for each in found["inputs"]),
            built=tuple(
                Built(result=SampleResult(**each["result"]), staged=each["staged"], inputs=tuple(each["inputs"]))
                for each in found["built"]
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The manifest's row of a sample."""

    settings: str
    bytes_on_disk: int
    rows_hash: str
    inputs: tuple[FileState, ...]


class Manifest:
    """A manifest, open for reading; an empty one if there is no file.

    Raises:
        DatabaseError: the file is not a manifest, or is one of another version.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / schema.MANIFEST_FILE
        self._database: apsw.Connection | None = None
        if self._path.exists():
            self._database = open_read_only(self._path)
            try:
                if (version := self._database.pragma("user_version")) != VERSION:
                    raise DatabaseError(
                        f"{printable(self._path)}: is version {shown(version)} of the manifest, not {VERSION}. {_CURE}"
                    )
                _check_tables(self._database, self._path)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sample(self, sample: str) -> Recorded | None:
        """Return the row of a sample, None if there is none.

        Raises:
            DatabaseError: its size is not an integer, so another program has changed the row.
        """
        found = self._query("SELECT settings, bytes_on_disk, rows_hash FROM samples WHERE sample = ?", sample)
        if not found:
            return None
        inputs = self._query(
            "SELECT path, size_bytes, mtime_ns, hash FROM sample_inputs JOIN inputs USING (input) WHERE sample = ? "
            "ORDER BY position",
            sample,
        )
        (settings, bytes_on_disk, digest), *_ = found
        if not isinstance(bytes_on_disk, int):
            raise DatabaseError(
                f"{printable(self._path)}: bytes_on_disk of sample {shown(sample)} is {shown(bytes_on_disk)}, not an integer. "
                f"{_CURE}"
            )
        return Recorded(
            settings=settings,
            bytes_on_disk=bytes_on_disk,
            rows_hash=digest,
            inputs=tuple(_state(*row) for row in inputs),
        )

    def complete(self, path: str, settings: Sequence[str]) -> FileState | None:
        """Return the state of an input all of whose samples were built with one of these settings, if it looks unchanged."""
        query = "SELECT path, size_bytes, mtime_ns, hash FROM inputs WHERE path = ? AND complete_with = ?"
        found = [row for each in settings for row in self._query(query, _stored(path), each)]
        return next((state for state in (_state(*row) for row in found) if state.looks_unchanged()), None)

    def samples_of(self, state: FileState) -> Iterator[str]:
        """Yield the samples that have records of an input."""
        query = "SELECT sample FROM inputs JOIN sample_inputs USING (input) WHERE path = ? AND hash = ?"
        yield from (sample for (sample,) in self._query(query, _stored(state.path), state.hash))

    def _query(self, sql: str, *bindings: str | bytes) -> list[tuple[Any, ...]]:
        if self._database is None:
            return []
        try:
            return list(self._database.execute(sql, bindings))
        except READ_ERRORS as error:
            raise DatabaseError(f"{unreadable(self._path, error)}. {_CURE}") from error


def _check_tables(database: apsw.Connection, path: Path) -> None:
    """Raise an error for a manifest whose schema is not exactly `CREATE`: rows would be lost, or a trigger would run."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    with closing(apsw.Connection(":memory:")) as empty:
        empty.execute(CREATE)
        expected = list(empty.execute(query))
    try:
        found = list(database.execute(query))
    except READ_ERRORS as error:
        raise DatabaseError(f"{unreadable(path, error)}. {_CURE}") from error
    if found != expected:
        odd = [row[1] for row in (*found, *expected) if (row in found) != (row in expected)]
        raise DatabaseError(f"{printable(path)}: has other tables than a manifest ({shown(odd[0])} differs). {_CURE}")


_CURE = "Remove it; samples that are there are then built again only with --force"


def _stored(path: str) -> str | bytes:
    """Return a path as the manifest stores it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _state(path: str | bytes, size_bytes: int, mtime_ns: int, digest: str) -> FileState:
    return FileState(os.fsdecode(path), size_bytes, mtime_ns, digest)


def rows_hash(database: apsw.Connection) -> str:
    """Return the hash of all rows of a sequence database. It equals `Recorded.rows_hash` unless rows have changed.

    Reads the whole database, and needs the memory of its longest sequence.

    Args:
        database: a connection to the sequence database.

    Returns:
        XXH3 (128 bits) over every (contig ID, length, sequence) in the order of the rows, hexadecimal.

    Raises:
        apsw.Error: SQLite finds the file damaged.
    """
    digest = xxhash.xxh3_128()
    columns = "coalesce(CAST(contig_id AS BLOB), x''), coalesce(CAST(nt_sequence AS BLOB), x'')"
    for contig_id, sequence in database.execute(f"SELECT {columns} FROM sequences ORDER BY rowid"):
        digest.update(b"%b\t%d\t" % (contig_id, len(sequence)))
        digest.update(sequence)
    return digest.hexdigest()


def update_manifest(out: Path, receipts: Iterable[Receipt], complete: Sequence[FileState], settings: str) -> None:
    """Write the manifest with these receipts added.

    Args:
        out: the output folder.
        receipts: of two for the same sample, the later one counts.
        complete: inputs all of whose samples are built.
        settings: the settings that they were built with.
    """
    path = out / schema.MANIFEST_FILE
    with publishing(path) as unfinished:
        if path.exists():
            copy_database(path, unfinished)
        with closing(create_database(unfinished)) as database:
            try:
                database.execute("BEGIN")
                if not path.exists():
                    database.execute(CREATE)
                _check_tables(database, path)
                for receipt in receipts:
                    _record(database, receipt)
                for state in complete:
                    row = _input(database, state)
                    database.execute("UPDATE inputs SET complete_with = ? WHERE input = ?", (settings, row))
                database.execute("COMMIT")
            except apsw.FullError:
                raise
            except READ_ERRORS as error:
                raise DatabaseError(f"{unreadable(path, error)}. {_CURE}") from error


def _record(database: apsw.Connection, receipt: Receipt) -> None:
    inputs = [_input(database, state) for state in receipt.inputs]
    for built in receipt.built:
        result = built.result
        database.execute(
            "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?)",
            (result.sample, receipt.settings, result.contigs, result.bases, result.bytes_on_disk, result.rows_hash),
        )
        database.execute("DELETE FROM sample_inputs WHERE sample = ?", (result.sample,))
        database.executemany(
            "INSERT INTO sample_inputs VALUES (?, ?, ?)",
            ((result.sample, position, inputs[i]) for position, i in enumerate(built.inputs)),
        )


def _input(database: apsw.Connection, state: FileState) -> int:
    """Return the row of an input, and add it if it is missing."""
    return int(
        database.execute(
            "INSERT INTO inputs (path, size_bytes, mtime_ns, hash) VALUES (?, ?, ?, ?) ON CONFLICT (path, hash) "
            "DO UPDATE SET size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns RETURNING input",
            (_stored(state.path), *state[1:]),
        ).get
    )
