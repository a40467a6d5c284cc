"""`build` and `create_sample_database`: the files on disk (read with stdlib sqlite3), and errors."""

from __future__ import annotations

import gzip
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from sharded_eden import build_sequence_dbs, create_sample_database
from sharded_eden.build import sample, scatter, staging
from sharded_eden.errors import DatabaseError, InputError, UsageError

SPECIFIED_SCHEMA = [("contig_id", "TEXT", 0, 1), ("nt_sequence", "TEXT", 1, 0)]  # name, type, NOT NULL, primary key


def fasta(path: Path, records: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in records.items())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def database(out: Path, sample: str) -> Path:
    return out / sample / f"glm_dataset_{sample}.sqlite"


def rows(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        columns = connection.execute('SELECT name, type, "notnull", pk FROM pragma_table_info("sequences")').fetchall()
        assert columns == SPECIFIED_SCHEMA
        return dict(connection.execute("SELECT contig_id, nt_sequence FROM sequences"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_each_record_lies_in_the_database_of_its_sample(tmp_path: Path) -> None:
    first = fasta(tmp_path / "in/gut-1.fa", {"c1 the first": "ACGT", "BCR__ECT-S1__CT1-7 own": "AcgN", "c2": "GG"})
    second = fasta(tmp_path / "in/sub/soil__2.fna.gz", {"c1": "TT", "EUK__X-S-1__c": "R"})
    out = tmp_path / "db"
    result = build_sequence_dbs([tmp_path / "in"], out)
    assert {p.parent.name: rows(p) for p in out.glob("*/*.sqlite")} == {
        "gut.1": {"BCR__ECT-gut.1__CT1-1": "ACGT", "BCR__ECT-gut.1__CT1-2": "GG"},
        "S1": {"BCR__ECT-S1__CT1-7": "AcgN"},
        "soil_2": {"BCR__ECT-soil_2__CT1-1": "TT"},
        "S.1": {"EUK__X-S-1__c": "R"},
    }
    assert (result.samples, result.contigs, result.bases) == (4, 5, 13)
    assert result.bytes_on_disk == sum(p.stat().st_size for p in out.glob("*/*.sqlite"))
    assert result.contigs_parquet == out / "contigs.parquet"
    table = pl.read_parquet(result.contigs_parquet)
    assert dict(table.schema) == {
        "contig_id": pl.String,
        "original_id": pl.String,
        "description": pl.String,
        "sample": pl.String,
        "length": pl.Int64,
        "source_file": pl.String,
    }
    assert table.rows() == [
        ("EUK__X-S-1__c", "EUK__X-S-1__c", "", "S.1", 1, str(second)),
        ("BCR__ECT-S1__CT1-7", "BCR__ECT-S1__CT1-7", "own", "S1", 4, str(first)),
        ("BCR__ECT-gut.1__CT1-1", "c1", "the first", "gut.1", 4, str(first)),
        ("BCR__ECT-gut.1__CT1-2", "c2", "", "gut.1", 2, str(first)),
        ("BCR__ECT-soil_2__CT1-1", "c1", "", "soil_2", 2, str(second)),
    ]
    assert not (out / staging.STAGING).exists()


def test_sample_pools_files_and_counts_over_all_of_them(tmp_path: Path) -> None:
    fasta(tmp_path / "a/x.fa", {"c1": "A", "c2": "C"})
    fasta(tmp_path / "b/x.fa", {"d1": "G"})
    build_sequence_dbs([tmp_path / "a", tmp_path / "b"], tmp_path / "db", tag="ARC", sample="POOL")
    expected = {"ARC__ECT-POOL__CT1-1": "A", "ARC__ECT-POOL__CT1-2": "C", "ARC__ECT-POOL__CT1-3": "G"}
    assert rows(database(tmp_path / "db", "POOL")) == expected


def test_interleaved_samples_and_small_buffers_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contigs = {f"BCR__ECT-S{i % 7}__CT1-{i}": "ACGT" * (1 + i % 5) for i in range(200)}
    path = fasta(tmp_path / "mixed.fa", contigs)
    build_sequence_dbs([path], tmp_path / "whole")
    monkeypatch.setattr(scatter, "GATHER_SAMPLES", 2)
    monkeypatch.setattr(sample, "ROWS_IN_MEMORY", 7)
    build_sequence_dbs([path], tmp_path / "parts")
    for name in (f"S{i}" for i in range(7)):
        expected = {contig: s for contig, s in contigs.items() if f"-{name}_" in contig}
        assert rows(database(tmp_path / "whole", name)) == rows(database(tmp_path / "parts", name)) == expected
    whole, parts = (pl.read_parquet(tmp_path / name / "contigs.parquet") for name in ("whole", "parts"))
    assert whole.equals(parts)


def test_samples_are_added_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "db"
    a = fasta(tmp_path / "a.fa", {"c1": "A"})
    b = fasta(tmp_path / "b.fa", {"c1": "C"})
    build_sequence_dbs([a], out)
    build_sequence_dbs([b], out)
    assert pl.read_parquet(out / "contigs.parquet")["sample"].to_list() == ["a", "b"]
    before = files(out)
    fasta(tmp_path / "a.fa", {"c1": "GGG", "c2": "T"})
    with pytest.raises(UsageError, match=r"a\.fa has changed since sample 'a' was built .*\. --force builds it"):
        build_sequence_dbs([a], out)
    assert files(out) == before
    build_sequence_dbs([a], out, force=True)
    assert rows(database(out, "a")) == {"BCR__ECT-a__CT1-1": "GGG", "BCR__ECT-a__CT1-2": "T"}
    assert rows(database(out, "b")) == {"BCR__ECT-b__CT1-1": "C"}
    table = pl.read_parquet(out / "contigs.parquet").select("sample", "length")
    assert table.rows() == [("a", 3), ("a", 1), ("b", 1)]


def test_samples_without_rows_in_the_table_are_left_alone(tmp_path: Path) -> None:
    create_sample_database("OLD", [("BCR__ECT-OLD__CT1-1", "ACGT")], tmp_path / "db")
    build_sequence_dbs([fasta(tmp_path / "new.fa", {"c": "A"})], tmp_path / "db")
    assert rows(database(tmp_path / "db", "OLD")) == {"BCR__ECT-OLD__CT1-1": "ACGT"}
    assert pl.read_parquet(tmp_path / "db/contigs.parquet")["sample"].to_list() == ["new"]


@pytest.mark.parametrize(
    ("contents", "options", "error", "words"),
    [
        ({"x/s.fa": {"c": "A"}, "y/s.fa": {"c": "A"}}, {}, UsageError, ["x/s.fa", "y/s.fa", "sample 's'", "--sample"]),
        ({"a-1.fa": {"c": "A"}, "a.1.fa": {"c": "A"}}, {}, UsageError, ["a-1.fa", "a.1.fa", "sample 'a.1'"]),
        ({"a.fa": {"c": "A", "d": "A", "c x": "C"}}, {}, InputError, ["a.fa: record 3 (c)", "record 1 of", "'c'"]),
        (
            {"a.fa": {"c": "A", "d": "C"}, "b.fa": {"e": "A", "d": "G"}},
            {"sample": "S"},
            InputError,
            ["b.fa: record 2 (d)", "record 2 of", "a.fa"],
        ),
        (
            {"a.fa": {"B__X-S__1": "A"}, "b.fa": {"B__X-S__2": "A", "B__X-S__1": "C"}},
            {},
            InputError,
            ["b.fa: record 2", "record 1 of", "a.fa"],
        ),
        # A new ID equals the ID that another record has already.
        ({"s.fa": {"BCR__ECT-s__CT1-2": "A", "c": "C"}}, {}, InputError, ["s.fa: record 2 (c)", "'BCR__ECT-s__CT1-2'"]),
        ({"a.fa": {"c": "A", "B__X-S__1": "C"}}, {"sample": "T"}, UsageError, ["record 2", "'S'", "--sample says 'T'"]),
        ({"a.fa": {"B__X-a/b__1": "A"}}, {}, UsageError, ["record 1", "leave the output folder"]),
        ({"a.fa": {"B__X-..__1": "A"}}, {}, UsageError, ["record 1", "leave the output folder"]),
        ({"a.fa": {"B__X-.p__1": "A"}}, {}, UsageError, ["record 1", "hidden"]),
        ({"a.fa": {"B__X-contigs.parquet__1": "A"}}, {}, UsageError, ["table of all contigs"]),
        ({"a.fa": {"c": "ACGT", "d": "AC!T"}}, {}, InputError, ["a.fa: record 2 (d)", "position 3", "'!'"]),
        ({"a.fa": {"c": "ACGT"}}, {"sample": "a-b"}, UsageError, ["--sample", "does not survive", "'a.b'"]),
        ({"a.fa": {"c": "ACGT"}}, {"sample": "a__b"}, UsageError, ["--sample", "does not survive"]),
        ({"a.fa": {"c": "ACGT"}}, {"sample": ""}, UsageError, ["--sample", "empty"]),
        ({"a.fa": {"c": "ACGT"}}, {"sample": "../x"}, UsageError, ["--sample", "leave the output folder"]),
        ({"a.fa": {"c": "ACGT"}}, {"sample": "a\0b"}, UsageError, ["--sample", "NUL"]),
        ({"a.fa": {"c": "ACGT"}}, {"tag": "B__R"}, UsageError, ["--tag", "'B__R'"]),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    tmp_path: Path, contents: dict, options: dict, error: type[Exception], words: list[str]
) -> None:
    for name, records in contents.items():
        fasta(tmp_path / "in" / name, records)
    fasta(tmp_path / "other.fa", {"c": "A"})
    build_sequence_dbs([tmp_path / "other.fa"], tmp_path / "used")
    used = files(tmp_path / "used")
    for out in (tmp_path / "new", tmp_path / "used"):
        with pytest.raises(error) as caught:
            build_sequence_dbs([tmp_path / "in"], out, **options)
        for word in words:
            assert word in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert files(tmp_path / "used") == used
    assert not (tmp_path / "used" / staging.STAGING).exists()


def test_truncated_input_leaves_nothing_behind_but_what_is_whole(tmp_path: Path) -> None:
    good = fasta(tmp_path / "a.fa.gz", {f"c{i}": "ACGT" * 99 for i in range(99)})
    bad = tmp_path / "b.fa.gz"
    bad.write_bytes(good.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"b\.fa\.gz: truncated"):
        build_sequence_dbs([bad, good], tmp_path / "db")
    assert sorted(p.name for p in (tmp_path / "db").iterdir()) == ["a", "contigs.parquet", "manifest.sqlite"]
    with pytest.raises(InputError, match=r"b\.fa\.gz: truncated"):
        build_sequence_dbs([bad], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "A"})

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_sequence_dbs([path], tmp_path / "db", progress=interrupt)
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("fails_at", ["b/glm_dataset_b.sqlite", "contigs.parquet", "manifest.sqlite", ".parquet"])
def test_failure_while_moving_into_place_is_completed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    inputs = [fasta(tmp_path / f"{name}.fa", {"c": "ACGT"}) for name in "abc"]
    build_sequence_dbs(inputs, tmp_path / "whole")
    out = tmp_path / "db"
    replace = staging.os.replace

    def failing(source: Path, target: Path) -> None:
        if str(target).endswith(fails_at):
            monkeypatch.setattr(staging.os, "replace", replace)
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(staging.os, "replace", failing)
    with pytest.raises((UsageError, OSError), match="No space left"):
        build_sequence_dbs(inputs, out)
    build_sequence_dbs(inputs, out)
    assert sorted(p.name for p in out.iterdir()) == ["a", "b", "c", "contigs.parquet", "manifest.sqlite"]
    assert {p.name: rows(p) for p in out.glob("*/*.sqlite")} == {
        p.name: rows(p) for p in (tmp_path / "whole").glob("*/*.sqlite")
    }
    assert pl.read_parquet(out / "contigs.parquet").equals(pl.read_parquet(tmp_path / "whole/contigs.parquet"))


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "db" / staging.STAGING / "samples" / "x"
    left.mkdir(parents=True)
    (left / "glm_dataset_x.sqlite").write_bytes(b"half")
    build_sequence_dbs([fasta(tmp_path / "a.fa", {"c": "A"})], tmp_path / "db")
    assert sorted(p.name for p in (tmp_path / "db").iterdir()) == ["a", "contigs.parquet", "manifest.sqlite"]


def test_two_builds_into_one_folder_at_once(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "A"})
    with staging.workplace(tmp_path / "db"), pytest.raises(UsageError, match="another process is writing here"):
        build_sequence_dbs([path], tmp_path / "db")


def test_database_that_is_being_written_to_is_not_replaced(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "A"})
    build_sequence_dbs([path], tmp_path / "db")
    database(tmp_path / "db", "a").with_suffix(".sqlite-wal").touch()
    with pytest.raises(UsageError, match="-wal or -journal"):
        build_sequence_dbs([path], tmp_path / "db", force=True)


@pytest.mark.parametrize("data", [b"not Parquet", None])
def test_foreign_contig_table(tmp_path: Path, data: bytes | None) -> None:
    table = tmp_path / "db/contigs.parquet"
    table.parent.mkdir()
    if data:
        table.write_bytes(data)
    else:
        pl.DataFrame({"contig_id": ["x"]}).write_parquet(table)
    with pytest.raises(DatabaseError, match=r"contigs\.parquet: .*Remove it"):
        build_sequence_dbs([fasta(tmp_path / "a.fa", {"c": "A"})], tmp_path / "db")


def test_output_that_is_a_file(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "A"})
    with pytest.raises(UsageError, match="cannot be written to"):
        build_sequence_dbs([path], path)


