"""`precompute`: which windows a split has, how they are numbered and stored, and errors."""

from __future__ import annotations

import random
import re
import shlex
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from sharded_eden import WindowGeometry, cli, compute_num_windows, precompute_window_database
from sharded_eden.errors import EdenWarning, InputError, UsageError
from sharded_eden.windows import precompute, split_files, write

SPECIFIED = {
    "metadata": [("key", "TEXT", 0, 1), ("value", "INTEGER", 1, 0)],
    "window_mappings": [
        ("window_idx", "INTEGER", 0, 1),
        ("sequence_id", "TEXT", 1, 0),
        ("window_in_seq_idx", "INTEGER", 1, 0),
    ],
}


def split_file(path: Path, contigs: dict[str, int]) -> Path:
    columns = {"contig_id": list(contigs), "length": list(contigs.values())}
    pl.DataFrame(columns, schema={"contig_id": pl.String, "length": pl.Int64}).write_parquet(path)
    return path


def table(path: Path, name: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()


def expected_windows(contigs: dict[str, int], *geometry: int, **options: bool) -> list[tuple[int, str, int]]:
    rows: list[tuple[int, str, int]] = []
    for contig_id in sorted(contigs, key=str.encode):
        for i in oracle.windows_of(contigs[contig_id], *geometry, **options):
            rows.append((len(rows), contig_id, i))
    return rows


def a_metagenome(contigs: int = 300, seed: int = 1) -> dict[str, int]:
    choose = random.Random(seed)
    return {f"BCR__ECT-S{i % 7}__CT1-{i}": int(choose.lognormvariate(7.7, 1.3)) + 1 for i in range(contigs)}


geometries = st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(0, 45), st.integers(0, 6), st.booleans())


@given(st.lists(st.integers(0, 400), min_size=1, max_size=20), geometries)
def test_counts_agree_with_a_slow_loop(lengths: list[int], numbers: tuple[int, int, int, int, bool]) -> None:
    window_size, stride, threshold, special_tokens, keep_tail = numbers
    keep_tail = keep_tail and window_size > special_tokens
    geometry = WindowGeometry(
        window_size=window_size, stride=stride, min_length=threshold, special_tokens=special_tokens, keep_tail=keep_tail
    )
    windows = [oracle.windows_of(n, window_size, stride, threshold, special_tokens, keep_tail) for n in lengths]
    assert geometry.counts(np.array(lengths)).tolist() == [len(w) for w in windows]
    seen = [
        {b for i in w for b in range(i * stride, min(n, i * stride + geometry.usable))}
        for w, n in zip(windows, lengths, strict=True)
    ]
    assert geometry.unseen_bases(np.array(lengths)) == sum(lengths) - sum(map(len, seen))
    if keep_tail and threshold == 0 and stride <= geometry.usable:
        assert geometry.unseen_bases(np.array(lengths)) == 0


@given(st.integers(0, 10**9), st.integers(1, 10**5), st.integers(1, 10**5))
def test_compute_num_windows_is_the_formula_of_the_design(length: int, window_size: int, stride: int) -> None:
    expected = 1 if length < window_size else 1 + (length - window_size) // stride
    assert compute_num_windows(length, window_size, stride) == expected


