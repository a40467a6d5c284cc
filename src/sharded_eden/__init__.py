"""sharded-eden: windows of DNA for genomic language models, out of SQLite, in one reproducible stream.

The public names are imported on first use, so that preparing data never loads torch, and training never loads Lightning
unless the data module is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharded_eden.errors import MissingExtra

if TYPE_CHECKING:
    from sharded_eden.build.build import build_sequence_dbs, create_sample_database
    from sharded_eden.checks.run import verify
    from sharded_eden.format.geometry import WindowGeometry, compute_num_windows
    from sharded_eden.format.schema import extract_sample_id
    from sharded_eden.load.dataset import ShardedEdenDataset
    from sharded_eden.load.tokenizer import NucleotideTokenizer
    from sharded_eden.split import write_splits
    from sharded_eden.throughput import bench
    from sharded_eden.train.lightning.datamodule import ShardedEdenDataModule
    from sharded_eden.train.stream import Stream
    from sharded_eden.windows.pack import pack_window_database
    from sharded_eden.windows.precompute import precompute_window_database

__version__ = "0.1.0"

_HOME = {
    "NucleotideTokenizer": "sharded_eden.load.tokenizer",
    "ShardedEdenDataModule": "sharded_eden.train.lightning.datamodule",
    "ShardedEdenDataset": "sharded_eden.load.dataset",
    "Stream": "sharded_eden.train.stream",
    "WindowGeometry": "sharded_eden.format.geometry",
    "bench": "sharded_eden.throughput",
    "build_sequence_dbs": "sharded_eden.build.build",
    "compute_num_windows": "sharded_eden.format.geometry",
    "create_sample_database": "sharded_eden.build.build",
    "extract_sample_id": "sharded_eden.format.schema",
    "pack_window_database": "sharded_eden.windows.pack",
    "precompute_window_database": "sharded_eden.windows.precompute",
    "verify": "sharded_eden.checks.run",
    "write_splits": "sharded_eden.split",
}

_EXTRA = {"lightning": "train", "torch": "train"}

__all__ = [
    "NucleotideTokenizer",
    "ShardedEdenDataModule",
    "ShardedEdenDataset",
    "Stream",
    "WindowGeometry",
    "__version__",
    "bench",
    "build_sequence_dbs",
    "compute_num_windows",
    "create_sample_database",
    "extract_sample_id",
    "pack_window_database",
    "precompute_window_database",
    "verify",
    "write_splits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name in _EXTRA:
            raise MissingExtra(error.name, _EXTRA[error.name]) from error
        raise


def __dir__() -> list[str]:
    return __all__