def test_contig_longer_than_a_value_of_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "MAX_CONTIG_BASES", 5)
    path = fasta(tmp_path / "a.fa", {"c": "ACGTA", "d": "ACGTAC"})
    with pytest.raises(InputError, match=r"record 2 \(d\): 6 bases are more than SQLite holds"):
        build_sequence_dbs([path], tmp_path / "db")


def test_progress_is_told_in_bytes_of_input(tmp_path: Path) -> None:
    paths = [fasta(tmp_path / f"{name}.fa", {"c": "ACGT" * 50}) for name in "abc"]
    told: list[tuple[int, int]] = []
    build_sequence_dbs(paths, tmp_path / "db", progress=lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for path in paths)
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_create_sample_database_as_the_specification_prints_it(tmp_path: Path) -> None:
    sequences = [("BCR__ECT-SAMPLE1__CT1-1", "ACGTN"), ("BCR__ECT-SAMPLE1__CT1-2", "acgtR")]
    path = create_sample_database("SAMPLE1", iter(sequences), str(tmp_path / "db"))
    assert path == database(tmp_path / "db", "SAMPLE1")
    assert rows(path) == dict(sequences)


@pytest.mark.parametrize(
    ("sample_id", "sequences", "error", "words"),
    [
        (
            "S",
            [("chr1", "A"), ("chr2", "C"), ("chr1", "G")],
            InputError,
            ["sequence 3 (chr1)", "sequence 1 has the same"],
        ),
        ("S", [("B__X-T__1", "A")], InputError, ["sequence 1", "names sample 'T'"]),
        ("S", [("chr1", "AC-T")], InputError, ["sample S: sequence 1 (chr1)", "position 3"]),
        ("S", [("chr1", "")], InputError, ["no sequence"]),
        ("S", [("", "A")], InputError, ["no name"]),
        ("a/b", [("chr1", "A")], UsageError, ["leave the output folder"]),
        ("a-b", [("chr1", "A")], UsageError, ["does not survive"]),
    ],
)
def test_create_sample_database_refuses(
    tmp_path: Path, sample_id: str, sequences: list, error: type[Exception], words: list[str]
) -> None:
    (tmp_path / "db").mkdir()
    with pytest.raises(error) as caught:
        create_sample_database(sample_id, sequences, tmp_path / "db")
    for word in words:
        assert word in str(caught.value)
    assert list((tmp_path / "db").iterdir()) == []


