"""sharded-eden: a PyTorch data loader for genomic language models.

It cuts genomes into windows, stores them in SQLite, and feeds them to Lightning, Megatron or plain PyTorch in an exactly
reproducible order. The public names are imported on first use: preparing data does not load torch, and only the data module
loads Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharded_eden.errors import MissingExtra as _MissingExtra

if TYPE_CHECKING:
    from sharded_eden.build.build import build_sequence_dbs, create_sample_database
    from sharded_eden.checks.run import verify
    from sharded_eden.describe.access_logs import read_access_logs
    from sharded_eden.describe.stats import stats
    from sharded_eden.errors import (
        DatabaseError,
        EdenError,
        EdenWarning,
        GeometryMismatch,
        InputError,
        MissingDatabase,
        MissingExtra,
        MissingSequence,
        StateError,
        UnknownArgument,
        UsageError,
        WriteError,
    )
    from sharded_eden.format.geometry import WindowGeometry, compute_num_windows
    from sharded_eden.format.schema import extract_sample_id
    from sharded_eden.load.dataset import ArrayDataset
    from sharded_eden.load.encode.tokenizer import NucleotideTokenizer
    from sharded_eden.load.locate.packs import flatten_rows
    from sharded_eden.load.tensors import ShardedEdenDataset
    from sharded_eden.report.write import write_report
    from sharded_eden.split import write_splits
    from sharded_eden.throughput import bench
    from sharded_eden.token_packs import pack_by_tokens
    from sharded_eden.train.array_stream import ArrayStream
    from sharded_eden.train.batch_formats import to_hugging_face, to_megatron
    from sharded_eden.train.hugging_face import Position, collate_for_hugging_face
    from sharded_eden.train.lightning.datamodule import ShardedEdenDataModule
    from sharded_eden.train.lightning.statistics import LoaderStatistics
    from sharded_eden.train.mixture import Mixture
    from sharded_eden.train.sampler import StreamBatchSampler
    from sharded_eden.train.stream import Stream
    from sharded_eden.windows.pack import pack_window_database
    from sharded_eden.windows.precompute import precompute_window_database

__version__ = "0.2.0"

_HOME = {
    "ArrayDataset": "sharded_eden.load.dataset",
    "ArrayStream": "sharded_eden.train.array_stream",
    "DatabaseError": "sharded_eden.errors",
    "EdenError": "sharded_eden.errors",
    "EdenWarning": "sharded_eden.errors",
    "GeometryMismatch": "sharded_eden.errors",
    "InputError": "sharded_eden.errors",
    "LoaderStatistics": "sharded_eden.train.lightning.statistics",
    "MissingDatabase": "sharded_eden.errors",
    "MissingExtra": "sharded_eden.errors",
    "MissingSequence": "sharded_eden.errors",
    "Mixture": "sharded_eden.train.mixture",
    "NucleotideTokenizer": "sharded_eden.load.encode.tokenizer",
    "Position": "sharded_eden.train.hugging_face",
    "ShardedEdenDataModule": "sharded_eden.train.lightning.datamodule",
    "ShardedEdenDataset": "sharded_eden.load.tensors",
    "StateError": "sharded_eden.errors",
    "Stream": "sharded_eden.train.stream",
    "StreamBatchSampler": "sharded_eden.train.sampler",
    "UnknownArgument": "sharded_eden.errors",
    "UsageError": "sharded_eden.errors",
    "WriteError": "sharded_eden.errors",
    "WindowGeometry": "sharded_eden.format.geometry",
    "bench": "sharded_eden.throughput",
    "build_sequence_dbs": "sharded_eden.build.build",
    "collate_for_hugging_face": "sharded_eden.train.hugging_face",
    "compute_num_windows": "sharded_eden.format.geometry",
    "create_sample_database": "sharded_eden.build.build",
    "extract_sample_id": "sharded_eden.format.schema",
    "flatten_rows": "sharded_eden.load.locate.packs",
    "pack_by_tokens": "sharded_eden.token_packs",
    "pack_window_database": "sharded_eden.windows.pack",
    "precompute_window_database": "sharded_eden.windows.precompute",
    "read_access_logs": "sharded_eden.describe.access_logs",
    "stats": "sharded_eden.describe.stats",
    "to_hugging_face": "sharded_eden.train.batch_formats",
    "to_megatron": "sharded_eden.train.batch_formats",
    "verify": "sharded_eden.checks.run",
    "write_report": "sharded_eden.report.write",
    "write_splits": "sharded_eden.split",
}

_EXTRA = {"lightning": "train", "torch": "train"}

__all__ = [
    "ArrayDataset",
    "ArrayStream",
    "DatabaseError",
    "EdenError",
    "EdenWarning",
    "GeometryMismatch",
    "InputError",
    "LoaderStatistics",
    "MissingDatabase",
    "MissingExtra",
    "MissingSequence",
    "Mixture",
    "NucleotideTokenizer",
    "Position",
    "ShardedEdenDataModule",
    "ShardedEdenDataset",
    "StateError",
    "Stream",
    "StreamBatchSampler",
    "UnknownArgument",
    "UsageError",
    "WindowGeometry",
    "WriteError",
    "__version__",
    "bench",
    "build_sequence_dbs",
    "collate_for_hugging_face",
    "compute_num_windows",
    "create_sample_database",
    "extract_sample_id",
    "flatten_rows",
    "pack_by_tokens",
    "pack_window_database",
    "precompute_window_database",
    "read_access_logs",
    "stats",
    "to_hugging_face",
    "to_megatron",
    "verify",
    "write_report",
    "write_splits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name in _EXTRA:
            raise _MissingExtra(error.name, _EXTRA[error.name]) from error
        raise


def __dir__() -> list[str]:
    return __all__
