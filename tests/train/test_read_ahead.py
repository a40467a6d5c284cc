"""Read-ahead: the windows of a worker's next batches are announced to the kernel, no others, and rows stay what they are.

Every first look into the page cache fails here (`RWF_NOWAIT`), and every read waits, as on a disk whose data are not in memory.
What the process asks of the kernel is recorded, in workers too, and passed on.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
import worlds
from resume import row_hashes
from torch.utils.data import DataLoader, RandomSampler

import oracle
from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler, precompute_window_database
from sharded_eden.errors import DatabaseError
from sharded_eden.load.locate import addresses
from sharded_eden.load.read import positioned
from sharded_eden.train.ahead import NextBatches
from sharded_eden.train.lightning.datamodule import ShardedEdenDataModule
from sharded_eden.train.stream import EvaluationStream, RepeatedEvaluation
from sharded_eden.windows.index import index_window_database

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs preadv2"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

CONTIGS = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(1500 + 40 * k, k) for k in range(24)}
"""In leaf pages as a whole: where their bases lie is found by searching the file."""

Range = tuple[str, int, int]
"""File name, offset, bytes."""


DISK_SECONDS = 100e-6
"""How long a read waits here: longer than `WAIT_SECONDS`."""


class Recorded(NamedTuple):
    log: Path

    def announced(self) -> dict[int, set[Range]]:
        """{process: what it announced}."""
        found = defaultdict(set)
        for line in self.log.read_text().splitlines():
            process, *where = json.loads(line)
            found[process].add(tuple(where))
        return dict(found)

    def clear(self) -> None:
        self.log.write_text("")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    oracle.write_sequence_dbs(folder / "seqs", CONTIGS)
    split = folder / "split.parquet"
    pl.DataFrame({"contig_id": list(CONTIGS), "length": [len(s) for s in CONTIGS.values()]}).write_parquet(split)
    precompute_window_database(split, folder / "windows.db", 64, 50, pack=True)
    index_window_database(folder / "seqs", folder / "windows.db")
    return folder


@pytest.fixture
def cold(monkeypatch, tmp_path) -> Recorded:
    recorded = Recorded(tmp_path / "announced.jsonl")
    recorded.clear()
    preadv, posix_fadvise = os.preadv, os.posix_fadvise

    def without_cache(descriptor, buffers, offset, flags=0):
        if flags:
            raise BlockingIOError
        time.sleep(DISK_SECONDS)
        return preadv(descriptor, buffers, offset)

    def record(descriptor, offset, length, advice):
        if advice == os.POSIX_FADV_WILLNEED:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
            with recorded.log.open("a") as file:
                file.write(json.dumps([os.getpid(), name, offset, length]) + "\n")
        posix_fadvise(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "preadv", without_cache)
    monkeypatch.setattr(os, "posix_fadvise", record)
    return recorded


def ranges_of(stream: Stream, positions) -> set[Range]:
    """Where the bases of windows lie, found in the bytes of the files."""
    dataset, found = stream.dataset, set()
    windows = stream.windows_at(list(positions))
    for sequence_id, number in dataset.locate_many([window for _, window in windows]):
        path = Path(dataset.sample_db_mapping[sequence_id.split("__")[1].removeprefix("ECT-")])
        bases = CONTIGS[sequence_id][number * 50 :][:61].encode()
        found.add((path.name, place_of(path, bases), len(bases)))
    return found


@cache
def place_of(path: Path, bases: bytes) -> int:
    return path.read_bytes().index(bases)


def open_dataset(folder: Path, **options: Any) -> ShardedEdenDataset:
    return worlds.dataset(folder, rc_aug=True, **options)


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_next_batches_are_announced_within_the_bound_and_before_the_end(folder, cold, micro):
    stream = Stream(open_dataset(folder), num_samples=300)
    sampler = StreamBatchSampler(stream, micro_batch_size=micro, global_batch_size=4 * micro, consumed_samples=7)
    end = 7 + (300 - 7) // (4 * micro) * 4 * micro  # an incomplete global batch is left out
    batches = list(sampler)
    assert batches[-1][-1] + 1 == end < 300
    for number, positions in enumerate(batches):
        stream.__getitems__(positions)
        read = positions[-1] + 1
        (announced,) = cold.announced().values()
        ahead = len(announced) - (read - 7)
        assert announced == ranges_of(stream, range(7, read + ahead)), "the windows that follow, and no others"
        if number < 2:
            assert ahead == 0  # three batches show the step
        else:
            assert min(addresses.WINDOWS_AHEAD // 2, end - read) <= ahead <= min(addresses.WINDOWS_AHEAD, end - read)
    (announced,) = cold.announced().values()
    assert announced == ranges_of(stream, range(7, end))


@pytest.mark.parametrize("workers", [1, 4])
def test_each_worker_announces_its_own_batches(folder, cold, workers):
    stream = Stream(open_dataset(folder), num_samples=500)
    sampler = StreamBatchSampler(
        stream, micro_batch_size=2, global_batch_size=8, rank=1, data_parallel_size=2, consumed_samples=16
    )
    mine = list(sampler)
    for _ in DataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=stream.collate_fn):
        pass
    per_worker = [
        ranges_of(stream, [position for batch in mine[worker::workers] for position in batch])
        for worker in range(workers)
    ]
    assert sorted(cold.announced().values(), key=sorted) == sorted(per_worker, key=sorted)


def ahead_of_reading(stream: Stream, loader: DataLoader, cold: Recorded, at_batch: int = 4) -> int:
    """How many windows are announced beyond those that were read, in this process, when so many batches were read."""
    batches = iter(loader)
    rows = sum(len(next(batches)["tokens"]) for _ in range(at_batch))
    (announced,) = cold.announced().values()
    cold.clear()
    return len(announced) - rows


def data_module(folder: Path, **options: Any) -> ShardedEdenDataModule:
    return ShardedEdenDataModule(
        folder / "seqs", folder / "windows.db", folder / "windows.db", seq_length=64, stride=50, rc_aug=True,
        micro_batch_size=2, global_batch_size=8, pin_memory=False, **options,
    )  # fmt: skip


def test_the_data_module_reads_ahead_in_training_and_evaluation(folder, cold):
    module = data_module(folder, num_workers=0)
    module.setup("fit")
    for loader, stream in ((module.train_dataloader(), "train"), (module.val_dataloader(), "val")):
        assert ahead_of_reading(module._splits.streams[stream][0], loader, cold) >= addresses.WINDOWS_AHEAD // 2
    # A whole epoch announces what it reads: whole global batches.
    stream, loader = module._splits.streams["train"][0], module.train_dataloader()
    loader.sampler.set_epoch(1)
    positions = list(loader.sampler)
    for _ in loader:
        pass
    (announced,) = cold.announced().values()
    assert announced == ranges_of(stream, positions)
    assert len(positions) == len(stream.dataset) // 8 * 8


@pytest.mark.parametrize("make", [EvaluationStream, lambda d: RepeatedEvaluation(d, 200, rows_each=100)])
def test_an_evaluation_announces_nothing_beyond_its_end(folder, cold, make):
    stream = make(open_dataset(folder))
    rows = 100 if isinstance(stream, RepeatedEvaluation) else len(stream.dataset)
    for first in range(0, rows, 2):
        stream.__getitems__([first, first + 1] if first + 1 < rows else [first])
    (announced,) = cold.announced().values()
    assert announced == ranges_of(stream, range(rows))


def test_a_shuffling_sampler_has_only_its_batches_announced(folder, cold):
    stream = Stream(open_dataset(folder))
    order = list(RandomSampler(stream, generator=torch.Generator().manual_seed(1)))[:200]
    for position in order:
        stream.__getitems__([position])
    (announced,) = cold.announced().values()
    assert announced == ranges_of(stream, order)


def test_switched_off_nothing_is_announced(folder, cold):
    stream = Stream(open_dataset(folder, read_ahead=False))
    for position in range(20):
        stream.__getitems__([position])
    assert cold.announced() == {}


def test_where_reads_do_not_wait_only_their_own_batch_is_announced(folder, cold, monkeypatch):
    """To announce the next ones, too, costs more than it saves."""
    monkeypatch.setattr(positioned, "WAIT_SECONDS", 1.0)  # no read takes as long, on a busy machine either
    stream = Stream(open_dataset(folder))
    for first in range(0, 160, 32):
        stream.__getitems__(range(first, first + 32))
    (announced,) = cold.announced().values()
    assert announced == ranges_of(stream, range(160))
    assert stream.dataset.items_ahead == 0


def test_waiting_is_measured_again_after_some_batches(folder, cold, monkeypatch):
    monkeypatch.setattr(positioned, "COLD_BATCHES", 8)
    stream = Stream(open_dataset(folder))
    ahead = []
    for position in range(60):
        monkeypatch.setattr(positioned, "WAIT_SECONDS", 1e-6 if position < 20 else 1.0)
        stream.__getitems__([position])
        ahead.append(stream.dataset.items_ahead)
    assert ahead[:20] == [addresses.WINDOWS_AHEAD] * 20
    assert ahead[40:] == [0] * 20


def test_warm_data_are_not_announced(folder, cold, monkeypatch):
    stream = Stream(open_dataset(folder))
    monkeypatch.undo()  # this process wrote the files: they are in the page cache
    recorded = []
    real = os.posix_fadvise
    monkeypatch.setattr(os, "posix_fadvise", lambda *call: recorded.append(call[3]) or real(*call))
    for position in range(20):
        stream.__getitems__([position])
    assert os.POSIX_FADV_WILLNEED not in recorded
    assert stream.dataset.items_ahead == 0


def test_read_ahead_ends_when_the_data_are_in_the_page_cache(folder, cold, monkeypatch):
    stream = Stream(open_dataset(folder))
    for position in range(4):
        stream.__getitems__([position])
    assert stream.dataset.items_ahead == addresses.WINDOWS_AHEAD
    monkeypatch.undo()  # this process wrote the files: they are in the page cache
    for position in range(4, 70):
        stream.__getitems__([position])
    assert stream.dataset.items_ahead == 0


def test_both_parts_of_a_window_on_overflow_pages_are_announced(tmp_path, cold):
    sequence = worlds.random_sequence(30_000, 1)
    worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": sequence}, window_size=1000, stride=997)
    index_window_database(tmp_path / "seqs", tmp_path / "windows.db")
    dataset = worlds.dataset(tmp_path, seq_length=1000, stride=997)
    dataset.announce(range(len(dataset)))
    (announced,) = cold.announced().values()
    covered = {byte for _, offset, length in announced for byte in range(offset, offset + length)}
    file = worlds.sample_db(tmp_path, "S0").read_bytes()
    for start in range(0, 997 * len(dataset) - 40, 50):
        at = file.find(sequence[start : start + 40].encode())
        assert at < 0 or covered.issuperset(range(at, at + 40)), "found unless a page ends there"
    assert len(covered) < len(sequence) + 100 + 4096, "what lies between the leaf page and the overflow pages"


def test_a_file_that_is_gone_raises_when_it_is_read_and_not_before(tmp_path, folder, cold):
    dataset = open_dataset(folder)
    stream = Stream(dataset)
    for position in range(3):
        stream.__getitems__([position])
    dataset._addresses.paths[:] = [tmp_path / "gone.sqlite"] * 3
    dataset.close()
    dataset.announce(range(10))
    with pytest.raises(DatabaseError, match=r"gone\.sqlite"):
        dataset.__getitems__([0])


@pytest.mark.parametrize(
    "options", [{}, {"compact": True}, {"packed": True}, {"compact": True, "packed": True}, {"use_control_tags": True}]
)
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_rows_are_the_same_with_and_without(folder, cold, options, workers):
    found = []
    for read_ahead in (True, False):
        stream = Stream(open_dataset(folder, read_ahead=read_ahead, **options), num_samples=120)
        sampler = StreamBatchSampler(stream, micro_batch_size=1, global_batch_size=4)
        loader = DataLoader(stream, batch_sampler=sampler, num_workers=workers, collate_fn=stream.collate_fn)
        found.append([{name: row_hashes(part) for name, part in batch.items()} for batch in loader])
    assert found[0] == found[1]
    assert len(found[0]) == 120
    assert sum(map(len, cold.announced().values())) >= 100


@pytest.mark.parametrize("workers", [0, 4])
def test_a_job_that_resumes_reads_the_same_rows_with_and_without(folder, cold, workers):
    found = []
    for read_ahead in (True, False):
        module = data_module(folder, num_workers=workers, read_ahead=read_ahead)
        module.setup("fit")
        state = module.state_dict() | {"consumed_samples": 104}
        module.load_state_dict(state)
        found.append([row for batch in module.train_dataloader() for row in row_hashes(batch["tokens"])])
    assert found[0] == found[1]


def test_any_sizes_announce_each_position_of_the_step_once():
    choose = random.Random(1)
    for _ in range(300):
        size, start, most = choose.randint(1, 9), choose.randint(0, 50), choose.randint(0, 80)
        step, batches = size * choose.randint(1, 9), choose.randint(0, 60)
        end = start + step * batches + choose.randint(0, size)
        following, announced = NextBatches(), []
        for first in range(start, end, step):
            batch = list(range(first, min(first + size, end)))
            upcoming = following.after(batch, end, most)
            assert all(batch[-1] < position < end for position in upcoming)
            assert all((position - start) % step < size for position in upcoming)
            announced += upcoming
            assert len([p for p in announced if p > batch[-1]]) <= most
        assert len(announced) == len(set(announced))


def test_a_changed_step_begins_again():
    following = NextBatches()
    assert [following.after([p], 100, 4) for p in (0, 4, 8)] == [[], [], [12, 16, 20, 24]]
    assert following.after([12], 100, 4) == []
    assert following.after([50], 100, 4) == []
    assert following.after([54], 100, 4) == []
    assert following.after([58], 100, 4) == [62, 66, 70, 74]
    assert following.after([], 100, 4) == []
