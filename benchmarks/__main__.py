"""`python -m benchmarks`: prints tables of ratios and saves them in `benchmarks/results/`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import data, loading, machine, order, packing, peers, precompute, prepare, report, startup, workers

PARTS = ("loading", "alternating", "workers", "startup", "prepare", "precompute", "packing", "order")
SHAPES = ("short", "5mb", "150mb")


def main() -> None:
    """Run the selected parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less data and shorter repeats: for a look")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of the loading tables (default: %(default)s)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="without the tools a user could pick instead")
    parser.add_argument(
        "--out", type=Path, help="where the tables go (default: benchmarks/results; quick: .bench/results)"
    )
    options = parser.parse_args()
    out: Path = options.out or (data.ROOT / "results" if options.quick else Path(__file__).with_name("results"))
    for name, given, known in (("--shapes", options.shapes, SHAPES), ("--only", options.only, PARTS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"{name}: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    described = machine.describe()
    for result in _results(options):
        print(report.write(result, described, options.quick, out), flush=True)


def _results(options: argparse.Namespace) -> Iterator[report.Result]:
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.0f} s] {text}", file=sys.stderr, flush=True)

    quick: bool = options.quick
    parts = options.only.split(",")
    settings = loading.Settings(seconds=0.2 if quick else 0.7, repeats=3 if quick else 5, say=say)
    shapes = data.shapes(quick)

    def world(name: str) -> data.World:
        say(f"data: {name}")
        return data.build(shapes[name], quick)

    if "loading" in parts:
        rivals = [] if options.no_peers else peers.all_peers()
        if rivals:
            say("environment of the peers")
            peers.install()
        try:
            yield loading.run([world(name) for name in options.shapes.split(",")], rivals, settings)
        finally:
            for rival in rivals:
                rival.close()
    if "alternating" in parts:
        yield loading.run_alternating(world("24long"), settings)
    if "workers" in parts:
        yield workers.run([world(name) for name in options.shapes.split(",")], quick, say)
    if "startup" in parts:
        yield startup.run(quick, say)
    if "prepare" in parts:
        yield prepare.run(quick, say)
    if "precompute" in parts:
        yield precompute.run(quick, say)
    if "packing" in parts:
        yield packing.run(world("short"), quick, say)
    if "order" in parts:
        yield order.run(quick, say)


if __name__ == "__main__":
    main()
