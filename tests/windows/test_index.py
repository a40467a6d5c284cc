"""The index of a window database, compared with the window database and the sequence databases window by window."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import numpy as np
import polars as pl
import pytest
import worlds

import oracle
from sharded_eden import ShardedEdenDataset, build_sequence_dbs, cli, precompute_window_database
from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError
from sharded_eden.format.index import FileIdentity, IndexFile, identity_of, index_path
from sharded_eden.format.pages.recorded import record_path
from sharded_eden.format.schema import control_name, sample_database_path
from sharded_eden.split import write_splits
from sharded_eden.windows import index as module
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.pack import pack_window_database
from sharded_eden.windows.remote_index import add_remote

SIZE, STRIDE = 1024, 900
CONTIGS = {
    f"{'BCR' if k % 3 else 'Xyz'}__ECT-S{k % 4}__CT1-{k}": "".join(random.Random(k).choices("ACGTacgtN", k=size))
    for k, size in enumerate(
        [1, 30, 899, 900, 1024, 1925, 4000, 4061, 4062, 9000, 20_000, 50_000, 3, 70, 12_345, 8_000]
    )
}


def write_sequences(folder: Path, contigs: dict[str, str], *, page_bytes: int = 4096, single: bool = False) -> Path:
    by_sample: dict[str, list[tuple[str, str]]] = {}
    for name, letters in contigs.items():
        by_sample.setdefault("ONE" if single else name.split("__")[1].removeprefix("ECT-"), []).append((name, letters))
    for sample, rows in by_sample.items():
        path = sample_database_path(folder, sample)
        path.parent.mkdir(parents=True)
        with closing(apsw.Connection(str(path))) as database:
            database.execute(f"PRAGMA page_size = {page_bytes}; PRAGMA synchronous = OFF; BEGIN")
            database.execute("CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)")
            database.executemany("INSERT INTO sequences VALUES (?, ?)", rows)
            database.execute("COMMIT")
    return folder


def all_windows(contigs: dict[str, str]) -> list[tuple[str, int]]:
    return [
        (name, k) for name, letters in sorted(contigs.items()) for k in range(1 + max(0, len(letters) - SIZE) // STRIDE)
    ]


def write_windows(path: Path, windows: list[tuple[str, int]]) -> Path:
    """A window database like those of other programs: without fingerprint and contig_lengths."""
    with closing(apsw.Connection(str(path))) as database:
        database.execute(
            "PRAGMA synchronous = OFF; BEGIN; CREATE TABLE metadata (key TEXT PRIMARY KEY, value INTEGER NOT NULL)"
        )
        database.execute(f"INSERT INTO metadata VALUES ('window_size', {SIZE}), ('stride', {STRIDE})")
        database.execute(
            "CREATE TABLE window_mappings (window_idx INTEGER PRIMARY KEY, sequence_id TEXT NOT NULL, "
            "window_in_seq_idx INTEGER NOT NULL)"
        )
        database.executemany(
            "INSERT INTO window_mappings VALUES (?, ?, ?)", [(k, name, i) for k, (name, i) in enumerate(windows)]
        )
        database.execute("COMMIT")
    return path


def address_of(file: IndexFile, window: int) -> tuple[np.void, int]:
    """The run of a window, and the number of the window within its contig."""
    run = file.runs[np.flatnonzero(file.runs["first_window"] <= window)[-1]]
    return run, window - int(run["first_window"]) + int(run["first_in_contig"])


def read_bases(folder: Path, file: IndexFile, run: np.void, start: int, bases: int) -> bytes:
    """Bases of a contig, read as the docstring of `sharded_eden.format.index` says."""
    path = sample_database_path(folder, file.meta["samples"][run["sample"]])
    data = path.read_bytes()
    page_bytes = int(file.samples[run["sample"]]["page_bytes"])
    out = bytearray()
    for b in range(start, start + bases):
        if b < run["local"]:
            out.append(data[int(run["at"]) + b])
        else:
            k, rest = divmod(b - int(run["local"]), page_bytes - 4)
            out.append(data[(int(run["overflow"]) + k - 1) * page_bytes + 4 + rest])
    return bytes(out)


def check(folder: Path, window_db: Path, contigs: dict[str, str], without: frozenset[str] = frozenset()) -> IndexFile:
    """Compare every window."""
    file = IndexFile(index_path(window_db))
    with closing(apsw.Connection(str(window_db), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        windows = database.execute(
            "SELECT sequence_id, window_in_seq_idx FROM window_mappings ORDER BY window_idx"
        ).fetchall()
    assert file.meta["total_windows"] == len(windows)
    assert file.meta["stride"] == STRIDE
    for window, (name, in_contig) in enumerate(windows):
        run, found = address_of(file, window)
        assert found == in_contig
        assert file.meta["tags"][run["tag"]] == control_name(name)
        assert (run["at"] < 0) == (name in without)
        if run["at"] >= 0:
            letters = contigs[name]
            assert run["length"] == len(letters)
            start = in_contig * STRIDE
            bases = min(SIZE - 3, len(letters) - start)
            assert read_bases(folder, file, run, start, bases) == letters[start : start + bases].encode()
    return file


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("sequences"), CONTIGS)


def test_windows_in_order(sequences: Path, tmp_path: Path) -> None:
    path = write_windows(tmp_path / "w.db", all_windows(CONTIGS))
    result = index_window_database(sequences, path)
    file = check(sequences, path, CONTIGS)
    assert result.windows == result.addressed_windows == len(all_windows(CONTIGS))
    assert len(file.runs) == result.contigs == len(CONTIGS)
    assert result.without_address == {}
    assert file.meta["tags"] == ["bcr", "xyz"]
    assert FileIdentity(*file.meta["identity"]) == FileIdentity.of(path.stat())
    for sample, name in zip(file.samples, file.meta["samples"], strict=True):
        assert identity_of(sample) == FileIdentity.of(sample_database_path(sequences, name).stat())
        assert sample["digest"].tobytes() != bytes(16)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows_at_once", [1, 7, 1 << 17])
def test_shuffled_and_interleaved_windows(
    sequences: Path, tmp_path: Path, seed: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharded_eden.windows.runs.ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(module, "CONTIGS_AT_ONCE", 3)
    windows = all_windows(CONTIGS)
    if seed == 0:
        random.Random(seed).shuffle(windows)
    elif seed == 1:
        windows = sorted(windows, key=lambda w: (w[1], w[0]))
    else:  # windows are left out
        windows = [w for w in windows if random.Random(f"{w}").random() < 0.7]
    path = write_windows(tmp_path / "w.db", windows)
    index_window_database(sequences, path)
    file = check(sequences, path, CONTIGS)
    breaks = 1 + sum(b != (a[0], a[1] + 1) for a, b in itertools.pairwise(windows))
    assert len(file.runs) == breaks


def test_a_single_database_needs_no_sample_ids(tmp_path: Path) -> None:
    contigs = dict(zip(["chr1", "", "a\nb", "x__y", "a,b", "\u00e9"], CONTIGS.values(), strict=False))
    folder = write_sequences(tmp_path / "seqs", contigs, single=True, page_bytes=512)
    path = write_windows(tmp_path / "w.db", all_windows(contigs))
    index_window_database(folder, path)
    check(folder, path, contigs)


def test_contigs_that_are_absent_or_too_short_have_no_address(tmp_path: Path) -> None:
    folder = write_sequences(tmp_path / "seqs", CONTIGS)
    names = list(CONTIGS)
    windows = all_windows(CONTIGS)
    windows += [("BCR__ECT-S1__absent", 0), ("BCR__ECT-NONE__CT1-1", 0), ("noform", 0), (names[0], 1), (names[11], 99)]
    path = write_windows(tmp_path / "w.db", windows)
    result = index_window_database(folder, path)
    assert result.without_address == {
        module.MISSING: 1, module.NO_DATABASE: 1, module.NO_SAMPLE: 1, module.SHORT: 2
    }  # fmt: skip
    assert result.addressed_windows == len(windows) - 5
    assert IndexFile(index_path(path)).meta["without_address"] == result.without_address


def test_samples_are_told_apart_as_the_loader_does(tmp_path: Path) -> None:
    contigs = {"a__x-S.1__c": "ACGT", "a___x-Z-1__c": "GG", "B__-__c": "TT"}
    folder = tmp_path / "seqs"
    write_sequences(folder / "x", {"q": "A"}, single=True)
    for name, sample in zip(contigs, ("S.1", "Z.1", "none"), strict=True):
        (folder / sample).mkdir(parents=True)
        write_sequences(tmp_path / sample, {name: contigs[name]}, single=True)
        shutil.copy(sample_database_path(tmp_path / sample, "ONE"), sample_database_path(folder, sample))
    path = write_windows(tmp_path / "w.db", [(name, 0) for name in contigs])
    result = index_window_database(folder, path)
    assert result.without_address == {module.NO_DATABASE: 1}
    check(folder, path, contigs, without=frozenset({"B__-__c"}))


def test_a_length_that_the_window_database_contradicts_costs_the_address(tmp_path: Path) -> None:
    folder = write_sequences(tmp_path / "seqs", {"a": "ACGT" * 1000}, single=True)
    path = write_windows(tmp_path / "w.db", [("a", 0), ("a", 1)])
    with closing(apsw.Connection(str(path))) as database:
        database.execute("CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length INTEGER NOT NULL)")
        database.execute("INSERT INTO contig_lengths VALUES (0, 4001)")
    assert index_window_database(folder, path).without_address == {module.SHORT: 1}


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("DELETE FROM window_mappings WHERE window_idx = 3", "without gaps"),
        ("UPDATE window_mappings SET window_idx = -1 WHERE window_idx = 0", "without gaps"),
        ("UPDATE window_mappings SET window_in_seq_idx = -1 WHERE window_idx = 3", "out of range"),
        ("UPDATE window_mappings SET window_in_seq_idx = 5000000000 WHERE window_idx = 3", "out of range"),
        ("UPDATE window_mappings SET window_in_seq_idx = 1.5 WHERE window_idx = 3", "other values"),
        ("UPDATE window_mappings SET sequence_id = x'00' WHERE window_idx = 3", "other values"),
        ("INSERT INTO metadata VALUES ('total_windows', 3)", "3 windows"),
        ("DELETE FROM metadata WHERE key = 'stride'", "metadata"),
        ("DROP TABLE window_mappings", "no table"),
    ],
)
def test_window_databases_that_are_not_whole_get_no_index(
    sequences: Path, tmp_path: Path, statement: str, word: str
) -> None:
    path = write_windows(tmp_path / "w.db", all_windows(CONTIGS))
    with closing(apsw.Connection(str(path))) as database:
        database.execute(statement)
    with pytest.raises(DatabaseError, match=word):
        index_window_database(sequences, path)
    assert [each.name for each in tmp_path.iterdir()] == ["w.db"]


def test_no_window_database_and_no_window(sequences: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDatabase):
        index_window_database(sequences, tmp_path / "none.db")
    path = write_windows(tmp_path / "w.db", [])
    assert index_window_database(sequences, path).windows == 0
    assert len(IndexFile(index_path(path)).runs) == 0


def test_two_processes_at_once(sequences: Path, tmp_path: Path) -> None:
    path = write_windows(tmp_path / "w.db", all_windows(CONTIGS))
    command = [sys.executable, "-c", "import sys; from sharded_eden.cli import main; sys.exit(main(sys.argv[1:]))"]
    jobs = [
        subprocess.Popen([*command, "index", str(sequences), str(path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    ended = [(job.communicate()[1].decode(), job.returncode) for job in jobs]
    assert any(code == 0 for _, code in ended)
    assert all(code == 0 or "another process is writing here" in message for message, code in ended)
    check(sequences, path, CONTIGS)
    with module.publishing(index_path(path)), pytest.raises(UsageError, match="another process"):
        index_window_database(sequences, path)


def test_an_error_leaves_the_old_index(sequences: Path, tmp_path: Path) -> None:
    path = write_windows(tmp_path / "w.db", all_windows(CONTIGS))
    index_window_database(sequences, path)
    before = index_path(path).read_bytes()
    broken = shutil.copytree(sequences, tmp_path / "broken")
    database = sample_database_path(broken, "S1")
    database.write_bytes(database.read_bytes()[:-5000])
    with pytest.raises(DatabaseError, match="S1"):
        index_window_database(broken, path)
    assert index_path(path).read_bytes() == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_command(sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int) -> None:
    for name in ("train", "val"):
        write_windows(tmp_path / f"{name}_windows.db", [*all_windows(CONTIGS), ("BCR__ECT-S1__absent", 0)])
    assert cli.main(["index", str(sequences), str(tmp_path), "--jobs", str(jobs)]) == 0
    out = capsys.readouterr().out
    assert out.count("have no address: it is not in its sequence database, or its contig_id is too long") == 2
    for name in ("train", "val"):
        assert index_path(tmp_path / f"{name}_windows.db").is_file()
    (tmp_path / "empty").mkdir()
    assert cli.main(["index", str(sequences), str(tmp_path / "empty")]) == 1


def rows_of(folder: Path, path: Path) -> list[dict[str, np.ndarray]]:
    dataset = ShardedEdenDataset(None, folder, path, SIZE, stride=STRIDE)
    return [{name: np.asarray(value) for name, value in dataset[k].items()} for k in range(len(dataset))]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    (folder / "in").mkdir()
    for sample in range(3):
        with (folder / "in" / f"G{sample}.fasta").open("w") as file:
            for k, letters in enumerate(list(CONTIGS.values())[sample:]):
                file.write(f">c{k}\n{letters}\n")
    build_sequence_dbs([str(folder / "in")], folder / "db")
    write_splits(folder / "db", folder / "splits", by="contig", val=0.3, test=0)
    return folder


@pytest.mark.parametrize("options", [{}, {"keep_tail": True}, {"max_ambiguous": 0.11}, {"pack": True}])
def test_precompute_writes_the_index_without_a_further_option(
    built: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    if "max_ambiguous" in options:
        options = {**options, "sequences": built / "db"}
    path = tmp_path / "train_windows.db"
    result = precompute_window_database(built / "splits" / "train_split.parquet", path, SIZE, STRIDE, **options)
    assert result.index is not None
    assert result.index.addressed_windows == result.windows == result.index.windows > 20
    assert result.index.bytes_read == 0
    if "max_ambiguous" in options:
        assert result.ambiguous_windows
    contigs = {}
    for database in (built / "db").glob("*/*.sqlite"):
        with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            contigs.update(dict(connection.execute("SELECT contig_id, nt_sequence FROM sequences")))
    check(built / "db", path, contigs)
    with_index = rows_of(built / "db", path)
    index_path(path).unlink()
    without = rows_of(built / "db", path)
    assert len(with_index) == len(without) == result.windows
    for one, other in zip(with_index, without, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_precompute_succeeds_where_no_index_can_be_written(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = built / "splits" / "train_split.parquet"
    path = tmp_path / "w.db"
    precompute_window_database(split, path, SIZE, STRIDE)
    assert index_path(path).is_file()
    result = precompute_window_database(split, path, SIZE, STRIDE, sequences=tmp_path / "gone")
    assert result.index is None
    assert f"sharded-eden index {tmp_path / 'gone'} {path}" in result.no_index
    assert not index_path(path).exists()
    pl.read_parquet(split).write_parquet(tmp_path / "plain.parquet")
    assert cli.main(["precompute", str(tmp_path / "plain.parquet"), str(tmp_path / "p.db")]) == 0
    assert f"Write it: sharded-eden index SEQDB {tmp_path / 'p.db'}" in capsys.readouterr().out
    broken = shutil.copytree(built / "db", tmp_path / "broken")
    sample_database_path(broken, "G1").write_bytes(b"nothing")
    assert "G1" in precompute_window_database(split, path, SIZE, STRIDE, sequences=broken).no_index


def test_an_index_is_whole_although_the_split_lacks_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Samples without a window in the split have no entry, and nothing about them is out of date."""
    folder = worlds.write(tmp_path)
    contigs = {name: bases for name, bases in worlds.CONTIGS.items() if "-S1_" in name}
    oracle.write_window_db(folder / "one.db", contigs, worlds.T, worlds.STRIDE)
    index_window_database(folder / "seqs", folder / "one.db")
    with ShardedEdenDataset.open(folder / "seqs", folder / "one.db") as dataset:
        assert dataset._addresses is not None
        assert dataset._addresses.changed_samples == []
        assert len(dataset[0]["tokens"]) == worlds.T
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_copy_of_a_dataset_whose_windows_were_replaced_names_the_index(tmp_path: Path) -> None:
    folder = worlds.write(tmp_path)
    index_window_database(folder / "seqs", folder / "windows.db")
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db") as dataset:
        copied = pickle.dumps(dataset)
    oracle.write_window_db(folder / "new.db", worlds.CONTIGS, worlds.T, worlds.STRIDE)
    (folder / "new.db").replace(folder / "windows.db")
    index_window_database(folder / "seqs", folder / "windows.db")
    with pytest.raises(
        DatabaseError,
        match=r"windows\.db\.index: it, or its window database, was written after the dataset was opened: .* Open the",
    ):
        pickle.loads(copied)


