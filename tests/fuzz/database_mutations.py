"""Mutations of SQLite files: statements that other programs may run in them, their schema as text, and their pages."""

from __future__ import annotations

import random
import sqlite3
import struct
from contextlib import closing, suppress
from pathlib import Path

from mutations import BINARY_MUTATIONS, mutate

VALUES = (
    "NULL", "''", "'x'", "'5'", "5", "0", "-1", "1.5", "1e300", "9223372036854775807", "-9223372036854775808", "2147483648",
    "x''", "x'ff80'", "x'41434754'",
    "zeroblob(9)", "CAST(x'ff80' AS TEXT)", "'a' || char(0) || 'b'", "'ACGT'", "'acgtN'", "'é'",
    "'='", "hex(zeroblob(5000))", "'BCR__ECT-S0__CT1-1'", "'BCR__ECT-S9__CT1-1'", "'a__'", "'Meta'", "64", "50", "7", "1", "2",
    "'ACG-T'",
)  # fmt: skip
NAMES = (
    "rowid",
    "_rowid_",
    "oid",
    "x y",
    'q"q',
    "é",
    "CON",
    "sequences2",
    "packs",
    "contig_lengths",
    "sqlite",
    "window_mappings",
)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(database: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA table_xinfo({_quoted(table)})")]


def change_rows(choose: random.Random, database: sqlite3.Connection, table: str) -> None:
    """Change, remove, add, repeat or exchange values and rows."""
    columns = [_quoted(name) for name in _columns(database, table)]
    column, name = choose.choice(columns), _quoted(table)
    (rows,) = database.execute(f"SELECT count(*) FROM {name}").fetchone()
    row = f"(SELECT {columns[0]} FROM {name} LIMIT 1 OFFSET {choose.randrange(max(1, rows))})"
    what = choose.randrange(7)
    if what <= 2:
        where = "" if choose.random() < 0.15 else f" WHERE {columns[0]} = {row}"
        database.execute(f"UPDATE OR REPLACE {name} SET {column} = {choose.choice(VALUES)}{where}")
    elif what == 3:
        database.execute(f"DELETE FROM {name} WHERE {columns[0]} = {row}")
    elif what == 4:
        values = ", ".join(choose.choice((*VALUES, column)) for column in columns)
        database.execute(f"INSERT OR REPLACE INTO {name} SELECT {values} FROM {name} LIMIT 1")
    elif what == 5:
        other = f"(SELECT {column} FROM {name} LIMIT 1 OFFSET {choose.randrange(max(1, rows))})"
        database.execute(f"UPDATE OR REPLACE {name} SET {column} = {other} WHERE {columns[0]} = {row}")
    else:
        number = choose.choice((f"{column} + 1", f"{column} - 1", f"-{column}", f"{column} * 1.0", f"CAST({column} AS TEXT)",
                                f"CAST({column} AS BLOB)", f"substr({column}, 2)", f"{column} || 'A'", f"lower({column})",
                                f"substr({column}, 1, length({column}) - 1)", f"reverse_of_nothing({column})"))  # fmt: skip
        database.execute(f"UPDATE OR REPLACE {name} SET {column} = {number} WHERE {columns[0]} = {row}")


def change_table(choose: random.Random, database: sqlite3.Connection, table: str) -> None:
    """Write a table again with other keys, types, columns or their order; or put a view in its place."""
    columns = _columns(database, table)
    old, name = _quoted(f"{table}_old"), _quoted(table)
    database.execute(f"ALTER TABLE {name} RENAME TO {old}")
    listed = ", ".join(map(_quoted, columns))
    what = choose.randrange(16)
    key, rest = _quoted(columns[0]), ", ".join(map(_quoted, columns[1:]))
    kind = choose.choice(("", "TEXT", "INTEGER", "BLOB", "REAL", "NUMERIC", "ANY"))
    if what == 0:
        database.execute(f"CREATE TABLE {name} ({listed})")
    elif what == 1:
        database.execute(f"CREATE TABLE {name} ({key} PRIMARY KEY NOT NULL, {rest}) WITHOUT ROWID")
    elif what == 2:
        database.execute(f"CREATE TABLE {name} ({rest}, {key} {kind} UNIQUE)")
    elif what == 3:
        database.execute(f"CREATE TABLE {name} (extra DEFAULT 'ACGT', {key} {kind} PRIMARY KEY, {rest})")
    elif what == 4:
        database.execute(f"CREATE TABLE {name} ({key} {kind} COLLATE NOCASE PRIMARY KEY, {rest} {kind})")
    elif what == 5:
        database.execute(
            f"CREATE TABLE {name} ({key} PRIMARY KEY, {rest}, made AS (upper({key})) STORED, other AS (1) VIRTUAL)"
        )
    elif what == 6:
        database.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, {listed}, rowid, _rowid_, oid)")
    elif what == 7:
        database.execute(f"CREATE VIEW {name} AS SELECT * FROM {old}")
        return
    elif what == 8:
        endless = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n)"
        parts = ", ".join(f"'BCR__ECT-S0__CT1-' || i AS {_quoted(column)}" if i % 2 else f"i AS {_quoted(column)}"
                          for i, column in enumerate(columns))  # fmt: skip
        database.execute(f"CREATE VIEW {name} AS {endless} SELECT {parts} FROM n")
        return
    elif what == 9:
        database.execute(
            f"CREATE VIEW {name} AS SELECT {key}, no_such_function({rest}) AS {_quoted(columns[-1])} FROM {old}"
        )
        return
    elif what == 10:
        database.execute(
            f"CREATE TABLE {name} ({key} TEXT PRIMARY KEY, {rest}) STRICT".replace(f"{rest})", f"{rest} ANY)")
        )
    elif what == 11:
        database.execute(f"CREATE TABLE {name} ({key} {kind}, {rest})")
        database.execute(f"CREATE INDEX {_quoted(table + '_i')} ON {name}({key}) WHERE {key} > 'M'")
    elif what == 12:
        database.execute(f"CREATE TABLE {name} ({key} {kind}, {rest})")
        database.execute(f"CREATE UNIQUE INDEX {_quoted(table + '_i')} ON {name}(lower({key}) DESC)")
    elif what == 13:
        generated = _quoted(columns[-1])
        kept = ", ".join(map(_quoted, columns[:-1]))
        database.execute(f"CREATE TABLE {name} ({kept}, hidden, {generated} AS (hidden))")
        database.execute(f"INSERT INTO {name} SELECT {listed} FROM {old}")
        database.execute(f"DROP TABLE {old}")
        return
    elif what == 14:
        database.execute(f"CREATE VIRTUAL TABLE {name} USING fts5({listed})")
    else:
        database.execute(f"CREATE TABLE {name} ({', '.join(f'{_quoted(c)} {kind}' for c in columns)})")
        database.execute(f"INSERT INTO {name} ({listed}) SELECT {listed} FROM {old}")
    order = choose.choice(("", " ORDER BY random()", f" ORDER BY {key} DESC"))
    database.execute(f"INSERT OR IGNORE INTO {name} ({listed}) SELECT {listed} FROM {old}{order}")
    database.execute(f"DROP TABLE {old}")


