"""One cold measurement in one process: `python -m benchmarks.cold_worker REQUEST`, a JSON object; prints a JSON object.

The process imports everything and reads a small data set first, so that imports are not measured. Then it drops the page cache
(root only), opens the data and reads windows in batches of 32. Nothing of the data is mapped when the cache is dropped.
Imports the package only for its own contenders: peers run where it is not installed.

Request:

    contender     a key of `OPENERS`, or `peer:KIND` with a class of `benchmarks.peer_tools` or `benchmarks.peer_megatron`
    folder        of the shape, see `benchmarks.cold_data`; `small` another one, of few windows
    store         how its sequence databases were written
    first, count  which windows of `order.npy`
    drop          drop the page cache; without it the files are read as they are
    descriptors   the limit of open files; null for that of this process
    counters      `/sys/block/DEVICE/stat`, the counters of `slow_reads.c`, or null
    digest        return the checksum of the bases of all windows, and no time

Answer: seconds, open_seconds of them; requests of the device, from whatever process, open_requests of them; kilobytes that this
process alone caused to be read (with the counters of `slow_reads.c`: requests and kilobytes that it was asked for);
device_kilobytes; window_bytes, the mean of the windows.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
WINDOW_SIZE, STRIDE = 8192, 7992
SHOWN = WINDOW_SIZE - 3
HEADER = 2
SECTOR_BYTES = 512

Batch = list[int]
Reader = Callable[[Batch], Sequence[Any]]
"""Returns the bases of each window, as an array or as what `Opened.bases` makes one of."""
Opener = Callable[[], Reader]


class Windows:
    """Which windows are read, and where the flat file has them.

    Args:
        folder: of the shape.
        first: position in its order.
        count: how many.
    """

    def __init__(self, folder: Path, first: int, count: int) -> None:
        order = np.load(folder / "order.npy")
        self.chosen = order[np.arange(first, first + count) % len(order)]
        self.batches: list[Batch] = [self.chosen[k : k + BATCH].tolist() for k in range(0, count, BATCH)]
        starts = np.load(folder / "window_starts.npy", mmap_mode="r")[self.chosen].tolist()
        lengths = np.minimum(np.load(folder / "window_lengths.npy", mmap_mode="r")[self.chosen], SHOWN)
        self.lengths = dict(zip(self.chosen.tolist(), lengths.tolist(), strict=True))
        self.starts = dict(zip(self.chosen.tolist(), starts, strict=True))
        self.mean_bytes = float(lengths.mean())


def flat(folder: Path, windows: Windows, *, ahead: bool) -> Reader:
    """Read windows from the flat file, whose offsets are in memory before the clock starts: one `preadv` each."""
    descriptor = os.open(folder / "bases.u8", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    starts, lengths = windows.starts, windows.lengths

    def read(batch: Batch) -> list[memoryview]:
        rows = memoryview(np.empty(len(batch) * WINDOW_SIZE, dtype=np.uint8))  # type: ignore[arg-type]
        if ahead:
            for window in batch:
                os.posix_fadvise(descriptor, starts[window], lengths[window], os.POSIX_FADV_WILLNEED)
        found = []
        for k, window in enumerate(batch):
            row = rows[k * WINDOW_SIZE : k * WINDOW_SIZE + lengths[window]]
            if os.preadv(descriptor, [row], starts[window]) != lengths[window]:
                raise OSError("the flat file is too short")
            found.append(row)
        return found

    return read


def ours(folder: Path, store: str, windows: Windows, *, index: bool, ahead: bool = False) -> Reader:
    """Read windows from SQLite databases, as codes of one byte a token."""
    from sharded_eden.load.dataset import ShardedEdenDataset

    # Without an index: a link to the window database in a folder that has none.
    window_db = folder / store / ("windows.db" if index else "no-index/windows.db")
    dataset = ShardedEdenDataset(
        None, folder / store / "sequences", window_db, WINDOW_SIZE, stride=STRIDE, compact=True, read_ahead=ahead
    )
    lengths = windows.lengths

    def read(batch: Batch) -> list[np.ndarray]:
        codes = dataset.__getitems__(batch).stacked["codes"].numpy()
        return [row[HEADER : HEADER + lengths[window]] for row, window in zip(codes, batch, strict=True)]

    return read


def stream(folder: Path, store: str, windows: Windows) -> Reader:
    """Read the same windows as `ours` through a stream, which also announces those of its next batches, as in training."""
    from sharded_eden.load.dataset import ShardedEdenDataset
    from sharded_eden.train.stream import Stream

    class InOrder(Stream):
        """A stream in the order that all contenders read."""

        def windows_at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
            return [(0, chosen[position]) for position in positions]

    chosen, lengths = windows.chosen.tolist(), windows.lengths
    rows = InOrder(
        ShardedEdenDataset(
            None, folder / store / "sequences", folder / store / "windows.db", WINDOW_SIZE, stride=STRIDE, compact=True
        )
    )
    rows.set_end(len(chosen))
    firsts = iter(range(0, len(chosen), BATCH))

    def read(batch: Batch) -> list[np.ndarray]:
        first = next(firsts)
        codes = rows.__getitems__(range(first, first + len(batch))).stacked["codes"].numpy()
        return [row[HEADER : HEADER + lengths[window]] for row, window in zip(codes, batch, strict=True)]

    return read


def peer(kind: str, folder: Path) -> Reader:
    """Read windows as a peer's users do; a kind that ends in `Stream` walks the peer's own shuffled order instead."""
    from benchmarks.peer_formats import Files, make

    dataset = make(kind.removesuffix("Stream"), Files(str(folder), warm=False))
    if not kind.endswith("Stream"):
        return lambda batch: [np.array(dataset.bases(window)) for window in batch]  # a view of a map would read nothing
    rows = dataset.bases_stream()
    return lambda batch: [np.array(next(rows)) for _ in batch]


def opener(request: dict[str, Any], folder: Path, windows: Windows) -> Opener:
    """Return what opens the contender of a request."""
    name, store = request["contender"], request["store"]
    if name.startswith("peer:"):
        return lambda: peer(name.removeprefix("peer:"), folder)
    openers: dict[str, Opener] = {
        "flat": lambda: flat(folder, windows, ahead=False),
        "flat, ahead": lambda: flat(folder, windows, ahead=True),
        "sqlite": lambda: ours(folder, store, windows, index=False),
        "index": lambda: ours(folder, store, windows, index=True),
        "index, ahead": lambda: ours(folder, store, windows, index=True, ahead=True),
        "index, stream": lambda: stream(folder, store, windows),
    }
    return openers[name]


def counters(path: str | None) -> tuple[int, int]:
    """Return (requests, bytes) read so far."""
    if path is None:
        return 0, 0
    data = Path(path).read_bytes()
    if path.startswith("/sys/"):
        fields = data.split()
        return int(fields[0]), int(fields[2]) * SECTOR_BYTES
    requests, size_bytes = struct.unpack("=QQ", data)
    return requests, size_bytes


def own_bytes() -> int:
    """Return how many bytes this process caused to be read from disks so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def drop_caches() -> None:
    """Empty the page cache."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(0.3)


def main() -> None:
    """Measure once."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a package prints
    request = json.loads(sys.argv[1])
    if request["descriptors"] is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["descriptors"], hard))
    small, folder = Path(request["small"]), Path(request["folder"])
    if not request["contender"].startswith("peer:"):
        import torch

        torch.set_num_threads(1)
    few = Windows(small, 0, 2 * BATCH)
    read = opener({**request, "store": "snippet"}, small, few)()
    for batch in few.batches:
        read(batch)
    del read
    windows = Windows(folder, request["first"], request["count"])
    make = opener(request, folder, windows)
    answer = _digest(make(), windows) if request["digest"] else _measure(make, windows, request)
    answers.write(json.dumps({**answer, "window_bytes": windows.mean_bytes}) + "\n")
    answers.flush()
    os._exit(0)  # some peers leave threads that never end


