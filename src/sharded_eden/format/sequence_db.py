"""What is wrong with a sequence database, as a list: the loader raises the first problem, `verify` reports all.

Costs a few pragmas. A table whose `contig_id` has no unique index is read once, to find duplicate contigs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw

from sharded_eden.errors import printable, shown
from sharded_eden.format.commands import build_command
from sharded_eden.format.schema import CONTIG_ID
from sharded_eden.format.sqlite import Problem, limit_query_time, table_columns, table_kind

COLUMNS = {CONTIG_ID, "nt_sequence"}
ROWID_NAMES = ("rowid", "_rowid_", "oid")


def columns_found(table: str, columns: list[str]) -> str:
    """Return the columns of a table as messages list them."""
    return printable(f"{table}({', '.join(columns)})", 200) if columns else "none"


def sequence_db_problems(database: apsw.Connection, path: Path) -> Iterator[Problem]:
    """Yield the problems that make a sequence database unusable.

    Args:
        database: the open database. Where `sequences` is no ordinary table, its queries get a time limit.
        path: its file.

    Raises:
        apsw.Error: it cannot be read.
        UnicodeError: its text cannot be decoded.
    """
    fix = build_command(path.parent.parent, force=True)
    if table_kind(database, "sequences") not in {"table", "WITHOUT ROWID table"}:
        limit_query_time(database)
    columns = table_columns(database, "sequences")
    if not set(columns) >= COLUMNS:
        found = columns_found("sequences", columns)
        yield Problem("schema", f"expected a table sequences(contig_id, nt_sequence), found {found}", fix)
        return
    if not _is_unique(database):
        twice = database.execute(
            "SELECT contig_id, count(*) FROM sequences GROUP BY contig_id COLLATE BINARY HAVING count(*) > 1 LIMIT 1"
        ).get
        if twice is not None:
            yield Problem("contig", f"contig {shown(twice[0])} is in it {twice[1]} times", fix)


def rowid_name(database: apsw.Connection) -> str | None:
    """Return a name of the row number that no column of `sequences` has; None where columns have all three names."""
    taken = {column.lower() for column in table_columns(database, "sequences")}
    return next((name for name in ROWID_NAMES if name not in taken), None)


def blob_obstacle(database: apsw.Connection) -> str:
    """Return why incremental BLOB I/O does not work on the sequences; empty where it works."""
    encoding = str(database.pragma("encoding"))
    if encoding != "UTF-8":
        return f"its encoding is {encoding}"
    kind = table_kind(database, "sequences")
    if kind != "table":
        return f"sequences is a {kind}"
    if database.execute("SELECT 1 FROM pragma_table_xinfo('sequences') WHERE hidden IN (2, 3)").get:
        return "sequences has a generated column"
    return "" if rowid_name(database) else "columns of sequences have all names of the row number"


def _is_unique(database: apsw.Connection) -> bool:
    """Return whether a unique index on `contig_id` excludes duplicates."""
    return bool(
        database.execute(
            "SELECT 1 FROM pragma_index_list('sequences') AS i WHERE i.\"unique\" AND NOT i.partial AND "
            "(SELECT group_concat(c.name) FROM pragma_index_xinfo(i.name) AS c WHERE c.key) = 'contig_id' COLLATE NOCASE"
        ).get
    )
