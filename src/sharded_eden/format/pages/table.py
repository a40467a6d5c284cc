"""The table `sequences` as the schema and the header of a file describe it, and why its pages cannot be used."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, printable
from sharded_eden.format.schema import CONTIG_ID
from sharded_eden.format.sqlite import is_mutable_now, open_read_only

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


MAX_COLUMNS = 100
"""Columns after this one are not searched."""


@dataclass(frozen=True)
class SequencesTable:
    """The table `sequences`, as its schema and the header of the file describe it."""

    root: int
    contig_column: int
    sequence_column: int
    page_bytes: int
    is_unique: bool
    """Whether a unique index keeps a contig_id from appearing twice."""


BESIDE = "a -wal or -journal file is beside it"


_UNIQUE = """
SELECT count(*) FROM pragma_index_list(?) AS i WHERE i."unique" AND NOT i.partial
AND (SELECT group_concat(lower(name) || ' ' || coll) FROM pragma_index_xinfo(i.name) WHERE key) = 'contig_id BINARY'"""


def sequences_table(path: Path) -> SequencesTable | str:
    """Return the table, or why its pages cannot be used."""
    if is_mutable_now(path):
        return BESIDE
    with closing(open_read_only(path, io="read")) as database:
        encoding, page_bytes = database.pragma("encoding"), int(database.pragma("page_size"))
        found = database.execute(
            "SELECT type, rootpage, name FROM sqlite_schema WHERE name = 'sequences' COLLATE NOCASE "
            "AND type IN ('table', 'view')"
        ).fetchone()
        if found is None:
            raise DatabaseError(f"{printable(path)}: it has no table sequences")
        kind, root, name = found
        if encoding != "UTF-8":
            return f"its encoding is {encoding}"
        if kind != "table" or not root:
            return "sequences is a view or a virtual table"
        if database.execute("SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", (name,)).get:
            return "its table is WITHOUT ROWID"
        columns = database.execute("SELECT lower(name), hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
        if any(hidden for _, hidden in columns):
            return "its table has generated columns"
        names = [column for column, _ in columns]
        if not {CONTIG_ID, "nt_sequence"} <= set(names):
            raise DatabaseError(
                f"{printable(path)}: expected a table sequences(contig_id, nt_sequence), found columns {names}"
            )
        declared, collation, *_ = database.column_metadata("main", name, CONTIG_ID)
        if (collation or "BINARY").upper() != "BINARY":
            return f"its contig_id has the collation {collation}"
        if not _keeps_text(declared or ""):
            return f"its contig_id has the type {declared}"
        is_unique = database.execute(_UNIQUE, (name,)).get > 0
    table = SequencesTable(int(root), names.index(CONTIG_ID), names.index("nt_sequence"), page_bytes, is_unique)
    if max(table.contig_column, table.sequence_column) >= MAX_COLUMNS:
        return "its table has too many columns"
    return table


def _keeps_text(declared: str) -> bool:
    """Return whether a column of this type stores text unchanged. Source: https://www.sqlite.org/datatype3.html, 3.1."""
    declared = declared.upper()
    if "INT" in declared:
        return False
    return not declared or any(word in declared for word in ("CHAR", "CLOB", "TEXT", "BLOB"))


def unusable(header: bytes, size_bytes: int, page_bytes: int) -> str:
    """Return why the layout of a file is not the one in `sharded_eden.format.index`; empty where it is."""
    if header[18:20] != b"\1\1":
        return "it is in WAL mode (PRAGMA journal_mode = DELETE ends that)"
    if header[20]:
        return "its pages have reserved bytes"
    stated = int.from_bytes(header[28:32], "big")
    if stated and header[24:28] == header[92:96] and stated * page_bytes != size_bytes:
        return "its size is not the one in its header"
    return ""
