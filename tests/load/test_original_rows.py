"""Rows recorded from both published versions of the original loader, reproduced bit for bit; `data/original_rows/README.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import oracle
from sharded_eden import NucleotideTokenizer, ShardedEdenDataset, precompute_window_database
from sharded_eden.load.encode.example import is_reversed

pytestmark = pytest.mark.filterwarnings("ignore::sharded_eden.errors.EdenWarning")

RECORDED = Path(__file__).parent.parent / "data" / "original_rows"
WORLDS = json.loads((RECORDED / "worlds.json").read_text())
PARTS = ("tokens", "labels", "position_ids", "loss_mask")
SEED = 42


class HuggingFace:
    """The tokenizer `nucleotide_hf` under the names of one version of the original."""

    bos_id, eos_id, pad_id = 2, 0, 1

    def __init__(self, version: str) -> None:
        specials = {"<EOS>": 0, "<PAD>": 1, "<BOS>": 2, "<SEP>": 3}
        vocabulary = {chr(code): code for code in range(32, 127)} | specials
        letters = tokenizers.Tokenizer(models.WordLevel(vocabulary))
        letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        if version == "nemo":
            self._sep_id, self.text_to_ids = 3, encode
        else:
            self.sep_id, self.tokenize = 3, encode


def options_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """The options that give the rows of a version of the original."""
    tags = case["use_control_tags"]
    if case["version"] == "nemo":
        return {"use_control_tags": tags}
    return {
        "use_control_tags": tags,
        "include_bos": case["include_bos"] or "with_tags",
        "include_sep": "with_tags",
        "include_eos": case["include_eos"],
    }


@pytest.fixture(scope="module", params=range(len(WORLDS)))
def world(request, tmp_path_factory) -> tuple[int, dict[str, Any], Path]:
    made = WORLDS[request.param]
    folder = tmp_path_factory.mktemp("original")
    oracle.write_sequence_dbs(folder / "seqs", made["contigs"])
    contigs = {"contig_id": list(made["contigs"]), "length": [len(letters) for letters in made["contigs"].values()]}
    pl.DataFrame(contigs).write_parquet(folder / "split.parquet")
    precompute_window_database(
        folder / "split.parquet",
        folder / "windows.db",
        made["window_size"],
        made["stride"],
        made["window_min_length_threshold"],
        sequences=folder / "seqs",
    )
    return request.param, made, folder


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED / "rows.npz") as arrays:
        return dict(arrays)


def epochs_of_strand(windows: int, is_reverse: bool) -> list[tuple[int, int]]:
    """For each window, an epoch in which it is shown on this strand."""
    return [
        (next(epoch for epoch in range(1000) if is_reversed(SEED, epoch, window) == is_reverse), window)
        for window in range(windows)
    ]


def rows_of(
    world: tuple[int, dict[str, Any], Path], case: Mapping[str, Any], **options: Any
) -> dict[str, torch.Tensor]:
    """All rows of a case, as one batch."""
    _, made, folder = world
    tokenizer = NucleotideTokenizer() if case["tokenizer"] == "byte" else HuggingFace(case["version"])
    with ShardedEdenDataset(
        tokenizer, folder / "seqs", folder / "windows.db", made["window_size"], stride=made["stride"],
        window_min_length_threshold=made["window_min_length_threshold"], seed=SEED, rc_aug=True, **options_of(case), **options,
    ) as dataset:  # fmt: skip
        wanted = epochs_of_strand(len(dataset), case["all_reversed"])
        batch = dataset.collate_fn(dataset.__getitems__(wanted))
        if options.get("compact"):
            return dataset.expander()(batch)
        for k, index in enumerate(wanted[:4]):
            row = dataset[index]
            assert all(torch.equal(row[part], batch[part][k]) for part in PARTS)
        return batch


def test_the_recorded_rows_are_these():
    """The files hold what the README says."""
    cases = [case for made in WORLDS for case in made["cases"]]
    assert len(cases) == 180
    rows = sum(len(made["window_mappings"]) * len(made["cases"]) for made in WORLDS)
    assert rows == 5040
    assert {letter for made in WORLDS for contig in made["contigs"].values() for letter in contig} == set("ACGTNacgtn")


def test_the_windows_are_those_of_the_original(world):
    _, made, folder = world
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db") as dataset:
        windows = dataset.locate_many(range(len(dataset)))
    assert [[k, *row] for k, row in enumerate(windows)] == [list(row) for row in made["window_mappings"]]


@pytest.mark.parametrize("compact", [False, True], ids=["full", "compact"])
def test_every_recorded_row_is_reproduced(world, recorded, compact):
    number, made, _ = world
    compared = 0
    for case in made["cases"]:
        batch = rows_of(world, case, compact=compact)
        for part in PARTS:
            assert np.array_equal(batch[part].numpy(), recorded[f"{case['name']}_{part}"]), (number, case, part)
        compared += len(batch["tokens"])
    assert compared == len(made["window_mappings"]) * len(made["cases"])
