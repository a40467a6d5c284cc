"""Packs: how windows share rows, what a packed row is, and that packing changes only the padding."""

from __future__ import annotations

import csv
import os
import shlex
import sqlite3
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from worlds import STRIDE, T, as_lists

import oracle
from sharded_eden import (
    ShardedEdenDataModule,
    ShardedEdenDataset,
    Stream,
    cli,
    pack_window_database,
    precompute_window_database,
)
from sharded_eden.errors import DatabaseError, EdenWarning, InputError, MissingDatabase, UsageError
from sharded_eden.load.locate.packs import flatten_rows
from sharded_eden.train.stream import EvaluationStream
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.pack import best_fit

CONTIGS = {
    f"{tag}__ECT-S{k % 5}__CT1-{k}": worlds.random_sequence(5 + (37 * k % 190 if k % 3 else k % 11), k, "ACGTacgtNR")
    for k, tag in enumerate(["BCR", "Meta"] * 30)
}


def world(folder: Path, *, pack: bool = True, special_tokens: int = 3, **options: Any) -> Path:
    worlds.write(folder, CONTIGS)
    (folder / "windows.db").unlink()
    split = folder / "split.parquet"
    pl.DataFrame({"contig_id": list(CONTIGS), "length": [len(s) for s in CONTIGS.values()]}).write_parquet(split)
    precompute_window_database(
        split, folder / "windows.db", T, STRIDE, special_tokens=special_tokens, pack=pack, **options
    )
    return folder


def packs_of(path: Path) -> list[list[int]]:
    rows = worlds.query(path, "SELECT pack_idx, windows FROM packs ORDER BY pack_idx")
    assert [pack_idx for pack_idx, _ in rows] == list(range(len(rows)))
    return [np.frombuffer(blob, dtype="<i8").tolist() for _, blob in rows]


def metadata_of(path: Path) -> dict[str, Any]:
    return dict(worlds.query(path, "SELECT key, value FROM metadata"))


def expected(folder: Path, windows: list[int], *, room: int = T - 3, **options: Any) -> dict[str, Any]:
    """One packed row, from the reference items of its windows without padding."""
    rows = worlds.rows_of(folder)
    items = []
    for w in windows:
        sequence_id, k = rows[w]
        own = dict(options)
        reverse = own.pop("reverse", ())
        tag = len(f"<ctrl_{sequence_id.split('__')[0].lower()}>") if options.get("control_tags") else 0
        bases = min(room, len(CONTIGS[sequence_id]) - k * STRIDE)
        whole = worlds.expected(folder, w, seq_length=bases + 3 + tag, reverse=w in reverse, **own)
        items.append(whole)
    return oracle.packed_item(items, T)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_best_fit_puts_every_item_into_one_bin_that_holds_it(costs):
    bins = best_fit(np.array(costs), 50)
    assert sorted(item for each in bins for item in each) == list(range(len(costs)))
    totals = [sum(costs[item] for item in each) for each in bins]
    assert max(totals) <= 50
    # Best fit never opens a bin while an item fits into another: at most one bin is half empty.
    assert sum(total <= 25 for total in totals) <= 1


