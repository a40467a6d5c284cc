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
from sharded_eden import EdenWarning, NucleotideTokenizer, ShardedEdenDataset, UsageError, precompute_window_database
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


# ---- where rows differ from the original ----

SIZE, STRIDE = 40, 30


def row_of_the_original(bases: str, encode: Any, header: list[int], tag: list[int]) -> dict[str, list[int]]:
    """A row by the rules of the original: PAD 0, BOS 1, EOS 2, SEP 3; a label in the ids of the tag has no loss."""
    ids = [*header, *encode(bases[: SIZE - len(header) - 1].upper()), 2]
    tokens = (ids + [0] * SIZE)[:SIZE]
    labels = [*tokens[1:], 0]
    return {"tokens": tokens, "labels": labels, "loss_mask": [int(label not in {0, 1, 2, 3, *tag}) for label in labels]}


def one_contig(folder: Path, bases: str, name: str = "BCR__ECT-S0__CT1-1") -> Path:
    oracle.write_sequence_dbs(folder / "seqs", {name: bases})
    oracle.write_window_db(folder / "windows.db", {name: bases}, SIZE, STRIDE)
    return folder


def first_row(folder: Path, tokenizer: Any = None, *, epoch: int = 0, **options: Any) -> dict[str, list[int]]:
    with ShardedEdenDataset(
        tokenizer, folder / "seqs", folder / "windows.db", SIZE, stride=STRIDE, seed=SEED, **options
    ) as dataset:
        return {part: tensor.tolist() for part, tensor in dataset[epoch, 0].items()}


IUPAC = "ACGTNRYKMSWBDHVacgtnrykmswbdhv"


def test_iupac_letters_are_complemented_on_the_reverse_strand(tmp_path):
    """The original complements A, C, G, T and N, and leaves other letters as they are."""
    folder = one_contig(tmp_path, IUPAC)
    original = row_of_the_original(IUPAC, str.encode, [1, 3], [])
    assert {part: first_row(folder)[part] for part in original} == original, "the forward strand is the same"
    ((epoch, _),) = epochs_of_strand(1, True)
    row = first_row(folder, epoch=epoch, rc_aug=True)
    plain = dict(zip("ACGTN", "TGCAN", strict=True))
    of_original = "".join(plain.get(base, base) for base in reversed(IUPAC.upper()))
    expected = row_of_the_original(of_original, str.encode, [1, 3], [])
    whole = dict(zip("ACGTNRYKMSWBDHV", "TGCANYRMKSWVHDB", strict=True))
    shown = "".join(whole[base] for base in reversed(IUPAC.upper()))
    assert row["tokens"] == [1, 3, *shown.encode(), 2] + [0] * (SIZE - len(shown) - 3)
    differing = {chr(b) for a, b in zip(row["tokens"], expected["tokens"], strict=True) if a != b}
    assert differing == set("RYKMBDHV")
    assert row["loss_mask"] == expected["loss_mask"]


class UpperCase:
    """Encodes a control tag with the ids of letters."""

    pad_id, bos_id, eos_id, _sep_id = 0, 1, 2, 3

    def text_to_ids(self, text: str) -> list[int]:
        return list(text.upper().encode())


def test_labels_are_masked_by_position_and_not_by_the_ids_of_the_tag(tmp_path):
    """The original takes the loss of every base that has an id of the tag: here of C, T and B."""
    bases = "ACGTACGTACGTACGTACGTACGT"
    folder = one_contig(tmp_path, bases)
    tag = list(b"<CTRL_BCR>")
    original = row_of_the_original(bases, str.encode, [1, *tag, 3], tag)
    with pytest.warns(EdenWarning, match="ids that also stand for bases"):
        row = first_row(folder, UpperCase(), use_control_tags=True)
    assert (row["tokens"], row["labels"]) == (original["tokens"], original["labels"])
    first = len(tag) + 1  # of the labels that are bases
    assert row["loss_mask"] == [0] * first + [1] * len(bases) + [0] * (SIZE - first - len(bases))
    differing = {
        chr(label)
        for label, ours, theirs in zip(row["labels"], row["loss_mask"], original["loss_mask"], strict=True)
        if ours != theirs
    }
    assert differing == set("CT")


class TwoIds:
    """Two ids for each letter."""

    pad_id, bos_id, eos_id, _sep_id = 0, 1, 2, 3

    def text_to_ids(self, text: str) -> list[int]:
        return [code for letter in text.encode() for code in (100, letter)]


@pytest.mark.parametrize("bases", [8, 17, 18, 36])
def test_a_row_of_two_ids_a_letter_ends_with_eos(tmp_path, bases):
    """The original cuts the ids off at the end of the row, EOS included."""
    text = ("ACGT" * SIZE)[:bases]
    folder = one_contig(tmp_path, text)
    original = row_of_the_original(text, TwoIds().text_to_ids, [1, 3], [])
    row = first_row(folder, TwoIds())
    if 2 * bases + 3 <= SIZE:
        assert row["tokens"] == original["tokens"]
        return
    assert 2 not in original["tokens"]
    assert row["tokens"] == [*original["tokens"][:-1], 2]
    assert row["labels"][-2:] == [2, 0]
    assert row["loss_mask"][-2:] == [0, 0]


def test_a_tag_that_fills_the_row_is_an_error(tmp_path):
    """The original shows a part of the header, or bases from before the window."""
    folder = one_contig(tmp_path, "ACGT" * 20, f"{'T' * SIZE}__ECT-S0__CT1-1")
    with pytest.raises(UsageError, match="leaves no room for a base"):
        first_row(folder, use_control_tags=True)
