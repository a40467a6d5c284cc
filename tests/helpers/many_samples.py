"""Reads every window of a split and prints the cost. tests/load/test_many_samples.py runs it as a separate process.

python many_samples.py FOLDER IO DESCRIPTORS
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import sys
from pathlib import Path

from sharded_eden import ShardedEdenDataset

folder, io, descriptors = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if descriptors == 0 else descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))


def private_kib() -> int:
    """Private memory of this process, without mapped files. Source: proc_pid_smaps(5)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


with ShardedEdenDataset(None, folder / "seqs", folder / "windows.db", 8192, io=io) as dataset:
    order = list(range(len(dataset)))
    random.Random(1).shuffle(order)
    digests = [b""] * len(order)
    for first in range(0, len(order), 32):
        for window_idx, item in zip(
            order[first : first + 32], dataset.__getitems__(order[first : first + 32]), strict=True
        ):
            digests[window_idx] = hashlib.sha256(item["tokens"].numpy()).digest()
    open_files = len(os.listdir("/dev/fd"))
    print(json.dumps({
        "private_kib": private_kib(),
        "open_files": open_files,
        "sha256": hashlib.sha256(b"".join(digests)).hexdigest(),
        "soft_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }))  # fmt: skip
