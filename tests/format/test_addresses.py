"""Addresses of contigs, compared with SQLite's own answers, on databases made in every way that SQLite allows."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sharded_eden.errors import DatabaseError, MissingDatabase
from sharded_eden.format.pages import addresses as module
from sharded_eden.format.pages.addresses import REASONS, Addresses, read_addresses
from sharded_eden.format.pages.recorded import addresses_of, record_addresses, record_path

PLAIN = "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)"
LOCK_BYTE = 1 << 30


def base_by_arithmetic(file: int, page_bytes: int, at: int, local: int, overflow: int, b: int) -> bytes:
    """One base, read in the simplest way that the docstring of `sharded_eden.format.index` describes."""
    if b < local:
        return os.pread(file, 1, at + b)
    k, rest = divmod(b - local, page_bytes - 4)
    lock_page = LOCK_BYTE // page_bytes + 1
    page = overflow + k
    if overflow < lock_page <= page:
        page += 1
    return os.pread(file, 1, (page - 1) * page_bytes + 4 + rest)


def check(path: Path, *, bases: int = 40) -> Addresses:
    """Compare addressed bases with SQLite's, at the places where a page ends and at random ones."""
    found = read_addresses(path)
    file = os.open(path, os.O_RDONLY)
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
            for contig_id, length, at, local, overflow, reason in found.contigs.iter_rows():
                assert (at >= 0) == (reason == 0), REASONS[reason]
                if at < 0:
                    continue
                rows = database.execute(
                    "SELECT nt_sequence, length(nt_sequence), substr(nt_sequence, ?2) FROM sequences WHERE contig_id = ?1",
                    (contig_id, max(1, length - 3)),
                ).fetchall()
                assert len(rows) == 1
                sequence, characters, end = rows[0]
                assert characters == length == len(sequence) == len(sequence.encode())
                assert sequence.endswith(end)
                room = found.page_bytes - 4
                places = {0, local - 1, local, local + room - 1, local + room, length - 1, length // 2}
                places |= {random.Random(length + k).randrange(max(1, length)) for k in range(bases)}
                for b in places:
                    if 0 <= b < length:
                        got = base_by_arithmetic(file, found.page_bytes, at, local, overflow, b)
                        assert got == sequence[b].encode(), (contig_id, b)
    finally:
        os.close(file)
    return found


def make(path: Path, create: str = PLAIN, rows: Sequence[tuple[object, ...]] = (), *, before: str = "") -> Path:
    """Make a database."""
    with closing(apsw.Connection(str(path))) as database:
        database.execute(f"PRAGMA synchronous = OFF; {before}")
        database.execute(f"BEGIN; {create}")
        for row in rows:
            database.execute(f"INSERT INTO sequences VALUES ({', '.join('?' * len(row))})", row)
        database.execute("COMMIT")
    return path


def reasons(found: Addresses) -> set[str]:
    return {REASONS[k] for k in found.contigs["reason"]}


def dna(size: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGTacgtN", k=size))


SOME_DNA = dna(10_000)

SCHEMAS = {
    "plain": PLAIN,
    "no key": "CREATE TABLE sequences (contig_id TEXT, nt_sequence TEXT)",
    "no types": "CREATE TABLE sequences (contig_id PRIMARY KEY, nt_sequence)",
    "other order": "CREATE TABLE sequences (nt_sequence TEXT, contig_id TEXT PRIMARY KEY)",
    "more before": "CREATE TABLE sequences (note TEXT DEFAULT 'abc', contig_id TEXT PRIMARY KEY, n REAL, nt_sequence TEXT)",
    "more after": "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT, note TEXT)",
    "alias": "CREATE TABLE sequences (k INTEGER PRIMARY KEY, contig_id TEXT UNIQUE, nt_sequence TEXT)",
    "nocase": "CREATE TABLE sequences (contig_id TEXT COLLATE NOCASE PRIMARY KEY, nt_sequence TEXT)",
    "numeric id": "CREATE TABLE sequences (contig_id NUMERIC PRIMARY KEY, nt_sequence TEXT)",
    "virtual column": "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, up AS (upper(contig_id)), nt_sequence TEXT)",
    "stored column": "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, up AS (upper(contig_id)) STORED, nt_sequence TEXT)",
    "without rowid": "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT) WITHOUT ROWID",
    "blob": "CREATE TABLE sequences (contig_id BLOB PRIMARY KEY, nt_sequence BLOB)",
    "numeric sequence": "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence NUMERIC)",
}

sizes = st.one_of(st.integers(0, 60), st.integers(400, 600), st.integers(0, 9_000), st.integers(4_000, 4_200))
sequences = st.builds(dna, sizes, st.integers(0, 9))
foreign = st.sampled_from(
    [None, 7, 1.5, b"ACGT", b"\0" * 3000, "AC\u00e9" + "G" * 2000, "A" * 3000 + "\u00e9", "AC\0GT", "12345", ""]
)
ids = st.one_of(
    st.integers(0, 30).map(lambda k: f"BCR__ECT-S1__CT1-{k}"),
    st.sampled_from(["a", "A", "7", "007", "", "\u00e9", "x\ny", "a,b"]),
    st.integers(300, 6_000).map(lambda k: "L" * k),
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), ids, sequences),
        st.tuples(st.just("insert"), ids, sequences),
        st.tuples(st.just("insert"), ids, foreign),
        st.tuples(st.just("update"), ids, st.one_of(sequences, foreign)),
        st.tuples(st.just("delete"), ids, st.just("")),
        st.tuples(
            st.sampled_from(["vacuum", "add column", "other table", "incremental vacuum"]), st.just(""), sequences
        ),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    schema=st.sampled_from([*SCHEMAS, *["plain"] * 8]),
    page_bytes=st.sampled_from([512, 1024, 4096, 16_384, 65_536]),
    auto_vacuum=st.sampled_from([0, 0, 0, 1, 2]),
    encoding=st.sampled_from(["UTF-8"] * 6 + ["UTF-16le"]),
    journal=st.sampled_from(["DELETE", "DELETE", "DELETE", "WAL"]),
    reserved=st.sampled_from([0, 0, 0, 0, 8]),
    todo=operations,
)
def test_addressed_bases_are_those_that_sqlite_finds(
    tmp_path_factory, schema, page_bytes, auto_vacuum, encoding, journal, reserved, todo
):
    path = tmp_path_factory.mktemp("db") / "x.sqlite"
    with closing(apsw.Connection(str(path))) as database:
        if reserved:
            database.reserve_bytes(reserve=reserved)
        database.execute(
            f"PRAGMA page_size = {page_bytes}; PRAGMA auto_vacuum = {auto_vacuum}; PRAGMA encoding = '{encoding}'; "
            f"PRAGMA journal_mode = {journal}; PRAGMA synchronous = OFF"
        )
        database.execute(SCHEMAS[schema])
        database.execute("CREATE TABLE other (v)")
        added = 0
        for what, contig_id, value in todo:
            try:
                if what == "insert":
                    database.execute("INSERT INTO sequences (contig_id, nt_sequence) VALUES (?, ?)", (contig_id, value))
                elif what == "update":
                    database.execute("UPDATE sequences SET nt_sequence = ? WHERE contig_id = ?", (value, contig_id))
                elif what == "delete":
                    database.execute("DELETE FROM sequences WHERE contig_id = ?", (contig_id,))
                elif what == "vacuum":
                    database.execute("VACUUM")
                elif what == "incremental vacuum":
                    database.execute("PRAGMA incremental_vacuum")
                elif what == "add column":
                    added += 1
                    database.execute(f"ALTER TABLE sequences ADD COLUMN more{added} TEXT DEFAULT 'ACGT'")
                else:
                    database.execute("INSERT INTO other VALUES (?)", (value,))
            except apsw.ConstraintError:
                continue
    found = check(path)
    if schema == "plain" and encoding == "UTF-8" and journal == "DELETE" and not reserved:
        assert not found.without
        only_inserts = all(what in {"insert", "vacuum"} and len(contig_id) < 300 for what, contig_id, _ in todo)
        if only_inserts and not auto_vacuum:
            assert reasons(found) <= {REASONS[k] for k in (module.PROVEN, module.NOT_TEXT, module.NOT_ASCII)}
    else:
        wants = {"nocase", "numeric id", "virtual column", "stored column", "without rowid"}
        bad = encoding != "UTF-8" or journal == "WAL" or reserved or schema in wants
        assert bool(found.without) == bool(bad)