@pytest.mark.parametrize("many", [0, 1, 5000])
def test_every_window_is_in_exactly_one_pack(tmp_path, many):
    lengths = [1 + 31 * k % 300 for k in range(many)]
    ids = [f"BCR__ECT-S{k % 7}__CT1-{k:06}" for k in range(many)]
    pl.DataFrame(
        {"contig_id": ids, "length": lengths}, schema={"contig_id": pl.String, "length": pl.Int64}
    ).write_parquet(tmp_path / "s.parquet")
    path = tmp_path / "w.db"
    if many:
        result = precompute_window_database(tmp_path / "s.parquet", path, 128, 120, pack=True)
    else:
        with pytest.warns(EdenWarning, match="holds no window"):
            result = precompute_window_database(tmp_path / "s.parquet", path, 128, 120, pack=True)
    packs = packs_of(path)
    assert sorted(w for pack in packs for w in pack) == list(range(result.windows))
    contigs = sorted(zip(ids, lengths, strict=True))
    cost = {
        w: min(125, length - k * 120) + 3
        for w, (length, k) in enumerate((n, k) for _, n in contigs for k in oracle.windows_of(n, 128, 120))
    }
    assert all(sum(cost[w] for w in pack) <= 128 for pack in packs)
    metadata = metadata_of(path)
    assert metadata["total_packs"] == len(packs)
    assert metadata["pack_useful_tokens"] == sum(cost.values())
    assert result.packs is not None
    assert result.packs.useful_tokens == sum(cost.values())
    if many > 1:
        assert result.packs.useful > 0.99
        sample_of = [name.split("-")[1] for name, n in contigs for _ in oracle.windows_of(n, 128, 120)]
        samples = [{sample_of[w] for w in pack} for pack in packs if len(pack) > 3]
        assert sum(len(each) > 1 for each in samples) > 0.9 * len(samples)  # a pack mixes samples


def test_packs_are_not_replaced_by_others(tmp_path, capsys):
    """Checkpoints are tied to them. What is there stays as it is, byte for byte."""
    folder = world(tmp_path)
    path, split = folder / "windows.db", folder / "split.parquet"
    before = path.read_bytes()
    precompute = partial(precompute_window_database, split, path, T, STRIDE)
    for refused, why in (
        (partial(pack_window_database, path, seed=7), "pack_seed=42, not 7"),
        (partial(precompute, pack=True, pack_seed=7), "pack_seed=42, not 7"),
        (precompute, "which the new one would not have without --pack"),
    ):
        with pytest.raises(UsageError, match=f"has packs, {why}.*Checkpoints are tied.*--force"):
            refused()
        assert path.read_bytes() == before
    assert cli.main(["pack", str(path), "--seed", "7"]) == 2
    assert "pack_seed=42, not 7" in capsys.readouterr().err
    precompute(pack=True)
    pack_window_database(path)
    assert cli.main(["pack", str(path)]) == 0
    packs = packs_of(path)

    assert cli.main(["pack", str(path), "--seed", "7", "--force"]) == 0
    assert packs_of(path) != packs
    precompute(pack=True, overwrite=True)
    assert packs_of(path) == packs
    precompute(overwrite=True)
    assert "total_packs" not in metadata_of(path)
    pack_window_database(path, seed=7)
    assert sorted(each.name for each in folder.iterdir()) == ["seqs", "split.parquet", "windows.db"]


def test_packs_of_the_same_seed_that_differ_are_not_replaced(tmp_path):
    """Another program or version may have made them: the fingerprint decides, which checkpoints record."""
    path = world(tmp_path) / "windows.db"
    fingerprint = metadata_of(path)["pack_fingerprint"]
    for statement in (
        f"UPDATE metadata SET value = {fingerprint - 1} WHERE key = 'pack_fingerprint'",
        "DELETE FROM metadata WHERE key LIKE 'pack_%'",
    ):
        worlds.execute(path, statement)
        for again in (
            partial(pack_window_database, path),
            partial(precompute_window_database, tmp_path / "split.parquet", path, T, STRIDE, pack=True),
        ):
            with pytest.raises(UsageError, match="has packs, and the new ones differ"):
                again()
    pack_window_database(path, overwrite=True)
    assert metadata_of(path)["pack_fingerprint"] == fingerprint


def test_command_for_more_special_tokens_writes_to_a_new_name(tmp_path):
    """Checkpoints belong to the packs that are there."""
    path = world(tmp_path) / "windows.db"
    before = path.read_bytes()
    options = {"packed": True, "use_control_tags": True, "seq_length": T, "stride": STRIDE}
    with pytest.raises(UsageError, match="packed for 3 special tokens") as refused:
        ShardedEdenDataset(None, tmp_path / "seqs", path, **options)
    command = str(refused.value).split("for as many: ")[1]
    assert "--force" not in command
    words = shlex.split(command.replace("SPLIT.parquet", str(tmp_path / "split.parquet")))
    assert words[3] == str(tmp_path / f"windows.{T}.db")
    assert cli.main(words[1:]) == 0
    assert path.read_bytes() == before
    with ShardedEdenDataset(None, tmp_path / "seqs", words[3], **options) as dataset:
        assert len(dataset[0]["tokens"]) == T


