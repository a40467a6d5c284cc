"""Access logs -> words: a sampler that keeps its promise, and planted wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sharded_eden.describe.access_logs import access_log_files
from sharded_eden.errors import EdenWarning, InputError, MissingDatabase, UsageError
from sharded_eden.report import reads as module
from sharded_eden.report.reads import count_reads
from sharded_eden.report.verdicts import verdicts

WINDOWS = 12_000
RNG = np.random.default_rng(11)
SECOND = 1_000_000_000


def write_log(folder: Path, rank: int, order: dict[int, np.ndarray], suffix: str = "csv", **columns) -> None:
    """Write the access log of one process: {epoch: windows in their order}, batches of 8, a millisecond apart."""
    window = np.concatenate(list(order.values()))
    frame = pl.DataFrame(
        {
            "window_idx": window,
            "sequence_id": [f"BCR__ECT-S__CT1-{i % 7}" for i in window],
            "sample_id": "S",
            "window_in_seq_idx": 0,
            "rank": rank,
            "access_ts": np.int64(1_700_000_000 * SECOND) + np.arange(len(window)) // 8 * 1_000_000,
            "worker": -1,
            "epoch": np.repeat(list(order), [len(each) for each in order.values()]),
        }
    ).with_columns(**columns)
    folder.mkdir(exist_ok=True)
    path = folder / f"window_access_train_rank{rank}_{rank:08x}.{suffix}"
    frame.write_parquet(path, row_group_size=1000) if suffix == "parquet" else frame.write_csv(path)


def found(folder: Path, windows: int = WINDOWS) -> list[tuple[str, str]]:
    reads = count_reads("train", access_log_files(folder), windows)
    return [(each.level, each.text) for each in verdicts(reads)]


def faults(folder: Path) -> list[str]:
    return [text for level, text in found(folder) if level == "fault"]


def shares(order: np.ndarray, ranks: int = 4) -> list[np.ndarray]:
    """Micro batches of 4, by turns."""
    return [order.reshape(-1, 4)[rank::ranks].ravel() for rank in range(ranks)]


def good_orders() -> list[dict[int, np.ndarray]]:
    passes = [shares(RNG.permutation(WINDOWS)) for _ in range(2)]
    return [{epoch: passes[epoch][rank] for epoch in range(2)} for rank in range(4)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("rows_at_once", [1 << 20, 997])
def test_a_global_shuffle_of_two_passes(tmp_path, suffix, rows_at_once, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    for rank, order in enumerate(good_orders()):
        write_log(tmp_path, rank, order, suffix)
    said = found(tmp_path)
    assert {level for level, _ in said} == {"good"}
    text = " ".join(text for _, text in said)
    assert "Every window was read exactly twice." in text
    assert "No window was read more than once in a pass." in text
    assert "All 2 passes are complete: no window is missing." in text
    assert "The shuffle is global" in text


@pytest.mark.parametrize("block", [50, 100, 1000, 3000])
def test_a_block_wise_shuffle_is_named(tmp_path, block):
    blocks = np.arange(WINDOWS).reshape(-1, block)
    order = np.concatenate([RNG.permutation(each) for each in blocks[RNG.permutation(len(blocks))]])
    for rank, windows in enumerate(shares(order)):
        write_log(tmp_path, rank, {0: windows})
    (fault,) = faults(tmp_path)
    assert fault.startswith("The shuffle is not global")
    assert "Every window was read exactly once." in [text for _, text in found(tmp_path)]


def test_ranks_that_shuffle_their_own_part_only_are_named(tmp_path):
    for rank, part in enumerate(np.arange(WINDOWS).reshape(4, -1)):
        write_log(tmp_path, rank, {0: RNG.permutation(part)})
    (fault,) = faults(tmp_path)
    assert fault.startswith("The shuffle is not global: each rank reads a part of the split only.")


def test_an_order_that_is_not_shuffled_is_named(tmp_path):
    write_log(tmp_path, 0, {0: np.arange(WINDOWS)})
    assert faults(tmp_path) == ["The windows were read in order: they are not shuffled."]


def test_a_rank_that_repeats_the_windows_of_another_is_named(tmp_path):
    orders = good_orders()
    for rank, order in enumerate(orders):
        write_log(tmp_path, rank, orders[1] if rank == 3 else order)
    said = faults(tmp_path)
    assert said[0].startswith("Rank 3 repeats the windows of rank 1: 6,000 of its 6,000 reads are windows that rank 1 ")
    assert any(
        text.startswith("Pass 0 ended with gaps, although a later pass began. In all, 3,000 of 12,000") for text in said
    )
    assert any("of 12,000 were never read" in text for _, text in found(tmp_path))


def test_a_gap_is_named_even_in_the_last_pass(tmp_path):
    order = RNG.permutation(WINDOWS)
    kept = order[(order < 5000) | (order >= 5100)]
    for rank, windows in enumerate(shares(kept[: len(kept) // 4 * 4])):
        write_log(tmp_path, rank, {0: windows})
    (fault,) = faults(tmp_path)
    assert fault.startswith(
        "Pass 0 has a gap: the windows 5,000 to 5,099 were not read (100 in a row; a random order leaves "
    )


def test_a_pass_that_is_not_complete_is_no_fault(tmp_path):
    for rank, windows in enumerate(shares(RNG.permutation(WINDOWS))):
        write_log(tmp_path, rank, {0: windows[: len(windows) // 2]})
    assert faults(tmp_path) == []
    assert ("note", "Pass 0 is not complete. In all, 6,000 of 12,000 windows were not read in it.") in found(tmp_path)


def test_reads_after_a_restart_are_named(tmp_path):
    order = RNG.permutation(WINDOWS)
    write_log(tmp_path, 0, {0: np.concatenate([order[:6000], order[5900:]])})
    (fault,) = faults(tmp_path)
    assert fault.startswith("Rank 0 read 100 windows again in the same pass. A job that resumes from a checkpoint")


def test_evaluation_in_order_is_no_fault(tmp_path):
    write_log(tmp_path, 0, {0: np.tile(np.arange(WINDOWS), 3)})
    reads = count_reads("val", access_log_files(tmp_path), WINDOWS, is_evaluation=True)
    said = [(each.level, each.text) for each in verdicts(reads)]
    assert ("good", "Every window was read exactly 3 times.") in said
    assert ("note", "This is a split for evaluation: it is read in one fixed order, in each evaluation again.") in said


def test_a_stall_is_named(tmp_path):
    order = RNG.permutation(WINDOWS)
    time = 1_700_000_000 * SECOND + np.arange(WINDOWS) // 8 * 1_000_000
    time[6000:] += 7 * SECOND
    write_log(tmp_path, 0, {0: order}, access_ts=pl.Series(time))
    assert any(
        text.startswith(
            "The longest pause between two batches of one process was 7.0 s (rank 0, main process, 8 s after"
        )
        for _, text in found(tmp_path)
    )


def test_counts_equal_those_of_polars(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 501)
    for rank in range(3):
        write_log(
            tmp_path, rank, {epoch: RNG.integers(0, 500, 2000) for epoch in (0, 5)}, "parquet", worker=pl.lit(rank % 2)
        )
    rows = pl.read_parquet(tmp_path / "*.parquet")
    reads = count_reads("train", access_log_files(tmp_path), 500)
    assert reads.rows == len(rows)
    counts = rows.group_by("window_idx").len()["len"].value_counts()
    assert {k: v for k, v in reads.times_read.items() if k} == dict(counts.iter_rows())
    assert reads.by_process == {(r, w): n for r, w, n in rows.group_by("rank", "worker").len().iter_rows()}
    distinct = rows.group_by("epoch").agg(pl.len(), pl.col("window_idx").n_unique().alias("distinct")).sort("epoch")
    assert [(each.number, each.reads, each.repeats) for each in reads.passes] == [
        (epoch, n, n - different) for epoch, n, different in distinct.iter_rows()
    ]
    assert sum(reads.repeated_by.values()) == sum(each.repeats for each in reads.passes)
    assert reads.by_part.sum() * 500 / len(reads.by_part) == pytest.approx(len(rows), rel=0.02)
    assert int(reads.pauses.sum()) == 3 * (4000 // 8 - 1)
    assert len(reads.points) <= module.POINTS


def test_logs_of_other_data_and_broken_logs_are_errors(tmp_path):
    write_log(tmp_path, 0, {0: np.arange(100)})
    with pytest.raises(
        InputError, match=r"names window 50, but the split has 50 windows. It belongs to another window database"
    ):
        found(tmp_path, windows=50)
    (path,) = tmp_path.iterdir()
    path.write_text("window_idx,rank\n1,2\n")
    with pytest.raises(InputError, match="is no access log"):
        found(tmp_path)
    head = "window_idx,sequence_id,sample_id,window_in_seq_idx,rank,access_ts,worker,epoch\n"
    path.write_text(head + "1,A,B,0,2,x,0,0\n")
    with pytest.raises(InputError, match="is damaged, or no access log"):
        found(tmp_path)
    path.write_text(head + "1,A,B,0,,5,0,0\n")
    with pytest.raises(InputError, match="a row lacks one of"):
        found(tmp_path)
    path.unlink()
    with pytest.raises(MissingDatabase, match="holds no access log"):
        access_log_files(tmp_path)
    with pytest.raises(MissingDatabase, match="no such folder"):
        access_log_files(tmp_path / "none")


def test_a_row_that_is_cut_off_and_a_log_that_is_there_twice_are_not_counted(tmp_path):
    order = RNG.permutation(WINDOWS)
    write_log(tmp_path, 0, {0: order})
    (path,) = tmp_path.iterdir()
    write_log(
        tmp_path, 0, {0: order}, "parquet"
    )  # stopped after the Parquet file was written, before the CSV was removed
    assert ("good", "Every window was read exactly once.") in found(tmp_path)
    path.with_suffix(".parquet").unlink()
    path.write_text(path.read_text() + "12,BCR__ECT-S__")
    with pytest.warns(EdenWarning, match="its last row is incomplete"):
        assert ("good", "Every window was read exactly once.") in found(tmp_path)


def test_an_empty_log_says_so(tmp_path):
    (tmp_path / "window_access_train_rank0_00000000.csv").write_text("")
    assert found(tmp_path) == [("note", "The access logs hold no read.")]


def test_many_passes_are_refused_before_memory_is_used_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_CELLS", 3 * WINDOWS)
    write_log(tmp_path, 0, {epoch: np.arange(10) for epoch in range(4)})
    with pytest.raises(UsageError, match="more than 3 passes over 12,000 windows"):
        found(tmp_path)
