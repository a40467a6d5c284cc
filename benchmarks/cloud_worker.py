"""`python -m benchmarks.cloud_worker DO KIND FOLDER`: one loader that streams from S3, in a process and environment of its own.

DO is `write` (the files of the loader, below FOLDER/bucket) or `read` (one shuffled pass with one worker, as its
documentation advises). `read` prints JSON. Every loader sends rows of one byte per base. Input of `write`: FOLDER/windows.npy
(N, T) uint8 and FOLDER/samples.npy (N,), in the order of the window database.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHUNK_BYTES = 1 << 26
BATCH = 32
FIRST = 1024
"""The windows whose samples are counted."""
URL = "s3://bucket"


def write_ours(folder: Path) -> None:
    """Add the URL of the sequence databases to the index."""
    from sharded_eden.windows.remote_index import add_remote

    add_remote(folder / "bucket" / "w.db", f"{URL}/seqs")


def ours(cache: str) -> Iterator[list[int]]:
    """Single windows of the sequence databases, in a shuffled order of all."""
    from torch.utils.data import DataLoader

    from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler

    dataset = ShardedEdenDataset.open(f"{URL}/seqs", f"{URL}/w.db", cache_dir=cache, compact=True)
    stream = Stream(dataset)
    sampler = StreamBatchSampler(stream, micro_batch_size=BATCH, global_batch_size=BATCH)
    samples = np.load(Path(sys.argv[3]) / "samples.npy", mmap_mode="r")
    batches = DataLoader(stream, batch_sampler=sampler, num_workers=1)
    for number, _ in enumerate(islice(batches, len(dataset) // BATCH)):
        windows = stream.windows_at(range(number * BATCH, (number + 1) * BATCH))
        yield [int(samples[window]) for _, window in windows]


@cache
def _input(folder: Path) -> list[Any]:
    return [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("windows", "samples")]


def _row(folder: Path, k: int) -> dict[str, Any]:
    windows, samples = _input(folder)
    return {"bases": np.array(windows[k]), "sample": int(samples[k])}


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    bases = torch.from_numpy(np.stack([row["bases"] for row in rows]))
    return {"bases": bases, "samples": [int(row["sample"]) for row in rows]}


def write_litdata(folder: Path) -> None:
    """Write chunks of 64 MB."""
    import litdata

    total = len(np.load(folder / "samples.npy", mmap_mode="r"))
    out = str(folder / "bucket" / "litdata")
    litdata.optimize(
        partial(_row, folder), list(range(total)), out, chunk_bytes=CHUNK_BYTES, num_workers=1, verbose=False
    )


def litdata(cache: str) -> Iterator[list[int]]:
    """Chunks, shuffled within those of a worker."""
    import litdata
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the server has no TLS
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    dataset = litdata.StreamingDataset(
        f"{URL}/litdata", cache_dir=cache, shuffle=True, drop_last=True, storage_options=options
    )
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=_collate)
    return (batch["samples"] for batch in loader)


def write_streaming(folder: Path) -> None:
    """Write shards of 64 MB."""
    _stub()
    from streaming import MDSWriter

    total = len(np.load(folder / "samples.npy", mmap_mode="r"))
    out = str(folder / "bucket" / "streaming")
    with MDSWriter(out=out, columns={"bases": "ndarray:uint8", "sample": "int"}, size_limit=CHUNK_BYTES) as writer:
        for k in range(total):
            writer.write(_row(folder, k))


def streaming(cache: str) -> Iterator[list[int]]:
    """Shards, shuffled by its default (`py1e`)."""
    _stub()
    from streaming import StreamingDataset

    dataset = StreamingDataset(remote=f"{URL}/streaming", local=cache, shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=1, drop_last=True, collate_fn=_collate)
    return (batch["samples"] for batch in loader)


def _stub() -> None:
    from benchmarks.peer_tools import _stub_torchvision

    _stub_torchvision()


PACKAGES = {"ours": "sharded-eden", "litdata": "litdata", "streaming": "mosaicml-streaming"}


def read(kind: str) -> dict[str, Any]:
    """Read one pass; return times, and how many samples the first batch and the first 1,024 windows are of."""
    _import(kind)
    with tempfile.TemporaryDirectory(prefix="cloud-cache-") as cache:
        began = time.perf_counter()
        batches = globals()[kind](cache)
        samples = list(next(batches))
        ready = time.perf_counter()
        windows = len(samples)
        mixed = len(set(samples))
        for batch in batches:
            windows += len(batch)
            if len(samples) < FIRST:
                samples += batch
        seconds = time.perf_counter() - ready
    return {
        "first_batch_seconds": ready - began, "windows_per_second": (windows - BATCH) / seconds, "windows": windows,
        "samples_in_first_batch": mixed, "samples_in_first_1024": len(set(samples[:FIRST])),
        "version": metadata.version(PACKAGES[kind]),
    }  # fmt: skip


def _import(kind: str) -> None:
    """Import the packages first: that is not part of the time to the first batch."""
    if kind == "ours":
        import sharded_eden

        assert sharded_eden.Stream
    elif kind == "litdata":
        import litdata

        assert litdata.StreamingDataset
    else:
        _stub()
        import streaming

        streaming.base.util.clean_stale_shared_memory()


def main() -> None:
    """Write or read."""
    _, do, kind, folder = sys.argv
    answers = os.fdopen(os.dup(1), "w")  # packages print, too
    os.dup2(2, 1)
    torch.set_num_threads(1)
    if do == "write":
        globals()[f"write_{kind}"](Path(folder))
        answer = {}
    else:
        answer = read(kind)
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    os._exit(0)  # some loaders leave threads that never end


if __name__ == "__main__":
    main()
