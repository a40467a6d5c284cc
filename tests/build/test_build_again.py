"""`build` a second time, in parts, in processes, on a cluster, and after SIGKILL: the same rows every time."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from sharded_eden import build_sequence_dbs, write_splits
from sharded_eden.build import contig_rows, contig_table, scatter
from sharded_eden.build import sample as sample_module
from sharded_eden.build.staging import workplace
from sharded_eden.errors import DatabaseError, EdenError, EdenWarning, InputError, UsageError


def fasta(path: Path, records: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    return path


def rows(out: Path) -> dict[str, list[tuple[str, str]]]:
    """{sample: its rows in their order}."""
    found = {}
    for path in sorted(out.glob("*/*.sqlite")):
        with closing(sqlite3.connect(path)) as database:
            found[path.parent.name] = database.execute("SELECT * FROM sequences ORDER BY rowid").fetchall()
    return found


def state(out: Path) -> str:
    """A hash of all rows, of the contig table, and of which files there are.

    Recorded addresses are left out: where a killed run did not write them, `index` reads the database.
    """
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if not p.name.endswith(".sqlite.addresses"))
    table = pl.read_parquet(out / "contigs.parquet")
    return hashlib.sha256(repr((files, rows(out), table.rows())).encode()).hexdigest()


def times(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/*.sqlite")}


def world(folder: Path, seed: int = 1, samples: int = 5) -> Path:
    """Inputs of both kinds, whose samples overlap: one file a sample, and two files with records of many."""
    choose = random.Random(seed)

    def sequence() -> str:
        return "".join(choose.choices("ACGT", k=choose.randrange(1, 300)))

    for k in range(samples):
        fasta(folder / f"d{k}.fa", {f"c{i}": sequence() for i in range(10)})
    for name in ("m1", "x2"):
        records = {f"BCR__ECT-d{i % (samples + 3)}__{name}-{i}": sequence() for i in range(40)}
        fasta(folder / f"{name}.fa", records | {f"plain{i}": sequence() for i in range(3)})
    return folder


def test_nothing_is_built_twice(tmp_path: Path) -> None:
    inputs, out = world(tmp_path / "in"), tmp_path / "db"
    first = build_sequence_dbs([inputs], out)
    assert (first.samples, first.unchanged) == (10, 0)
    before, then = state(out), times(out)
    again = build_sequence_dbs([inputs], out)
    assert (again.samples, again.unchanged, again.grown) == (0, 10, ())
    assert (state(out), times(out)) == (before, then)
    for path in inputs.iterdir():  # the same bytes, another time: read, and left alone
        os.utime(path, ns=(1, 1))
    assert build_sequence_dbs([inputs], out).samples == 0
    assert (state(out), times(out)) == (before, then)
    forced = build_sequence_dbs([inputs], out, force=True)
    assert forced.samples == 10
    assert state(out) == before
    assert times(out).keys() == then.keys()
    assert not set(times(out).values()) & set(then.values())


def test_a_missing_database_is_built_again_and_no_other(tmp_path: Path) -> None:
    inputs, out = world(tmp_path / "in"), tmp_path / "db"
    build_sequence_dbs([inputs], out)
    before, then = state(out), times(out)
    for sample in ("d1", "d7", "m1"):  # of a file and two others; of two others; of records that name no sample
        (out / sample / f"glm_dataset_{sample}.sqlite").unlink()
    assert build_sequence_dbs([inputs], out).samples == 3
    assert state(out) == before
    kept = times(out)
    assert {sample for sample in then if kept[sample] != then[sample]} == {"d1", "d7", "m1"}


def test_inputs_added_one_by_one_give_the_same(tmp_path: Path) -> None:
    inputs = sorted(world(tmp_path / "in").iterdir())
    build_sequence_dbs(inputs, tmp_path / "whole")
    for count in range(1, len(inputs) + 1):
        result = build_sequence_dbs(inputs[:count], tmp_path / "db")
        assert ("d0" in result.grown) == (inputs[count - 1].stem in {"m1", "x2"})
    assert state(tmp_path / "db") == state(tmp_path / "whole")


def test_samples_that_gain_inputs_keep_the_ids_they_gave(tmp_path: Path) -> None:
    a, b = fasta(tmp_path / "a.fa", {"c1": "AA", "c2": "CC"}), fasta(tmp_path / "b.fa", {"d1": "GG"})
    build_sequence_dbs([a], tmp_path / "db", sample="POOL")
    assert build_sequence_dbs([a, b], tmp_path / "db", sample="POOL").grown == ("POOL",)
    expected = [("BCR__ECT-POOL__CT1-1", "AA"), ("BCR__ECT-POOL__CT1-2", "CC"), ("BCR__ECT-POOL__CT1-3", "GG")]
    assert rows(tmp_path / "db") == {"POOL": expected}


def test_inputs_that_would_give_earlier_contigs_other_ids_are_refused(tmp_path: Path) -> None:
    a, b = fasta(tmp_path / "a.fa", {"x1": "AA", "x2": "CC"}), fasta(tmp_path / "b.fa", {"x3": "GG"})
    for options in ({"sample": "x"}, {"sample_regex": "(?P<sample>x)"}):
        out = tmp_path / next(iter(options))
        build_sequence_dbs([b], out, **options)
        before = state(out)
        with pytest.raises(UsageError, match=r"sample 'x' .*b\.fa.*a\.fa comes before it now.*other IDs.*--force"):
            build_sequence_dbs([a, b], out, **options)
        assert state(out) == before
        assert build_sequence_dbs([b, a], out, **options).grown == ("x",)
        assert [sequence for _, sequence in rows(out)["x"]] == ["GG", "AA", "CC"]
        build_sequence_dbs([a, b], out, force=True, **options)
        assert [sequence for _, sequence in rows(out)["x"]] == ["AA", "CC", "GG"]


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda p: fasta(p / "d0.fa", {"c": "A"}), {}, ["d0.fa has changed", "bytes then", "--force"]),
        (
            lambda p: (p / "d0.fa").write_text((p / "d0.fa").read_text().replace("A", "C", 1)),
            {},
            ["d0.fa has changed since sample 'd0'", "hash"],
        ),
        (lambda p: fasta(p / "m1.fa", {"BCR__ECT-d0__m1-0": "AC"}), {}, ["m1.fa has changed", "--force"]),
        (lambda p: (p / "m1.fa").unlink(), {}, None),
        (lambda p: None, {"tag": "EUK"}, ["other settings", '"tag": "EUK"', "--force"]),
    ],
)
def test_what_has_changed_is_named(tmp_path: Path, change, options: dict, words: list[str] | None) -> None:
    inputs, out = world(tmp_path / "in"), tmp_path / "db"
    build_sequence_dbs([inputs], out)
    before = state(out)
    change(inputs)
    if words is None:  # without an input, its samples are neither checked nor changed
        assert build_sequence_dbs([inputs], out).samples == 0
        return
    with pytest.raises(UsageError) as caught:
        build_sequence_dbs([inputs], out, **options)
    for word in words:
        assert word in str(caught.value)
    assert state(out) == before
    build_sequence_dbs([inputs], out, force=True, **options)
    build_sequence_dbs([inputs], tmp_path / "fresh", **options)
    fresh, forced = rows(tmp_path / "fresh"), rows(out)
    assert {sample: forced[sample] for sample in fresh} == fresh


def test_a_database_that_was_tampered_with_is_named(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "ACGT"})
    build_sequence_dbs([path], tmp_path / "db")
    database = tmp_path / "db/a/glm_dataset_a.sqlite"
    database.write_bytes(database.read_bytes() + b"x")
    with pytest.raises(UsageError, match=r"glm_dataset_a\.sqlite is not the file that was built .*--force"):
        build_sequence_dbs([path], tmp_path / "db")


def test_what_was_not_built_here_is_not_replaced(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "ACGT"})
    build_sequence_dbs([path], tmp_path / "db")
    (tmp_path / "db/manifest.sqlite").unlink()
    with pytest.raises(UsageError, match=r"sample 'a' is there already\. --force replaces it"):
        build_sequence_dbs([path], tmp_path / "db")
    assert build_sequence_dbs([path], tmp_path / "db", force=True).samples == 1


@pytest.mark.parametrize("data", [b"", b"not SQLite" * 100])
def test_foreign_manifest(tmp_path: Path, data: bytes) -> None:
    path = fasta(tmp_path / "a.fa", {"c": "ACGT"})
    build_sequence_dbs([path], tmp_path / "db")
    (tmp_path / "db/manifest.sqlite").write_bytes(data)
    with pytest.raises(DatabaseError, match=r"manifest\.sqlite: .*"):
        build_sequence_dbs([path], tmp_path / "db")


def test_one_bad_input_does_not_keep_the_others_from_being_built(tmp_path: Path) -> None:
    inputs = [
        fasta(tmp_path / f"{name}.fa", {"c": sequence}) for name, sequence in {"a": "A", "b": "!", "c": "E"}.items()
    ]
    with pytest.raises(InputError) as caught:
        build_sequence_dbs(inputs, tmp_path / "db")
    assert str(caught.value).index("b.fa: record 1") < str(caught.value).index("c.fa: record 1")
    assert rows(tmp_path / "db").keys() == {"a"}
    for path in inputs[1:]:
        fasta(path, {"c": "AC"})
    assert build_sequence_dbs(inputs, tmp_path / "db").samples == 2


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_bad_sample_does_not_keep_the_others_of_its_file_from_being_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_bad: bool
) -> None:
    for module in (contig_rows, sample_module):  # so that rows of the bad samples are in files, with rows of others
        monkeypatch.setattr(module, "ROWS_IN_MEMORY", 4)
    good = {f"{name}{i}": "ACGT" * i for i in range(1, 6) for name in "ACE"}
    bad = {f"{name}{i}": "A" for i in range(1, 6) for name in "BD"}  # each 5 gets the ID of the first record
    ids = dict.fromkeys(("BCR__ECT-B__CT1-6", "BCR__ECT-D__CT1-6"), "A")
    options = {"sample_regex": r"(?P<sample>[A-E])\d*(__|$)", "skip_bad": skip_bad}
    build_sequence_dbs([fasta(tmp_path / "good.fa", good)], tmp_path / "good", **options)
    mixed = fasta(tmp_path / "mixed.fa", ids | good | bad)
    for _ in range(2):
        with pytest.raises(InputError, match="2 inputs or samples were refused") as caught:
            build_sequence_dbs([mixed], tmp_path / "db", **options)
        first, second = str(caught.value).splitlines()[1:]
        assert "'BCR__ECT-B__CT1-6' is taken within sample 'B'" in first
        assert "'BCR__ECT-D__CT1-6' is taken within sample 'D'" in second
        assert rows(tmp_path / "db") == rows(tmp_path / "good")
        table, expected = (pl.read_parquet(tmp_path / name / "contigs.parquet") for name in ("db", "good"))
        assert table.drop("source_file").equals(expected.drop("source_file"))
    assert times(tmp_path / "db").keys() == {"A", "C", "E"}


def test_many_receipts_become_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = world(tmp_path / "in", samples=9)
    build_sequence_dbs([inputs], tmp_path / "one")
    monkeypatch.setattr(contig_table, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(scatter, "GATHER_SAMPLES", 2)
    monkeypatch.setattr(scatter, "MOST_RUNS", 1)
    build_sequence_dbs([inputs], tmp_path / "two")
    assert state(tmp_path / "one") == state(tmp_path / "two")
    assert pl.read_parquet(tmp_path / "one/contigs.parquet")["sample"].is_sorted()


def test_scratch_is_left_empty(tmp_path: Path) -> None:
    inputs = world(tmp_path / "in")
    build_sequence_dbs([inputs], tmp_path / "plain")
    build_sequence_dbs([inputs], tmp_path / "db", scratch=tmp_path / "scratch")
    assert state(tmp_path / "plain") == state(tmp_path / "db")
    assert list((tmp_path / "scratch").iterdir()) == []


def build_in_process(inputs: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the command; its stderr is written to `out` + `.err`."""
    command = [
        sys.executable,
        "-m",
        "bionemo.evo2.run.sharded_eden_dataloader",
        "build",
        str(inputs),
        "--out",
        str(out),
    ]
    with Path(f"{out}.err").open("wb") as said:
        return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=said)


