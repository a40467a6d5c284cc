"""`export`: the windows of a split as Megatron's indexed dataset, or as a Parquet file, by the libraries' own writers.

Input: a window database and its sequence databases. Output: `OUT.bin` and `OUT.idx`, one document for each window, with the
tokens of its row without padding; or one Parquet file, one row for each window, with its bases. Memory: some hundred windows;
for `OUT.idx`, Megatron's writer also keeps two integers for each window. Files appear when they are complete.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sharded_eden.errors import MissingExtra, UsageError, shown
from sharded_eden.format.geometry import integer
from sharded_eden.format.kinds import begins_with, check_replaceable
from sharded_eden.format.publish import publishing, sync
from sharded_eden.load.dataset import ArrayDataset
from sharded_eden.load.encode.example import COMPLEMENT
from sharded_eden.load.read.fetch import Window
from sharded_eden.progress import Meter, Progress
from sharded_eden.train.array_stream import ArrayStream

Target = Literal["indexed", "parquet"]
ExportOrder = Literal["contig", "stream"]

WINDOWS_AT_ONCE = 256


class Exported(NamedTuple):
    """What was written."""

    paths: tuple[Path, ...]
    windows: int
    """Documents or rows."""
    tokens: int
    """Tokens of the indexed dataset, or bases of the Parquet file."""
    digest: str
    """BLAKE2b over the length of each document or sequence (8 bytes, little-endian) and its bytes, in order."""


def export_windows(
    window_db: str | os.PathLike[str],
    sequence_db_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: Target,
    *,
    order: ExportOrder = "contig",
    epochs: int = 1,
    seed: int = 42,
    rc_aug: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the windows of a split for other programs.

    Args:
        window_db: the window database.
        sequence_db_dir: the folder of sequence databases.
        out: for `indexed`, the prefix of `OUT.bin` and `OUT.idx`; for `parquet`, the file.
        to: `indexed`: uint8 tokens of the built-in tokenizer, `BOS SEP bases EOS` (1, 3, letters in upper case, 2);
            `parquet`: the columns `epoch`, `window_idx`, `sequence_id`, `start`, `reverse` and `sequence` (its bases on the
            strand that the row shows, lower case kept).
        order: `contig`: as in the window database; `stream`: as training with this seed visits them.
        epochs: passes over the windows, each in another order and with other strands.
        seed: decides the order of the stream, and strands.
        rc_aug: half of the windows are reverse complements, as in training.
        progress: called with the windows written and all windows.

    Raises:
        UsageError: another target or order, several epochs in contig order without `rc_aug`, or no windows.
        MissingExtra: megatron-core or pyarrow is not installed.
        EdenError: a database is refused, see `ShardedEdenDataset`.

    Example: `export_windows("windows/train.db", "seqdb", "train", "indexed").paths` is `(train.bin, train.idx)`.
    """
    if to not in get_args(Target):
        raise UsageError(f"to must be one of {', '.join(get_args(Target))}, not {shown(to)}")
    if order not in get_args(ExportOrder):
        raise UsageError(f"order must be one of {', '.join(get_args(ExportOrder))}, not {shown(order)}")
    if (epochs := integer(epochs, "epochs")) < 1:
        raise UsageError(f"epochs must be at least 1, but is {epochs}")
    if epochs > 1 and order == "contig" and not rc_aug:
        raise UsageError("several epochs in contig order without rc_aug are the same windows again: use order='stream'")
    with ArrayDataset.open(sequence_db_dir, window_db, seed=seed, rc_aug=rc_aug) as dataset:
        stream = ArrayStream(dataset, shuffle=order == "stream")
        total = epochs * len(dataset)
        meter = Meter(progress, total)
        write = _write_indexed if to == "indexed" else _write_parquet
        exported = write(Path(out), dataset, _blocks(stream, total, meter))
        meter.finish()
    return exported


