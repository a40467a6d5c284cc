"""One peer in its own process: `python -m benchmarks.peer_worker KIND`, one JSON request per line, one JSON answer per line.

Imports nothing of the package but the checksum, so it runs in an environment with only the peer. Requests:

    {"do": "open", "world": FOLDER}                                        -> {package: version}
    {"do": "digests", "world": FOLDER, "windows": [...]}                   -> [checksum, ...]
    {"do": "time", "world": FOLDER, "way": ..., "first": k, "windows": n}  -> seconds
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from benchmarks.checksum import digest
from benchmarks.peer_formats import Files, PeerDataset, make


class Opened:
    """A peer's dataset of one world."""

    def __init__(self, kind: str, folder: str) -> None:
        files = Files(folder)
        self.dataset: PeerDataset = make(kind, files)
        self.order = files.order
        self._stream: Any = None

    def time(self, way: str, first: int, windows: int, batch: int) -> float:
        """Make examples and return the seconds taken."""
        stretch = self.order[np.arange(first, first + windows) % len(self.order)].tolist()
        gc.collect()
        start = time.perf_counter()
        if way == "single items":
            for window in stretch:
                self.dataset[window]
        elif way == "batches of 32":
            for k in range(0, windows, batch):
                default_collate([self.dataset[window] for window in stretch[k : k + batch]])
        else:
            self._walk(windows)
        return time.perf_counter() - start

    def _walk(self, windows: int) -> None:
        while windows:
            if self._stream is None:
                self._stream = self.dataset.stream()
            for _ in self._stream:
                windows -= 1
                if not windows:
                    return
            self._stream = None


def main() -> None:
    """Answer requests until the input ends."""
    # Whatever a package prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    opened: dict[str, Opened] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(sys.argv[1], request, opened)
        except BaseException as error:
            answers.write(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}) + "\n")
        else:
            answers.write(json.dumps({"answer": answer}) + "\n")
        answers.flush()
    os._exit(0)  # some peers leave threads that never end


def _answer(kind: str, request: dict[str, Any], opened: dict[str, Opened]) -> Any:
    folder = request["world"]
    if request["do"] == "open":
        opened[folder] = Opened(kind, folder)
        return opened[folder].dataset.versions()
    peer = opened[folder]
    if request["do"] == "digests":
        return [digest(peer.dataset[window]) for window in request["windows"]]
    return peer.time(request["way"], request["first"], request["windows"], request["batch"])


if __name__ == "__main__":
    main()