def test_packing_later_packing_again_and_other_sources_of_lengths_give_the_same(tmp_path):
    at_once = world(tmp_path / "a")
    later = world(tmp_path / "b", pack=False)
    pack_window_database(later / "windows.db")
    pack_window_database(later / "windows.db")
    assert packs_of(at_once / "windows.db") == packs_of(later / "windows.db")
    assert metadata_of(at_once / "windows.db") == metadata_of(later / "windows.db")
    worlds.execute(later / "windows.db", "DROP TABLE contig_lengths")
    with pytest.raises(UsageError, match=r"--lengths SPLIT.parquet.*--sequences SEQDB"):
        pack_window_database(later / "windows.db")
    for source in ({"lengths": later / "split.parquet"}, {"sequences": later / "seqs"}):
        worlds.execute(later / "windows.db", "DROP TABLE packs")
        pack_window_database(later / "windows.db", **source)
        assert packs_of(at_once / "windows.db") == packs_of(later / "windows.db")
    pack_window_database(later / "windows.db", seed=7, sequences=later / "seqs", overwrite=True)
    assert packs_of(at_once / "windows.db") != packs_of(later / "windows.db")
    assert (
        metadata_of(at_once / "windows.db")["pack_fingerprint"] != metadata_of(later / "windows.db")["pack_fingerprint"]
    )
    assert metadata_of(at_once / "windows.db")["fingerprint"] == metadata_of(later / "windows.db")["fingerprint"]
    assert sorted(each.name for each in later.iterdir()) == ["seqs", "split.parquet", "windows.db"]


def test_what_cannot_be_packed(tmp_path):
    folder = world(tmp_path, pack=False)
    with pytest.raises(MissingDatabase, match="no such window database"):
        pack_window_database(folder / "none.db")
    with pytest.raises(UsageError, match="is a sequence database; expected a window database"):
        pack_window_database(worlds.sample_db(folder, "S0"))
    before = (folder / "windows.db").read_bytes()
    worlds.execute(folder / "windows.db", "DELETE FROM window_mappings WHERE window_idx = 7")
    with pytest.raises(DatabaseError, match=r"1 of its windows 0 to \d+ are missing"):
        pack_window_database(folder / "windows.db")
    (folder / "windows.db").write_bytes(before)
    worlds.execute(folder / "windows.db", "UPDATE contig_lengths SET length = 3 WHERE first_window_idx = 0")
    worlds.execute(folder / "windows.db", "UPDATE window_mappings SET window_in_seq_idx = 4 WHERE window_idx = 0")
    with pytest.raises(DatabaseError, match=r"window 0 begins at base 200 of contig .*, which has 3 bases"):
        pack_window_database(folder / "windows.db")
    worlds.execute(folder / "windows.db", "DROP TABLE contig_lengths")
    pl.DataFrame({"contig_id": ["x"], "length": [4]}).write_parquet(folder / "other.parquet")
    with pytest.raises(DatabaseError, match=r"whose length is not in .*other.parquet"):
        pack_window_database(folder / "windows.db", lengths=folder / "other.parquet")
    (folder / "no.parquet").write_text("no")
    (folder / "windows.db").write_bytes(before)
    worlds.execute(folder / "windows.db", "DELETE FROM contig_lengths")
    with pytest.raises(DatabaseError, match=r"its table contig_lengths says nothing of window 0"):
        pack_window_database(folder / "windows.db")
    worlds.execute(folder / "windows.db", "DROP TABLE contig_lengths")
    for name in ("no.parquet", "absent.parquet"):
        with pytest.raises(InputError, match=name):
            pack_window_database(folder / "windows.db", lengths=folder / name)
    assert not [each for each in folder.iterdir() if each.name.startswith(".")]


