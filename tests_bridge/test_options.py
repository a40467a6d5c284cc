"""The Bridge provider offers every option of an example, and makes its paths absolute."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from sharded_eden import ShardedEdenDataset
from sharded_eden.errors import UnknownArgument, UsageError
from sharded_eden.load.options import ExampleOptions
from sharded_eden.train.bridge import ShardedEdenDatasetProvider
from test_provider import datasets_of, provider_of

OPTIONS = {option.name: option.default for option in dataclasses.fields(ExampleOptions)}


def test_every_option_is_a_field_with_its_default():
    offered = {field.name: field.default for field in dataclasses.fields(ShardedEdenDatasetProvider)}
    assert {name: offered.get(name, "absent") for name in OPTIONS} == {**OPTIONS, "include_sep": "with_tags"}


def test_options_reach_the_datasets(splits):
    options = {"mask_ambiguous": True, "soft_mask_weight": 0.5, "include_sep": False, "io": "read", "read_ahead": False}
    for stream in datasets_of(provider_of(splits, **options), 8, 8, 8):
        assert vars(stream.dataset.options) == {**OPTIONS, **options}


@pytest.mark.parametrize("option", ["compact", "packed"])
def test_batches_that_bridge_cannot_read_are_refused(splits, option):
    with pytest.raises(UsageError, match=f"{option}=True"):
        datasets_of(provider_of(splits, **{option: True}), 8, 8, 8)


def test_paths_are_made_absolute(splits, tmp_path, monkeypatch):
    monkeypatch.chdir(os.path.dirname(splits.train))
    provider = ShardedEdenDatasetProvider(
        sequence_db_dir="sequences", train_window_db_path="train.db", seq_length=64, stride=50, num_workers=0
    )
    monkeypatch.chdir(tmp_path)
    train, _, _ = datasets_of(provider, 8, 0, 0)
    assert train.dataset.window_db_path == splits.train


def test_the_call_of_the_recipes(splits):
    """The keywords that the Eden and Evo 2 recipes of BioNeMo pass, and rows as theirs: BOS, bases, EOS."""
    provider = ShardedEdenDatasetProvider(
        random_seed=1234, sequence_db_dir=splits.sequences, train_window_db_path=splits.train,
        val_window_db_path=splits.val, test_window_db_path=splits.test, seq_length=64, rc_aug=False, stride=50,
        window_min_length_threshold=0, use_control_tags=False, log_windows=False, log_dir=None, skip_stats=True,
        create_attention_mask=False,
    )  # fmt: skip
    provider.num_workers = 0
    for stream in datasets_of(provider, 8, 8, 8):
        for position in range(8):
            row = stream[position]["tokens"].tolist()
            assert row[0] == 1
            assert row[1] in b"ACGT"
            assert (3 in row, row.count(2)) == (False, 1)
    assert provider.skip_getting_attention_mask_from_dataset is True
    provider.use_control_tags = True
    train, _, _ = datasets_of(provider, 8, 0, 0)
    row = train[0]["tokens"].tolist()
    assert row[: len("<ctrl_bcr>") + 2] == [1, *b"<ctrl_bcr>", 3]


def test_rows_of_version_0_1_are_one_option_away(splits):
    new, _, _ = datasets_of(provider_of(splits, rc_aug=False), 8, 0, 0)
    old, _, _ = datasets_of(provider_of(splits, rc_aug=False, include_sep=True), 8, 0, 0)
    with ShardedEdenDataset(None, splits.sequences, splits.train, 64, stride=50) as dataset:
        ((_, window),) = old.windows_at([0])
        assert torch.equal(old[0]["tokens"], dataset[window]["tokens"])
    assert new[0]["tokens"].tolist()[1:20] == old[0]["tokens"].tolist()[2:21]


@pytest.mark.parametrize(
    ("options", "skips"),
    [
        ({}, True),
        ({"create_attention_mask": True}, False),
        ({"skip_getting_attention_mask_from_dataset": True}, True),
        ({"skip_getting_attention_mask_from_dataset": True, "create_attention_mask": True}, True),
        ({"skip_getting_attention_mask_from_dataset": False, "create_attention_mask": True}, False),
    ],
    ids=str,
)
def test_whether_the_step_asks_for_a_mask(splits, options, skips):
    provider = provider_of(splits, **options)
    assert provider.skip_getting_attention_mask_from_dataset is skips
    train, _, _ = datasets_of(provider, 8, 0, 0)
    assert ("attention_mask" in train[0]) == options.get("create_attention_mask", False)


def test_a_mask_that_is_asked_for_and_not_made_is_refused(splits):
    with pytest.raises(UsageError, match="asks for a mask that batches do not have"):
        datasets_of(provider_of(splits, skip_getting_attention_mask_from_dataset=False), 8, 0, 0)


def test_an_unknown_field_is_refused_with_the_closest_one(splits):
    with pytest.raises(UnknownArgument, match=r"unexpected keyword argument 'include_sept'\. Did you mean include_sep"):
        provider_of(splits, include_sept=True)
    with pytest.raises(TypeError, match=r"'train_windows_db_path'\. Did you mean train_window_db_path"):
        ShardedEdenDatasetProvider(sequence_db_dir="x", train_windows_db_path="y")
