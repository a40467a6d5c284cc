"""Small sources of mixtures: several folders of `worlds`, with other contigs, strides and tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import worlds

from sharded_eden import Mixture, ShardedEdenDataset
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.pack import pack_window_database

WEIGHTS = [5, 1, 3]
PHASES: list[tuple[int, list[float]]] = [(70, [1, 0.5, 0])]


def write_sources(folder: Path, indexed: bool = True, packed_for: int = 0, **options: Any) -> list[Path]:
    """Write three sources with 11, 4 and 16 windows of 64 bases, and return their folders."""
    contigs = [
        worlds.CONTIGS,
        {"Virus__ECT-V__CT1-1": worlds.random_sequence(214, 7, "ACGTacgt")},
        {f"Plant__ECT-P{k % 2}__CT1-{k}": worlds.random_sequence(100 + k, k) for k in range(15)},
    ]
    folders = []
    for k, each in enumerate(contigs):
        folders.append(worlds.write(folder / f"source{k}", each, **options))
        if packed_for:  # special tokens of a window
            statement = f"INSERT OR REPLACE INTO metadata VALUES ('special_tokens', {packed_for})"
            worlds.execute(folders[-1] / "windows.db", statement)
            pack_window_database(folders[-1] / "windows.db", sequences=folders[-1] / "seqs")
        if indexed:
            index_window_database(folders[-1] / "seqs", folders[-1] / "windows.db")
    return folders


def open_sources(folders: list[Path], **options: Any) -> list[ShardedEdenDataset]:
    return [worlds.dataset(folder, **options) for folder in folders]


def mixture_of(folders: list[Path], weights: list[float] | None = None, **options: Any) -> Mixture:
    own = {name: options.pop(name) for name in ("seed", "phases", "skip", "num_samples") if name in options}
    own.setdefault("phases", PHASES if weights is None else ())
    return Mixture(list(zip(open_sources(folders, **options), weights or WEIGHTS, strict=True)), **own)