def add_object(choose: random.Random, database: sqlite3.Connection, table: str) -> None:
    """Add a trigger, a table, an index, or a column; remove an index."""
    name = _quoted(table)
    columns = [_quoted(column) for column in _columns(database, table)]
    what = choose.randrange(7)
    if what == 0:
        event = choose.choice(("INSERT", "UPDATE", "DELETE"))
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        target = choose.choice(tables)
        change = f"UPDATE {name} SET {columns[-1]} = {choose.choice(VALUES)}"
        if choose.random() < 0.3:
            change = f"DELETE FROM {name}"
        database.execute(
            f"CREATE TRIGGER t{choose.randrange(9)} AFTER {event} ON {_quoted(target)} BEGIN {change}; END"
        )
    elif what == 1:
        database.execute(f"CREATE TABLE {_quoted(choose.choice(NAMES))} (a, b, {_quoted(choose.choice(NAMES))})")
    elif what == 2:
        default = choose.choice(("5", "NULL", "'ACGT'"))
        database.execute(f"ALTER TABLE {name} ADD COLUMN {_quoted(choose.choice(NAMES))} DEFAULT {default}")
    elif what == 3:
        for (index,) in database.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall():
            database.execute(f"DROP INDEX {_quoted(index)}")
    elif what == 4:
        database.execute(
            f"ALTER TABLE {name} RENAME COLUMN {choose.choice(columns)} TO {_quoted(choose.choice(NAMES))}"
        )
    elif what == 5:
        database.execute(f"ALTER TABLE {name} RENAME TO {_quoted(choose.choice(NAMES))}")
    else:
        database.execute(f"DROP TABLE {name}")


def change_schema_text(choose: random.Random, database: sqlite3.Connection, table: str) -> None:
    """Change what the schema says, as text: names, root pages, statements."""
    database.execute("PRAGMA writable_schema = ON")
    what = choose.randrange(5)
    where = f"WHERE rowid = (SELECT rowid FROM sqlite_schema ORDER BY (rowid * {choose.randrange(1, 99)}) % 7 LIMIT 1)"
    if what == 0:
        database.execute(f"UPDATE sqlite_schema SET rootpage = {choose.choice((0, 1, 2, 3, 4, 5, -1, 99))} {where}")
    elif what == 1:
        sql = choose.choice(("'garbage'", "NULL", "x'ff'", "sql || ' x'", "replace(sql, 'TEXT', 'INTEGER')",
                             "replace(sql, 'INTEGER', 'TEXT')",
                             "replace(sql, 'PRIMARY KEY', '')", "replace(sql, ',', ', extra,')",
                             "replace(sql, '_', CAST(x'ff' AS TEXT))"))  # fmt: skip
        database.execute(f"UPDATE sqlite_schema SET sql = {sql} {where}")
    elif what == 2:
        database.execute(f"UPDATE sqlite_schema SET name = {choose.choice(VALUES)} {where}")
    elif what == 3:
        kind = choose.choice(("'view'", "'table'", "'index'", "'trigger'", "NULL"))
        database.execute(f"UPDATE sqlite_schema SET type = {kind} {where}")
    else:
        database.execute(f"DELETE FROM sqlite_schema {where}")