def _digest(read: Reader, windows: Windows) -> dict[str, Any]:
    checksum = hashlib.sha256()
    for batch in windows.batches:
        for bases in read(batch):
            checksum.update(np.ascontiguousarray(np.asarray(bases).astype(np.uint8)).data)
    return {"digest": checksum.hexdigest()}


def _measure(make: Opener, windows: Windows, request: dict[str, Any]) -> dict[str, Any]:
    gc.collect()
    if request["drop"]:
        drop_caches()
    requests, size_bytes = counters(request["counters"])
    own, start = own_bytes(), time.perf_counter()
    read = make()
    opened = time.perf_counter()
    requests_of_opening = counters(request["counters"])[0] - requests
    for batch in windows.batches:
        read(batch)
    end = time.perf_counter()
    own = own_bytes() - own
    requests_after, size_after = counters(request["counters"])
    of_device = (size_after - size_bytes) / 1024
    return {
        "seconds": end - start,
        "open_seconds": opened - start,
        "requests": requests_after - requests if request["counters"] else None,
        "open_requests": requests_of_opening if request["counters"] else None,
        "kilobytes": own / 1024 if (request["counters"] or "/sys/").startswith("/sys/") else of_device,
        "device_kilobytes": of_device,
    }


if __name__ == "__main__":
    main()
