"""The Bridge provider offers every option of an example, and makes its paths absolute."""

from __future__ import annotations

import dataclasses
import os

import pytest

from sharded_eden.errors import UsageError
from sharded_eden.load.options import ExampleOptions
from sharded_eden.train.bridge import ShardedEdenDatasetProvider
from test_provider import datasets_of, provider_of

OPTIONS = {option.name: option.default for option in dataclasses.fields(ExampleOptions)}


def test_every_option_is_a_field_with_its_default():
    offered = {field.name: field.default for field in dataclasses.fields(ShardedEdenDatasetProvider)}
    assert {name: offered.get(name, "absent") for name in OPTIONS} == OPTIONS


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