@pytest.mark.parametrize("special_tokens", [T, T + 1])
def test_rows_without_room_for_a_base_are_not_packed(tmp_path, special_tokens):
    with (
        pytest.warns(EdenWarning, match="more than the 0 bases"),
        pytest.raises(
            UsageError, match=rf"window_size={T} leaves no room for a base beside special_tokens={special_tokens}"
        ),
    ):
        pack_window_database(world(tmp_path, pack=False, special_tokens=special_tokens) / "windows.db")


@pytest.mark.parametrize("seed", [42.0, "42", None, 2**63])
def test_seeds_that_are_no_integers(tmp_path, folder, seed):
    split = folder / "split.parquet"
    with pytest.raises(UsageError, match="the seed of packs"):
        pack_window_database(folder / "windows.db", seed=seed)
    with pytest.raises(UsageError, match="the seed of packs"):
        precompute_window_database(split, tmp_path / "new.db", 64, pack=True, pack_seed=seed)
    assert not list(tmp_path.glob("*new.db*"))


@pytest.mark.parametrize("size", ["8192", 8192.0, None])
def test_window_sizes_that_are_no_integers(tmp_path, size):
    split = tmp_path / "split.parquet"
    pl.DataFrame({"contig_id": ["a"], "length": [100]}).write_parquet(split)
    with pytest.raises(UsageError, match="window_size must be an integer, not"):
        precompute_window_database(split, tmp_path / "new.db", size)
    with pytest.raises(UsageError, match="special_tokens must be an integer, not"):
        precompute_window_database(split, tmp_path / "new.db", 64, special_tokens=size)


def test_a_window_database_that_changes_while_packs_are_read_is_an_error(tmp_path):
    folder = world(tmp_path)
    index_window_database(folder / "seqs", folder / "windows.db")
    with worlds.dataset(folder, packed=True) as dataset:
        dataset[0]
        os.utime(folder / "windows.db", ns=(1, 1))
        with pytest.raises(DatabaseError, match=r"windows\.db: the file was changed or replaced"):
            dataset[0]


def test_a_database_with_a_write_ahead_log_of_another_tool(tmp_path):
    at_once, folder = world(tmp_path / "a"), world(tmp_path / "b", pack=False)
    worlds.execute(folder / "windows.db", "PRAGMA journal_mode = WAL")
    pack_window_database(folder / "windows.db")
    assert worlds.query(folder / "windows.db", "PRAGMA integrity_check") == [("ok",)]
    assert worlds.query(folder / "windows.db", "PRAGMA journal_mode") == [("delete",)]
    assert packs_of(at_once / "windows.db") == packs_of(folder / "windows.db")
    assert sorted(each.name for each in folder.iterdir()) == ["seqs", "split.parquet", "windows.db"]


# ---- loading ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.mktemp("packed"))


def packed(folder: Path, tokenizer: Any = None, **options: Any) -> ShardedEdenDataset:
    return worlds.dataset(folder, tokenizer, packed=True, **options)


@pytest.mark.parametrize("rc_aug", [False, True])
@pytest.mark.parametrize("compact", [False, True])
def test_rows_are_the_oracle_s(folder, rc_aug, compact):
    packs = packs_of(folder / "windows.db")
    with packed(folder, rc_aug=rc_aug, compact=compact) as dataset, worlds.dataset(folder, rc_aug=rc_aug) as windows:
        assert len(dataset) == len(packs) < len(windows)
        assert dataset.length == len(packs)
        expand = dataset.expander() if compact else dict
        batch = expand(dataset.collate_fn(dataset.__getitems__([(2, k) for k in range(len(packs))])))
        for k, pack in enumerate(packs):
            reverse = {w for w in pack if windows.fetch((2, w)).reverse}
            wanted = expected(folder, pack, reverse=reverse)
            item = dataset[2, k]
            if compact:
                item = {name: t[0] for name, t in expand(dataset.collate_fn([item])).items()}
            assert as_lists(item) == wanted
            assert item["cu_seqlens"].dtype == item["max_seqlen"].dtype == torch.int32
            of_batch = {name: t[k] for name, t in batch.items()}
            ends = of_batch.pop("cu_seqlens")
            assert ends[: len(wanted["cu_seqlens"])].tolist() == wanted["cu_seqlens"]
            assert (ends[len(wanted["cu_seqlens"]) :] == T).all()
            assert all(torch.equal(of_batch[name], item[name]) for name in of_batch)
        assert any(windows.fetch((2, w)).reverse for pack in packs for w in pack) == rc_aug


