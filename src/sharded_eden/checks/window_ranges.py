"""Finds the samples that the windows of a split name, and where their IDs are in the index on `sequence_id`.

Input: an open window database. Output: ranges of IDs. Costs one seek for each sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw

from sharded_eden.errors import DatabaseError
from sharded_eden.format import schema
from sharded_eden.format.publish import create_database
from sharded_eden.format.sqlite import attach_read_only

Range = tuple[str, str | None]
"""IDs from the first (included) to the second (not included; None for no end)."""

EVERYTHING: Range = ("", None)


def prefixes(connection: apsw.Connection) -> Iterator[tuple[str, Range]]:
    """Yield, for each distinct `TAG__X-SAMPLE`, one ID with this beginning and the range of all of them; one seek each."""
    least, seen = "", set()
    while True:
        found = connection.execute(
            "SELECT sequence_id FROM window_mappings WHERE sequence_id >= ? AND typeof(sequence_id) = 'text' "
            "ORDER BY sequence_id LIMIT 1",
            (least,),
        ).get
        if found is None:
            return
        parts = found.split("__", 2)
        # The smallest string above every string with this prefix: '_' is followed by '`'.
        prefix = f"{parts[0]}__{parts[1]}__" if len(parts) > 2 else ""
        low, high = (prefix, f"{prefix[:-1]}`") if prefix else (found, f"{found}\0")
        if low in seen:
            raise DatabaseError(f"the index on sequence_id leads from {least!r} back to {found!r}: it is damaged")
        seen.add(low)
        yield found, (low, high)
        least = high


def copy_with_index(path: Path, copy: Path, encoding: str, has_lengths: bool) -> None:
    """Write a copy of the tables that samples are joined with, and add the missing index."""
    with closing(create_database(copy)) as database:
        database.execute(f"PRAGMA encoding = '{encoding}'")
        attach_read_only(database, path, "source")
        database.execute(schema.CREATE_WINDOW_MAPPINGS)
        database.execute(
            "INSERT INTO window_mappings SELECT window_idx, sequence_id, window_in_seq_idx FROM source.window_mappings"
        )
        database.execute(schema.CREATE_SEQUENCE_ID_INDEX)
        if has_lengths:
            database.execute(schema.CREATE_CONTIG_LENGTHS)
            database.execute("INSERT INTO contig_lengths SELECT first_window_idx, length FROM source.contig_lengths")
