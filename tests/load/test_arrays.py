"""NumPy arrays of rows: bit-identical to the tensors, made without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import oracle
from sharded_eden import ArrayDataset, ArrayStream, ShardedEdenDataset, Stream, precompute_window_database
from sharded_eden.train.stream import EvaluationStream, RepeatedEvaluation


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("arrays")
    choose = np.random.default_rng(3)
    contigs = {
        f"BCR__ECT-S{k % 3}__CT1-{k}": "".join(choose.choice(list("ACGTacgtN"), size=int(choose.integers(1, 400))))
        for k in range(40)
    }
    oracle.write_sequence_dbs(folder / "seqs", contigs)
    import polars as pl

    lengths = [len(sequence) for sequence in contigs.values()]
    pl.DataFrame({"contig_id": list(contigs), "length": lengths}).write_parquet(folder / "split.parquet")
    precompute_window_database(folder / "split.parquet", folder / "windows.db", 64, 50, pack=True)
    return folder / "seqs", folder / "windows.db"


def same(arrays: dict[str, np.ndarray], tensors: dict[str, torch.Tensor]) -> None:
    assert arrays.keys() == tensors.keys()
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray)
        assert torch.from_numpy(array).dtype == tensors[name].dtype, name
        assert np.array_equal(array, tensors[name].numpy()), name


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"use_control_tags": True, "soft_mask_weight": 0.25}])
def test_arrays_equal_the_tensors_of_the_stream(data, options):
    options = {"rc_aug": True, **options}
    with ShardedEdenDataset.open(*data, **options) as dataset, ArrayDataset.open(*data, **options) as plain:
        stream, arrays = Stream(dataset), ArrayStream(plain)
        assert arrays.identity == stream.identity
        total = len(dataset)
        for positions in ([0], [5, 3, total + 2, 3 * total], range(total - 3, total + 20)):
            batch = stream.collate_fn(stream.__getitems__(list(positions)))
            same(stream.arrays(positions), batch)
            same(arrays.arrays(positions), batch)
        for each in (stream, arrays):
            each.set_epoch(2)
        same(arrays.arrays([1, 0]), stream.collate_fn(stream.__getitems__([1, 0])))
        assert {name: array.dtype for name, array in arrays.arrays([0]).items()} | {
            "tokens": np.int64, "labels": np.int64, "position_ids": np.int64, "loss_mask": np.float32,
        } == {name: array.dtype for name, array in arrays.arrays([0]).items()}  # fmt: skip


def test_arrays_of_compact_and_evaluation_streams(data):
    with ShardedEdenDataset.open(*data) as dataset, ShardedEdenDataset.open(*data, compact=True) as compact:
        same(Stream(compact).arrays([4, 9]), Stream(dataset).collate_fn(Stream(dataset).__getitems__([4, 9])))
        for stream in (EvaluationStream(dataset), RepeatedEvaluation(dataset, 3 * len(dataset), rows_each=7)):
            positions = [0, 6, 8, len(dataset) + 1]
            same(stream.arrays(positions), stream.collate_fn(stream.__getitems__(positions)))


def test_views_of_arrays_stay_as_they_are(data):
    # Tensors may reuse memory; an array must not, because a view of it does not keep it alive.
    with ArrayDataset.open(*data) as dataset:
        rows = [dataset.arrays([k])["tokens"][0] for k in range(30)]
        assert np.array_equal(np.stack(rows), dataset.arrays(range(30))["tokens"])


def test_no_torch_is_imported(data):
    program = (
        "import sys\nfrom sharded_eden import ArrayDataset, ArrayStream\n"
        f"for packed in (False, True):\n"
        f"    dataset = ArrayDataset.open({str(data[0])!r}, {str(data[1])!r}, rc_aug=True, packed=packed, log_windows=True, "
        f"log_dir={str(data[0].parent / 'log')!r})\n"
        "    print(ArrayStream(dataset).arrays([0, 1, 2])['tokens'].shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(3, 64) False"] * 2
