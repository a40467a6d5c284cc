"""pyfaidx, pysam, Hugging Face datasets, litdata, mosaicml-streaming. Each package is imported where it is used."""

# ruff: noqa: D102 - the methods do what those of `PeerDataset` say

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from benchmarks.peer_formats import (
    CHUNK_BYTES,
    EOS,
    PAD,
    SEP,
    SEQ_LENGTH,
    Example,
    Files,
    PeerDataset,
    write_fasta,
)


class Pyfaidx(PeerDataset):
    """Strings from an indexed FASTA file; `as_raw` avoids the wrapper objects."""

    packages = ("pyfaidx",)

    def open(self) -> None:
        from pyfaidx import Fasta

        path = self.files.made("pyfaidx.fa", partial(write_fasta, self.files))
        self.fasta = Fasta(str(path), as_raw=True, sequence_always_upper=True)

    def bases(self, window: int) -> np.ndarray:
        files = self.files
        start = int(files.starts_in_contig[window])
        text = self.fasta[files.ids[files.contigs[window]]][start : start + int(files.lengths[window])]
        return np.frombuffer(bytearray(text, "ascii"), dtype=np.uint8)


class Pysam(PeerDataset):
    """Strings from an indexed FASTA file, by htslib."""

    packages = ("pysam",)

    def open(self) -> None:
        import pysam

        path = self.files.made("pysam.fa", partial(write_fasta, self.files))
        self.fasta = pysam.FastaFile(str(path))

    def bases(self, window: int) -> np.ndarray:
        files = self.files
        start = int(files.starts_in_contig[window])
        text = self.fasta.fetch(files.ids[files.contigs[window]], start, start + int(files.lengths[window])).upper()
        return np.frombuffer(bytearray(text, "ascii"), dtype=np.uint8)


class HuggingFace(PeerDataset):
    """Rows of uint8 in memory-mapped Arrow files, returned as NumPy arrays."""

    packages = ("datasets", "pyarrow")

    def open(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        self.rows = datasets.load_from_disk(str(self.files.made("datasets", self._write))).with_format("numpy")

    def _write(self, path: Path) -> None:
        import datasets

        files = self.files

        def rows() -> Iterator[dict[str, np.ndarray]]:
            for k in range(len(files.starts)):
                yield {"bases": files.window(k)}

        features = datasets.Features({"bases": datasets.Sequence(datasets.Value("uint8"))})
        cache = path.with_name("datasets-cache")
        built = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(cache), writer_batch_size=256)
        built.save_to_disk(str(path))
        shutil.rmtree(cache)

    def bases(self, window: int) -> np.ndarray:
        return np.array(self.rows[window]["bases"])


def _window(files: Files, k: int) -> dict[str, np.ndarray]:
    return {"bases": np.array(files.window(k))}


class LitData(PeerDataset):
    """Chunks written by `optimize`, read by `StreamingDataset`."""

    packages = ("litdata",)

    def open(self) -> None:
        import litdata

        self.path = str(self.files.made("litdata", self._write))
        self.rows = litdata.StreamingDataset(self.path, shuffle=False)

    def _write(self, path: Path) -> None:
        import litdata

        inputs = list(range(len(self.files.starts)))
        litdata.optimize(
            partial(_window, self.files), inputs, str(path), chunk_bytes=CHUNK_BYTES, num_workers=1, verbose=False
        )

    def bases(self, window: int) -> np.ndarray:
        return np.array(self.rows[window]["bases"])

    def bases_stream(self) -> Iterator[np.ndarray]:
        import litdata

        return (np.array(row["bases"]) for row in litdata.StreamingDataset(self.path, shuffle=True))


def _contig(files: Files, k: int) -> torch.Tensor:
    return torch.from_numpy(np.append(files.contig(k), np.uint8(EOS)))


class LitDataTokens(PeerDataset):
    """Blocks of 8,192 tokens cut out of the contigs laid end to end, by litdata's `TokensLoader`: no row of ours."""

    packages = ("litdata",)

    def open(self) -> None:
        import litdata
        from litdata.streaming.item_loader import TokensLoader

        self.path = str(self.files.made("litdata-tokens", self._write))
        loader = TokensLoader(block_size=SEQ_LENGTH)
        self.rows = litdata.StreamingDataset(self.path, item_loader=loader, shuffle=False)

    def _write(self, path: Path) -> None:
        import litdata
        from litdata.streaming.item_loader import TokensLoader

        litdata.optimize(
            partial(_contig, self.files), list(range(len(self.files.ids))), str(path), num_workers=1, verbose=False,
            chunk_size=CHUNK_BYTES // SEQ_LENGTH * SEQ_LENGTH, item_loader=TokensLoader(),
        )  # fmt: skip

    def bases(self, window: int) -> np.ndarray:
        return np.array(self.rows[window % len(self.rows)])

    def __getitem__(self, window: int) -> Example:
        return self.example(self.bases(window))

    def example(self, bases: np.ndarray) -> Example:
        tokens = torch.from_numpy(bases.astype(np.int64))
        labels = torch.full_like(tokens, PAD)
        labels[:-1] = tokens[1:]
        return {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": (labels > SEP).float(),
            "position_ids": self.position_ids,
        }

    def bases_stream(self) -> Iterator[np.ndarray]:
        import litdata
        from litdata.streaming.item_loader import TokensLoader

        loader = TokensLoader(block_size=SEQ_LENGTH)
        return map(np.array, litdata.StreamingDataset(self.path, item_loader=loader, shuffle=True))


def _stub_torchvision() -> None:
    """Replace torchvision, which streaming imports for image datasets and which is often incompatible with torch."""
    for name, members in (
        ("torchvision", ()),
        ("torchvision.datasets", ("VisionDataset",)),
        ("torchvision.transforms", ()),
        ("torchvision.transforms.functional", ("to_tensor",)),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module


class Streaming(PeerDataset):
    """MDS shards written by `MDSWriter`, read by `StreamingDataset` from the local disk."""

    packages = ("mosaicml-streaming",)

    def open(self) -> None:
        _stub_torchvision()
        import streaming

        streaming.base.util.clean_stale_shared_memory()
        self.path = str(self.files.made("streaming", self._write))
        self.rows = streaming.StreamingDataset(local=self.path, shuffle=False, batch_size=32)
        self.shuffled = None

    def _write(self, path: Path) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(path), columns={"bases": "ndarray:uint8"}, size_limit=CHUNK_BYTES) as writer:
            for k in range(len(self.files.starts)):
                writer.write({"bases": np.array(self.files.window(k))})

    def bases(self, window: int) -> np.ndarray:
        return np.array(self.rows[window]["bases"])

    def bases_stream(self) -> Iterator[np.ndarray]:
        import streaming

        if self.shuffled is None:
            copy = Path(self.path).with_name("streaming-shuffled")  # its locks allow one reader of a folder
            if not copy.exists():
                copy.symlink_to(self.path)
            self.shuffled = streaming.StreamingDataset(local=str(copy), shuffle=True, batch_size=32, shuffle_seed=1)
        return (np.array(row["bases"]) for row in self.shuffled)
