"""Batches of several sources: bit for bit the rows of the sources, whatever their layouts; packed, compact and tagged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from mixtures import write_sources

from sharded_eden import ShardedEdenDataset
from sharded_eden.errors import MissingSequence, UsageError
from sharded_eden.load.encode.batch import collate
from sharded_eden.load.mixed import MixedRows

LAYOUTS: list[tuple[dict[str, Any], ...]] = [
    ({}, {}, {}),
    ({"rc_aug": True, "seed": 3}, {"rc_aug": True, "seed": 3}, {"rc_aug": False}),
    ({"use_control_tags": True},) * 3,
    ({"use_control_tags": True, "rc_aug": True}, {"include_sep": False}, {"use_control_tags": True}),
    ({"soft_mask_weight": 0.1, "mask_ambiguous": True}, {"soft_mask_weight": 0.1}, {"include_eos": False}),
    ({"include_bos": False}, {"loss_on_eos": True}, {"create_attention_mask": False}),
]


@pytest.fixture(scope="module", params=["indexed", "one indexed", "apart"])
def folders(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folders = write_sources(
        tmp_path_factory.mktemp("mixed"),
        indexed=True,
        packed_for=16,
        stride=40,
    )
    if request.param == "one indexed":
        for folder in folders[1:]:
            (folder / "windows.db.index").unlink()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "apart":  # as where the addresses of some sources are read otherwise
            patch.setattr("sharded_eden.load.read.mixed.WindowAddresses", object)
        yield folders


def opened(folders: list[Path], layouts: tuple[dict[str, Any], ...], **options: Any) -> list[ShardedEdenDataset]:
    return [
        worlds.dataset(f, **{"stride": 40, **layout, **options}) for f, layout in zip(folders, layouts, strict=True)
    ]


def some_items(datasets: list[ShardedEdenDataset], count: int) -> list[tuple[int, int, int]]:
    choose = random.Random(count)
    sources = [choose.randrange(len(datasets)) for _ in range(count)]
    return [(k, choose.randrange(3), choose.randrange(len(datasets[k]))) for k in sources]


def assert_rows_of_the_sources(mixed: MixedRows, items: list[tuple[int, int, int]], batch: dict[str, torch.Tensor]):
    for k, (source, epoch, index) in enumerate(items):
        for one in (mixed[items[k]], mixed.datasets[source][epoch, index]):
            for name, tensor in one.items():
                row = batch[name][k]
                if name in {"cu_seqlens", "tags"}:
                    assert (
                        row[tuple(slice(size, None) for size in tensor.shape)] == (64 if name != "tags" else -1)
                    ).all()
                    row = row[tuple(slice(0, size) for size in tensor.shape)]
                assert torch.equal(row, tensor), (name, source, index)


@pytest.mark.parametrize("layouts", LAYOUTS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [40])
def test_batches_are_the_rows_of_the_sources(folders, layouts, packed, count):
    datasets = opened(folders, layouts, packed=packed)
    mixed = MixedRows(datasets, ["a", "b", "c"])
    items = some_items(datasets, count)
    assert_rows_of_the_sources(mixed, items, collate(mixed.__getitems__(items)))
    for item in items[:12]:
        assert_rows_of_the_sources(mixed, [item], collate(mixed.__getitems__([item])))
    assert len(mixed) == sum(map(len, datasets))
    arrays = mixed.arrays(items)
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        assert arrays[name].tolist() == collate(mixed.__getitems__(items))[name].tolist()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layouts", LAYOUTS[:4], ids=str)
def test_compact_batches_expand_to_the_same_rows(folders, packed, layouts):
    options = {"packed": packed}
    full, compact = opened(folders, layouts, **options), opened(folders, layouts, **options, compact=True)
    mixed, wanted = MixedRows(compact, ["a", "b", "c"]), MixedRows(full, ["a", "b", "c"])
    items = some_items(full, 40)
    batch = mixed.expander()(collate(mixed.__getitems__(items)))
    expected = collate(wanted.__getitems__(items))
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        assert torch.equal(batch[name], expected[name]), name
    one_by_one = mixed.expander()(collate([mixed[item] for item in items]))
    assert torch.equal(one_by_one["tokens"], expected["tokens"])
    for few in (items[:1], [item for item in items if item[0] == 1]):  # batches of one source
        batch = mixed.expander()(collate(mixed.__getitems__(few)))
        assert torch.equal(batch["labels"], collate(wanted.__getitems__(few))["labels"])


@pytest.mark.parametrize("epoch", [-1, 2**63, 0.5])
@pytest.mark.parametrize("layouts", [LAYOUTS[0], LAYOUTS[3]], ids=str)
def test_epochs_out_of_range(folders, layouts, epoch):
    datasets = opened(folders, layouts)
    mixed = MixedRows(datasets, ["a", "b", "c"])
    for items in ([(1, epoch, 0)], [(0, 0, 1), (1, epoch, 0)]):
        with pytest.raises(IndexError, match="epoch"):
            mixed.__getitems__(items)


@pytest.mark.parametrize("index", [1.5, 1.0, "1", None])
def test_indices_that_are_no_integers(folders, index):
    mixed = MixedRows(opened(folders, LAYOUTS[0]), ["a", "b", "c"])
    for items in ([(1, 0, index)], [(0, 0, 1), (1, 0, index)]):
        with pytest.raises(IndexError, match="index"):
            mixed.__getitems__(items)


def test_masks_of_packed_rows(folders):
    datasets = opened(folders, LAYOUTS[3], packed=True, create_attention_mask=True)
    mixed = MixedRows(datasets, ["a", "b", "c"])
    items = some_items(datasets, 12)
    assert_rows_of_the_sources(mixed, items, collate(mixed.__getitems__(items)))


@pytest.mark.parametrize("option", [{"soft_mask_weight": 0.1}, {"mask_ambiguous": True}, {"include_bos": False}])
def test_compact_sources_with_other_weights_are_refused(folders, option):
    datasets = opened(folders, ({}, option, {}), compact=True)
    with pytest.raises(UsageError, match="b has BOS and weights of letters in the loss, in compact rows"):
        MixedRows(datasets, ["a", "b", "c"])


def test_errors_name_the_source(folders, tmp_path):
    broken = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": worlds.random_sequence(100, 1)})
    worlds.execute(worlds.sample_db(broken, "S0"), "DELETE FROM sequences")
    mixed = MixedRows([worlds.dataset(folders[0], stride=40), worlds.dataset(broken)], ["a", "b"])
    with pytest.raises(MissingSequence, match=f"{broken}.*has no such contig"):
        mixed.__getitems__([(0, 0, 1), (1, 0, 0)])
    with pytest.raises(IndexError, match="out of range"):
        mixed.__getitems__([(0, 0, 110)])


def test_visits_are_logged_by_their_source(folders, tmp_path):
    logs = [{"log_windows": True, "log_dir": tmp_path / str(k)} for k in range(3)]
    mixed = MixedRows(opened(folders, tuple(logs)), ["a", "b", "c"])
    mixed.__getitems__([(0, 0, 1), (2, 0, 5), (0, 1, 2)])
    lines = [[p.read_text().count("\n") - 1 for p in (tmp_path / str(k)).glob("*.csv")] for k in range(3)]
    assert lines == [[2], [], [1]] or lines == [[2], [0], [1]]
