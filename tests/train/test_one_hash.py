"""One hash of a masked, packed stream: workers, start methods, ranks, micro batches, crashes, compact batches and Grain."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from torch.utils.data import DataLoader

from sharded_eden import ArrayDataset, ArrayStream, ShardedEdenDataset, Stream, StreamBatchSampler, pack_window_database
from sharded_eden.train.grain import StreamSource

SAMPLES, GLOBAL = 48, 8
NAMES = ("tokens", "labels", "loss_mask", "padding_mask", "position_ids")
OPTIONS: dict[str, Any] = {
    "objective": "mlm", "mlm_share": 0.3, "mlm_span": 3, "soft_mask_weight": 0.5, "rc_aug": True, "packed": True, "seed": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contigs = {
        f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(5 + 17 * k % 150, k, "ACGTacgtN") for k in range(30)
    }
    folder = worlds.write(tmp_path_factory.mktemp("hash"), contigs)
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    return folder


def digest(rows: dict[int, list[np.ndarray]]) -> str:
    assert sorted(rows) == list(range(SAMPLES))
    made = blake2b(digest_size=16)
    for position in sorted(rows):
        for part in rows[position]:
            made.update(np.ascontiguousarray(part).tobytes())
    return made.hexdigest()


def wanted(folder: Path) -> str:
    with ArrayDataset.open(folder / "seqs", folder / "windows.db", **OPTIONS) as dataset:
        assert len(dataset) < SAMPLES, "more than one epoch"
        arrays = ArrayStream(dataset).arrays(range(SAMPLES))
    return digest({k: [arrays[name][k] for name in NAMES] for k in range(SAMPLES)})


def trained(
    folder: Path, *, workers: int, start: str | None, history: list[tuple[int, int, int]], compact: bool
) -> str:
    """Train on ranks, one after another; the history lists (ranks, micro batch size, last step) of each run."""
    rows: dict[int, list[np.ndarray]] = {}
    state: dict[str, Any] | None = None
    for ranks, micro, last in history:
        for rank in range(ranks):
            dataset = ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", compact=compact, **OPTIONS)
            stream = Stream(dataset, num_samples=SAMPLES)
            sampler = StreamBatchSampler(
                stream, micro_batch_size=micro, global_batch_size=GLOBAL, rank=rank, data_parallel_size=ranks
            )
            if state is not None:
                sampler.load_state_dict(state)
            positions = iter(list(sampler))
            loader = DataLoader(
                stream, batch_sampler=sampler, num_workers=workers, multiprocessing_context=start if workers else None,
                collate_fn=stream.collate_fn,
            )  # fmt: skip
            expand = dataset.expander() if compact else lambda batch: batch
            for batch, at in zip(loader, positions, strict=True):
                if at[-1] >= last * GLOBAL:
                    break  # killed here; batches that workers read ahead are lost
                full = expand(batch)
                for k, position in enumerate(at):
                    assert position not in rows, "trained on twice"
                    rows[position] = [full[name][k].numpy() for name in NAMES]
            state_of_rank = sampler.state_dict(consumed_samples=last * GLOBAL)
            dataset.close()
        state = state_of_rank
    return digest(rows)


@pytest.mark.parametrize("history", [[(1, 2, 6)], [(2, 2, 2), (4, 1, 3), (1, 8, 6)]])
@pytest.mark.parametrize("compact", [False, True])
def test_ranks_and_crashes(folder, history, compact):
    assert trained(folder, workers=0, start=None, history=history, compact=compact) == wanted(folder)


def test_grain(folder):
    with ArrayDataset.open(folder / "seqs", folder / "windows.db", **OPTIONS) as dataset:
        source = StreamSource(ArrayStream(dataset), batch_size=4)
        batches = [source[k] for k in range(SAMPLES // 4)]
    rows = {4 * k + j: [batch[name][j] for name in NAMES] for k, batch in enumerate(batches) for j in range(4)}
    assert digest(rows) == wanted(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (4, "fork"), (1, "spawn"), (2, "forkserver")])
def test_workers_and_start_methods(folder, workers, start):
    history = [(2, 2, 4), (1, 4, 6)]
    assert trained(folder, workers=workers, start=start, history=history, compact=workers == 4) == wanted(folder)