def test_tables_are_the_specified_ones(tmp_path: Path) -> None:
    contigs = a_metagenome()
    path = tmp_path / "windows.db"
    result = precompute_window_database(split_file(tmp_path / "s.parquet", contigs), path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for name, columns in SPECIFIED.items():
            query = 'SELECT name, type, "notnull", pk FROM pragma_table_info(?)'
            assert connection.execute(query, (name,)).fetchall() == columns
        indices = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql NOT NULL"
        ).fetchall()
        assert indices == [("idx_sequence_id", "CREATE INDEX idx_sequence_id ON window_mappings(sequence_id)")]
    rows = table(path, "window_mappings")
    assert rows == expected_windows(contigs, 8192, 7992)
    first = {contig_id: idx for idx, contig_id, _ in reversed(rows)}
    assert table(path, "contig_lengths") == sorted((first[contig_id], n) for contig_id, n in contigs.items())
    metadata = dict(table(path, "metadata"))
    assert 0 <= metadata.pop("fingerprint") < 2**63
    assert metadata == {
        "window_size": 8192,
        "stride": 7992,
        "window_min_length_threshold": 0,
        "special_tokens": 3,
        "keep_tail": 0,
        "total_windows": len(rows),
        "distinct_sequences": len(contigs),
    }
    geometry = WindowGeometry()
    assert result == precompute.PrecomputeResult(
        path=path,
        windows=len(rows),
        sequences=len(contigs),
        contigs_left_out=0,
        bases=sum(contigs.values()),
        unseen_bases=geometry.unseen_bases(np.array(list(contigs.values()))),
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.parquet", "windows.db"]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text("ab_-Zé0", min_size=1, max_size=8), st.integers(1, 300), min_size=1, max_size=60),
    geometries,
    st.integers(1, 20),
    st.integers(1, 20),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_split_in_any_order_and_any_batches(
    tmp_path_factory: pytest.TempPathFactory,
    contigs: dict[str, int],
    numbers: tuple[int, int, int, int, bool],
    batch_contigs: int,
    batch_windows: int,
    is_sorted: bool,
    choose: random.Random,
) -> None:
    window_size, stride, threshold, special_tokens, keep_tail = numbers
    keep_tail = keep_tail and window_size > special_tokens
    ids = sorted(contigs, key=str.encode)
    if not is_sorted:
        choose.shuffle(ids)
    contigs = {contig_id: contigs[contig_id] for contig_id in ids}
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", EdenWarning)
        patch.setattr(split_files, "BATCH_CONTIGS", batch_contigs)
        patch.setattr(split_files, "SURVEY_ROWS", batch_contigs)
        patch.setattr(write, "BATCH_WINDOWS", batch_windows)
        patch.setattr(split_files, "SORT_ROWS", 7)
        patch.setattr(split_files, "SAMPLE_EVERY", 3)
        result = precompute_window_database(
            split_file(folder / "s.parquet", contigs),
            folder / "w.db",
            window_size,
            stride,
            threshold,
            keep_tail=keep_tail,
            special_tokens=special_tokens,
        )
    expected = expected_windows(contigs, window_size, stride, threshold, special_tokens, keep_tail=keep_tail)
    assert table(folder / "w.db", "window_mappings") == expected
    lengths = [(idx, contigs[contig_id]) for idx, contig_id, i in expected if i == 0]
    assert table(folder / "w.db", "contig_lengths") == lengths
    assert (result.windows, result.sequences) == (len(expected), len(lengths))
    assert result.contigs_left_out == len(contigs) - len(lengths)


def test_fingerprint_is_of_what_is_in_it_not_of_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(contigs: dict[str, int], **options: int) -> int:
        precompute_window_database(
            split_file(tmp_path / "s.parquet", contigs), tmp_path / "w.db", overwrite=True, **options
        )
        return dict(table(tmp_path / "w.db", "metadata"))["fingerprint"]

    contigs = a_metagenome()
    expected = fingerprint(contigs)
    assert fingerprint(dict(sorted(contigs.items(), reverse=True))) == expected
    monkeypatch.setattr(split_files, "BATCH_CONTIGS", 13)
    monkeypatch.setattr(precompute, "PAGE_BYTES", 512)
    assert fingerprint(contigs) == expected
    # Contigs without a window do not affect the numbers of others.
    long = {contig_id: n for contig_id, n in contigs.items() if n >= 2_000}
    assert len(long) < len(contigs)
    thresholds = {"window_min_length_threshold": 2_000}
    assert fingerprint(contigs, **thresholds) == fingerprint(long, **thresholds) != expected
    others = [
        fingerprint(contigs, stride=7991),
        fingerprint(contigs, window_size=8191),
        fingerprint(contigs, special_tokens=4),
        fingerprint(contigs, keep_tail=True),
        fingerprint(contigs | {next(iter(contigs)): 5}),
        fingerprint(contigs | {"more": 5}),
    ]
    assert len({expected, *others}) == 7


def test_only_the_two_columns_are_read_and_any_integer_will_do(tmp_path: Path) -> None:
    contigs = {"b": 9_000, "a": 100}
    for kind in (pl.Int32, pl.UInt16, pl.UInt64):
        frame = pl.DataFrame({"junk": [1.5, None], "length": [9_000, 100], "contig_id": ["b", "a"]})
        frame.cast({"length": kind}).write_parquet(tmp_path / "s.parquet")
        precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db")
        assert table(tmp_path / "w.db", "window_mappings") == expected_windows(contigs, 8192, 7992)


def frame(ids: list[str | None], lengths: list[int | None]) -> pl.DataFrame:
    return pl.DataFrame({"contig_id": ids, "length": lengths}, schema={"contig_id": pl.String, "length": pl.Int64})


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (pl.DataFrame({"id": ["a"], "length": [1]}), ["'contig_id' is missing", "id, length", "sharded-eden split"]),
        (pl.DataFrame({"contig_id": ["a"], "len": [1]}), ["'length' is missing", "contig_id, len"]),
        (
            pl.DataFrame({"contig_id": [7.0], "length": [1]}),
            ["'contig_id' holds Float64", "expected strings or integers"],
        ),
        (
            pl.DataFrame({"contig_id": [True], "length": [1]}),
            ["'contig_id' holds Boolean", "expected strings or integers"],
        ),
        (pl.DataFrame({"contig_id": ["a"], "length": [1.0]}), ["'length' holds Float64", "expected integers"]),
        (pl.DataFrame({"contig_id": ["a"], "length": [True]}), ["'length' holds Boolean"]),
        (frame(["a", None, "c"], [1, 2, 3]), ["row 1 has no contig_id", "length=2"]),
        (frame(["a", "", "c"], [1, 2, 3]), ["row 1 has no contig_id"]),
        (frame(["a", "b", "c", "d"], [1, None, 3, None]), ["row 1 has no length", "contig_id='b'", "1 of the rows"]),
        (frame(["a", "b"], [1, -5]), ["row 1 has a negative length", "contig_id='b', length=-5"]),
        (frame(["a", "b"], [1, 2**31]), ["row 1 is longer than any contig can be (2,147,483,647)"]),
        (frame(["a", "b\0c"], [1, 1]), ["row 1", "NUL"]),
        (frame(["a", "b", "b"], [1, 2, 3]), ["contig_id 'b' appears more than once", "one row for each contig"]),
        (frame(["b", "a", "b"], [1, 2, 3]), ["contig_id 'b' appears more than once"]),
        (b"contig_id,length\na,1\n", ["cannot be read as Parquet", "cut short"]),
        (b"", ["cannot be read as Parquet"]),
        (None, ["no such file"]),
    ],
)
@pytest.mark.parametrize("batch", [1, 1_000])
def test_split_files_that_are_refused(
    tmp_path: Path, split: pl.DataFrame | bytes | None, words: list[str], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_files, "BATCH_CONTIGS", batch)
    path = tmp_path / "s.parquet"
    if isinstance(split, bytes):
        path.write_bytes(split)
    elif split is not None:
        split.write_parquet(path)
    precompute_window_database(split_file(tmp_path / "older.parquet", {"a": 5}), tmp_path / "w.db")
    older = (tmp_path / "w.db").read_bytes()
    with pytest.raises(InputError) as caught:
        precompute_window_database(path, tmp_path / "w.db")
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert (tmp_path / "w.db").read_bytes() == older
    assert {p.name for p in tmp_path.iterdir()} <= {"s.parquet", "older.parquet", "w.db"}