def test_batches_however_they_are_collated(folder):
    with packed(folder) as dataset:
        indices = [5, 0, 3]
        rows = dataset.__getitems__(indices)
        whole = dataset.collate_fn(rows)
        listed = dataset.collate_fn([dataset[i] for i in indices])
        one_by_one = next(iter(DataLoader([dataset[i] for i in indices], batch_size=3, collate_fn=dataset.collate_fn)))
        for name, tensor in whole.items():
            assert tensor.is_contiguous()
            assert torch.equal(tensor, listed[name])
            assert torch.equal(tensor, one_by_one[name])
        assert [as_lists(item) for item in rows] == [as_lists(dataset[i]) for i in indices]
        assert whole["tokens"].untyped_storage().data_ptr() == rows.stacked["tokens"].untyped_storage().data_ptr()


def test_one_flat_row(folder):
    with packed(folder) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__([5, 0, 3]))
        flat = flatten_rows(batch)
        items = [dataset[i] for i in (5, 0, 3)]
    assert flat["tokens"].shape == (1, 3 * T)
    assert flat["tokens"][0].tolist() == [t for item in items for t in item["tokens"].tolist()]
    ends = [0]
    for k, item in enumerate(items):
        ends += [k * T + end for end in item["cu_seqlens"].tolist()[1:]]
    assert flat["cu_seqlens"].tolist() == ends
    assert flat["cu_seqlens"].dtype == torch.int32
    assert flat["max_seqlen"] == max(b - a for a, b in pairwise(ends))


def test_repeated_rows_of_an_evaluation_do_not_count_in_one_flat_row(folder):
    """Where ranks have fewer rows than others, they repeat rows, which must not count in the loss twice."""
    with packed(folder) as dataset:
        stream = EvaluationStream(dataset)
        packs = len(dataset)
        whole = stream.collate_fn(stream.__getitems__(range(packs)))
        with_repeats = stream.collate_fn(stream.__getitems__(range(packs + 2)))
    flat, repeated = flatten_rows(whole), flatten_rows(with_repeats)
    assert torch.equal(flat["loss_mask"], whole["loss_mask"].reshape(1, -1))
    assert torch.equal(repeated["loss_mask"][:, : packs * T], flat["loss_mask"])
    assert repeated["loss_mask"].dtype == torch.float32
    assert not repeated["loss_mask"][:, packs * T :].any()
    assert flat["loss_mask"].any()
    assert "row_counts" not in repeated


@pytest.mark.parametrize("compact", [False, True])
def test_control_tags(tmp_path, compact):
    longest = len("<ctrl_meta>")
    folder = world(tmp_path, special_tokens=3 + longest)
    with packed(folder, use_control_tags=True, compact=compact) as dataset:
        for k, pack in enumerate(packs_of(folder / "windows.db")):
            batch = dataset.collate_fn(dataset.__getitems__([k]))
            item = {name: t[0] for name, t in (dataset.expander()(batch) if compact else batch).items()}
            wanted = expected(folder, pack, control_tags=True, room=T - 3 - longest)
            assert as_lists(item) == wanted
        rows = dataset.__getitems__(range(len(dataset)))
        whole, listed = (dataset.collate_fn(of) for of in (rows, [dataset[k] for k in range(len(dataset))]))
        again = dataset.collate_fn(list(rows))
        for name, tensor in whole.items():
            assert torch.equal(listed[name], tensor)
            assert torch.equal(again[name], tensor)