def test_a_database_as_build_writes_it_has_addresses_for_all(tmp_path):
    rows = [(f"BCR__ECT-S__CT1-{k}", dna(size, k)) for k, size in enumerate([0, 1, 4000, 4061, 4062, 9000, 50_000])]
    found = check(make(tmp_path / "x.sqlite", rows=rows))
    assert reasons(found) == {""}
    assert found.contigs["length"].to_list() == [len(row[1]) for row in rows]
    assert found.digest == xxhash.xxh3_128((tmp_path / "x.sqlite").read_bytes()).digest()


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ("nocase", "collation NOCASE"),
        ("numeric id", "type NUMERIC"),
        ("virtual column", "generated"),
        ("stored column", "generated"),
        ("without rowid", "WITHOUT ROWID"),
    ],
)
def test_whole_databases_without_addresses_say_why(tmp_path, schema, word):
    path = make(tmp_path / "x.sqlite", SCHEMAS[schema])
    assert word in read_addresses(path).without


def test_a_view_has_no_addresses(tmp_path):
    path = make(tmp_path / "x.sqlite", "CREATE TABLE t (contig_id TEXT, nt_sequence TEXT)")
    with closing(apsw.Connection(str(path))) as database:
        database.execute("CREATE VIEW sequences AS SELECT * FROM t")
    assert "view" in read_addresses(path).without