def test_damaged_split_file(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.parquet", a_metagenome(5_000))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(InputError):
        precompute_window_database(path, tmp_path / "w.db")
    path.write_bytes(data[:-50])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        precompute_window_database(path, tmp_path / "w.db")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_size": 0}, "window_size must be at least 1, not 0"),
        ({"stride": 0}, "stride must be at least 1, not 0"),
        ({"stride": -3}, "stride must be at least 1, not -3"),
        ({"window_min_length_threshold": -1}, "must be at least 0, not -1"),
        ({"special_tokens": -1}, "special_tokens must be at least 0"),
        ({"window_size": 3, "keep_tail": True}, "no room beside special_tokens=3"),
    ],
)
def test_sizes_that_are_refused(tmp_path: Path, options: dict, words: str) -> None:
    path = split_file(tmp_path / "s.parquet", {"a": 5})
    with pytest.raises(UsageError, match=words):
        precompute_window_database(path, tmp_path / "w.db", **options)


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.parquet", {"a": 5})
    with pytest.raises(UsageError, match="is the split file itself"):
        precompute_window_database(path, tmp_path / "." / "s.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="a folder has this name"):
        precompute_window_database(path, tmp_path / "folder")
    with pytest.raises(UsageError, match="cannot be written"):
        precompute_window_database(path, path / "w.db")
    (tmp_path / "w.db-wal").touch()
    with pytest.raises(UsageError, match="-wal or -journal"):
        precompute_window_database(path, tmp_path / "w.db")


def test_a_database_of_other_contigs_or_geometry_is_replaced_only_on_request(tmp_path: Path) -> None:
    split, output = tmp_path / "train_split.parquet", tmp_path / "w.db"
    precompute_window_database(split_file(split, {"a": 50_000, "b": 9}), output)
    before = output.read_bytes()
    precompute_window_database(split, output)  # the same again
    assert output.read_bytes() == before
    why = "Checkpoints are tied to the windows"
    for options in ({"window_size": 100}, {"stride": 99}, {"keep_tail": True}, {"window_min_length_threshold": 10}):
        with pytest.raises(UsageError, match=rf"another geometry .*{why}.*--force") as caught:
            precompute_window_database(split, output, **options)
        command = re.search(r"sharded-eden (precompute \S+ \S+ [^;]+);", str(caught.value))
        assert command
        words = shlex.split(command[1])
        assert Path(words[2]) != output
        assert cli.main(words) == 0
    precompute_window_database(split, tmp_path / "packed.db", pack=True)
    with pytest.raises(UsageError, match=r"has packs, which the new one would not have without --pack"):
        precompute_window_database(split, tmp_path / "packed.db")
    precompute_window_database(split, tmp_path / "packed.db", overwrite=True)
    for contigs in ({"a": 50_000}, {"a": 50_000, "b": 10}, {"a": 50_000, "c": 9}, {"a": 50_000, "b": 9, "c": 1}):
        with pytest.raises(UsageError, match=rf"other contigs or windows.*{why}.*--force"):
            precompute_window_database(split_file(split, contigs), output)
    assert output.read_bytes() == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    precompute_window_database(split_file(split, {"b": 5}), output, overwrite=True)
    assert table(output, "window_mappings") == [(0, "b", 0)]


def test_a_database_without_a_fingerprint_is_compared_by_its_rows(tmp_path: Path) -> None:
    split, output = split_file(tmp_path / "s.parquet", {"a": 50_000}), tmp_path / "w.db"
    precompute_window_database(split, output)
    with sqlite3.connect(output) as connection:
        connection.execute("DELETE FROM metadata WHERE key IN ('fingerprint', 'total_windows')")
    connection.close()
    precompute_window_database(split, output)
    with sqlite3.connect(output) as connection:
        connection.execute("DELETE FROM metadata WHERE key = 'fingerprint'")
    connection.close()
    with pytest.raises(UsageError, match="other contigs or windows"):
        precompute_window_database(split_file(split, {"b": 50_000}), output)


@pytest.mark.parametrize("content", [b"older", b"SQLite format 3\0" + bytes(5000), "CREATE TABLE notes (x)"])
def test_a_file_that_is_not_a_window_database_is_replaced_only_on_request(tmp_path: Path, content: bytes | str) -> None:
    split, output = split_file(tmp_path / "s.parquet", {"a": 5}), tmp_path / "w.db"
    if isinstance(content, bytes):
        output.write_bytes(content)
    else:
        with sqlite3.connect(output) as connection:
            connection.execute(content)
        connection.close()
    before = output.read_bytes()
    for command in (["sharded_eden.cli"], ["bionemo.evo2.run.sharded_eden_dataloader"]):
        program = [sys.executable, "-c", "import sys, sharded_eden.cli; sys.exit(sharded_eden.cli.main())"]
        if command[0].startswith("bionemo"):
            program = [sys.executable, "-m", *command]
        run = subprocess.run([*program, "precompute", split, output], check=False, capture_output=True, text=True)
        assert run.returncode == 2
        assert "--force" in run.stderr
        assert output.read_bytes() == before
    subprocess.run([*program, "precompute", split, output, "--force"], check=True, capture_output=True)
    assert table(output, "window_mappings") == [(0, "a", 0)]


def test_stride_that_leaves_gaps_warns_with_the_bases_lost(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.parquet", {"a": 300})
    with pytest.warns(
        EdenWarning, match=r"stride=98 is more than the 97 bases .* no window shows 9 of 300 bases"
    ) as caught:
        result = precompute_window_database(path, tmp_path / "w.db", 100, 98)
    assert caught[0].filename == __file__
    assert (result.windows, result.bases, result.unseen_bases) == (3, 300, 300 - 3 * 97)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precompute_window_database(path, tmp_path / "97.db", 100, 97).unseen_bases == 9
        assert precompute_window_database(path, tmp_path / "tail.db", 100, 97, keep_tail=True).unseen_bases == 0


def test_no_window_left_is_a_valid_empty_database_and_a_warning(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.parquet", {"a": 300, "b": 10})
    with pytest.warns(EdenWarning, match="holds no window: none of 2 contigs has 301 bases or more"):
        result = precompute_window_database(path, tmp_path / "w.db", window_min_length_threshold=301)
    assert (result.windows, result.sequences, result.contigs_left_out, result.unseen_bases) == (0, 0, 2, 310)
    assert table(tmp_path / "w.db", "window_mappings") == table(tmp_path / "w.db", "contig_lengths") == []
    assert dict(table(tmp_path / "w.db", "metadata"))["total_windows"] == 0


def test_contigs_without_bases_warn(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.parquet", {"a": 0, "b": 10, "c": 0})
    with pytest.warns(EdenWarning, match=r"2 contigs have length 0 .* --window-min-length-threshold 1"):
        result = precompute_window_database(path, tmp_path / "w.db")
    assert result.windows == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precompute_window_database(path, tmp_path / "1.db", window_min_length_threshold=1).windows == 1


def test_progress_is_told_in_contigs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_files, "BATCH_CONTIGS", 100)
    told: list[tuple[int, int]] = []
    path = split_file(tmp_path / "s.parquet", a_metagenome(250))
    precompute_window_database(path, tmp_path / "w.db", progress=lambda *at: told.append(at))
    assert told == [(100, 250), (200, 250), (250, 250)]


def test_one_very_long_contig_among_short_ones(tmp_path: Path) -> None:
    contigs = {"a": 10, "b": 2**31 - 1, "c": 10}
    result = precompute_window_database(split_file(tmp_path / "s.parquet", contigs), tmp_path / "w.db", 8192, 7992)
    last = compute_num_windows(2**31 - 1) - 1
    assert result.windows == last + 3
    rows = table(tmp_path / "w.db", "window_mappings")
    assert rows[:2] == [(0, "a", 0), (1, "b", 0)]
    assert rows[-2:] == [(last + 1, "b", last), (last + 2, "c", 0)]
    assert table(tmp_path / "w.db", "contig_lengths") == [(0, 10), (1, 2**31 - 1), (last + 2, 10)]


def test_killed_run_leaves_no_database_and_the_next_one_succeeds(tmp_path: Path) -> None:
    path = split_file(tmp_path / "s.parquet", a_metagenome(50_000))
    script = (
        "import os, signal, sys; from sharded_eden import precompute_window_database as f\n"
        "f(sys.argv[1], sys.argv[2], progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", script, path, tmp_path / "w.db"], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "w.db").exists()
    assert (tmp_path / ".w.db.partial").exists()
    precompute_window_database(path, tmp_path / "w.db")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.parquet", "w.db"]


def test_a_split_without_contigs_is_a_valid_empty_database(tmp_path: Path) -> None:
    frame([], []).write_parquet(tmp_path / "split.parquet")
    with pytest.warns(EdenWarning, match="holds no window"):
        result = precompute_window_database(tmp_path / "split.parquet", tmp_path / "windows.db")
    assert (result.windows, result.sequences) == (0, 0)
    connection = sqlite3.connect(tmp_path / "windows.db")
    assert connection.execute("SELECT count(*) FROM window_mappings").fetchone() == (0,)
    assert dict(connection.execute("SELECT key, value FROM metadata"))["total_windows"] == 0
    connection.close()