def test_headers_that_were_not_counted_are_refused_with_the_command(folder):
    with pytest.raises(UsageError, match=r"packed for 3 special tokens.*take 14") as caught:
        packed(folder, use_control_tags=True)
    assert str(caught.value).endswith(
        f"precompute SPLIT.parquet {folder / f'windows.{T}.db'} --window-size {T} --stride {STRIDE} "
        "--pack --special-tokens 14"
    )
    with packed(folder, include_sep=False) as dataset:  # needs fewer special tokens, and has the same bases
        assert dataset[0]["cu_seqlens"][1] > 0


def test_databases_without_packs_or_with_others(tmp_path, folder):
    plain = world(tmp_path / "plain", pack=False)
    with pytest.raises(DatabaseError, match=r"holds no packs. Add them: sharded-eden pack .*windows.db"):
        packed(plain)
    pack_window_database(plain / "windows.db")
    worlds.execute(plain / "windows.db", "DELETE FROM packs WHERE pack_idx = 3")
    with packed(plain) as dataset, pytest.raises(DatabaseError, match=r"pack 3 is missing or damaged. Pack it again"):
        dataset[3]
    worlds.execute(plain / "windows.db", "DELETE FROM packs WHERE pack_idx > 5")
    with pytest.raises(DatabaseError, match=r"total_packs=\d+, the table packs holds 0 to 5"):
        packed(plain)
    pack_window_database(plain / "windows.db")
    everything = np.arange(30, dtype="<i8").tobytes()
    worlds.execute(plain / "windows.db", ("UPDATE packs SET windows = ? WHERE pack_idx = 0", (everything,)))
    worlds.execute(plain / "windows.db", ("UPDATE packs SET windows = ? WHERE pack_idx = 1", (b"\xff" * 8,)))
    with packed(plain) as dataset:
        with pytest.raises(DatabaseError, match=r"need \d+ tokens, a row has 64"):
            dataset[0]
        with pytest.raises(DatabaseError, match="packs name windows that are not there"):
            dataset[1]
        with pytest.raises(IndexError, match="packs"):
            dataset[10_000]
    ((page,),) = worlds.query(plain / "windows.db", "SELECT rootpage FROM sqlite_schema WHERE name = 'packs'")
    ((size,),) = worlds.query(plain / "windows.db", "PRAGMA page_size")
    whole = (plain / "windows.db").read_bytes()
    (plain / "windows.db").write_bytes(whole[: size * (page - 1)] + bytes(size) + whole[size * page :])
    with pytest.raises(DatabaseError, match="it is damaged or cut short"):
        packed(plain)


def test_windows_are_fetched_by_their_own_index(folder):
    with packed(folder) as dataset, worlds.dataset(folder) as windows:
        for index in (len(windows) - 1, -1, (3, len(windows) - 1)):
            one, other = dataset.fetch(index), windows.fetch(index)
            assert (one.window_idx, one.bases.tobytes()) == (other.window_idx, other.bases.tobytes())
        with pytest.raises(IndexError, match=f"has {len(windows)} windows"):
            dataset.fetch(len(windows))


class Sixes:
    """A tokenizer with one id for six letters, and none for fewer."""

    pad_id, bos_id, eos_id, sep_id = 0, 1, 2, 3

    def text_to_ids(self, text: str) -> list[int]:
        return [10 + sum(map(ord, text[k : k + 6])) for k in range(0, len(text) - 5, 6)]


