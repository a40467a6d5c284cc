"""Output folders with unusual names, links under names that build writes, leftovers of killed runs, and full disks."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import apsw
import polars as pl
import pytest

from sharded_eden import build_sequence_dbs, cli, create_sample_database
from sharded_eden.build.manifest import Manifest, rows_hash
from sharded_eden.build.staging import STAGING, Place
from sharded_eden.errors import EdenError, EdenWarning, InputError, UsageError, WriteError
from sharded_eden.format.publish import publishing
from sharded_eden.format.sqlite import open_read_only

ODD_NAMES = ["a[1]", "a*", "a?b", "{x}", "~x", "~", "$HOME", "a b", "a%20b", "a#b", "a?mode=rw", "é", "-x", "s3:"]


def fasta(path: Path, records: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    return path


def rows(out: Path, sample: str) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(out / sample / f"glm_dataset_{sample}.sqlite")) as database:
        return database.execute("SELECT * FROM sequences ORDER BY rowid").fetchall()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- names ----


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("absolute", [True, False])
def test_paths_are_never_patterns(here: Path, capsys: pytest.CaptureFixture[str], name: str, absolute: bool) -> None:
    """Beside each folder is a file that its name would match as a pattern."""
    for neighbour in ("a1", "ab", "aXb", "x"):
        fasta(here / f"in.{neighbour}/s.fa", {"c": "T" * 9})
        fasta(here / f"out.{neighbour}/contigs.parquet", {"not": "Parquet"})
    start = here if absolute else Path()
    source, out = start / f"in.{name}", start / name
    fasta(source / "s.fa", {"c": "ACGT"})
    fasta(source / "t.fa", {f"BCR__ECT-t{i}__CT1-1": "GG" for i in range(3)})
    scratch = start / f"scratch{name}"
    arguments = ["build", str(source), f"--out={out}", f"--scratch={scratch}"]
    for expected in ("samples", "nothing to do"):
        assert cli.main(arguments) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.startswith(expected)
    assert rows(out, "s") == [("BCR__ECT-s__CT1-1", "ACGT")]
    assert (
        cli.main(["build", *(str(here / f"in.{name}/{file}") for file in ("s.fa", "t.fa")), f"--out={out}", "--force"])
        == 0
    )
    with (out / "contigs.parquet").open("rb") as table:
        assert pl.read_parquet(table)["length"].to_list() == [4, 2, 2, 2]
    assert sorted(path.name for path in out.iterdir()) == ["contigs.parquet", "manifest.sqlite", "s", "t0", "t1", "t2"]
    create_sample_database("new", [("c", "ACGT")], out)
    assert rows(out, "new") == [("c", "ACGT")]


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".jsonl", ".fa"])
def test_input_files_may_have_any_name(here: Path, ending: str) -> None:
    for name in [*ODD_NAMES, os.fsdecode(b"b\xff")]:
        path = here / f"{name}{ending}"
        frame = pl.DataFrame({"text": ["ACGT"], "id": ["c"]})
        with path.open("wb") as file:
            if ending == ".parquet":
                frame.write_parquet(file)
            elif ending == ".arrow":
                frame.write_ipc(file)
            elif ending == ".jsonl":
                frame.write_ndjson(file)
            else:
                file.write(b">c\nACGT\n")
        out = here / f"db{uuid4().hex}"
        for samples in (1, 0):
            assert build_sequence_dbs([path], out, sample="S").samples == samples
        assert rows(out, "S") == [("BCR__ECT-S__CT1-1", "ACGT")]


def test_input_files_whose_names_are_not_utf8_do_not_stop_the_others(tmp_path: Path) -> None:
    fasta(tmp_path / "in/a.fa", {"c": "A"})
    fasta(tmp_path / os.fsdecode(b"in/b\xff.fa"), {"c": "C"})
    assert build_sequence_dbs([tmp_path / "in"], tmp_path / "db").samples == 2
    assert build_sequence_dbs([tmp_path / "in"], tmp_path / "db").samples == 0
    assert rows(tmp_path / "db", "b.") == [("BCR__ECT-b.__CT1-1", "C")]
    sources = pl.read_parquet(tmp_path / "db/contigs.parquet")["source_file"].to_list()
    assert sources == [f"{tmp_path}/in/a.fa", f"{tmp_path}/in/b\\xff.fa"]


def test_output_folders_whose_names_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "A"})
    out = tmp_path / os.fsdecode(b"db\xff")
    for call in (
        lambda: build_sequence_dbs([path], out),
        lambda: build_sequence_dbs([path], tmp_path / "db", scratch=out),
        lambda: create_sample_database("S", [("c", "A")], out),
    ):
        with pytest.raises(UsageError, match=r"db\\xff: this name is not UTF-8"):
            call()
    assert not out.exists()


@pytest.mark.parametrize("name", ["A" * 240, "é" * 120, "A" * 220])
def test_sample_names_too_long_for_a_file_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    mixed = fasta(tmp_path / "m.fa", {f"BCR__ECT-{name}__1": "A", "BCR__ECT-ok__1": "C"})
    good = fasta(tmp_path / "good.fa", {"c": "A"})
    for inputs, options in (
        ([mixed], {}),
        ([good], {"sample": name}),
        ([mixed], {"sample_regex": "ECT-(?P<sample>.+)__"}),
    ):
        with pytest.raises(UsageError, match="the name of its database would be longer than 255 bytes"):
            build_sequence_dbs(inputs, tmp_path / "db", **options)
        assert not (tmp_path / "db").exists()
    with pytest.raises(UsageError, match="longer than 255 bytes"):
        create_sample_database(name, [("c", "A")], tmp_path / "db")
    long_name = "A" * 219
    with TemporaryDirectory() as folder:  # shorter than tmp_path
        assert build_sequence_dbs([good], f"{folder}/a", sample=long_name).samples == 1
        assert build_sequence_dbs([good], f"{folder}/a", sample=long_name).samples == 0
        create_sample_database(long_name, [("c", "A")], f"{folder}/b")


def test_paths_too_long_for_sqlite_are_refused(tmp_path: Path) -> None:
    good, deep = fasta(tmp_path / "good.fa", {"c": "A"}), tmp_path / ("d" * 100) / ("d" * 100)
    for call in (
        lambda: build_sequence_dbs([good], deep, sample="A" * 150),
        lambda: create_sample_database("A" * 150, [("c", "A")], deep),
    ):
        with pytest.raises(WriteError, match="SQLite opens at most 500"):
            call()


# ---- leftovers ----


def kill_before_renaming(inputs: Path, out: Path) -> None:
    """Write the receipts of a run that was killed before its databases were published."""
    program = (
        "import os, sys; from sharded_eden import build_sequence_dbs; from sharded_eden.build.staging import Place\n"
        "Place._finish = lambda self, built: os._exit(9)\n"
        "build_sequence_dbs([sys.argv[1]], sys.argv[2])"
    )
    assert subprocess.run([sys.executable, "-c", program, inputs, out], check=False).returncode == 9
    assert list((out / STAGING / "receipts").iterdir())


def test_a_database_that_cannot_be_put_in_place_does_not_block_later_runs(tmp_path: Path) -> None:
    path, out = fasta(tmp_path / "a.fa", {"c": "A"}), tmp_path / "db"
    kill_before_renaming(path, out)
    (out / "a").write_text("in the way")
    with pytest.warns(EdenWarning, match="is dropped"):
        assert build_sequence_dbs([fasta(tmp_path / "b.fa", {"c": "C"})], out).samples == 1
    assert not (out / STAGING).exists()
    with pytest.raises(UsageError, match="is not a folder"):
        build_sequence_dbs([path], out)
    (out / "a").unlink()
    assert build_sequence_dbs([path], out).samples == 1
    assert pl.read_parquet(out / "contigs.parquet")["sample"].to_list() == ["a", "b"]


def test_receipts_of_a_killed_run_are_completed(tmp_path: Path) -> None:
    path, out = fasta(tmp_path / "a.fa", {"c": "A"}), tmp_path / "db"
    kill_before_renaming(path, out)
    assert build_sequence_dbs([path], out).samples == 0
    assert rows(out, "a") == [("BCR__ECT-a__CT1-1", "A")]


def test_receipts_that_cannot_be_read_do_not_block(tmp_path: Path) -> None:
    path, out = fasta(tmp_path / "a.fa", {"c": "A"}), tmp_path / "db"
    kill_before_renaming(path, out)
    for receipt in (out / STAGING / "receipts").iterdir():
        receipt.write_bytes(b"")
    with pytest.warns(EdenWarning, match="was left by an earlier run"):
        assert build_sequence_dbs([path], out).samples == 1


# ---- links ----


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "A"})
    outside = tmp_path / "outside"
    for number, name in enumerate((".manifest.sqlite.partial", ".contigs.parquet.partial", STAGING, "a")):
        for kind in ("symbolic", "dangling", "hard"):
            out = tmp_path / f"db{number}{kind}"
            out.mkdir()
            shutil.rmtree(outside, ignore_errors=True)
            (outside / "ready").mkdir(parents=True)
            for victim in ("file", "run", "glm_dataset_a.sqlite", "ready/x"):
                (outside / victim).write_text("precious")
            is_folder = name in {STAGING, "a"}
            target = outside if is_folder else outside / "file"
            if kind == "hard":
                if is_folder:
                    continue
                os.link(target, out / name)
            else:
                (out / name).symlink_to(target if kind == "symbolic" else tmp_path / "nowhere")
            with pytest.raises(WriteError, match="link"):
                build_sequence_dbs([path], out, force=True)
            assert {file.read_text() for file in outside.rglob("*") if file.is_file()} == {"precious"}
            assert len([file for file in outside.rglob("*") if file.is_file()]) == 4
            assert not (tmp_path / "nowhere").exists()
            (out / name).unlink()
            build_sequence_dbs([path], out)
            assert rows(out, "a") == [("BCR__ECT-a__CT1-1", "A")]


def test_links_inside_the_staging_folder_and_on_scratch_are_not_followed(tmp_path: Path) -> None:
    path, outside, scratch = fasta(tmp_path / "a.fa", {"c": "A"}), tmp_path / "outside", tmp_path / "scratch"
    outside.mkdir()
    (outside / "precious").write_text("x")
    scratch.mkdir()
    out = tmp_path / "db"
    for name in ("run", "scratch", "standard-input", "rows00000000.parquet", "runs"):
        (out / STAGING).mkdir(parents=True)
        (out / STAGING / name).symlink_to(outside if name in {"scratch", "runs"} else outside / "precious")
        build_sequence_dbs([path], out, force=True)
    for name in ("ready", "receipts"):
        (out / STAGING).mkdir(parents=True, exist_ok=True)
        (out / STAGING / name).symlink_to(outside)
        with pytest.raises(WriteError, match="symbolic link"):
            build_sequence_dbs([path], out)
        shutil.rmtree(out / STAGING, ignore_errors=True)
    Place(out, scratch, "x").scratch_of_out.symlink_to(outside)
    with pytest.raises(WriteError, match="it is a link"):
        build_sequence_dbs([path], out, scratch=scratch, force=True)
    assert [file.read_text() for file in outside.iterdir()] == ["x"]


def test_create_sample_database_does_not_write_through_links(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "db/S").mkdir(parents=True)
    (tmp_path / "db/S/.glm_dataset_S.sqlite.partial").symlink_to(tmp_path / "outside/file")
    (tmp_path / "db/T").symlink_to(tmp_path / "outside")
    for sample in "ST":
        with pytest.raises(WriteError, match="symbolic link"):
            create_sample_database(sample, [("c", "A")], tmp_path / "db")
    assert not list((tmp_path / "outside").iterdir())


def test_a_file_that_is_removed_while_it_is_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="another process has removed or replaced"),
        publishing(tmp_path / "x") as partial,
    ):
        partial.unlink()


# ---- disks ----


def test_a_full_disk_names_the_path(tmp_path: Path) -> None:
    """A limit on the size of files has the same effect as a full disk: the system refuses the write."""
    path = fasta(tmp_path / "a.fa", {"c": "ACGT" * 500_000})
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "from sharded_eden import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    out = tmp_path / "db"
    done = subprocess.run(
        [sys.executable, "-c", program, "build", path, "--out", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {out}")
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


# ---- digests ----


def test_the_recorded_hash_is_computed_again_from_the_database(tmp_path: Path) -> None:
    contigs = {f"c{i}": "ACGTN" * (i + 1) for i in range(50)}
    contigs |= {f"BCR__ECT-m{i % 2}__CT1-{i}": "ac" * i for i in range(1, 9)}
    build_sequence_dbs([fasta(tmp_path / "a.fa", contigs)], tmp_path / "db")
    for sample in ("a", "m0", "m1"):
        path = tmp_path / f"db/{sample}/glm_dataset_{sample}.sqlite"
        with Manifest(tmp_path / "db") as manifest, closing(open_read_only(path)) as database:
            recorded = manifest.sample(sample)
            assert recorded is not None
            assert recorded.rows_hash == rows_hash(database)
        with closing(apsw.Connection(str(path))) as database:
            database.execute("UPDATE sequences SET nt_sequence = 'T' || substr(nt_sequence, 2) WHERE rowid = 2")
            assert recorded.rows_hash != rows_hash(database)


# ---- arguments ----


@pytest.mark.parametrize(
    "sequences",
    [[(None, "A")], [(b"c", "A")], [("c", b"A")], [("c", None)], ["c"], [("c",)], [("c", "A", "x")], [7],
     [("c\ud800", "A")], [("c", "A\ud800")], [("c\x1b[2J", "A")], [("c" * 10**6 + " ", "A")], None, 5],
)  # fmt: skip
def test_create_sample_database_refuses_what_is_no_pair_of_texts(tmp_path: Path, sequences) -> None:
    with pytest.raises((InputError, UsageError)) as caught:
        create_sample_database("S", sequences, tmp_path)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"tag": None}, {"tag": 5}, {"tag": "a\x1b"}, {"tag": "\ud800"}, {"sample": 5}, {"sample": "\ud800"},
        {"sample": "a\x1b"}, {"sample_regex": 5}, {"sample_regex": "(?P<sample>a{99999999999})"}, {"format": 5},
        {"format": []}, {"text_field": 5}, {"id_field": b"x"}, {"page_size": 10**30}, {"page_size": "4096"}, {"jobs": "2"},
        {"jobs": 0}, {"jobs": 10**30},
        {"engine": "cloud"}, {"scratch": 5}, {"out_dir": 5}, {"out_dir": "a\0b"}, {"inputs": [5]},
        {"inputs": ["a\0b"]}, {"inputs": ["\ud800"]}, {"inputs": None}, {"inputs": []},
    ],
    ids=str,
)  # fmt: skip
def test_every_wrong_argument_is_an_eden_error(tmp_path: Path, options: dict) -> None:
    arguments = {"inputs": [fasta(tmp_path / "a.fa", {"c": "A"})], "out_dir": tmp_path / "db", **options}
    with pytest.raises(EdenError):
        build_sequence_dbs(**arguments)
    assert not (tmp_path / "db").exists()


def test_one_input_may_be_given_without_a_list(tmp_path: Path) -> None:
    assert build_sequence_dbs(str(fasta(tmp_path / "a.fa", {"c": "A"})), tmp_path / "db").samples == 1