def test_a_write_ahead_log_beside_it_leaves_no_addresses(tmp_path):
    path = make(tmp_path / "x.sqlite", rows=[("a", "ACGT")])
    (tmp_path / "x.sqlite-wal").write_bytes(b"")
    assert "-wal" in read_addresses(path).without
    (tmp_path / "x.sqlite-wal").unlink()
    (tmp_path / "x.sqlite-journal").write_bytes(b"")
    assert "-journal" in read_addresses(path).without


def test_wal_mode_and_utf16_leave_no_addresses(tmp_path):
    assert "WAL" in read_addresses(make(tmp_path / "a", rows=[("a", "A")], before="PRAGMA journal_mode = WAL")).without
    assert (
        "UTF-16" in read_addresses(make(tmp_path / "b", rows=[("a", "A")], before="PRAGMA encoding = 'UTF-16'")).without
    )


def test_a_row_from_before_add_column_has_its_default_read_by_sqlite(tmp_path):
    path = make(tmp_path / "x.sqlite", "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY)", [("old",)])
    with closing(apsw.Connection(str(path))) as database:
        database.execute("ALTER TABLE sequences ADD COLUMN nt_sequence TEXT DEFAULT 'ACGT'")
        database.execute("INSERT INTO sequences VALUES ('new', 'TTTT')")
    found = check(path)
    assert dict(found.contigs.select("contig_id", "at").with_columns(at=found.contigs["at"] >= 0).iter_rows()) == {
        "old": False,
        "new": True,
    }


def test_an_id_that_appears_twice_has_no_address(tmp_path):
    path = make(tmp_path / "x.sqlite", SCHEMAS["no key"], [("a", "ACGT"), ("b", "AC"), ("a", "TTTT")])
    found = read_addresses(path)
    assert found.contigs.filter(found.contigs["at"] >= 0)["contig_id"].to_list() == ["b"]


def test_columns_after_the_sequence_that_continue_elsewhere_cost_the_address(tmp_path):
    path = make(tmp_path / "x.sqlite", SCHEMAS["more after"], [("a", dna(5000), "x" * 9000), ("b", dna(9000), "y")])
    found = check(path)
    assert dict(zip(found.contigs["contig_id"], found.contigs["reason"], strict=True)) == {
        "a": module.COLUMNS_AFTER,
        "b": module.PROVEN,
    }


def test_scattered_overflow_pages_have_no_address(tmp_path):
    path = tmp_path / "x.sqlite"
    make(path, rows=[(f"c{k}", dna(5000, k)) for k in range(40)])
    with closing(apsw.Connection(str(path))) as database:
        for k in range(0, 40, 2):
            database.execute("DELETE FROM sequences WHERE contig_id = ?", (f"c{k}",))
        for k in range(5):
            database.execute("INSERT INTO sequences VALUES (?, ?)", (f"long{k}", dna(30_000, k)))
    found = check(path)
    assert REASONS[module.SCATTERED] in reasons(found)
    with closing(apsw.Connection(str(path))) as database:
        database.execute("VACUUM")
    assert reasons(check(path)) == {""}


