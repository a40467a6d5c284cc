"""How each peer stores and returns windows, as its documentation recommends. Imports nothing of the package.

Every peer gets the same plain files (`bases.u8`, `contigs.json` and the table of windows), converts them once, and
turns the bases it reads into the training example with the torch code that its users would write.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

PAD, BOS, EOS, SEP = 0, 1, 2, 3
SEQ_LENGTH = 8192
SHOWN = SEQ_LENGTH - 3
LINE_BASES = 80
CHUNK_BYTES = 1 << 26

Example = dict[str, torch.Tensor]


class Files:
    """The plain files of one world.

    Args:
        folder: the folder that holds them.
        warm: read what `made` returns into memory; without it, a missing file is an error.
    """

    def __init__(self, folder: str, *, warm: bool = True) -> None:
        self.folder = Path(folder)
        self.warm = warm
        contigs = json.loads((self.folder / "contigs.json").read_text())
        self.ids: list[str] = contigs["ids"]
        self.offsets = np.array(contigs["offsets"])  # (C + 1,) int64
        self.bases = np.asarray(np.memmap(self.folder / "bases.u8", dtype=np.uint8, mode="r"))
        self.starts = np.load(self.folder / "window_starts.npy")
        self.lengths = np.minimum(np.load(self.folder / "window_lengths.npy"), SHOWN)
        self.contigs = np.load(self.folder / "window_contigs.npy")
        self.order = np.load(self.folder / "order.npy")
        self.starts_in_contig = self.starts - self.offsets[self.contigs]

    def contig(self, k: int) -> np.ndarray:
        """Return the bases of a contig."""
        return self.bases[self.offsets[k] : self.offsets[k + 1]]

    def window(self, k: int) -> np.ndarray:
        """Return the bases of a window."""
        return self.bases[self.starts[k] : self.starts[k] + self.lengths[k]]

    def made(self, name: str, make: Any) -> Path:
        """Return the file or folder `name`, made by `make(path)` if it is missing, and read once so that it is in memory."""
        done = self.folder / f"{name}.done"
        path = self.folder / name
        if not self.warm:
            if not done.exists():
                raise FileNotFoundError(done)
            return path
        if not done.exists():
            if path.is_dir():
                shutil.rmtree(path)
            make(path)
            done.touch()
        for file in [path] if path.is_file() else (found for found in path.rglob("*") if found.is_file()):
            with file.open("rb") as opened:
                while opened.read(CHUNK_BYTES):
                    pass
        return path


class PeerDataset:
    """A map-style dataset of training examples.

    Args:
        files: the input of the peer's files.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, files: Files) -> None:
        self.files = files
        self.position_ids = torch.arange(SEQ_LENGTH)
        self.open()

    def open(self) -> None:
        """Make the peer's files if they are missing, and open them."""
        raise NotImplementedError

    def bases(self, window: int) -> np.ndarray:
        """Return the bases of a window, as letters."""
        raise NotImplementedError

    def __getitem__(self, window: int) -> Example:
        return self.example(self.bases(window))

    def example(self, bases: np.ndarray) -> Example:
        """Return the training example of a window's letters."""
        tokens = torch.full((SEQ_LENGTH,), PAD, dtype=torch.int64)
        tokens[0], tokens[1] = BOS, SEP
        tokens[2 : 2 + len(bases)] = torch.from_numpy(bases)
        tokens[2 + len(bases)] = EOS
        labels = torch.full_like(tokens, PAD)
        labels[:-1] = tokens[1:]
        loss_mask = (labels > SEP).float()
        return {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": self.position_ids}

    def bases_stream(self) -> Iterator[np.ndarray]:
        """Return the peer's shuffled pass over all windows."""
        raise NotImplementedError

    def stream(self) -> Iterator[Example]:
        """Return the same as training examples."""
        return map(self.example, self.bases_stream())

    def versions(self) -> dict[str, str]:
        """Return the versions of the peer's packages."""
        return {name: metadata.version(name) for name in self.packages}


def write_fasta(files: Files, path: Path) -> None:
    """Write all contigs as FASTA."""
    with path.open("wb") as out:
        for k, name in enumerate(files.ids):
            out.write(f">{name}\n".encode())
            contig = files.contig(k)
            whole = len(contig) // LINE_BASES * LINE_BASES
            lines = np.full((whole // LINE_BASES, LINE_BASES + 1), ord("\n"), dtype=np.uint8)
            lines[:, :-1] = contig[:whole].reshape(-1, LINE_BASES)
            out.write(lines.data)
            if whole < len(contig):
                out.write(contig[whole:].tobytes() + b"\n")


def make(kind: str, files: Files) -> PeerDataset:
    """Return the dataset of a kind of peer."""
    from benchmarks import peer_megatron, peer_tools

    found = getattr(peer_tools, kind, None) or getattr(peer_megatron, kind)
    dataset: PeerDataset = found(files)
    return dataset
