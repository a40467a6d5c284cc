"""The contenders of this process: a naive implementation of the specification, the limit, and ours.

All give the same training example: `tokens`, `labels`, `position_ids` (T,) int64 and `loss_mask` (T,) float32.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from benchmarks.data import STRIDE, WINDOW_SIZE, World
from sharded_eden.load.dataset import ShardedEdenDataset
from sharded_eden.load.encode.batch import Example, Rows, collate
from sharded_eden.load.encode.buffers import BATCH_DTYPES, RowBuffers
from sharded_eden.load.encode.codes import CodeEncoder, CodeTables
from sharded_eden.load.encode.example import RowEncoder, RowFormat
from sharded_eden.load.encode.tokenizer import encoding_of

PAD, BOS, EOS, SEP = 0, 1, 2, 3
BATCH = 32

Runner = Callable[[NDArray[np.int64]], None]
"""Makes the examples of these windows, and lets go of them."""


def byte_ids(text: str) -> list[int]:
    """Tokenize as the simplest byte tokenizer does."""
    return list(text.encode("ascii"))


class NaiveDataset(Dataset[Example]):
    """A naive implementation of the specification: `substr()` in SQL, a list of token ids, `torch.tensor(list)`.

    Connections stay open, one for each sample. The ids of a row are the same as ours.

    Args:
        world: what to read.
        text_to_ids: the tokenizer.
    """

    def __init__(self, world: World, text_to_ids: Callable[[str], list[int]] = byte_ids) -> None:
        self.world = world
        self.text_to_ids = text_to_ids
        self.special = torch.tensor([PAD, BOS, EOS, SEP])
        self.position_ids = torch.arange(WINDOW_SIZE)

    # Opened at the first window, so that workers have connections of their own.
    @cached_property
    def windows(self) -> sqlite3.Connection:
        """The connection to the window database."""
        return sqlite3.connect(self.world.window_db)

    @cached_property
    def samples(self) -> dict[str, sqlite3.Connection]:
        """The connections to the sequence databases."""
        paths = self.world.sequence_db_dir.glob("*/glm_dataset_*.sqlite")
        return {path.parent.name: sqlite3.connect(path) for path in paths}

    def __len__(self) -> int:
        return len(self.world.order)

    def __getitem__(self, window_idx: int) -> Example:
        sequence_id, window_in_seq_idx = self.windows.execute(
            "SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = ?", (int(window_idx),)
        ).fetchone()
        sample = sequence_id.split("__")[1].split("-")[1]
        (text,) = (
            self.samples[sample]
            .execute(
                "SELECT substr(nt_sequence, ?, ?) FROM sequences WHERE contig_id = ?",
                (window_in_seq_idx * STRIDE + 1, WINDOW_SIZE - 3, sequence_id),
            )
            .fetchone()
        )
        ids = [BOS, SEP, *self.text_to_ids(text.upper()), EOS]
        ids += [PAD] * (WINDOW_SIZE - len(ids))
        tokens = torch.tensor(ids, dtype=torch.int64)
        labels = tokens.clone()
        labels[:-1] = tokens[1:]
        labels[-1] = PAD
        loss_mask = torch.ones(WINDOW_SIZE)
        loss_mask[torch.isin(labels, self.special)] = 0
        return {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": self.position_ids}


class FlatDataset(Dataset[Example]):
    """The limit: bases in one memory-mapped file, the starts of windows in an array; our encoder, buffers and rows.

    It differs from ours only in where the bases come from; they are copied once, as ours are.

    Args:
        world: what to read.
        compact: batches are codes, one byte a token.
    """

    def __init__(self, world: World, *, compact: bool = False) -> None:
        self._compact = compact
        self._bases = world.bases
        self._starts = world.window_starts
        row_format = RowFormat(WINDOW_SIZE, encoding_of(None))
        self._encoder = RowEncoder(row_format)
        self._header = row_format.header([])
        self._lengths = np.minimum(world.window_lengths, row_format.room(self._header))
        self._writer, self._tables = CodeEncoder(row_format), CodeTables(row_format)
        self._codes = RowBuffers(WINDOW_SIZE, (np.uint8,))
        self._buffers = RowBuffers(WINDOW_SIZE)
        self._batch_buffers = RowBuffers(WINDOW_SIZE, BATCH_DTYPES)
        self._shared = {"position_ids": torch.arange(WINDOW_SIZE)}
        self._positions = np.arange(WINDOW_SIZE)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, window_idx: int) -> Example:
        tokens, labels, loss_mask = self._buffers.get(None)
        self._encoder.fill(self._bases_of(window_idx), False, self._header, tokens, labels, loss_mask)
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            **self._shared,
        }

    def _bases_of(self, window_idx: int) -> NDArray[np.uint8]:
        start = self._starts[window_idx]
        return np.array(self._bases[start : start + self._lengths[window_idx]])  # the copy that ours makes too

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        codes = self._codes.get(len(indices))[0]
        codes.fill(PAD)
        first, lengths = len(self._header), self._lengths[indices]
        for row, start, length in zip(codes, self._starts[indices].tolist(), lengths.tolist(), strict=True):
            row[first : first + length] = self._bases[start : start + length]
        ends = (lengths + first).tolist()
        self._writer.frame(codes, range(len(ends)), [0] * len(ends), [first] * len(ends), ends, tagged=False)
        assert self._writer.knows_all(codes, lengths.sum())
        if self._compact:
            return Rows({"codes": torch.from_numpy(codes)}, {})
        tokens, labels, loss_mask, position_ids = self._batch_buffers.get(len(indices))
        self._tables.expand(codes, tokens, labels, loss_mask)
        position_ids[...] = self._positions
        stacked = {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "loss_mask": torch.from_numpy(loss_mask),
            "position_ids": torch.from_numpy(position_ids),
        }
        return Rows(stacked, {})


def ours(world: World, tokenizer: Any = None, **options: Any) -> ShardedEdenDataset:
    """Return our dataset with its defaults."""
    return ShardedEdenDataset(
        tokenizer, world.sequence_db_dir, world.window_db, WINDOW_SIZE, stride=STRIDE, rc_aug=False, **options
    )


def hugging_face_tokenizer() -> Any:
    """Return a character-level `PreTrainedTokenizerFast` whose ids are those of the byte tokenizer."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS, "<sep>": SEP}
    letters = {chr(byte): byte for byte in range(33, 127)}
    tokenizer = Tokenizer(models.WordLevel({**special, **letters}, unk_token="N"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", sep_token="<sep>"
    )


def hugging_face_ids(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return the usual call of the tokenizer, as a function of text."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def singles(dataset: Any) -> Runner:
    """Return a function that makes windows one by one."""

    def run(windows: NDArray[np.int64]) -> None:
        for window in windows.tolist():
            dataset[window]

    return run


def batches(dataset: Any, size: int = BATCH) -> Runner:
    """Return a function that makes windows in collated batches."""

    def run(windows: NDArray[np.int64]) -> None:
        indices = windows.tolist()
        for first in range(0, len(indices), size):
            collate(dataset.__getitems__(indices[first : first + size]))

    return run
