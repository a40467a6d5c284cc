"""The tools that a user could choose instead, each in a separate process and environment.

A peer answers requests on its standard input, so that its repeats interleave with ours; see `benchmarks.peer_worker`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import BATCH
from benchmarks.data import World
from benchmarks.timing import ContenderFailed, Timed

REPOSITORY = Path(__file__).resolve().parent.parent
MAIN, PEERS, STREAMING = "", ".venv-peers", ".venv-peers-streaming"
"""Environments: that of this process, and folders of the repository."""

TORCH = "torch==2.13.0"

SINGLES, BATCHES, STREAM = "single items", "batches of 32", "its own shuffled loop"


class PeerFailed(ContenderFailed):
    """A peer is not installed or returned an error."""


@dataclass
class Peer:
    """One tool.

    Args:
        name: its usual name.
        kind: the class in `benchmarks.peer_tools` or `benchmarks.peer_megatron` that uses it.
        stored: how its files hold the bases.
        encoder: what makes the training example of the bases.
        same_example: its rows equal ours, which is checked.
        ways: the ways in which it is timed.
        environment: the environment in which it is installed.
    """

    name: str
    kind: str
    stored: str
    same_example: bool = True
    ways: Sequence[str] = (SINGLES, BATCHES)
    environment: str = PEERS
    encoder: str = "torch, into new tensors (`peer_formats.py`)"
    versions: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def open(self, world: World) -> None:
        """Make the peer's files of a world if they are missing, and open them.

        Raises:
            PeerFailed: the peer returned an error.
        """
        self.versions = self._ask({"do": "open", "world": str(world.folder)})

    def digests(self, world: World, windows: Sequence[int]) -> list[str]:
        """Return the checksums of the examples it gives."""
        answer: list[str] = self._ask({"do": "digests", "world": str(world.folder), "windows": list(windows)})
        return answer

    def timed(self, world: World, way: str) -> Timed:
        """Return a function that times this peer on a range of the world's order."""

        def run(first: int, windows: int) -> float:
            request = {"do": "time", "world": str(world.folder), "way": way, "first": first, "windows": windows}
            return float(self._ask({**request, "batch": BATCH}))

        return run

    def _ask(self, request: dict[str, Any]) -> Any:
        if self._process is None:
            python = python_of(self.environment)
            if not python.exists():
                raise PeerFailed(
                    f"not installed: there is no {self.environment}; see {requirements(self.environment).name}"
                )
            self._process = subprocess.Popen(
                [python, "-W", "ignore", "-m", "benchmarks.peer_worker", self.kind],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._process = None
            raise PeerFailed(f"its process ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """End its process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None


def all_peers() -> list[Peer]:
    """Return every peer."""
    own_loop = (SINGLES, BATCHES, STREAM)
    return [
        Peer("pyfaidx", "Pyfaidx", "FASTA, lines of 80, and its .fai"),
        Peer("pysam", "Pysam", "FASTA, lines of 80, and its .fai"),
        Peer("Hugging Face datasets", "HuggingFace", "Arrow, memory-mapped: one row of uint8 a window"),
        Peer("litdata", "LitData", "chunks of 64 MB: one uint8 array a window", ways=own_loop),
        Peer("litdata TokensLoader (another example: 8,192 tokens across contigs)", "LitDataTokens",
             "chunks of 64 MB: uint8 tokens, contigs end to end", same_example=False, ways=own_loop),
        Peer("mosaicml-streaming", "Streaming", "MDS shards of 64 MB: one uint8 array a window", ways=own_loop,
             environment=STREAMING),
        Peer("megatron-core IndexedDataset", "Indexed", ".bin and .idx: uint16 tokens, one document a contig",
             environment=MAIN),
        Peer("megatron-core GPTDataset (another example: 8,192 tokens across contigs)", "Gpt",
             ".bin and .idx: uint16 tokens and EOD, one document a contig", same_example=False, environment=MAIN,
             encoder="Megatron's"),
    ]  # fmt: skip


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment."""
    return REPOSITORY / environment / "bin" / "python" if environment else Path(sys.executable)


def requirements(environment: str) -> Path:
    """Return the requirements file of an environment."""
    return Path(__file__).with_name(f"requirements{environment.replace('.', '-')}.txt")


def install() -> None:
    """Make the missing environments of the peers. A peer that cannot be installed raises an error when it is opened."""
    for environment in (PEERS, STREAMING):
        if (REPOSITORY / environment).exists():
            continue
        subprocess.run([sys.executable, "-m", "venv", REPOSITORY / environment], check=True)
        pip = [python_of(environment), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", TORCH], check=False)
        subprocess.run([*pip, "install", "-r", requirements(environment)], check=False)
