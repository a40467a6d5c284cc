"""Megatron's two datasets: `IndexedDataset`, which reads any range of a sequence, and `GPTDataset`, which uses it."""

# ruff: noqa: D102 - the methods do what those of `PeerDataset` say

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.peer_formats import EOS, PAD, SEQ_LENGTH, Example, Files, PeerDataset

TOKENS_FOR_OPTIMAL_DTYPE = 256


def _write(files: Files, append_eod: bool, path: Path) -> None:
    """Write one document a contig, as `tools/preprocess_data.py` does."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    path.mkdir(parents=True, exist_ok=True)
    dtype = DType.optimal_dtype(TOKENS_FOR_OPTIMAL_DTYPE)
    builder = IndexedDatasetBuilder(str(path / "text.bin"), dtype=dtype)
    for k in range(len(files.ids)):
        tokens = files.contig(k).astype(dtype)
        tokens = np.append(tokens, np.array([EOS], dtype=dtype)) if append_eod else tokens
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(str(path / "text.idx"))


class Indexed(PeerDataset):
    """Ranges of token ids from a memory-mapped .bin file."""

    packages = ("megatron-core",)
    mapped = True

    def open(self) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        path = self.files.made("megatron", partial(_write, self.files, False))
        self.rows = IndexedDataset(str(path / "text"), mmap=self.mapped)

    def bases(self, window: int) -> np.ndarray:
        files = self.files
        start, length = int(files.starts_in_contig[window]), int(files.lengths[window])
        return np.asarray(self.rows.get(int(files.contigs[window]), offset=start, length=length))

    def example(self, bases: np.ndarray) -> Example:
        return super().example(bases.astype(np.int64))


class IndexedFile(Indexed):
    """The same, with a read of the .bin file for each stretch."""

    mapped = False


class Gpt(PeerDataset):
    """Rows of 8,192 tokens from the shuffled, concatenated documents: what Megatron trains on."""

    packages = ("megatron-core",)

    def open(self) -> None:
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.indexed_dataset import IndexedDataset
        from megatron.core.datasets.utils import Split

        path = self.files.made("megatron-eod", partial(_write, self.files, True))
        tokenizer = SimpleNamespace(eod=EOS, pad=PAD, vocab_size=TOKENS_FOR_OPTIMAL_DTYPE, unique_identifiers={})
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=SEQ_LENGTH,
            blend=([str(path / "text")], None),
            split="1,0,0",
            path_to_cache=str(path / "cache"),
            tokenizer=tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        indexed = IndexedDataset(str(path / "text"), mmap=True)
        documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
        self.rows = GPTDataset(indexed, str(path / "text"), documents, None, Split.train, config)

    def __getitem__(self, window: int) -> Example:
        example: dict[str, torch.Tensor] = self.rows[window % len(self.rows)]
        return example
