"""The state of the machine in which `benchmarks.cold` measures: read-ahead of the device, delays, limits. All need root."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

THROTTLE = Path("/sys/fs/cgroup/blkio/sharded-eden-bench")
"""The group of processes whose reads are limited."""


def device_of(folder: Path) -> Path | None:
    """Return the folder in /sys of the block device that holds a folder."""
    number = os.stat(folder).st_dev
    found = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not found.exists():
        return None
    found = found.resolve()
    return found if (found / "queue").exists() else found.parent  # a partition


@contextmanager
def read_ahead(device: Path | None, kilobytes: int) -> Iterator[None]:
    """Set how far the kernel reads ahead, and restore it."""
    if device is None:
        yield
        return
    setting = device / "queue" / "read_ahead_kb"
    before = setting.read_text()
    setting.write_text(str(kilobytes))
    try:
        yield
    finally:
        setting.write_text(before)


@contextmanager
def slow_reads(root: Path, microseconds: int, place: Path) -> Iterator[tuple[Path, Path]]:
    """Show a folder with a delay in each read; yield the folder that is shown and the counters."""
    place.mkdir(parents=True, exist_ok=True)
    program, shown, counters = place / "slow_reads", place / "shown", place / "counters"
    source = Path(__file__).with_name("slow_reads.c")
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    shown.mkdir(exist_ok=True)
    process = subprocess.Popen([program, root, shown, str(microseconds), counters])
    try:
        while not os.path.ismount(shown):
            if process.poll() is not None:
                raise RuntimeError(f"slow_reads ended with status {process.returncode}")
            time.sleep(0.05)
        yield shown, counters
    finally:
        subprocess.run(["umount", shown], check=False)
        process.wait(timeout=30)


@contextmanager
def throttle(device: Path, requests_per_second: int) -> Iterator[None]:
    """Limit the reads of the processes that join `THROTTLE`, by cgroup v1."""
    THROTTLE.mkdir(exist_ok=True)
    try:
        number = (device / "dev").read_text().strip()
        (THROTTLE / "blkio.throttle.read_iops_device").write_text(f"{number} {requests_per_second}")
        yield
    finally:
        THROTTLE.rmdir()
