"""Real genomes give the same rows with the index and without it, and a window is one request."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharded_eden import ShardedEdenDataset, build_sequence_dbs, precompute_window_database
from sharded_eden.format.index import IndexFile, index_path
from sharded_eden.format.schema import sample_database_path
from sharded_eden.load.read.plan import NEAR_BYTES, POINTER_BYTES
from sharded_eden.split import write_splits

GENOMES = Path(__file__).parents[2] / "demo/genomes"
SIZE, STRIDE = 1024, 1000
SOME = ["phage_lambda_NC_001416.fa.gz", "helicobacter_pylori_SJM180_draft.fa.xz"]


def prepared(folder: Path, files: list[str], **options: Any) -> Path:
    build_sequence_dbs([str(GENOMES / name) for name in files], folder / "seqs", **options)
    write_splits(folder / "seqs", folder / "splits", by="contig", val=0, test=0)
    split = folder / "splits/train_split.parquet"
    result = precompute_window_database(split, folder / "w.db", SIZE, STRIDE, keep_tail=True, pack=True)
    assert result.index is not None
    # In pages of 512 bytes as little as 39 bytes of a row lie in its leaf page: a long ID is cut there, and has no address.
    least = 0.8 if options.get("page_size") == 512 else 1
    assert result.index.addressed_windows >= least * result.windows
    (folder / "plain").mkdir()
    os.link(folder / "w.db", folder / "plain/w.db")  # with no index beside it
    return folder


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("genomes"), SOME)


def opened(folder: Path, *, index: bool, **options: Any) -> ShardedEdenDataset:
    path = folder / ("w.db" if index else "plain/w.db")
    return ShardedEdenDataset(None, folder / "seqs", path, SIZE, stride=STRIDE, **options)


def equal(folder: Path, step: int, **options: Any) -> int:
    """Compare every `step`-th item by itself and as a batch of one, and all in batches; return how many there are."""
    with opened(folder, index=True, **options) as one, opened(folder, index=False, **options) as other:
        assert one._addresses is not None
        assert other._addresses is None
        assert len(one) == len(other)
        if not options.get("compact"):
            for k in range(0, len(one), step):
                a, b = one[(1, k)], other[(1, k)]
                assert a.keys() == b.keys()
                assert all(torch.equal(a[name], b[name]) for name in a)
                batch = one.collate_fn(one.__getitems__([(1, k)]))
                assert all(torch.equal(batch[name][0], b[name]) for name in b)
        for k in range(0, len(one), 32):
            indices = [(1, i) for i in range(k, min(k + 32, len(one)))]
            a, b = (each.collate_fn(each.__getitems__(indices)) for each in (one, other))
            assert a.keys() == b.keys()
            for name, values in a.items():
                same = torch.equal(values, b[name]) if isinstance(values, torch.Tensor) else values == b[name]
                assert same, (name, k)
        return len(one)


OPTIONS = [
    {},
    {"rc_aug": True, "use_control_tags": True},
    {"compact": True, "rc_aug": True, "use_control_tags": True},
    {"packed": True},
    {"packed": True, "compact": True, "rc_aug": True},
]
NAMES = ["plain", "strands and tags", "compact", "packed", "packed and compact"]


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_real_genomes_give_the_same_rows_with_the_index_and_without(genomes: Path, options: dict[str, Any]) -> None:
    assert equal(genomes, 29, **options) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [512, 4096, 65_536])
def test_all_genomes_of_the_demo_give_the_same_rows(tmp_path: Path, page_size: int) -> None:
    folder = prepared(tmp_path, [each.name for each in sorted(GENOMES.glob("*.fa.*"))], page_size=page_size)
    for options in OPTIONS:
        equal(folder, 101, **options)


@pytest.mark.parametrize("batch", [1, 32])
def test_a_window_is_about_one_request(genomes: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    with opened(genomes, index=True, compact=batch > 1) as dataset:
        windows = range(0, len(dataset), 3)
        read = []
        preadv = os.preadv
        # A request that finds nothing in the page cache is repeated: the places are counted, not the calls.
        monkeypatch.setattr(
            os, "preadv", lambda file, to, at, *flags: read.append((file, at)) or preadv(file, to, at, *flags)
        )
        for k in range(0, len(windows), batch):
            dataset.__getitems__(list(windows[k : k + batch])) if batch > 1 else dataset[windows[k]]
        far, near = _split(genomes, windows)
        assert near > 0
        assert len(set(read)) == len(windows) + far


def _split(folder: Path, windows: range) -> tuple[int, int]:
    """Count the windows that begin in the leaf page of their contig and end on pages far from it, and on pages near it."""
    file = IndexFile(index_path(folder / "w.db"))
    for name in file.meta["samples"]:
        assert sample_database_path(folder / "seqs", name).is_file()
    runs = file.runs[file.firsts.searchsorted(windows, side="right") - 1]
    start = (windows - runs["first_window"] + runs["first_in_contig"].astype(int)) * STRIDE
    end = (start + SIZE - 3).clip(max=runs["length"])
    page_bytes = file.samples["page_bytes"][runs["sample"]].astype(int)
    room = page_bytes - POINTER_BYTES
    last = runs["overflow"] + (end - runs["local"].astype(int) - 1) // room
    on_last = POINTER_BYTES + (end - runs["local"].astype(int) - 1) % room + 1
    after = (
        runs["at"] + start - ((last - 1) * page_bytes + on_last)
    )  # bytes between, where the leaf page comes after them
    before = (runs["overflow"].astype(int) - 1) * page_bytes + POINTER_BYTES - (runs["at"] + runs["local"])
    is_split = (start < runs["local"]) & (end > runs["local"])
    is_near = np.where(before >= 0, before, after) <= NEAR_BYTES
    return int((is_split & ~is_near).sum()), int((is_split & is_near).sum())
