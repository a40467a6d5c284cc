"""`packs` of a window database, checked against its windows, their lengths and its metadata.

Input: an open window database. Output: findings. A quick check costs a lookup for each window of 512 random packs, a full check
two passes over the windows and one over the packs. Temporary files hold five bytes a window.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.checks.findings import Findings, Tally, scans
from sharded_eden.format.commands import pack_command
from sharded_eden.format.fingerprint import PackFingerprint
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.lengths import window_lengths
from sharded_eden.format.sqlite import table_columns

PACKS_READ = 512
"""The number of random packs that a quick check reads."""

PACKS_AT_ONCE = 4096
WINDOWS_AT_ONCE = 1 << 20

_CHOSEN = "SELECT wanted.value, windows FROM carray(?) AS wanted LEFT JOIN packs ON pack_idx = wanted.value"
_BASES = """
SELECT (SELECT length FROM contig_lengths WHERE first_window_idx <= wanted.value ORDER BY first_window_idx DESC LIMIT 1)
- window_in_seq_idx * ? FROM carray(?) AS wanted LEFT JOIN window_mappings ON window_idx = wanted.value"""

Packs = Iterable[tuple[Any, ...]]
"""Index and `windows` of packs, as in the table."""


@dataclass
class _Wrong:
    """The kinds of problems of packs."""

    damaged: Tally = field(default_factory=Tally)
    overfull: Tally = field(default_factory=Tally)
    twice: Tally = field(default_factory=Tally)
    missing: Tally = field(default_factory=Tally)


class PacksCheck:
    """The check of the packs of one window database.

    Args:
        findings: the list to which problems are added.
        connection: to the window database.
        path: its name in findings.
        geometry: how its windows were cut.
        windows: how many it has.
        has_lengths: whether it has a table `contig_lengths`.
        sequences: the folder of sequence databases, from which a full check takes lengths where there is no such table.
        scratch: a folder for temporary files.
    """

    def __init__(
        self,
        findings: Findings,
        connection: apsw.Connection,
        path: Path,
        *,
        geometry: WindowGeometry,
        windows: int,
        has_lengths: bool,
        sequences: Path,
        scratch: Path,
    ) -> None:
        self._findings = findings
        self._db = connection
        self._path = path
        self._geometry = geometry
        self._windows = windows
        self._has_lengths = has_lengths
        self._sequences = sequences
        self._scratch = scratch
        self._metadata = dict(connection.execute("SELECT key, value FROM metadata WHERE key LIKE '%pack%'"))

    @property
    def fix(self) -> str:
        """The command that packs the windows again."""
        sequences = None if self._has_lengths else self._sequences
        return pack_command(self._path, seed=self._metadata.get("pack_seed", 42), sequences=sequences, force=True)

    def run(self, *, full: bool, seed: int, lengths_are_sound: bool) -> None:
        """Check the packs, if there are any.

        Args:
            full: check every pack.
            seed: decides which ones a quick check reads.
            lengths_are_sound: whether earlier checks found no error in the lengths.
        """
        columns = table_columns(self._db, "packs")
        if not columns and "total_packs" not in self._metadata:
            return
        if not {"pack_idx", "windows"} <= set(columns):
            found = f"packs({', '.join(columns)})" if columns else "no such table"
            self._error(f"expected a table packs(pack_idx, windows), found {found}")
        elif scans(self._db, "SELECT windows FROM packs WHERE pack_idx = ?"):
            self._error("pack_idx is not an INTEGER PRIMARY KEY: each pack is looked for in all of packs")
        elif self._numbering(full):
            if full:
                self._all(lengths_are_sound)
            else:
                self._some(random.Random(seed), lengths_are_sound)

    def _error(self, what: str) -> None:
        self._findings.error("packs", self._path, what, self.fix)

    def _say(self, wrong: _Wrong) -> bool:
        """Add the problems found; return whether there are none."""
        size = self._geometry.window_size
        for tally, what in (
            (wrong.damaged, "packs do not list windows that exist"),
            (wrong.overfull, f"packs hold more than the {size} tokens of a row"),
            (wrong.twice, "windows are in more than one pack, or in one twice"),
            (wrong.missing, "windows are in no pack"),
        ):
            if tally.count:
                self._error(f"{tally.count:,} {what}: {tally}")
        return not any(tally.count for tally in vars(wrong).values())

    def _numbering(self, full: bool) -> bool:
        ends = self._db.execute("SELECT (SELECT min(pack_idx) FROM packs), (SELECT max(pack_idx) FROM packs)").get
        total = self._metadata.get("total_packs")
        if isinstance(total, int) and ends == ((0, total - 1) if total else (None, None)):
            counted = self._db.execute("SELECT count(*) FROM packs").get if full else total
            if counted == total:
                return True
            held = f"{counted:,} packs"
        else:
            held = "no pack" if ends[0] is None else f"packs {ends[0]} to {ends[1]}"
        self._error(f"metadata total_packs={total!r}, but the table packs holds {held}")
        return False

    def _read(self, packs: Packs, wrong: _Wrong) -> tuple[NDArray[np.int64], list[int], NDArray[np.int64]]:
        """Return the valid packs: (P,) indices, (P,) numbers of windows, and (W,) all of their windows."""
        indices: list[int] = []
        parts: list[NDArray[np.int64]] = []
        for pack, blob in packs:
            if not isinstance(blob, bytes) or not blob or len(blob) % 8:
                held = f"{len(blob)} bytes" if isinstance(blob, bytes) else type(blob).__name__
                wrong.damaged.add(f"pack {pack} is {'missing' if blob is None else held}")
                continue
            windows = np.frombuffer(blob, dtype="<i8").astype(np.int64, copy=False)
            if windows.min() < 0 or windows.max() >= self._windows:
                strange = windows[(windows < 0) | (windows >= self._windows)][0]
                wrong.damaged.add(f"pack {pack} names window {strange} of {self._windows}")
                continue
            indices.append(pack)
            parts.append(windows)
        every = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return np.array(indices, dtype=np.int64), list(map(len, parts)), every

    def _costs(self, bases: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens of windows, from the bases between their start and the end of their contig."""
        return np.clip(bases, 0, self._geometry.usable) + self._geometry.special_tokens

    def _tally_overfull(
        self, indices: NDArray[np.int64], sizes: list[int], costs: NDArray[np.int64], tally: Tally
    ) -> None:
        if len(indices):
            tokens = np.add.reduceat(costs, np.cumsum([0, *sizes[:-1]]))
            tally.add_rows(tokens > self._geometry.window_size, lambda row: f"pack {indices[row]} needs {tokens[row]}")

    # ---- some of them ----

    def _some(self, choose: random.Random, lengths_are_sound: bool) -> None:
        total = self._metadata["total_packs"]
        chosen = np.array(sorted(choose.sample(range(total), min(PACKS_READ, total))), dtype=np.int64)
        wrong = _Wrong()
        rows = self._db.execute(_CHOSEN, (apsw.carray(chosen),)).fetchall() if total else []
        indices, sizes, windows = self._read(rows, wrong)
        lengths_are_sound &= "pack_row_tokens" not in self._metadata  # such packs count tokens, which bases do not tell
        if self._has_lengths and lengths_are_sound and len(windows):
            found = self._db.execute(_BASES, (self._geometry.stride, apsw.carray(windows))).fetchall()
            costs = self._costs(np.array([bases or 0 for (bases,) in found], dtype=np.int64))
            self._tally_overfull(indices, sizes, costs, wrong.overfull)
        _tally_again(windows, np.zeros(len(windows), dtype=np.bool_), wrong.twice)
        self._say(wrong)

    # ---- all of them ----

    def _all(self, lengths_are_sound: bool) -> None:
        wrong = _Wrong()
        lengths_are_sound &= "pack_row_tokens" not in self._metadata  # such packs count tokens, which bases do not tell
        fingerprint = PackFingerprint(self._geometry)
        with TemporaryFile(dir=self._scratch) as costs_file, TemporaryFile(dir=self._scratch) as seen_file:
            useful_tokens = self._write_costs(costs_file) if lengths_are_sound else None
            costs = None if useful_tokens is None else _mapped(costs_file, np.uint32, self._windows)
            seen_file.truncate(self._windows)
            seen = _mapped(seen_file, np.bool_, self._windows)
            rows = self._db.execute("SELECT pack_idx, windows FROM packs ORDER BY pack_idx")
            while chunk := list(islice(rows, PACKS_AT_ONCE)):
                indices, sizes, windows = self._read(chunk, wrong)
                fingerprint.update(sizes, windows.astype("<i8", copy=False).tobytes())
                if costs is not None:
                    self._tally_overfull(indices, sizes, costs[windows].astype(np.int64), wrong.overfull)
                _tally_again(windows, seen[windows], wrong.twice)
                seen[windows] = True
            for first in range(0, self._windows, WINDOWS_AT_ONCE):
                unseen = ~seen[first : first + WINDOWS_AT_ONCE]
                wrong.missing.add_rows(unseen, _numbered_from(first))
        if self._say(wrong):
            for key, counted in (("pack_useful_tokens", useful_tokens), ("pack_fingerprint", fingerprint.value())):
                stated = self._metadata.get(key)
                if stated is not None and counted is not None and stated != counted:
                    self._error(f"metadata {key}={stated!r}, but its packs make {counted}")

    def _write_costs(self, file: IO[bytes]) -> int:
        """Write the tokens of each window to a file, uint32; return their sum."""
        total = 0
        for bases in window_lengths(self._db, self._path, self._geometry, self._windows, sequences=self._sequences):
            costs = self._costs(bases)
            total += int(costs.sum())
            costs.astype(np.uint32).tofile(file)
        file.flush()
        return total


def _mapped(file: IO[bytes], dtype: type[np.generic], count: int) -> NDArray[Any]:
    """Map a file into memory, writable; an empty file, which cannot be mapped, gives an empty array."""
    return np.memmap(file, dtype=dtype, mode="r+", shape=(count,)) if count else np.empty(0, dtype=dtype)


def _numbered_from(first: int) -> Callable[[int], str]:
    return lambda row: f"window {first + row}"


def _tally_again(windows: NDArray[np.int64], seen: NDArray[Any], tally: Tally) -> None:
    """Count windows that were `seen` before, or that appear more than once."""
    order = np.argsort(windows, kind="stable")
    again = np.array(seen, dtype=np.bool_)
    again[order[1:]] |= windows[order[1:]] == windows[order[:-1]]
    tally.add_rows(again, lambda row: f"window {windows[row]}")
