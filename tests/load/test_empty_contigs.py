"""A contig without bases has one window, whose row is BOS, SEP, EOS and padding, as in the original loader."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
import worlds
from test_tokenizers import Slow, character_tokenizer, hugging_face
from worlds import STRIDE, T, as_lists

import oracle
from sharded_eden import (
    NucleotideTokenizer,
    ShardedEdenDataset,
    pack_window_database,
    precompute_window_database,
    verify,
)
from sharded_eden.errors import EdenWarning, MissingSequence
from sharded_eden.windows.index import index_window_database

CONTIGS = {
    "BCR__ECT-S0__CT1-1": "",
    "BCR__ECT-S0__CT1-2": worlds.random_sequence(200, 1),
    "BCR__ECT-S0__CT1-3": "A",
    "Meta__ECT-S1__CT1-1": "",
    "Meta__ECT-S1__CT1-2": "",
    "Meta__ECT-S2__CT1-1": worlds.random_sequence(70, 2),
}


def by_precompute(folder: Path, **options) -> Path:
    worlds.write(folder, CONTIGS)
    (folder / "windows.db").unlink()
    lengths = {"contig_id": list(CONTIGS), "length": list(map(len, CONTIGS.values()))}
    pl.DataFrame(lengths).write_parquet(folder / "split.parquet")
    with pytest.warns(EdenWarning, match=r"3 contigs have length 0 .*--window-min-length-threshold 1"):
        precompute_window_database(folder / "split.parquet", folder / "windows.db", T, STRIDE, **options)
    return folder


@pytest.fixture(params=["of the original", "of precompute", "with addresses"])
def folder(request, tmp_path) -> Path:
    if request.param == "of the original":
        return worlds.write(tmp_path, CONTIGS)
    by_precompute(tmp_path)
    if request.param == "with addresses":
        found = index_window_database(tmp_path / "seqs", tmp_path / "windows.db")
        assert found.addressed_windows >= found.windows - 3
    return tmp_path


OPTIONS = [
    {}, {"include_sep": False}, {"include_bos": False, "include_sep": False, "include_eos": False}, {"rc_aug": True},
    {"use_control_tags": True}, {"read_with": "substr"}, {"use_control_tags": True, "include_sep": "with_tags"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_without_bases(folder, options):
    tokens = {name: options.get(f"include_{name}", True) for name in ("bos", "sep", "eos")}
    tokens["sep"] = bool(tokens["sep"])
    tags = options.get("use_control_tags", False)
    empty = [k for k, (name, _) in enumerate(worlds.rows_of(folder)) if not CONTIGS[name]]
    assert len(empty) == 3
    with worlds.dataset(folder, **options) as dataset, worlds.dataset(folder, **options, compact=True) as compact:
        for window in empty:
            expected = worlds.expected(folder, window, control_tags=tags, **tokens)
            assert expected["tokens"][:4].count(65) == 0
            assert as_lists(dataset[window]) == expected
            assert sum(expected["loss_mask"]) == 0
        every = list(range(len(dataset)))
        batch = dataset.collate_fn(dataset.__getitems__(every))
        codes = compact.expander()(compact.collate_fn(compact.__getitems__(every)))
        for part, tensor in batch.items():
            assert torch.equal(tensor, codes[part])
            assert [tensor[window].tolist() for window in empty] == [dataset[window][part].tolist() for window in empty]
    assert dataset.seq_length == T


@pytest.mark.filterwarnings("ignore:train split. no label of a batch earns a loss")
@pytest.mark.parametrize("options", [{"include_sep": False}, {"include_sep": False, "use_control_tags": True}], ids=str)
def test_batches_of_many_rows(folder, options):
    """Windows with addresses are planned together in such batches, and letters have weights."""
    options = {**options, "include_bos": False, "mask_ambiguous": True}
    with worlds.dataset(folder, **options) as dataset:
        some = [*range(len(dataset))] * 3
        batch = dataset.collate_fn(dataset.__getitems__(some))
        for part, tensor in batch.items():
            assert tensor.tolist() == [dataset[window][part].tolist() for window in some]
        for window, (name, _) in enumerate(worlds.rows_of(folder)):
            labels = CONTIGS[name] if "use_control_tags" in options else CONTIGS[name][1:]
            assert bool(labels) == bool(batch["loss_mask"][window].any())


@pytest.mark.parametrize("make", [lambda: Slow(NucleotideTokenizer()), lambda: hugging_face(character_tokenizer())])
def test_other_tokenizers(folder, make):
    with worlds.dataset(folder, make(), loss_on_eos=True) as dataset:
        for window, (name, _) in enumerate(worlds.rows_of(folder)):
            if not CONTIGS[name]:
                row = dataset[window]
                assert row["tokens"].tolist() == [dataset.bos_id, dataset.sep_id, dataset.eos_id] + [dataset.pad_id] * (
                    T - 3
                )
                assert row["loss_mask"].nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("bare", [False, True])
def test_packs(tmp_path, bare):
    folder = by_precompute(tmp_path)
    pack_window_database(folder / "windows.db")
    options = {"include_bos": False, "include_sep": False, "include_eos": False} if bare else {}
    special = 0 if bare else 3
    with worlds.dataset(folder, packed=True, **options) as dataset, worlds.dataset(folder, **options) as windows:
        rows = dataset.collate_fn(dataset.__getitems__(range(len(dataset))))
        tokens = rows["tokens"].flatten().tolist()
        shown = sum(min(T - 3, len(CONTIGS[name]) - k * STRIDE) for name, k in worlds.rows_of(folder))
        assert len([token for token in tokens if token]) == shown + special * len(windows)
        steps = rows["cu_seqlens"].diff(dim=1)
        assert (steps >= 0).all()
        with worlds.dataset(folder, packed=True, compact=True, **options) as compact:
            codes = compact.expander()(compact.collate_fn(compact.__getitems__(range(len(dataset)))))
            assert {name: tensor.tolist() for name, tensor in codes.items()} == as_lists(rows)


@pytest.mark.parametrize("full", [False, True])
def test_verify_names_the_threshold(folder, full):
    report = verify(folder / "seqs", [folder / "windows.db"], full=full)
    assert {finding.severity for finding in report.findings if finding.check == "empty"} == {"warning"}
    assert not [finding for finding in report.findings if finding.severity == "error"]
    found = [finding for finding in report.findings if finding.check == "empty"]
    assert {Path(finding.file).name for finding in found} == {"glm_dataset_S0.sqlite", "glm_dataset_S1.sqlite"}
    for finding in found:
        assert "--window-min-length-threshold 1" in finding.fix
        assert "windows.without-empty.db" in finding.fix


def test_a_later_window_is_never_empty(folder):
    """A window that begins at the end of its contig or after it is no row without bases."""
    worlds.execute(
        worlds.sample_db(folder, "S0"),
        (
            "UPDATE sequences SET nt_sequence = ? WHERE contig_id = 'BCR__ECT-S0__CT1-2'",
            (worlds.random_sequence(STRIDE),),
        ),
    )
    second = next(k for k, row in enumerate(worlds.rows_of(folder)) if row == ("BCR__ECT-S0__CT1-2", 1))
    with worlds.dataset(folder) as dataset, pytest.raises(MissingSequence, match="must have at least"):
        dataset[second]


def test_a_contig_that_has_lost_its_bases_is_an_error_where_lengths_are_recorded(tmp_path):
    folder = by_precompute(tmp_path)
    worlds.execute(worlds.sample_db(folder, "S2"), "UPDATE sequences SET nt_sequence = ''")
    last = len(worlds.rows_of(folder)) - 1
    with (
        worlds.dataset(folder) as dataset,
        pytest.raises(MissingSequence, match=r"must have at least \d+ bases; .* has 0 bases"),
    ):
        dataset[last]


def test_with_the_threshold_they_have_no_window(tmp_path):
    worlds.write(tmp_path, CONTIGS)
    lengths = {"contig_id": list(CONTIGS), "length": list(map(len, CONTIGS.values()))}
    pl.DataFrame(lengths).write_parquet(tmp_path / "split.parquet")
    precompute_window_database(tmp_path / "split.parquet", tmp_path / "without.db", T, STRIDE, 1)
    with ShardedEdenDataset.open(tmp_path / "seqs", tmp_path / "without.db") as dataset:
        names = {name for name, _ in dataset.locate_many(range(len(dataset)))}
        assert names == {name for name, bases in CONTIGS.items() if bases}
    assert oracle.windows_of(0, T, STRIDE, 1) == []
