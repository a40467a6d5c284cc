"""Runs fuzz cases: `python tests/fuzz/fuzz.py --cases 20000`; one case again: `--target fasta --seed 17 --cases 1`.

Each batch of cases runs in its own process, which the parent watches. A crash or a hang ends that process and is reported
with its seed; the next process continues with the next case.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
for _folder in (HERE, HERE.parent, HERE.parent / "helpers"):
    sys.path.insert(0, str(_folder))

BATCH = 500
START_SECONDS = 300.0
WEIGHTS = {
    "fasta": 14, "compressed": 10, "jsonl": 10, "genbank": 6, "parquet": 8, "arrow": 10, "split-file": 8, "sample-list": 2,
    "dataset": 14, "verify": 7, "commands": 8, "rebuild": 4,
}  # fmt: skip
"""The share of the cases that each target gets."""


ALL = "all"
"""A target that takes the others in turn, so that a few cases of each need only one process."""


class Report(NamedTuple):
    """What a run came to."""

    cases: int
    outcomes: Counter[str]
    findings: list[dict[str, Any]]


def replay_command(target: str, seed: int) -> str:
    """Return the command that runs one case again."""
    return f"PYTHONPATH=src python tests/fuzz/fuzz.py --target {target} --seed {seed} --cases 1"


def run(
    cases: int, *, first_seed: int = 0, targets: dict[str, int] | None = None, jobs: int = 1, batch: int = BATCH
) -> Report:
    """Run cases of some targets in child processes; print a line for each finding."""
    weights = targets or WEIGHTS
    total = sum(weights.values())
    batches = []
    for target, weight in weights.items():
        count = max(1, round(cases * weight / total))
        batches += [(target, first_seed + at, min(batch, count - at)) for at in range(0, count, batch)]
    outcomes: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    with ThreadPoolExecutor(jobs) as pool:
        for reports in pool.map(lambda each: _run_batch(*each), batches):
            for report in reports:
                outcomes[report["outcome"]] += 1
                if report["outcome"] not in {"error", "data", "undecided"}:
                    findings.append(report)
                    print(
                        f"{report['outcome']}: {replay_command(report['target'], report['seed'])}\n{report['what']}\n",
                        flush=True,
                    )
    return Report(sum(outcomes.values()), outcomes, findings)


def _run_batch(target: str, first: int, count: int) -> list[dict[str, Any]]:
    """Run one batch, in as many processes as it takes."""
    reports: list[dict[str, Any]] = []
    seed, end = first, first + count
    while seed < end:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_fast_folder()) as folder:
            found, following = _run_child(target, seed, end - seed, Path(folder))
        reports += found
        seed = following
    return reports


def _run_child(target: str, first: int, count: int, folder: Path) -> tuple[list[dict[str, Any]], int]:
    log, errors = folder / "log", folder / "stderr"
    log.touch()
    command = [
        sys.executable,
        __file__,
        "--child",
        str(folder),
        "--target",
        target,
        "--seed",
        str(first),
        "--cases",
        str(count),
    ]
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "POLARS_MAX_THREADS": "2",
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "2",
    }
    with errors.open("wb") as stderr:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
        from case import SECONDS

        size, since, has_begun = 0, time.monotonic(), False
        ended_here = False
        while child.poll() is None:
            time.sleep(0.05)
            now = log.stat().st_size
            if now != size:
                size, since, has_begun = now, time.monotonic(), True
            elif time.monotonic() - since > (SECONDS + 5 if has_begun else START_SECONDS):
                child.kill()
                ended_here = True
                child.wait()
    has_begun = log.stat().st_size > 0
    reports: list[dict[str, Any]] = []
    stage, seed = "", first
    for line in log.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "outcome" in entry:
            reports.append(entry)
            seed, stage = entry["number"] + 1, ""
        else:
            seed, stage = entry["number"], entry["stage"]
    # All cases have ended: a process that is slow to exit on a busy machine is no hang of a case.
    if seed >= first + count and (child.returncode == 0 or ended_here):
        return reports, seed
    what = errors.read_text(errors="replace")[-6000:]
    if not has_begun:
        raise RuntimeError(f"no case of {target} was begun:\n{what}")
    if stage == "judge":
        outcome = "undecided"  # the independent reader crashed or hung
    elif ended_here or "Timeout (" in what:
        outcome = "hang"
    else:
        outcome = f"crash (exit status {child.returncode})"
    reports.append({"target": target, "seed": seed, "outcome": outcome, "what": what})
    return reports, seed + 1


def _fast_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# ---- in the child ----


def child(folder: Path, target: str, first: int, count: int) -> None:
    """Run cases one after the other and write a line of JSON for each."""
    from case import SECONDS, Case, Undecided, Wrong
    from commands import TARGETS as COMMANDS
    from databases import TARGETS as DATABASES
    from inputs import TARGETS as INPUTS
    from prepared import prepare
    from split_files import TARGETS as SPLITS

    from sharded_eden.errors import EdenWarning

    functions = {**INPUTS, **SPLITS, **DATABASES, **COMMANDS}
    names = list(functions) if target == ALL else [target]
    if not (DATABASES | COMMANDS).keys().isdisjoint(names):
        prepare(folder / "template")
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
    faulthandler.enable()
    with (folder / "log").open("a", buffering=1) as log:
        for seed in range(first, first + count):
            place = folder / f"case{seed}"
            place.mkdir()
            temporary = place / "tmp"
            temporary.mkdir()
            tempfile.tempdir = str(temporary)
            os.environ["TMPDIR"] = str(temporary)
            os.environ["SQLITE_TMPDIR"] = str(temporary)

            def say(stage: str, seed: int = seed) -> None:
                print(json.dumps({"number": seed, "stage": stage}), file=log)

            name, own_seed = names[seed % len(names)], seed // len(names)
            case = Case(name, own_seed, place, say)
            outcome, what = "data", ""
            say("judge")
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warnings.simplefilter("ignore", EdenWarning)
                    warnings.filterwarnings("ignore", module=r"(torch|polars|Bio|pyarrow)\b")
                    functions[name](case)
                    case.must_not_leave_open()
                outcome = "error" if case.error is not None else "data"
            except Undecided as error:
                outcome, what = "undecided", str(error)
            except Wrong as error:
                outcome, what = "wrong", f"{'; '.join(case.done)}: {error}"
            except BaseException:
                outcome, what = "exception", f"{'; '.join(case.done)}\n{traceback.format_exc()[-3500:]}"
            faulthandler.cancel_dump_traceback_later()
            del case
            what = what.encode(errors="backslashreplace").decode()
            report = {"target": name, "seed": own_seed, "number": seed, "outcome": outcome, "what": what}
            print(json.dumps(report), file=log)
            if not os.environ.get("FUZZ_KEEP"):
                shutil.rmtree(place, ignore_errors=True)
            if seed % 50 == 0:
                gc.collect()


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed of each target")
    parser.add_argument("--target", choices=[*sorted(WEIGHTS), ALL], action="append", help="all of them unless given")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.target[0], arguments.seed, arguments.cases)
        return
    targets = None if arguments.target is None else {name: WEIGHTS.get(name, 1) for name in arguments.target}
    print(f"the first seed is {arguments.seed}; again: make test-fuzz SEED={arguments.seed}", flush=True)
    started = time.monotonic()
    report = run(arguments.cases, first_seed=arguments.seed, targets=targets, jobs=arguments.jobs)
    print(f"{report.cases:,} cases in {time.monotonic() - started:.0f} s: {dict(report.outcomes)}")
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