def test_create_sample_database_does_not_overwrite(tmp_path: Path) -> None:
    path = create_sample_database("S", [("chr1", "A")], tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        create_sample_database("S", [("chr1", "C")], tmp_path)
    assert rows(path) == {"chr1": "A"}


def test_build_keeps_few_files_open(tmp_path: Path) -> None:
    contigs = {f"BCR__ECT-S{i}__CT1-1": "ACGT" for i in range(300)}
    path = fasta(tmp_path / "many.fa", contigs)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from sharded_eden import build_sequence_dbs; print(build_sequence_dbs([sys.argv[1]], sys.argv[2]).samples)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "db"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "300\n", done.stderr


@pytest.mark.parametrize(("contigs", "page_size"), [(7, 4096), (9, 65536)])
def test_page_size_follows_the_bases_of_the_sample(tmp_path: Path, contigs: int, page_size: int) -> None:
    """Large samples get pages in which a contig of some kilobases lies in one piece, however the database is written."""
    sequences = [(f"BCR__ECT-S__CT1-{k}", "ACGTTGCA" * 125_000) for k in range(1, contigs + 1)]
    by_hand = create_sample_database("S", iter(sequences), tmp_path / "by_hand")
    (tmp_path / "S.fasta").write_text("".join(f">{name}\n{bases}\n" for name, bases in sequences))
    build_sequence_dbs([tmp_path / "S.fasta"], tmp_path / "built")
    for path in (by_hand, tmp_path / "built" / "S" / by_hand.name):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA page_size").fetchone() == (page_size,)
            assert connection.execute("SELECT contig_id, nt_sequence FROM sequences").fetchall() == sequences
