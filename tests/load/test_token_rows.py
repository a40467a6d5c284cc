"""Rows of tokenizers of several bases a token: longer windows, packs by token counts, and warnings about padding."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tokenizers
import torch
import worlds
from tokenizers import Regex, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sharded_eden import ShardedEdenDataset, Stream, cli, pack_by_tokens, pack_window_database
from sharded_eden.checks.run import verify
from sharded_eden.errors import DatabaseError, EdenWarning, GeometryMismatch, UsageError
from sharded_eden.load.encode.example import reverse_complement
from sharded_eden.windows.precompute import precompute_window_database

SPECIALS = {
    "pad_token": "[PAD]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}
CHOOSE = random.Random(3)
CONTIGS = {
    f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(int(10 ** CHOOSE.uniform(2, 3.7)), k, "ACGT" * 300 + "N")
    for k in range(80)
}
T = 256


def six_mers() -> tokenizers.Tokenizer:
    """Six-mers that do not overlap; other letters, and up to five at the end, one by one."""
    words = [*SPECIALS.values(), *map("".join, itertools.product("ACGT", repeat=6)), *"ACGTN"]
    tokenizer = tokenizers.Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ACGT]{6}|."), "isolated")
    return tokenizer


def byte_pairs() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(SPECIALS.values()), initial_alphabet=list("ACGTN"), show_progress=False
    )
    tokenizer.train_from_iterator([worlds.random_sequence(2000, k, "AACGGTTT") for k in range(30)], trainer)
    return tokenizer


def wrapped(tokenizer: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS)


def window_of(tokenizer: Any) -> int:
    """Return the bases of a window that make about T tokens, as the documentation says."""
    text = worlds.random_sequence(20_000, 77, "ACGT" * 300 + "N")
    return int(20_000 / len(ids_of(tokenizer, text)) * (T - 3)) + 3


@pytest.fixture(scope="module", params=[six_mers, byte_pairs])
def tokenizer(request) -> PreTrainedTokenizerFast:
    return wrapped(request.param())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    worlds.oracle.write_sequence_dbs(folder / "seqs", CONTIGS)
    pl.DataFrame({"contig_id": list(CONTIGS), "length": [len(s) for s in CONTIGS.values()]}).write_parquet(
        folder / "split.parquet"
    )
    return folder


def windows_of(data: Path, path: Path, window_size: int, **options: Any) -> Path:
    precompute_window_database(data / "split.parquet", path, window_size, sequences=data / "seqs", **options)
    return path


def open_split(data: Path, path: Path, tokenizer: Any, seq_length: int = T, **options: Any) -> ShardedEdenDataset:
    return ShardedEdenDataset(tokenizer, data / "seqs", path, seq_length, **options)


def useful(dataset: ShardedEdenDataset, rows: int = 40) -> float:
    batch = dataset.collate_fn(dataset.__getitems__(list(range(min(rows, len(dataset))))))
    return float((batch["tokens"] != dataset.pad_id).float().mean())


def bases_of(path: Path, window: int) -> str:
    ((contig, number),) = worlds.query(
        path, f"SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = {window}"
    )
    geometry = dict(worlds.query(path, "SELECT key, value FROM metadata"))
    start = number * geometry["stride"]
    return CONTIGS[contig][start : start + geometry["window_size"] - geometry["special_tokens"]]


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("rc_aug", [False, True])
def test_packs_by_token_counts_are_full_and_hold_every_token(data, tmp_path, tokenizer, rc_aug):
    window_size = window_of(tokenizer)
    path = windows_of(data, tmp_path / "windows.db", window_size)
    result = pack_by_tokens(path, data / "seqs", tokenizer=tokenizer, seq_length=T)
    assert result.useful > 0.96
    with open_split(data, path, tokenizer, window_size=window_size, packed=True, rc_aug=rc_aug) as dataset:
        assert useful(dataset, len(dataset)) > 0.95
        seen = []
        rows = dataset.__getitems__(list(range(len(dataset))))
        for k, row in enumerate(rows):
            windows = dataset._packs.windows([k])[0]
            ends = row["cu_seqlens"].tolist()
            for window, start, end in zip(windows, ends, ends[1:], strict=False):
                strands = (bases_of(path, window), reverse_complement(bases_of(path, window)))
                wanted = [[1, 3, *ids_of(tokenizer, strand)[: T - 3], 2] for strand in strands]
                tokens = row["tokens"][start:end].tolist()
                assert tokens in (wanted if rc_aug else wanted[:1])
                counted = row["loss_mask"][start:end].sum()
                assert counted == len(tokens) - 3
            seen += windows
            single = dataset[k]
            assert all(torch.equal(single[name], row[name]) for name in ("tokens", "labels", "loss_mask"))
        assert sorted(seen) == list(range(result.windows))


def test_longer_windows_fill_rows_of_six_mers(data, tmp_path):
    size = 6 * (T - 3) + 3
    contigs = {f"BCR__ECT-S{k}__CT1-1": worlds.random_sequence(20_000, k) for k in range(3)}
    worlds.oracle.write_sequence_dbs(tmp_path / "seqs", contigs)
    pl.DataFrame({"contig_id": list(contigs), "length": [20_000] * 3}).write_parquet(tmp_path / "split.parquet")
    path = windows_of(tmp_path, tmp_path / "windows.db", size)
    tokenizer = wrapped(six_mers())
    with open_split(tmp_path, path, tokenizer, window_size=size) as dataset:
        assert useful(dataset) == 1
        assert dataset.geometry["seq_length"] == T
        fetched = list(dataset.fetch_many(range(len(dataset))))
        for window in range(len(dataset)):
            ((contig, number),) = worlds.query(
                path, f"SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = {window}"
            )
            start = number * dataset.stride
            wanted = [1, 3, *ids_of(tokenizer, contigs[contig][start : start + size - 3]), 2]
            bases = contigs[contig][start : start + size - 3].encode()
            assert bytes(fetched[window].bases) == bytes(dataset.fetch(window).bases) == bases
            assert dataset[window]["tokens"].tolist() == wanted
            assert len(wanted) == T
        stream = Stream(dataset)
        assert stream[5]["tokens"].shape == (T,)


def logged(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    """Return whether a warning was logged since the last call."""
    found = any(r.levelname == "WARNING" and re.search(words, r.getMessage()) for r in caplog.records)
    caplog.clear()
    return found


def test_a_row_that_is_mostly_padding_is_a_warning(data, tmp_path, tokenizer, caplog):
    path = windows_of(data, tmp_path / "windows.db", T)
    with open_split(data, path, tokenizer) as dataset:
        assert useful(dataset) < 0.6
    padding = r"[4-8]\d% of the tokens of a row are padding.*--window-size \d+.*by token counts"
    assert logged(caplog, padding)
    pack_window_database(path)
    open_split(data, path, tokenizer, packed=True).close()
    assert logged(caplog, padding)
    longer = windows_of(data, tmp_path / "longer.db", window_of(tokenizer))
    open_split(data, longer, tokenizer, window_size=window_of(tokenizer)).close()
    assert not logged(caplog, "padding|cut off")


def test_rows_that_cut_windows_off_are_a_warning(data, tmp_path, tokenizer, caplog):
    path = windows_of(data, tmp_path / "windows.db", 3000)
    with open_split(data, path, tokenizer, window_size=3000) as dataset:
        assert useful(dataset) > 0.5
    assert logged(caplog, r"cut off \d\d% of the tokens.*--window-size \d+")


def test_a_tokenizer_of_one_id_per_letter_takes_no_window_size(data, tmp_path):
    path = windows_of(data, tmp_path / "windows.db", 1100)
    with pytest.raises(UsageError, match=r"window_size=1100 is for tokenizers of several bases"):
        open_split(data, path, None, window_size=1100)


def test_errors_of_packs(data, tmp_path, tokenizer):
    window_size = window_of(tokenizer)
    path = windows_of(data, tmp_path / "windows.db", window_size)
    options = {"window_size": window_size, "packed": True}
    with pytest.raises(DatabaseError, match="holds no packs"):
        open_split(data, path, tokenizer, **options)
    pack_window_database(path)
    with pytest.raises(UsageError, match=r"count one token for each base.*pack .*--tokenizer .*--force"):
        open_split(data, path, tokenizer, **options)
    pack_by_tokens(path, data / "seqs", tokenizer=tokenizer, seq_length=T, overwrite=True)
    for seq_length, other, words in (
        (T + 1, tokenizer, f"rows of {T} tokens, the dataset asks for seq_length={T + 1}"),
        (T, wrapped(byte_pairs_of_others()), "another tokenizer"),
    ):
        with pytest.raises(UsageError, match=words):
            open_split(data, path, other, seq_length, **options)
    with pytest.raises(UsageError, match=f"Pass seq_length={T}, window_size={window_size}"):
        open_split(data, path, tokenizer, window_size, packed=True)
    with pytest.raises(
        GeometryMismatch, match=f"window_size={window_size}; the dataset asks for window_size={window_size + 1}"
    ):
        open_split(data, path, tokenizer, window_size=window_size + 1, packed=True)
    with (
        pytest.warns(EdenWarning, match="ids that also stand for bases"),
        pytest.raises(UsageError, match="special tokens each, but header and EOS take"),
    ):
        open_split(data, path, tokenizer, use_control_tags=True, **options)
    with pytest.raises(UsageError, match="derive_windows cannot pack by token counts"):
        open_split(data, path, tokenizer, derive_windows=True, **options)


def byte_pairs_of_others() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=list(SPECIALS.values()), initial_alphabet=list("ACGTN"), show_progress=False
    )
    tokenizer.train_from_iterator(["ACGTTGCA" * 50], trainer)
    return tokenizer


def test_windows_of_more_tokens_than_a_row_are_cut_off_with_a_warning(data, tmp_path, tokenizer):
    path = windows_of(data, tmp_path / "windows.db", 3000)
    with pytest.warns(EdenWarning, match=r"rows of 256 tokens cut off \d\d% of the tokens"):
        pack_by_tokens(path, data / "seqs", tokenizer=tokenizer, seq_length=T)
    with open_split(data, path, tokenizer, window_size=3000, packed=True) as dataset:
        rows = dataset.__getitems__(list(range(len(dataset))))
        for k, row in enumerate(rows):
            first = dataset._packs.windows([k])[0][0]
            wanted = [1, 3, *ids_of(tokenizer, bases_of(path, first))[: T - 3], 2]
            assert row["tokens"][: len(wanted)].tolist() == wanted


def test_changed_packs_are_an_error(data, tmp_path, tokenizer):
    window_size = window_of(tokenizer)
    path = windows_of(data, tmp_path / "windows.db", window_size)
    pack_by_tokens(path, data / "seqs", tokenizer=tokenizer, seq_length=T)
    (first,), (second,) = worlds.query(path, "SELECT windows FROM packs WHERE pack_idx IN (0, 1)")
    worlds.execute(path, ("UPDATE packs SET windows = ? WHERE pack_idx = 0", (first + second,)))
    with (
        open_split(data, path, tokenizer, window_size=window_size, packed=True) as dataset,
        pytest.raises((UsageError, DatabaseError), match="Pack again"),
    ):
        dataset[0]


def test_the_command(data, tmp_path, tokenizer, capsys):
    window_size = window_of(tokenizer)
    path = windows_of(data, tmp_path / "windows.db", window_size)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    words = ["pack", str(path), "--sequences", str(data / "seqs"), "--tokenizer"]
    assert cli.main([*words, str(tmp_path / "tokenizer.json"), "--seq-length", str(T)]) == 0
    assert f"seq_length={T}, window_size={window_size}, tokenizer=..., packed=True" in capsys.readouterr().out
    with ShardedEdenDataset.open(data / "seqs", path, tokenizer=tokenizer, packed=True) as dataset:
        assert (dataset.seq_length, dataset.window_size) == (T, window_size)
        assert useful(dataset) > 0.95
    assert not [f for f in verify(data / "seqs", [path], full=True).findings if f.check == "packs"]
    assert cli.main([*words, str(tmp_path / "absent.json")]) == 2
    assert cli.main(["pack", str(path), "--tokenizer", str(tmp_path / "tokenizer.json")]) == 2
    assert cli.main(["pack", str(path), "--seq-length", "64"]) == 2