def change_settings(choose: random.Random, path: Path) -> None:
    """Write the whole database again with another page size, encoding or journal, or leave a log beside it."""
    what = choose.randrange(7)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        if what == 0:
            database.execute(f"PRAGMA page_size = {choose.choice((512, 1024, 8192, 65536))}")
            database.execute("VACUUM")
        elif what == 1:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE IF NOT EXISTS z (a)")
        elif what == 2:
            database.execute(f"PRAGMA auto_vacuum = {choose.choice((1, 2))}")
            database.execute("VACUUM")
        elif what == 3:
            database.execute(f"PRAGMA user_version = {choose.choice((0, 1, 2, 99, -1))}")
        elif what == 4:
            rows = list(database.iterdump())
            path.unlink()
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute(f"PRAGMA encoding = '{choose.choice(('UTF-16le', 'UTF-16be'))}'")
                other.executescript("\n".join(rows))
        elif what == 5:
            ending = choose.choice(("-wal", "-journal", "-shm"))
            path.with_name(path.name + ending).write_bytes(choose.choice((b"", b"x" * 600, path.read_bytes()[:4096])))
        else:
            database.execute("PRAGMA journal_mode = PERSIST")
            database.execute("CREATE TABLE z9 (a)")


def change_pages(choose: random.Random, path: Path) -> None:
    """Change the header of the file, of a page, a cell, a pointer to an overflow page; exchange or repeat pages."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    size = 65_536 if size == 1 else max(size, 512)
    for _ in range(choose.choice((1, 1, 2, 3))):
        page = choose.randrange(max(1, len(data) // size))
        start = page * size
        header = start + (100 if page == 0 else 0)
        what = choose.randrange(7)
        if what == 0:
            data[choose.randrange(100)] = choose.randrange(256)
        elif what == 1:
            data[header + choose.randrange(12)] = choose.choice((0, 1, 2, 5, 10, 13, 255, choose.randrange(256)))
        elif what == 2:
            at = header + 8 + 2 * choose.randrange(8)
            data[at : at + 2] = struct.pack(
                ">H", choose.choice((0, 8, size - 4, size % 65_536, choose.randrange(65_536)))
            )
        elif what == 3:
            data[start : start + 4] = struct.pack(
                ">I", choose.choice((0, 1, page, page + 1, page + 2, 2**31, 4_000_000_000))
            )
        elif what == 4:
            other = choose.randrange(max(1, len(data) // size)) * size
            data[start : start + size], data[other : other + size] = (
                data[other : other + size],
                data[start : start + size],
            )
        elif what == 5:
            pointer = int.from_bytes(data[header + 8 : header + 10], "big")
            at = start + min(pointer, size - 12)
            data[at + choose.randrange(12)] = choose.choice((0, 1, 127, 128, 255, choose.randrange(256)))
        else:
            data[start + choose.randrange(size)] = choose.randrange(256)
    path.write_bytes(data)


def mutate_database(choose: random.Random, path: Path) -> str:
    """Change a database; return what was done. Statements that SQLite refuses change nothing."""
    what = choose.choice(
        ("rows", "rows", "rows", "table", "table", "object", "schema", "settings", "pages", "pages", "bytes", "several")
    )
    if what == "bytes":
        path.write_bytes(mutate(choose, path.read_bytes(), BINARY_MUTATIONS))
        return what
    if what == "pages":
        change_pages(choose, path)
        return what
    with suppress(sqlite3.Error, UnicodeError):
        if what == "settings":
            change_settings(choose, path)
            return what
        changes = {"rows": change_rows, "table": change_table, "object": add_object, "schema": change_schema_text}
        for _ in range(choose.randint(2, 4) if what == "several" else 1):
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = OFF")
                tables = sorted(
                    row[0]
                    for row in database.execute(
                        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
                    )
                )
                change = changes[choose.choice(sorted(changes)) if what == "several" else what]
                database.execute("BEGIN")
                try:
                    change(choose, database, choose.choice(tables))
                    database.execute("COMMIT")
                except (sqlite3.Error, IndexError):
                    database.execute("ROLLBACK")
    return what