def test_windows_of_which_a_tokenizer_makes_nothing(tmp_path):
    lengths = (5, 12, 3, 6, 2)
    contigs = {f"BCR__ECT-S0__CT1-{k}": worlds.random_sequence(n, k) for k, n in enumerate(lengths)}
    folder = worlds.write(tmp_path, contigs)
    worlds.execute(folder / "windows.db", "INSERT INTO metadata VALUES ('special_tokens', 0)")
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    bare = {"include_bos": False, "include_sep": False, "include_eos": False}
    ids = {k: Sixes().text_to_ids(sequence) for k, sequence in enumerate(contigs.values())}
    with packed(folder, Sixes(), **bare) as dataset, worlds.dataset(folder, Sixes(), **bare) as alone:
        for k, own in ids.items():
            assert alone[k]["tokens"].tolist() == own + [0] * (T - len(own))
            assert not alone[k]["loss_mask"][max(0, len(own) - 1) :].any()
        ((pack),) = packs_of(folder / "windows.db")
        shown = [ids[w] for w in pack]
        assert dataset[0]["tokens"][:3].tolist() == [token for own in shown for token in own]
        ends = [0, *(sum(map(len, shown[: k + 1])) for k, own in enumerate(shown) if own), T]
        assert dataset[0]["cu_seqlens"].tolist() == ends


@pytest.mark.parametrize("compact", [False, True])
def test_a_batch_of_no_rows(folder, compact):
    with packed(folder, compact=compact) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__([]))
    assert {len(tensor) for tensor in batch.values()} == {0}


def test_attention_is_block_diagonal_and_causal(folder):
    with (
        packed(folder, create_attention_mask=True) as dataset,
        packed(folder, create_attention_mask=True, compact=True) as c,
    ):
        batch = dataset.collate_fn(dataset.__getitems__([1, 4]))
        assert torch.equal(
            batch["attention_mask"], c.expander()(c.collate_fn(c.__getitems__([1, 4])))["attention_mask"]
        )
        assert batch["attention_mask"].shape == (2, 1, T, T)
        for row, mask in zip(batch["cu_seqlens"].tolist(), batch["attention_mask"], strict=True):
            window = [sum(start <= t for start in row) for t in range(T)]
            wanted = [[window[i] != window[j] or j > i for j in range(T)] for i in range(T)]
            assert mask[0].tolist() == wanted
        assert torch.equal(dataset[4]["attention_mask"], batch["attention_mask"][1])


def test_compact_rows_become_tensors_on_the_device_where_they_are(folder):
    """The device "meta" holds no values, and its tensors cannot be combined with those of another device."""
    with packed(folder, compact=True, create_attention_mask=True, soft_mask_weight=0.1) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__([1, 4]))
        there = dataset.expander()({name: tensor.to("meta") for name, tensor in batch.items()})
        here = dataset.expander()(batch)
    assert {tensor.device.type for tensor in there.values()} == {"meta"}
    assert {n: (t.shape, t.dtype) for n, t in there.items()} == {n: (t.shape, t.dtype) for n, t in here.items()}