def test_damaged_trees_are_errors(tmp_path):
    path = make(tmp_path / "x.sqlite", rows=[(f"c{k}", dna(300, k)) for k in range(5000)])
    good = path.read_bytes()
    with closing(apsw.Connection(str(path))) as database:
        root = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'sequences'").get
    base = (root - 1) * 4096
    assert good[base] == 5
    child = int.from_bytes(good[base + 8 : base + 12], "big")
    for at, value in (
        (base + 8, (1 << 30).to_bytes(4, "big")),  # a child outside the file
        (base + 8, root.to_bytes(4, "big")),  # a tree that contains itself
        (base, b"\x0a"),  # an interior page of another kind
        ((child - 1) * 4096, b"\x02"),
        ((child - 1) * 4096 + 3, b"\xff\xff"),  # more cells than fit
        ((child - 1) * 4096 + 8, b"\xff\xff"),  # a cell outside the page
    ):
        path.write_bytes(good[:at] + value + good[at + len(value) :])
        with pytest.raises(DatabaseError, match="damaged"):
            read_addresses(path)
    path.write_bytes(good[:-100])
    with pytest.raises(DatabaseError):
        read_addresses(path)
    with pytest.raises(MissingDatabase):
        read_addresses(tmp_path / "none.sqlite")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), changes=st.integers(1, 6))
@example(seed=682474, changes=6)
def test_random_damage_is_an_error_or_costs_addresses_but_never_lies(tmp_path_factory, seed, changes):
    folder = tmp_path_factory.mktemp("damage")
    path = make(
        folder / "x.sqlite", rows=[(f"c{k}", SOME_DNA[: k * 37]) for k in range(120)], before="PRAGMA page_size = 1024"
    )
    data = bytearray(path.read_bytes())
    random_ = random.Random(seed)
    for _ in range(changes):
        page = random_.randrange(1, len(data) // 1024)
        data[page * 1024 + random_.choice([random_.randrange(16), random_.randrange(1024)])] = random_.randrange(256)
    path.write_bytes(data)
    try:
        found = read_addresses(path)
    except DatabaseError:
        return
    file = os.open(path, os.O_RDONLY)
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        for contig_id, length, at, local, overflow, _ in found.contigs.iter_rows():
            if at < 0:
                continue
            try:
                row = database.execute(
                    "SELECT CAST(nt_sequence AS BLOB) FROM sequences NOT INDEXED WHERE contig_id = ?", (contig_id,)
                ).get
            except apsw.Error:
                continue
            if row is not None and len(row) == length:
                for b in {*range(0, length, 199), *range(length)[-1:]}:
                    assert base_by_arithmetic(file, 1024, at, local, overflow, b) == row[b : b + 1]
    os.close(file)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = make(tmp_path / "x.sqlite", rows=[("a", dna(5_000_000))])
    with pytest.raises(DatabaseError, match="changed while it was read"):
        read_addresses(path, progress=lambda size_bytes: os.utime(path, ns=(1, 1)))


def test_recorded_addresses_are_used_for_the_same_file_and_for_its_copies_only(tmp_path):
    path = make(tmp_path / "x.sqlite", rows=[("a", dna(9000)), ("b", dna(100))])
    record_addresses(path, record_path(path))
    found, bytes_read = addresses_of(path)
    assert bytes_read == 0
    assert found.contigs.equals(read_addresses(path).contigs)
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())
    record_path(copy).write_bytes(record_path(path).read_bytes())
    found, bytes_read = addresses_of(copy)
    assert bytes_read == copy.stat().st_size
    assert found.identity.inode == copy.stat().st_ino
    assert found.contigs.equals(read_addresses(path).contigs)
    # Other bases of the same lengths: the same size, the same pages, the same first bytes.
    make(other := tmp_path / "other.sqlite", rows=[("a", dna(9000, 5)), ("b", dna(100, 5))])
    record_path(other).write_bytes(record_path(path).read_bytes())
    found, bytes_read = addresses_of(other)
    assert bytes_read == 2 * other.stat().st_size
    assert found.digest == read_addresses(other).digest
    record_path(path).write_bytes(b"no parquet")
    assert addresses_of(path)[1] == path.stat().st_size


@pytest.mark.slow
def test_addresses_go_on_after_the_page_that_sqlite_locks(tmp_path):
    path = tmp_path / "x.sqlite"
    with closing(apsw.Connection(str(path))) as database:
        database.execute("PRAGMA page_size = 65536; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        database.execute(PLAIN)
        block = dna(1_000_003)
        for k in range(5):
            database.execute("INSERT INTO sequences VALUES (?, ?)", (f"c{k}", block * 230))
        for k in range(20):
            database.execute("INSERT INTO sequences VALUES (?, ?)", (f"short{k}", block[k : k + 70_000]))
    assert path.stat().st_size > 1.1e9
    found = check(path, bases=2000)
    assert reasons(found) == {""}
    lock_page = LOCK_BYTE // 65_536 + 1
    across = found.contigs.filter(
        (found.contigs["overflow"] < lock_page)
        & (found.contigs["overflow"] + found.contigs["length"] // 65_532 > lock_page)
    )
    assert across.height == 1