def said(out: Path) -> str:
    return Path(f"{out}.err").read_text()


@pytest.mark.slow
def test_processes_give_the_same_rows(tmp_path: Path) -> None:
    inputs = world(tmp_path / "in", samples=8)
    build_sequence_dbs([inputs], tmp_path / "one")
    for jobs in ("2", "3"):
        done = build_in_process(inputs, tmp_path / jobs, "--jobs", jobs, "--scratch", str(tmp_path / "scratch"))
        assert done.wait() == 0, said(tmp_path / jobs)
        assert state(tmp_path / jobs) == state(tmp_path / "one")
    fasta(inputs / "bad.fa", {"c": "!"})
    done = build_in_process(inputs, tmp_path / "bad", "--jobs", "2")
    assert done.wait() == 1
    assert "bad.fa: record 1 (c): position 1" in said(tmp_path / "bad")


@pytest.mark.slow
def test_interrupted_processes_leave_nothing_half_written(tmp_path: Path) -> None:
    inputs = world(tmp_path / "in", samples=60)
    process = build_in_process(inputs, tmp_path / "db", "--jobs", "2")
    while not list((tmp_path / "db").glob("d*/*.sqlite")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() in {0, 130}
    message = said(tmp_path / "db")
    assert not message or (message.startswith("interrupted: no file is half-written") and message.count("\n") == 1)
    assert not (tmp_path / "db/.partial-build").exists()
    build_sequence_dbs([inputs], tmp_path / "db")
    build_sequence_dbs([inputs], tmp_path / "one")
    assert state(tmp_path / "db") == state(tmp_path / "one")


def test_a_task_of_a_killed_run_does_not_begin_in_the_next_one(tmp_path: Path) -> None:
    with workplace(tmp_path / "db") as place:
        with pytest.raises(EdenError, match="has taken the place of run old"), replace(place, run="old").task_folder():
            pass
        with place.task_folder() as folder:
            assert folder.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "kills"), [(1, 40), (2, 10)])
