"""The options of an example are declared once, and every class that makes a dataset offers all of them."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader

import oracle
from sharded_eden import ShardedEdenDataModule, ShardedEdenDataset, precompute_window_database
from sharded_eden.errors import GeometryMismatch, MissingDatabase, UnknownArgument, UsageError
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.load.options import ExampleOptions, with_option_fields
from sharded_eden.windows.pack import pack_window_database

OPTIONS = {option.name: option.default for option in dataclasses.fields(ExampleOptions)}

BOOL = "one of True, False"

POSITIONAL = {
    ShardedEdenDataset: [
        "tokenizer", "sequence_db_dir", "window_db_path", "seq_length", ("create_attention_mask", False), ("rc_aug", False),
        ("stride", None), ("window_min_length_threshold", None), ("use_control_tags", False), ("split", "train"),
        ("log_windows", False), ("log_dir", None), ("skip_stats", True), ("include_bos", True), ("include_sep", True),
        ("include_eos", True), ("seed", 42),
    ],
    ShardedEdenDataModule: [
        "sequence_db_dir", ("train_window_db_path", None), ("val_window_db_path", None), ("test_window_db_path", None),
        ("seq_length", 8192), ("tokenizer", None), ("micro_batch_size", 1), ("global_batch_size", 4),
        ("rampup_batch_size", None), ("num_workers", 8), ("pin_memory", True), ("persistent_workers", False),
        ("create_attention_mask", False), ("vocab_file", None), ("merges_file", None), ("rc_aug", False), ("stride", None),
        ("window_min_length_threshold", None), ("use_control_tags", False), ("seed", 42), ("num_epochs", 1),
        ("log_windows", False), ("log_dir", None),
    ],
}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
@with_option_fields
class Provider:
    sequence_db_dir: str


@pytest.mark.parametrize("maker", [ShardedEdenDataset, ShardedEdenDataModule, Provider])
def test_every_option_is_offered_with_its_default(maker):
    offered = {p.name: p.default for p in inspect.signature(maker).parameters.values()}
    assert {name: offered.get(name, "absent") for name in OPTIONS} == OPTIONS


@pytest.mark.parametrize("maker", POSITIONAL)
def test_positional_arguments_keep_their_order_and_defaults(maker):
    parameters = inspect.signature(maker).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name if p.default is p.empty else (p.name, p.default) for p in positional] == POSITIONAL[maker]


NOT_DEFAULT = {
    "window_min_length_threshold": 0, "create_attention_mask": True, "use_control_tags": True,
    "tags": os.path.abspath("tags.csv"), "tag_template": "{phylum}", "tag_dropout": 0.5, "include_bos": False,
    "include_sep": False, "include_eos": False, "mask_ambiguous": True, "soft_mask_weight": 0.5, "loss_on_eos": True,
    "compact": True, "window_size": 64, "derive_windows": True, "packed": True,
    "log_windows": True, "log_dir": "log", "log_format": "parquet", "log_file_bytes": 5000, "skip_stats": False, "io": "read",
    "read_with": "substr", "read_ahead": False, "bos_id": 4, "eos_id": 5, "sep_id": 6, "pad_id": 7,
    "requests_in_flight": 3, "request_seconds": 9.5, "cache_dir": "cache", "cache_bytes": 10**9,
    "objective": "mlm", "mlm_share": 0.3, "mlm_span": 3, "mask_id": 8,
}  # fmt: skip


def test_the_data_module_passes_every_option_on(small, tmp_path):
    assert NOT_DEFAULT.keys() == OPTIONS.keys()
    both = {
        "tags": None,
        "cache_bytes": None,
        "tag_template": None,
        "tag_dropout": 0.0,
        "packed": False,
        "include_eos": True,
        "log_dir": str(tmp_path),
    }
    causal = {name: OPTIONS[name] for name in ("objective", "mlm_share", "mlm_span", "mask_id")}
    masked = {"create_attention_mask": False, "loss_on_eos": False}
    for others in (causal, masked):
        _check_passed_on(small, {**NOT_DEFAULT, **both, **others})


def _check_passed_on(small, options):
    module = ShardedEdenDataModule(
        small.sequence_db_dir, small.window_db, seq_length=small.seq_length, stride=small.stride, **options
    )
    module.setup("fit")
    assert vars(module._open("train")[0].dataset.options) == options


@pytest.mark.parametrize("maker", [ShardedEdenDataset.open, ShardedEdenDataModule])
@pytest.mark.parametrize(
    ("name", "near"),
    [("compakt", "compact"), ("include_seps", "include_sep"), ("sequence_dir", "sequence_db_dir"), ("zebra", None)],
)
def test_an_unknown_option_is_refused_with_the_closest_one(small, maker, name, near):
    with pytest.raises(UnknownArgument, match=f"got an unexpected keyword argument '{name}'") as refused:
        maker(small.sequence_db_dir, small.window_db, **{name: True})
    assert isinstance(refused.value, TypeError)
    assert str(refused.value).endswith(f". Did you mean {near}?" if near else f"'{name}'")


@pytest.mark.parametrize("name", ["include_bos", "include_sep", "include_eos"])
@pytest.mark.parametrize("value", ["with-tags", None, 2, "True"])
def test_an_unknown_value_of_a_special_token_is_refused(small, name, value):
    with pytest.raises(UsageError, match=rf"{name} must be one of True, False.*, not {value!r}"):
        small.dataset(**{name: value})


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize("bos", [True, False, "with_tags"])
@pytest.mark.parametrize("sep", [True, False, "with_tags"])
def test_special_tokens_with_tags_only(small, tags, bos, sep):
    has_bos, has_sep = (tags if value == "with_tags" else value for value in (bos, sep))
    with small.dataset(use_control_tags=tags, include_bos=bos, include_sep=sep) as dataset:
        assert (dataset.include_bos, dataset.include_sep) == (has_bos, has_sep)
        for window in range(4):
            row = oracle.item(
                small.sequence_db_dir, small.window_db, window, seq_length=64, stride=50, control_tags=tags, bos=has_bos,
                sep=has_sep,
            )  # fmt: skip
            assert {part: tensor.tolist() for part, tensor in dataset[window].items()} == row


def test_the_dataset_has_the_attributes_of_the_original(small, tmp_path):
    with small.dataset(create_attention_mask=True, log_windows=True, log_dir=tmp_path, include_eos=False) as dataset:
        assert (dataset.bos_id, dataset.eos_id, dataset.sep_id, dataset.pad_id) == (1, 2, 3, 0)
        assert (dataset.include_bos, dataset.include_eos, dataset.create_attention_mask) == (True, False, True)
        assert (dataset.log_windows, dataset.skip_stats, dataset.use_control_tags) == (True, True, False)


def test_the_page_of_options_has_every_option_and_its_defaults():
    page = (Path(__file__).parent.parent.parent / "docs" / "options.md").read_text()
    table = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \| .+ \|$", page, flags=re.MULTILINE)
    expected = [(name, *(repr(default),) * 3) for name, default in OPTIONS.items()]
    of_provider = {"include_sep": repr("with_tags")}  # tests_bridge/test_options.py compares it with the provider
    assert table == [(name, one, two, of_provider.get(name, three)) for name, one, two, three in expected]


def test_open_takes_the_geometry_from_the_database(small):
    with (
        small.dataset(rc_aug=True, seed=3) as expected,
        ShardedEdenDataset.open(small.sequence_db_dir, small.window_db, rc_aug=True, seed=3) as dataset,
    ):
        assert (dataset.seq_length, dataset.stride) == (expected.seq_length, expected.stride)
        assert torch.equal(dataset[5]["tokens"], expected[5]["tokens"])
    with pytest.raises(GeometryMismatch):
        ShardedEdenDataset.open(small.sequence_db_dir, small.window_db, stride=small.stride + 1)
    with pytest.raises(MissingDatabase):
        ShardedEdenDataset.open(small.sequence_db_dir, small.window_db.with_name("absent.db"))


@pytest.mark.parametrize("value", [None, 7, ["a"]])
def test_an_argument_that_is_no_path_is_refused(small, value):
    with pytest.raises(UsageError, match="sequence_db_dir must be a path"):
        ShardedEdenDataset.open(value, small.window_db)
    with pytest.raises(UsageError, match="sequence_db_dir must be a path"):
        ShardedEdenDataModule(value, small.window_db)


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("maker", ["dataset", "module"])
def test_workers_read_the_same_files_after_the_folder_changes(small, tmp_path, monkeypatch, maker, start):
    """Relative paths would name other databases after the process changes its folder."""
    with small.dataset(seed=42) as dataset:
        expected = [dataset[i]["tokens"] for i in range(4)]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "seqs").symlink_to(small.sequence_db_dir)
    (here / "windows.db").symlink_to(small.window_db)
    (there / "seqs").mkdir()
    (there / "windows.db").write_bytes(b"another file")
    monkeypatch.chdir(here)
    sizes = {"seq_length": small.seq_length, "stride": small.stride}
    if maker == "dataset":
        dataset = ShardedEdenDataset(None, "seqs", "windows.db", **sizes, log_windows=True)
        monkeypatch.chdir(there)
    else:
        module = ShardedEdenDataModule("seqs", "windows.db", "windows.db", **sizes, log_windows=True, log_dir=".")
        monkeypatch.chdir(there)
        module.setup("validate")
        dataset = module._open("val")[0].dataset
    assert dataset.window_db_path == os.path.join(here, "windows.db"), "links are not resolved"
    loader = DataLoader(dataset, batch_size=1, num_workers=1, multiprocessing_context=start)
    with dataset:
        for row, batch in zip(expected, loader, strict=False):
            assert torch.equal(batch["tokens"][0], row)
    assert len(list(here.glob("window_access_*.csv"))) >= 1
    assert not list(there.glob("window_access_*.csv"))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("use_control_tags", "no", BOOL), ("compact", "x", BOOL), ("rc_aug", "no", BOOL), ("loss_on_eos", None, BOOL),
        ("include_sep", np.array([True, False]), f"{BOOL}, 'with_tags'"),
        ("soft_mask_weight", "0.5", "a number"), ("soft_mask_weight", None, "a number"), ("stride", "50", "an integer"),
        ("window_min_length_threshold", "0", "an integer"), ("log_dir", 5, "a path"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(small, name, value, wanted):
    """The text "no" would count as true; other values would fail at the first row."""
    arguments = {"stride": small.stride, name: value}
    with pytest.raises(UsageError, match=f"{name} must be {wanted}"):
        ShardedEdenDataset(None, small.sequence_db_dir, small.window_db, small.seq_length, **arguments)


@pytest.mark.parametrize("value", ["64", 64.0, None])
def test_seq_length_is_an_integer(small, value):
    with pytest.raises(UsageError, match="seq_length must be an integer"):
        ShardedEdenDataset(None, small.sequence_db_dir, small.window_db, value, stride=small.stride)


def test_numpy_values_are_accepted(small):
    options = {"rc_aug": np.True_, "use_control_tags": np.False_, "soft_mask_weight": np.float32(0.5), "loss_on_eos": 1}
    with (
        small.dataset(**options) as dataset,
        small.dataset(rc_aug=True, soft_mask_weight=0.5, loss_on_eos=True) as plain,
    ):
        assert dataset[0]["loss_mask"].tolist() == plain[0]["loss_mask"].tolist()


def test_numpy_numbers_are_pythons_numbers(small, tmp_path):
    split = tmp_path / "split.parquet"
    lengths = {name: len(letters) for name, letters in small.contigs.items()}
    pl.DataFrame({"contig_id": list(lengths), "length": list(lengths.values())}).write_parquet(split)
    size, stride, least, seed = np.int64(64), np.int32(50), np.uint16(20), np.int64(7)
    share = np.float32(0.5)
    path = tmp_path / "windows.db"
    precompute_window_database(
        split,
        path,
        size,
        stride,
        window_min_length_threshold=least,
        max_ambiguous=share,
        sequences=small.sequence_db_dir,
    )
    pack_window_database(path, seed=seed)
    whole = tmp_path / "whole.db"
    precompute_window_database(split, whole, size, stride)
    numbers = {
        "window_min_length_threshold": least,
        "rank": seed,
        "request_seconds": np.float32(60),
    }
    log = {
        "log_windows": True,
        "log_dir": tmp_path / "log",
        "log_format": "parquet",
        "log_file_bytes": np.int64(1 << 20),
    }
    with ShardedEdenDataset(
        None, small.sequence_db_dir, path, size, stride=stride, seed=seed, packed=True, **numbers, **log
    ) as dataset:
        dataset[0]
    with ShardedEdenDataset(
        None, small.sequence_db_dir, whole, np.int64(48), derive_windows=True, window_min_length_threshold=np.int64(12)
    ) as dataset:
        assert dataset[0]["tokens"].shape == (48,)
        derived = dataset.window_db_path
    for database in (path, derived):
        with closing(sqlite3.connect(database)) as connection:
            found = dict(connection.execute("SELECT key, value FROM metadata"))
        assert {type(value) for value in found.values()} <= {int, float}
        assert found["window_size"] == (64 if database == path else 48)
    with pytest.raises(UsageError, match=r"window_size must be an integer, not 64\.5"):
        WindowGeometry(window_size=64.5)


def test_open_derives_with_the_default_stride_of_the_other_size(small, tmp_path):
    split, windows = tmp_path / "split.parquet", tmp_path / "windows.db"
    lengths = {name: len(letters) for name, letters in small.contigs.items()}
    pl.DataFrame({"contig_id": list(lengths), "length": list(lengths.values())}).write_parquet(split)
    precompute_window_database(split, windows, 64, small.stride)
    options = {"seq_length": 48, "derive_windows": str(tmp_path)}
    with (
        ShardedEdenDataset(None, small.sequence_db_dir, windows, **options) as expected,
        ShardedEdenDataset.open(small.sequence_db_dir, windows, **options) as opened,
        ShardedEdenDataset.open(small.sequence_db_dir, windows, derive_windows=str(tmp_path)) as same,
        ShardedEdenDataset.open(small.sequence_db_dir, windows, stride=30, **options) as given,
    ):
        assert opened.window_db_path == expected.window_db_path
        assert (opened.stride, same.stride, given.stride) == (expected.stride, small.stride, 30)