def _blocks(stream: ArrayStream, total: int, meter: Meter) -> Iterator[list[tuple[int, int]]]:
    """Yield the (epoch, window index) of all rows, some at a time."""
    for first in range(0, total, WINDOWS_AT_ONCE):
        meter.reach(first)
        yield stream.windows_at(range(first, min(first + WINDOWS_AT_ONCE, total)))


class _Sum:
    """Adds up what was written."""

    def __init__(self) -> None:
        self.windows = self.tokens = 0
        self._digest = blake2b(digest_size=16)

    def add(self, data: bytes) -> None:
        self.windows += 1
        self.tokens += len(data)
        self._digest.update(len(data).to_bytes(8, "little") + data)

    def of(self, *paths: Path) -> Exported:
        return Exported(paths, self.windows, self.tokens, self._digest.hexdigest())


def _write_indexed(out: Path, dataset: ArrayDataset, blocks: Iterator[list[tuple[int, int]]]) -> Exported:
    builder_class, torch = _megatron()
    paths = Path(f"{out}.bin"), Path(f"{out}.idx")
    for path in paths:
        check_replaceable(path, "OUT", "of an indexed dataset", lambda _: begins_with(paths[1], b"MMIDIDX"))
    written = _Sum()
    # The index is published last: without it, nobody takes the tokens for a dataset.
    with publishing(paths[1]) as index, publishing(paths[0]) as tokens_file:
        builder = builder_class(str(tokens_file), dtype=np.uint8)
        try:
            for block in blocks:
                rows = dataset.arrays(block)["tokens"].astype(np.uint8)
                for row, window in zip(rows, dataset.fetch_many(block), strict=True):
                    document = row[: len(window.header) + len(window.bases) + dataset.options.include_eos]
                    builder.add_item(torch.from_numpy(document))
                    builder.end_document()
                    written.add(document.tobytes())
            builder.finalize(str(index))
        finally:
            builder.data_file.close()
        sync(tokens_file)  # a full disk is noticed here at the latest, while the old pair is whole
        paths[1].unlink(missing_ok=True)  # an export that is cut short here must not leave an old index with new tokens
    return written.of(*paths)


def _megatron() -> tuple[Any, Any]:
    """Return Megatron's writer, and torch, whose tensors it takes."""
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about packages for GPUs
            from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    except ImportError as error:
        raise MissingExtra("megatron-core", "megatron") from error
    return IndexedDatasetBuilder, torch


def _write_parquet(out: Path, dataset: ArrayDataset, blocks: Iterator[list[tuple[int, int]]]) -> Exported:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "formats") from error
    columns = [
        ("epoch", pa.int64()), ("window_idx", pa.int64()), ("sequence_id", pa.string()), ("start", pa.int64()),
        ("reverse", pa.bool_()), ("sequence", pa.string()),
    ]  # fmt: skip
    schema = pa.schema(columns)
    check_replaceable(out, "OUT", "such an export", lambda path: pq.read_schema(path).names == schema.names)
    written = _Sum()
    with publishing(out) as path, _writer(pq, path, schema) as writer:
        for block in blocks:
            dataset.arrays(block)  # refuses the letters that training refuses
            windows = list(dataset.fetch_many(block))
            sequences = [_shown(window) for window in windows]
            for sequence in sequences:
                written.add(sequence)
            rows = [
                [window.epoch for window in windows],
                [window.window_idx for window in windows],
                [window.sequence_id for window in windows],
                [window.window_in_seq_idx * dataset.stride for window in windows],
                [window.reverse for window in windows],
                [sequence.decode("ascii") for sequence in sequences],
            ]
            writer.write_table(pa.table(rows, schema=schema))
    return written.of(out)


@contextmanager
def _writer(pq: Any, path: Path, schema: Any) -> Iterator[Any]:
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer


def _shown(window: Window) -> bytes:
    """Return the bases of a window on the strand that its row shows."""
    return (COMPLEMENT[window.bases[::-1]] if window.reverse else window.bases).tobytes()
