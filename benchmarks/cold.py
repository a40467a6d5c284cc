"""`python -m benchmarks.cold`: windows read from a disk, with nothing of them in memory. Needs root to drop the page cache.

Each measurement is a process of its own, see `benchmarks.cold_worker`: it drops the page cache, opens the data and reads random
windows in batches of 32. The clock runs from before opening to the last window. Contenders take turns, every repeat reads other
windows, and all contenders of a repeat read the same ones; ratios are medians of the ratios of each repeat.

    flat           one `preadv` a window from a flat file; its offsets are in memory before
    flat, ahead    the same; all windows of a batch are announced by `posix_fadvise(POSIX_FADV_WILLNEED)` first
    sqlite         ours without an index: what reads a database that nobody has indexed
    index          ours with an index, without read-ahead
    index, ahead   ours with an index: the batches of a dataset; the windows of a batch are announced first
    index, stream  the same batches from a stream, as in training: it knows the order, so those of the next batches are, too
    peer:...       see `benchmarks.peers`; bases only, as all others
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import cold_data, machine, peers, report
from benchmarks.cold_data import SHAPES, SNIPPET, ColdShape, ColdWorld
from benchmarks.cold_state import THROTTLE, device_of, read_ahead, slow_reads, throttle
from benchmarks.cold_tables import AHEAD, FLAT, FLAT_AHEAD, INDEX, SQLITE, STREAM, Case, Measured, tables
from benchmarks.data import ROOT

CONTENDERS = (FLAT, FLAT_AHEAD, INDEX, AHEAD, STREAM, SQLITE)
PEERS = {
    "peer:LitDataStream": peers.PEERS,
    "peer:LitDataTokensStream": peers.PEERS,
    "peer:Streaming": peers.STREAMING,
    "peer:Indexed": peers.MAIN,
    "peer:IndexedFile": peers.MAIN,
}
"""{contender: environment}."""
PEER_SHAPES = ("short", "5mb")
READ_AHEAD = (128, 8192)
MOST_OF_SLOW_ONES = 2048
"""Windows of contenders that need tens of reads for each."""
SLOW_WINDOWS = 8192
CHECKED_WINDOWS = 256


@dataclass
class Bench:
    """What all measurements share.

    Args:
        small: the data that each process reads first.
        device: the block device that holds the data; None where it cannot be told.
        drop: the page cache may be dropped.
        start: of all measurements, s.
    """

    small: Path
    device: Path | None
    drop: bool
    start: float = field(default_factory=time.monotonic)

    @property
    def counters(self) -> str | None:
        """The counters of the device."""
        return None if self.device is None else str(self.device / "stat")

    def say(self, text: str) -> None:
        """Report what is being done."""
        print(f"[{time.monotonic() - self.start:6.0f} s] {text}", file=sys.stderr, flush=True)

    def ask(self, contender: str, shape: ColdShape, folder: Path, store: str, **request: Any) -> dict[str, Any]:
        """Run one process, see `benchmarks.cold_worker`."""
        whole = {
            "contender": contender, "folder": str(folder), "store": store, "small": str(self.small), "drop": self.drop,
            "descriptors": shape.descriptors, "digest": False, "counters": None,
        } | request  # fmt: skip
        python = peers.python_of(PEERS.get(contender, peers.MAIN))
        command = [str(python), "-W", "ignore", "-m", "benchmarks.cold_worker", json.dumps(whole)]
        if request.get("throttled"):
            joined = f'echo $$ > {THROTTLE}/cgroup.procs && exec "$@"'
            command = ["sh", "-c", joined, "sh", *command]
        done = subprocess.run(command, cwd=peers.REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout:
            raise RuntimeError(f"{contender}: {done.stderr.strip()[-600:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def measure(
        self, case: Case, world: ColdWorld, contenders: Sequence[str], repeats: int, **request: Any
    ) -> Measured:
        """Measure contenders by turns.

        Args:
            case: what is measured.
            world: the data.
            contenders: the contenders.
            repeats: how often.
            request: for every process, with `folder` where it is not that of the world, and `windows`.
        """
        windows = request.pop("windows")
        folder = request.pop("folder", world.folder)
        found: Measured = defaultdict(list)
        for repeat in range(repeats):
            for contender in contenders:
                count = min(windows, MOST_OF_SLOW_ONES) if contender == SQLITE else windows
                answer = self.ask(
                    contender, world.shape, folder, case.store, first=repeat * windows, count=count, **request
                )
                found[contender].append({**answer, "windows": count, "rate": count / answer["seconds"]})
                self.say(
                    f"{case}: {repeat + 1} of {repeats}: {contender}: {found[contender][-1]['rate']:,.0f} windows/s"
                )
        return found

    def check(self, world: ColdWorld, store: str, contenders: Sequence[str]) -> None:
        """Refuse contenders that give other bases than the flat file."""
        request = {"first": 0, "count": CHECKED_WINDOWS, "digest": True}
        of_flat = self.ask(FLAT, world.shape, world.folder, store, **request)["digest"]
        for contender in contenders:
            if not contender.endswith("Stream"):
                found = self.ask(contender, world.shape, world.folder, store, **request)["digest"]
                if found != of_flat:
                    raise RuntimeError(f"{contender}: other bases than in the flat file of {world.shape.name}")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="bases of each shape (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "cold", help="where the data lie (default: %(default)s)")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    parser.add_argument("--parts", default="disk,delay,peers,limit", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--read-ahead", default=",".join(map(str, READ_AHEAD)), help="of the device, KB")
    parser.add_argument("--delay", type=int, default=1000, help="microseconds added to each read in the part `delay`")
    parser.add_argument("--requests", type=int, default=2000, help="requests/s of the disk in the part `limit`")
    parser.add_argument(
        "--peer-gigabytes", type=float, default=1.5, help="bases of each shape in parts other than `disk`"
    )
    parser.add_argument("--no-peers", action="store_true", help="without the tools a user could pick instead")
    parser.add_argument("--remove", action="store_true", help="remove the data of a shape when it has been measured")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    is_root = os.geteuid() == 0
    if not is_root:
        print("The page cache cannot be dropped: run this as root. What follows is NOT cold.", file=sys.stderr)
    device = device_of(options.folder)
    if device is None:
        print(f"{options.folder} is on no block device: requests cannot be counted", file=sys.stderr)
    bench = Bench(options.folder, device, is_root)
    small = ColdShape("small", "to start with", 4, log_normal=True)
    bench.small = cold_data.build(small, options.folder, 0.02, bench.say).folder
    measured: dict[Case, Measured] = {}
    for name in options.shapes.split(","):
        _run_shape(bench, SHAPES[name], options, measured)
    described = machine.describe() | {"page cache": "dropped" if is_root else "NOT DROPPED: not run as root"}
    data = [{**case.__dict__, "measured": found} for case, found in measured.items()]
    found = tables(measured, options.gigabytes, options.peer_gigabytes)
    print(
        report.write(
            report.Result("cold", "Cold reads", found, {"cases": data}), described, options.gigabytes < 4, options.out
        )
    )


def _run_shape(bench: Bench, shape: ColdShape, options: argparse.Namespace, measured: dict[Case, Measured]) -> None:
    """Measure one shape, in all parts that are asked for."""
    parts, usual = set(options.parts.split(",")), READ_AHEAD[0]
    if "disk" in parts:
        world = cold_data.build(shape, options.folder, options.gigabytes, bench.say)
        for store in shape.stores:
            bench.check(world, store, CONTENDERS)
            for kilobytes in map(int, options.read_ahead.split(",")):
                case = Case("disk", shape.name, store, kilobytes)
                with read_ahead(bench.device, kilobytes):
                    measured[case] = bench.measure(
                        case, world, CONTENDERS, options.repeats, windows=world.windows(), counters=bench.counters
                    )
        if options.remove:
            shutil.rmtree(world.folder)
    if shape.name not in PEER_SHAPES or not parts - {"disk"}:
        return
    world = cold_data.build(replace(shape, stores=(SNIPPET,)), options.folder, options.peer_gigabytes, bench.say)
    contenders = (*CONTENDERS, *([] if options.no_peers else _prepare_peers(bench, world)))
    for part in ("peers", "limit", "delay"):
        if part not in parts:
            continue
        case = Case(part, shape.name, SNIPPET, usual)
        request: dict[str, Any] = {"windows": min(world.windows(), SLOW_WINDOWS), "counters": bench.counters}
        with ExitStack() as stack:
            stack.enter_context(read_ahead(bench.device, usual))
            if part == "limit":
                if bench.device is None or not bench.drop or not THROTTLE.parent.is_dir():
                    bench.say("part limit is left out: it needs a block device, root and cgroup v1 with blkio")
                    continue
                stack.enter_context(throttle(bench.device, options.requests))
                request["throttled"] = True
            elif part == "delay":
                if not bench.drop:
                    bench.say("part delay is left out: it needs root")
                    continue
                shown, counted = stack.enter_context(
                    slow_reads(options.folder.resolve(), options.delay, options.folder / "slow")
                )
                request |= {"folder": shown / world.folder.name, "counters": str(counted)}
            measured[case] = bench.measure(case, world, contenders, min(3, options.repeats), **request)
    if options.remove:
        shutil.rmtree(world.folder)


def _prepare_peers(bench: Bench, world: ColdWorld) -> list[str]:
    """Write the peers' files; return the peers that work, and give the bases of the flat file where they can."""
    peers.install()
    usable = []
    for contender, environment in PEERS.items():
        kind = contender.removeprefix("peer:").removesuffix("Stream")
        bench.say(f"{world.shape.name}: files of {kind}")
        try:
            for folder in (bench.small, world.folder):
                make = f"from benchmarks.peer_formats import Files, make; make({kind!r}, Files({str(folder)!r}))"
                make += "; import os; os._exit(0)"  # some peers leave threads that never end
                command = [str(peers.python_of(environment)), "-W", "ignore", "-c", make]
                done = subprocess.run(command, cwd=peers.REPOSITORY, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip()[-300:])
            bench.check(world, SNIPPET, [contender])
        except (RuntimeError, OSError) as error:
            bench.say(f"{contender} is left out: {error}")
        else:
            usable.append(contender)
    return usable


if __name__ == "__main__":
    main()