def test_every_window_of_a_pack_is_in_the_access_log(tmp_path, folder):
    with packed(folder, log_windows=True, log_dir=tmp_path) as dataset:
        dataset[3]
        dataset.__getitems__([(1, 0), (1, 2)])
    (log,) = tmp_path.glob("*.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    packs = packs_of(folder / "windows.db")
    assert [(int(r["epoch"]), int(r["window_idx"])) for r in rows] == (
        [(0, w) for w in packs[3]] + [(1, w) for w in packs[0] + packs[2]]
    )


class Model(torch.nn.Module):
    """Two layers of causal attention in float64: embeddings of tokens and positions, a mask, logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(256, 24)
        self.positions = torch.nn.Embedding(T, 24)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(24, 3, 48, dropout=0, batch_first=True) for _ in range(2)
        )
        self.head = torch.nn.Linear(24, 256)
        self.double()

    def losses(self, example: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.tokens(example["tokens"]) + self.positions(example["position_ids"])
        for layer in self.layers:
            hidden = layer(hidden[None], src_mask=example["attention_mask"][0])[0]
        return torch.nn.functional.cross_entropy(self.head(hidden), example["labels"], reduction="none")


def test_packing_changes_neither_losses_nor_gradients(folder):
    with (
        packed(folder, create_attention_mask=True) as dataset,
        worlds.dataset(folder, create_attention_mask=True) as alone,
    ):
        packs = packs_of(folder / "windows.db")
        most = max(range(len(packs)), key=lambda k: len(packs[k]))
        row, windows = dataset[most], [alone[w] for w in packs[most]]
    model = Model()
    together = model.losses(row) * row["loss_mask"]
    together.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    assert len(windows) >= 3
    ends = row["cu_seqlens"].tolist()
    for window, start, end in zip(windows, ends, ends[1:], strict=False):
        losses = model.losses(window) * window["loss_mask"]
        losses.sum().backward()
        assert (losses[: end - start] - together[start:end]).abs().max() < 1e-10
        assert not losses[end - start :].any()
    assert max((p.grad - g).abs().max() for p, g in zip(model.parameters(), gradients, strict=True)) < 1e-10


# ---- training ----


def test_the_stream_of_packs_is_resumed_and_its_packs_are_part_of_its_identity(folder, tmp_path):
    def tokens(position: int, **options: Any) -> list[int]:
        with packed(folder, rc_aug=True, **options) as dataset:
            return list(Stream(dataset)[position]["tokens"].tolist())

    with packed(folder, rc_aug=True) as dataset:
        stream = Stream(dataset)
        loader = DataLoader(stream, batch_size=4, num_workers=2, collate_fn=stream.collate_fn)
        assert torch.cat([batch["tokens"] for batch in loader])[5].tolist() == tokens(5)
        one_pass = [k for _, k in stream.windows_at(range(len(dataset)))]
        assert sorted(one_pass) == list(range(len(dataset)))
        assert stream.identity["geometry"]["pack_fingerprint"] == metadata_of(folder / "windows.db")["pack_fingerprint"]
    other = world(tmp_path, pack_seed=9)
    with packed(other) as dataset:
        assert Stream(dataset).identity["fingerprint"] == stream.identity["fingerprint"]
        assert Stream(dataset).identity != stream.identity


@pytest.mark.parametrize("compact", [False, True])
def test_the_data_module_hands_out_packs(folder, compact):
    module = ShardedEdenDataModule(
        sequence_db_dir=folder / "seqs",
        train_window_db_path=folder / "windows.db",
        seq_length=T,
        stride=STRIDE,
        micro_batch_size=2,
        global_batch_size=4,
        num_workers=0,
        packed=True,
        compact=compact,
    )
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    batch = module.on_after_batch_transfer(batch, 0) if compact else batch
    assert set(batch) == {"tokens", "labels", "loss_mask", "position_ids", "cu_seqlens", "max_seqlen"}
    assert batch["tokens"].shape == (2, T)
    with packed(folder) as dataset:
        stream = Stream(dataset)
        assert torch.equal(batch["tokens"], stream.collate_fn(stream.__getitems__([0, 1]))["tokens"])


def test_packs_survive_sqlite3_of_the_standard_library(folder):
    connection = sqlite3.connect(folder / "windows.db")
    counted = Counter(len(blob) // 8 for (blob,) in connection.execute("SELECT windows FROM packs"))
    connection.close()
    assert sum(size * packs for size, packs in counted.items()) == metadata_of(folder / "windows.db")["total_windows"]


class TwoIds:
    """Two ids for each letter."""

    bos_id, eos_id, _sep_id, pad_id = 1, 2, 3, 0

    def text_to_ids(self, text: str) -> list[int]:
        return [part for letter in text.encode() for part in (letter, 7)]


@pytest.mark.parametrize("batch", [1, 4])
def test_ids_that_a_pack_has_no_room_for_are_an_error(folder, batch):
    """Half of the ids would be lost without notice."""
    with (
        packed(folder, TwoIds()) as dataset,
        pytest.raises(UsageError, match=r"one id per base; the tokenizer makes \d+ ids of \d+ bases"),
    ):
        dataset.__getitems__(list(range(batch)))