def test_pack_keeps_the_index_and_removes_one_of_another_database(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    precompute_window_database(built / "splits" / "train_split.parquet", path, SIZE, STRIDE)
    runs = IndexFile(index_path(path)).runs.copy()
    pack_window_database(path)
    file = IndexFile(index_path(path))
    assert FileIdentity(*file.meta["identity"]) == FileIdentity.of(path.stat())
    assert (file.runs == runs).all()
    path.touch()
    pack_window_database(path)
    assert not index_path(path).exists()


def test_a_damaged_index_is_not_written_again_with_new_checksums(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    precompute_window_database(built / "splits" / "train_split.parquet", path, SIZE, STRIDE)
    index = index_path(path)
    sound = index.read_bytes()
    damaged = IndexFile(index).runs.copy()
    at = sound.index(damaged.tobytes())
    for block in range(0, len(damaged), 64):
        data = bytearray(sound)
        data[at + damaged.itemsize * block + 8] ^= 4  # of `at` of a run
        index.write_bytes(data)
        with pytest.raises(DatabaseError, match=r"w\.db\.index: is damaged in its runs"):
            add_remote(path, (built / "db").as_uri())
        assert index.read_bytes() == data
    pack_window_database(path)
    assert not index.exists()


def test_metadata_that_are_text(tmp_path: Path) -> None:
    folder = worlds.write(tmp_path)
    expected = index_window_database(folder / "seqs", folder / "windows.db")
    worlds.execute(
        folder / "windows.db",
        "ALTER TABLE metadata RENAME TO old",
        "CREATE TABLE metadata (key TEXT, value TEXT)",
        "INSERT INTO metadata SELECT key, CAST(value AS TEXT) FROM old",
        "INSERT INTO metadata VALUES ('made by', 'another program')",
        "DROP TABLE old",
    )
    assert index_window_database(folder / "seqs", folder / "windows.db") == expected
    with worlds.dataset(folder) as dataset:
        assert dataset._addresses is not None


def test_copies_are_known_by_their_bytes_and_changes_are_noticed(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built / "db", tmp_path / "copy", copy_function=shutil.copyfile)
    path = tmp_path / "w.db"
    split = built / "splits" / "train_split.parquet"
    result = precompute_window_database(split, path, SIZE, STRIDE, sequences=folder)
    total = sum(each.stat().st_size for each in folder.glob("*/*.sqlite"))
    assert result.index is not None
    assert result.index.bytes_read == total
    before = rows_of(folder, path)
    changed = sample_database_path(folder, "G1")
    with closing(apsw.Connection(str(changed))) as database:
        database.execute("UPDATE sequences SET nt_sequence = replace(nt_sequence, 'A', 'C')")
    result = index_window_database(folder, path)
    assert result.bytes_read == total + changed.stat().st_size * (
        changed.stat().st_size == sample_database_path(built / "db", "G1").stat().st_size
    )
    after = rows_of(folder, path)
    index_path(path).unlink()
    plain = rows_of(folder, path)
    assert any(not np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(before, after, strict=True))
    assert all(np.array_equal(a["tokens"], b["tokens"]) for a, b in zip(plain, after, strict=True))
    os.unlink(record_path(changed))
