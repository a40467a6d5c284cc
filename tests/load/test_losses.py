"""Weights of labels in the loss, and windows that are left out because too many of their letters are ambiguous."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import worlds
from worlds import STRIDE, T

import oracle
from sharded_eden import ShardedEdenDataModule, pack_window_database, precompute_window_database
from sharded_eden.errors import DatabaseError, EdenWarning, UsageError

CONTIGS = {
    f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(20 + 23 * k % 150, k, "ACGTacgtNnRy") for k in range(20)
}
EOS_TOKEN = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = worlds.write(tmp_path_factory.mktemp("losses"), CONTIGS)
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    return folder


def weights(folder: Path, window_idx: int, reverse: bool, *, ambiguous: bool, soft: float, eos: bool) -> list[float]:
    """The loss mask of one window, letter by letter."""
    sequence_id, k = worlds.rows_of(folder)[window_idx]
    shown = CONTIGS[sequence_id][k * STRIDE :][: T - 3]
    if reverse:
        shown = "".join(
            oracle.COMPLEMENT.get(c.upper(), c.upper())
            if c.isupper()
            else oracle.COMPLEMENT.get(c.upper(), c.upper()).lower()
            for c in reversed(shown)
        )
    letters = [None, None, *shown, "EOS"] + [None] * (T - 3 - len(shown))
    mask = []
    for label in [*letters[1:], None]:
        if label is None:
            mask.append(0.0)
        elif label == "EOS":
            mask.append(float(eos))
        elif ambiguous and label not in "ACGTacgt":
            mask.append(0.0)
        else:
            mask.append(soft if label.islower() else 1.0)
    return mask


@pytest.mark.parametrize(
    ("ambiguous", "soft", "eos"), list(itertools.product([False, True], [1.0, 0.1, 0.0], [False, True]))
)
def test_every_label_weighs_what_its_letter_says(folder, ambiguous, soft, eos):
    options = {"mask_ambiguous": ambiguous, "soft_mask_weight": soft, "loss_on_eos": eos, "rc_aug": True}
    with worlds.dataset(folder, **options) as dataset, worlds.dataset(folder, compact=True, **options) as compact:
        indices = list(range(len(dataset)))
        batch = dataset.collate_fn(dataset.__getitems__(indices))
        expanded = compact.expander()(compact.collate_fn(compact.__getitems__(indices)))
        for i in indices:
            wanted = torch.tensor(weights(folder, i, dataset.fetch(i).reverse, ambiguous=ambiguous, soft=soft, eos=eos))
            assert torch.equal(dataset[i]["loss_mask"], wanted)
            assert torch.equal(batch["loss_mask"][i], wanted)
            assert torch.equal(expanded["loss_mask"][i], wanted)
        assert torch.equal(expanded["tokens"], batch["tokens"])
    with worlds.dataset(folder, packed=True, **options) as dataset, worlds.dataset(folder, **options) as alone:
        for k in range(len(dataset)):
            row = dataset[k]
            ends = row["cu_seqlens"].tolist()
            windows = dataset._packs.windows([k])[0]  # type: ignore[union-attr]
            for window, start, end in zip(windows, ends, ends[1:], strict=False):
                assert torch.equal(row["loss_mask"][start:end], alone[window]["loss_mask"][: end - start])
            assert not row["loss_mask"][ends[len(windows)] :].any()
        with worlds.dataset(folder, packed=True, compact=True, **options) as compact:
            indices = list(range(len(dataset)))
            expanded = compact.expander()(compact.collate_fn(compact.__getitems__(indices)))
            full = dataset.collate_fn(dataset.__getitems__(indices))
            assert set(expanded) == set(full)
            assert all(torch.equal(expanded[name], full[name]) for name in full)


def test_rows_without_a_header(folder):
    options: dict[str, Any] = {"include_bos": False, "include_sep": False, "mask_ambiguous": True}
    with worlds.dataset(folder, **options) as dataset, worlds.dataset(folder, compact=True, **options) as compact:
        batch = dataset.collate_fn(dataset.__getitems__(range(len(dataset))))
        expanded = compact.expander()(compact.collate_fn(compact.__getitems__(range(len(dataset)))))
        assert torch.equal(batch["loss_mask"], expanded["loss_mask"])
        letters = batch["labels"]
        assert torch.equal(batch["loss_mask"] > 0, sum(letters == ord(c) for c in "ACGT") > 0)


class Pairs:
    """A tokenizer without one id per letter."""

    pad_id, bos_id, eos_id, sep_id = 0, 1, 2, 3

    def text_to_ids(self, text: str) -> list[int]:
        return [10 + hash(text[i : i + 2]) % 7 for i in range(0, len(text), 2)]


def test_options_that_cannot_be_meant(folder):
    for options in ({"mask_ambiguous": True}, {"soft_mask_weight": 0.5}):
        with pytest.raises(UsageError, match="need a tokenizer with one id per letter"):
            worlds.dataset(folder, Pairs(), **options)
    for weight in (-0.1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=r"soft_mask_weight must be a number from 0 on"):
            worlds.dataset(folder, soft_mask_weight=weight)
    with pytest.raises(UsageError, match="loss_on_eos=True needs rows with an EOS token"):
        worlds.dataset(folder, loss_on_eos=True, include_eos=False)


@pytest.mark.parametrize("compact", [False, True])
def test_a_batch_without_a_counted_label_is_said(tmp_path, compact):
    folder = worlds.write(tmp_path, {"BCR__ECT-S0__CT1-1": "N" * 100, "BCR__ECT-S0__CT1-2": "ACGT"})
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    for packed in (False, True):
        with worlds.dataset(folder, mask_ambiguous=True, compact=compact, packed=packed) as dataset:
            mixed = list(range(len(dataset)))
            empty = next(i for i in mixed if not packed or len(dataset._packs.windows([i])[0]) == 1)  # type: ignore[union-attr]
            dataset.__getitems__(mixed)
            said = r"no label of a batch earns a loss.*--max-ambiguous 0.5 --sequences .*seqs"
            with pytest.warns(EdenWarning, match=said):
                dataset.__getitems__([empty])
            with pytest.warns(EdenWarning, match=said):
                dataset[empty]


@pytest.mark.parametrize("compact", [False, True])
def test_the_first_base_of_a_window_is_nobody_s_label(tmp_path, compact):
    """Without BOS and SEP, the first base of a packed window follows the last base of another window."""
    folder = worlds.write(tmp_path, {f"BCR__ECT-S0__CT1-{k}": "A" + "N" * 9 for k in range(4)})
    worlds.execute(folder / "windows.db", "INSERT INTO metadata VALUES ('special_tokens', 0)")
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    options: dict[str, Any] = {"include_bos": False, "include_sep": False, "include_eos": False}
    with worlds.dataset(folder, packed=True, compact=compact, mask_ambiguous=True, **options) as dataset:
        assert len(dataset) == 1
        with pytest.warns(EdenWarning, match=r"no label of a batch earns a loss.*--max-ambiguous 0.5 .* --pack"):
            dataset[0]


def test_the_data_module_takes_the_options(folder):
    module = ShardedEdenDataModule(
        sequence_db_dir=folder / "seqs", train_window_db_path=folder / "windows.db", seq_length=T, stride=STRIDE,
        micro_batch_size=4, global_batch_size=4, num_workers=0, mask_ambiguous=True, soft_mask_weight=0.1, loss_on_eos=True,
    )  # fmt: skip
    module.setup("fit")
    found = next(iter(module.train_dataloader()))["loss_mask"].unique().tolist()
    assert found == pytest.approx([0, 0.1, 1])


# ---- windows left out ----


def split_of(folder: Path, contigs: dict[str, str]) -> Path:
    path = folder / "split.parquet"
    pl.DataFrame({"contig_id": list(contigs), "length": [len(s) for s in contigs.values()]}).write_parquet(path)
    return path


@pytest.mark.parametrize("most", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("batch_windows", [4, 1 << 17])
def test_windows_with_too_many_ambiguous_letters_are_left_out(tmp_path, monkeypatch, most, batch_windows):
    monkeypatch.setattr("sharded_eden.windows.write.BATCH_WINDOWS", batch_windows)
    random.seed(3)
    contigs = {
        f"BCR__ECT-S{k % 3}__CT1-{k:02}": "".join(
            worlds.random_sequence(random.randint(1, 60), 100 * k + part, random.choice(["N", "ACGTacgt", "ACGTNnRy"]))
            for part in range(9)
        )
        for k in range(25)
    }
    folder = worlds.write(tmp_path, contigs)
    split = split_of(folder, contigs)
    result = precompute_window_database(
        split, folder / "w.db", T, STRIDE, max_ambiguous=most, sequences=folder / "seqs", pack=True
    )
    wanted, left_out, shown = [], 0, 0
    for contig_id in sorted(contigs):
        sequence = contigs[contig_id]
        seen = set()
        for k in oracle.windows_of(len(sequence), T, STRIDE):
            bases = sequence[k * STRIDE :][: T - 3]
            if sum(c not in "ACGTacgt" for c in bases) / len(bases) <= most:
                wanted.append((contig_id, k))
                seen.update(range(k * STRIDE, k * STRIDE + len(bases)))
            else:
                left_out += 1
        shown += len(seen)
    assert (
        worlds.query(folder / "w.db", "SELECT sequence_id, window_in_seq_idx FROM window_mappings ORDER BY 1, 2")
        == wanted
    )
    assert result.windows == len(wanted)
    assert result.ambiguous_windows == left_out
    assert result.bases - result.unseen_bases == shown
    assert result.sequences == len({contig_id for contig_id, _ in wanted})
    firsts = {contig_id: i for i, (contig_id, _) in reversed(list(enumerate(wanted)))}
    lengths = worlds.query(folder / "w.db", "SELECT first_window_idx, length FROM contig_lengths")
    assert dict(lengths) == {i: len(contigs[contig_id]) for contig_id, i in firsts.items()}
    metadata = dict(worlds.query(folder / "w.db", "SELECT key, value FROM metadata"))
    assert metadata["max_ambiguous"] == most
    plain = precompute_window_database(split, folder / "plain.db", T, STRIDE)
    other = dict(worlds.query(plain.path, "SELECT key, value FROM metadata"))["fingerprint"]
    assert (metadata["fingerprint"] == other) == (left_out == 0)
    (folder / "windows.db").unlink()
    (folder / "w.db").rename(folder / "windows.db")
    with worlds.dataset(folder) as dataset, worlds.dataset(folder, packed=True) as packs:
        for i, (contig_id, k) in enumerate(wanted):
            shown_letters = contigs[contig_id][k * STRIDE :][: T - 3].upper()
            assert bytes(dataset[i]["tokens"][2 : 2 + len(shown_letters)].tolist()).decode() == shown_letters
        assert sorted(w for k in range(len(packs)) for w in packs._packs.windows([k])[0]) == list(range(len(wanted)))  # type: ignore[union-attr]


def test_a_share_of_just_as_much_is_not_more(tmp_path):
    """29 of 100 letters: 0.29 * 100 is less than 29."""
    contigs = {"BCR__ECT-S0__CT1-1": "N" * 29 + "A" * 71, "BCR__ECT-S0__CT1-2": "N" * 30 + "A" * 70}
    folder = worlds.write(tmp_path, contigs)
    split = split_of(folder, contigs)
    precompute_window_database(split, folder / "w.db", 200, 190, max_ambiguous=0.29, sequences=folder / "seqs")
    assert worlds.query(folder / "w.db", "SELECT sequence_id FROM window_mappings") == [("BCR__ECT-S0__CT1-1",)]


def test_max_ambiguous_needs_bases_that_belong_to_the_split(tmp_path):
    folder = worlds.write(tmp_path, CONTIGS)
    split = split_of(folder, CONTIGS)
    out = folder / "w.db"
    with pytest.raises(UsageError, match="--max-ambiguous must read the bases"):
        precompute_window_database(split, out, T, STRIDE, max_ambiguous=0.5)
    assert not out.exists()
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="between 0 and 1"):
            precompute_window_database(split, out, T, STRIDE, max_ambiguous=share, sequences=folder / "seqs")
    contig_id = "BCR__ECT-S1__CT1-1"
    for contigs, said in (
        ({**CONTIGS, contig_id: "A"}, rf"{contig_id}' has 43 bases, the split says 1"),
        ({**CONTIGS, "BCR__ECT-S1__CT1-99": "A"}, r"CT1-99' has no sequence, the split says 1"),
        ({**CONTIGS, "BCR__ECT-S9__CT1-1": "A"}, r"names sample 'S9', which has no database"),
    ):
        with pytest.raises(DatabaseError, match=said):
            precompute_window_database(
                split_of(folder, contigs), out, T, STRIDE, max_ambiguous=0.5, sequences=folder / "seqs"
            )
    assert not out.exists()
    assert not [each for each in folder.iterdir() if each.name.startswith(".")]