def test_killed_at_random_moments(tmp_path: Path, jobs: int, kills: int) -> None:
    """SIGKILL anywhere between start and end; a rerun completes the build, and leaves no temporary file."""
    inputs = world(tmp_path / "in", samples=20)
    scratch = tmp_path / "scratch"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sharded_eden.build.build"])

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        options = {"jobs": jobs, "scratch": scratch}
        process = context.Process(target=build_sequence_dbs, args=([inputs], out), kwargs=options)
        process.start()
        return process

    start(tmp_path / "first").join()  # imports
    started = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    seconds = time.monotonic() - started
    assert whole.exitcode == 0
    choose = random.Random(jobs)
    out = tmp_path / "db"
    killed = 0
    for kill in range(kills):
        began = time.monotonic()
        process = start(out)
        process.join(choose.uniform(0.02, 1.0) * seconds)
        if process.exitcode == 0:
            seconds = min(seconds, time.monotonic() - began)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if choose.random() < 0.5 or kill == kills - 1:  # otherwise it is killed again on the existing files
            build_sequence_dbs([inputs], out, scratch=scratch)
            assert state(out) == state(tmp_path / "whole")
            assert not list(scratch.iterdir())
            shutil.rmtree(out)
    assert killed > 0.4 * kills


def test_a_database_that_was_changed_since_leaves_the_table_of_contigs(tmp_path: Path) -> None:
    fasta(tmp_path / "in/a.fa", {"x": "ACGT"})
    fasta(tmp_path / "in/b.fa", {"x": "ACGT"})
    out = tmp_path / "db"
    build_sequence_dbs([tmp_path / "in"], out)
    with closing(sqlite3.connect(out / "a/glm_dataset_a.sqlite")) as database, database:
        database.execute("UPDATE sequences SET nt_sequence = 'ACGTACG'")
    fasta(tmp_path / "in/c.fa", {"x": "ACGTA"})
    with pytest.warns(EdenWarning, match=r"glm_dataset_a\.sqlite: was changed after .* of 4 bases then, .* of 7 now"):
        build_sequence_dbs([tmp_path / "in"], out)
    # The table is newer than the database now, and could hide the change.
    assert pl.read_parquet(out / "contigs.parquet")["sample"].to_list() == ["b", "c"]
    write_splits(out, tmp_path / "splits", val=0, test=0)
    assert pl.read_parquet(tmp_path / "splits/train_split.parquet")["length"].to_list() == [7, 4, 5]


def test_tasks_make_and_remove_the_same_scratch_folder(tmp_path: Path) -> None:
    """A task may remove the folder of the run at any moment of another task's look at it; neither fails."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "db").mkdir()
    with workplace(tmp_path / "db", scratch) as place:

        def work(_: int) -> None:
            with place.task_folder() as folder:
                assert folder.is_dir()

        with ThreadPoolExecutor(4) as threads:
            for _ in threads.map(work, range(2_000)):
                pass
    assert not list(scratch.iterdir())
