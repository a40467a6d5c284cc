"""The dataset against the oracle, bit for bit, under Hypothesis."""

from __future__ import annotations

import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from sharded_eden import ShardedEdenDataset, precompute_window_database
from sharded_eden.errors import EdenWarning
from sharded_eden.load.encode.example import is_reversed

LETTERS = "ACGTacgtNnRYKMSWBDHVU"
ALPHABETS = [LETTERS, LETTERS, LETTERS + "@#", LETTERS + "@#-*0_"]
"""Of contigs: stitch marks, which do not count in the loss, and characters of damaged databases, which do."""


@st.composite
def data(draw: st.DrawFn) -> tuple[dict[str, str], int, int, int]:
    """Contigs whose lengths lie around every boundary of the windows."""
    window_size = draw(st.integers(24, 48))
    stride = draw(st.integers(1, window_size + 5))
    lengths = st.one_of(
        st.integers(0, 4 * window_size),
        st.sampled_from([0, 1, window_size - 1, window_size, window_size + 1]),
        st.integers(0, 3).map(lambda k: window_size + k * stride),
        st.integers(1, 3).map(lambda k: max(1, window_size + k * stride - 1)),
    )
    contigs = {}
    for sample in range(draw(st.integers(1, 3))):
        for contig in range(draw(st.integers(1, 3))):
            length = draw(lengths)
            tag = draw(st.sampled_from(["BCR", "bcr", "Meta"]))
            alphabet = draw(st.sampled_from(ALPHABETS))
            chosen = draw(st.lists(st.sampled_from(alphabet), min_size=length, max_size=length))
            contigs[f"{tag}__ECT-S{sample}__CT1-{contig}"] = "".join(chosen)
    threshold = draw(st.sampled_from([0, 0, 1, 5, window_size]))
    return contigs, window_size, stride, threshold


def compare(item: dict[str, torch.Tensor], expected: dict[str, list[float]]) -> None:
    assert item.keys() == expected.keys()
    for name, values in expected.items():
        dtype = torch.float32 if name == "loss_mask" else torch.int64
        assert item[name].dtype == dtype
        assert item[name].is_contiguous()
        assert item[name].tolist() == values, name


@settings(max_examples=150, deadline=None)
@given(
    data=data(),
    rc_aug=st.booleans(),
    tags=st.booleans(),
    ends=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    read_with=st.sampled_from(["blob", "substr"]),
    ours=st.booleans(),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 3),
)
def test_items_and_batches_equal_the_oracle(data, rc_aug, tags, ends, read_with, ours, seed, epoch):
    contigs, window_size, stride, threshold = data
    bos, sep, eos = ends
    with tempfile.TemporaryDirectory() as name, _quiet():
        folder = Path(name)
        oracle.write_sequence_dbs(folder / "seqs", contigs)
        window_db = folder / "windows.db"
        rows = oracle.write_window_db(folder / "theirs.db", contigs, window_size, stride, threshold)
        if ours:
            _write_split(folder / "split.parquet", contigs)
            precompute_window_database(folder / "split.parquet", window_db, window_size, stride, threshold)
        else:
            window_db = folder / "theirs.db"
        with ShardedEdenDataset(
            None, folder / "seqs", window_db, window_size,
            rc_aug=rc_aug, stride=stride, window_min_length_threshold=threshold, use_control_tags=tags,
            include_bos=bos, include_sep=sep, include_eos=eos, seed=seed, read_with=read_with,
        ) as dataset:  # fmt: skip
            assert len(dataset) == len(rows)
            assert dataset.distinct_sequences == len({sequence_id for sequence_id, _ in rows})
            expected = [
                oracle.item(
                    folder / "seqs", window_db, i, seq_length=window_size, stride=stride, control_tags=tags,
                    reverse=rc_aug and is_reversed(seed, epoch, i), bos=bos, sep=sep, eos=eos,
                )
                for i in range(len(rows))
            ]  # fmt: skip
            for i, wanted in enumerate(expected):
                compare(dataset[epoch, i], wanted)
                if epoch == 0:
                    compare(dataset[i - len(rows)], wanted)
            compact = ShardedEdenDataset(
                None, folder / "seqs", window_db, window_size,
                rc_aug=rc_aug, stride=stride, use_control_tags=tags,
                include_bos=bos, include_sep=sep, include_eos=eos, seed=seed, read_with=read_with, compact=True,
            )  # fmt: skip
            if rows:
                whole = {key: [wanted[key] for wanted in expected] for key in expected[0]}
                codes = compact.collate_fn(compact.__getitems__([(epoch, i) for i in range(len(rows))]))
                compare(compact.expander()(codes), whole)
                compare(_as_on_a_device(compact, codes), whole)
                compact.close()
                batch = dataset.collate_fn(dataset.__getitems__([(epoch, i) for i in range(len(rows))]))
                compare(batch, whole)


def _as_on_a_device(dataset: ShardedEdenDataset, codes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Expand by the tensor operations that a GPU would run."""
    expander = dataset.expander()
    expander._on_cpu = expander._on_device
    return expander(codes)


def _write_split(path: Path, contigs: dict[str, str]) -> None:
    pl.DataFrame({"contig_id": list(contigs), "length": [len(s) for s in contigs.values()]}).write_parquet(path)


@contextmanager
def _quiet():
    """Strides beyond the usable bases and empty databases warn, as they should; that is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EdenWarning)
        yield
