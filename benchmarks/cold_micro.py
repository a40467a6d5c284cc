"""`python -m benchmarks.cold_micro`: read-ahead with micro batches of 1 and 2, on against off.

Both read the same positions of a stream through `StreamBatchSampler`, by turns, in one process. `disk` drops the data from the
page cache first, `delay` (root) also adds a delay to every request, `warm` reads the same batches twice and compares processor
seconds of the second time. Ratios are medians over the repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import cold_data, machine, report
from benchmarks.cold_data import SHAPES, SNIPPET
from benchmarks.cold_state import slow_reads
from benchmarks.cold_worker import STRIDE, WINDOW_SIZE
from benchmarks.data import ROOT
from sharded_eden.load.dataset import ShardedEdenDataset
from sharded_eden.train.sampler import StreamBatchSampler
from sharded_eden.train.stream import Stream

MICRO_BATCHES = (1, 2)
COLD_OVER_OFF, WARM_OVER_OFF = 1.5, 0.95


def stream_of(folder: Path, read_ahead: bool) -> Stream:
    """Open a stream of compact rows."""
    parts = folder / SNIPPET
    return Stream(
        ShardedEdenDataset(
            None,
            parts / "sequences",
            parts / "windows.db",
            WINDOW_SIZE,
            stride=STRIDE,
            compact=True,
            read_ahead=read_ahead,
        )
    )


def batches_of(stream: Stream, micro: int, first: int, count: int) -> list[list[int]]:
    """Return the micro batches of a number of windows from a position on."""
    sampler = iter(StreamBatchSampler(stream, micro_batch_size=micro, global_batch_size=micro, consumed_samples=first))
    return [next(sampler) for _ in range(count // micro)]


def drop(path: Path) -> None:
    """Let the kernel forget the pages of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_cold(folder: Path, read_ahead: bool, micro: int, first: int, count: int) -> float:
    """Return windows/s, opening included, with nothing of the data in the page cache."""
    for path in (folder / SNIPPET).rglob("*"):
        if path.is_file():
            drop(path)
    start = time.perf_counter()
    stream = stream_of(folder, read_ahead)
    for batch in batches_of(stream, micro, first, count):
        stream.__getitems__(batch)
    return count / (time.perf_counter() - start)


def read_warm(folder: Path, micro: int, count: int, repeats: int) -> list[float]:
    """Return the ratios of rates, on over off, of each repeat."""
    streams = {read_ahead: stream_of(folder, read_ahead) for read_ahead in (True, False)}
    ratios = []
    for repeat in range(repeats):
        seconds = {}
        for read_ahead in (True, False) if repeat % 2 else (False, True):
            stream = streams[read_ahead]
            batches = batches_of(stream, micro, repeat * count, count)
            for batch in batches:
                stream.dataset.__getitems__(stream.windows_at(batch))
            start = time.process_time()
            for batch in batches:
                stream.__getitems__(batch)
            seconds[read_ahead] = time.process_time() - start
        ratios.append(seconds[False] / seconds[True])
    return ratios


def main() -> None:
    """Measure all parts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cold_micro", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--gigabytes", type=float, default=1.5, help="bases of each shape (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "cold", help="where the data lie (default: %(default)s)")
    parser.add_argument("--shapes", default="short,5mb", help="default: %(default)s")
    parser.add_argument("--parts", default="disk,delay,warm", help="default: %(default)s")
    parser.add_argument("--windows", type=int, default=2048, help="of one measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--delay", type=int, default=1000, help="microseconds added to each read in the part `delay`")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    table = report.Table(
        "Read-ahead, micro batches of 1 and 2",
        "`StreamBatchSampler`, one process, compact rows; windows/s with read-ahead on and off, and median ratios.",
        ["", "micro batch", "part", "on", "off", "on over off"],
    )
    for name in options.shapes.split(","):
        world = cold_data.build(replace(SHAPES[name], stores=(SNIPPET,)), options.folder, options.gigabytes, print)
        for part in options.parts.split(","):
            with ExitStack() as stack:
                folder = world.folder
                if part == "delay":
                    slow = slow_reads(options.folder.resolve(), options.delay, options.folder / "slow")
                    folder = stack.enter_context(slow)[0] / world.folder.name
                for micro in MICRO_BATCHES:
                    table.rows.append([SHAPES[name].title, str(micro), part, *_cells(part, folder, micro, options)])
                    print(table.rows[-1], file=sys.stderr, flush=True)
    result = report.Result("read-ahead", "Read-ahead", [table], {"rows": table.rows})
    print(report.write(result, machine.describe(), options.windows < 2048, options.out))


def _cells(part: str, folder: Path, micro: int, options: argparse.Namespace) -> list[str]:
    if part == "warm":
        ratio = statistics.median(read_warm(folder, micro, options.windows, options.repeats))
        return ["", "", report.verdict(ratio, WARM_OVER_OFF)]
    rates: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(options.repeats):
        for read_ahead in (True, False) if repeat % 2 else (False, True):
            first = repeat * options.windows
            rates[read_ahead].append(read_cold(folder, read_ahead, micro, first, options.windows))
    ratio = statistics.median(on / off for on, off in zip(rates[True], rates[False], strict=True))
    medians = [f"{statistics.median(rates[read_ahead]):,.0f}" for read_ahead in (True, False)]
    return [*medians, report.verdict(ratio, COLD_OVER_OFF)]


if __name__ == "__main__":
    main()
