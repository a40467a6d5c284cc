"""READ from local copies of objects: addresses -> bases, from a cache folder as soon as a whole copy is there.

Input and output: as `sharded_eden.load.read.remote`. Copies are read as local files are, by
`sharded_eden.load.read.positioned`; all other windows by ranges. Cost beside that: at most once a second, and for at most 2% of
the time, one `stat` of the folder, and a listing where it has changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from sharded_eden.errors import DatabaseError, printable, warn
from sharded_eden.format.index import FileIdentity
from sharded_eden.load.read.plan import Request
from sharded_eden.load.read.positioned import PositionedReader
from sharded_eden.load.read.remote import RangeReader, Traffic
from sharded_eden.storage.copier import Copier, CopySettings
from sharded_eden.storage.copy_folder import Wanted, complete_copies, prepare

LOOK_SECONDS = 1.0
"""How often to look for new copies."""
LOOK_SHARE = 0.02
"""The most time that looking takes."""
SETTLED_NS = 2 * 10**9
"""A folder that was changed less than this before a look may be changed again without another modification time."""

_NOT_THERE = FileIdentity(-1, 0, 0, 0)


class CopyReader:
    """Reads bases from local copies where they are complete, else from object storage. For one thread.

    Args:
        ranges: reads what is not there.
        settings: what is copied, and where to.
        wanted: the sequence databases, in the order of the index; None for those without windows.
        page_bytes: the page size of each.
        read_ahead: announce windows of copies that are not in the page cache.
    """

    def __init__(
        self,
        ranges: RangeReader,
        settings: CopySettings,
        wanted: Sequence[Wanted | None],
        page_bytes: Sequence[int],
        *,
        read_ahead: bool,
    ) -> None:
        self._ranges, self._folder = ranges, Path(settings.folder)
        self._missing = {each.key: number for number, each in enumerate(wanted) if each is not None}
        self._wanted = wanted
        self._paths: list[Path | None] = [None] * len(wanted)
        self._expected = [_NOT_THERE] * len(wanted)
        self._files = PositionedReader(self._paths, self._expected, page_bytes, read_ahead=read_ahead)
        known = [each for each in wanted if each is not None]
        self._copier = Copier(settings, known)
        self._seen: int | None = None
        self._next_look = 0.0
        try:
            prepare(self._folder, known)
        except OSError:
            self._next_look = float("inf")  # the process that opened the dataset has warned

    @property
    def cold_batches(self) -> int:
        """Above 0 if batches wait: for storage, or lately for the disk."""
        return 1 if self._missing else self._files.cold_batches

    @property
    def traffic(self) -> Traffic:
        """What was read by ranges so far."""
        return self._ranges.traffic

    @property
    def state(self) -> tuple[int, int, bool]:
        """How many databases have windows, how many of these are read from copies, and whether others may still become so."""
        total = sum(each is not None for each in self._wanted)
        may_come = bool(self._missing) and not self._copier.is_idle and self._next_look != float("inf")
        return total, total - len(self._missing), may_come

    def announce(self, requests: Sequence[Request]) -> None:
        """Fetch what later batches read, or tell the kernel. An error is raised when it is read."""
        here, there = self._divided(requests)
        if there:
            self._ranges.announce(there)
        if here:
            self._files.announce(here)

    def read(self, requests: Sequence[Request], memory: memoryview) -> None:
        """Read bases into memory.

        Args:
            requests: the windows; all have addresses.
            memory: bytes; the bases are written here.

        Raises:
            MissingDatabase: there is no such object.
            DatabaseError: a range cannot be fetched, or an object or a copy is not the file that was indexed.
        """
        if time.monotonic() >= self._next_look:
            self._look()
        here, there = self._divided(requests)
        if here:
            try:
                self._files.read(here, memory)
            except DatabaseError as error:
                if not self._drop_changed():
                    raise DatabaseError(f"{error}. The file is a copy in a cache: remove it") from error
                self.read(requests, memory)
                return
        if there:
            self._ranges.read(there, memory)

    def _divided(self, requests: Sequence[Request]) -> tuple[Sequence[Request], Sequence[Request]]:
        """Return the requests for copies, and the others."""
        if not self._missing:
            return requests, ()
        paths = self._paths
        return (
            [each for each in requests if paths[each[0]] is not None],
            [each for each in requests if paths[each[0]] is None],
        )

    def _look(self) -> None:
        """Use the copies that have become complete, and keep one process of the node copying the others."""
        began = time.monotonic()
        try:
            if self._missing:
                self._find_copies()
                self._copier.tend()
        except OSError:  # the folder was removed, or its disk fails: what is not there is read by ranges
            self._seen = None
        finally:
            ended = time.monotonic()
            self._next_look = ended + max(LOOK_SECONDS, (ended - began) / LOOK_SHARE)

    def _find_copies(self) -> None:
        changed = os.stat(self._folder).st_mtime_ns
        if changed == self._seen:
            return
        self._seen = changed if time.time_ns() - changed > SETTLED_NS else None
        found = set[int]()
        for key, (path, identity) in complete_copies(self._folder, self._missing).items():
            number = self._missing[key]
            wanted = self._wanted[number]
            if wanted is not None and identity.size_bytes == wanted.version.size_bytes:
                self._paths[number], self._expected[number] = path, identity
                found.add(number)
        if found:
            self._missing = {key: number for key, number in self._missing.items() if number not in found}
            if self._missing:
                self._ranges.forget(found)
            else:
                self._ranges.close()

    def _drop_changed(self) -> bool:
        """Read by ranges again what lies in copies that were removed or changed; return whether there are any."""
        dropped = []
        for number, path in enumerate(self._paths):
            if path is None:
                continue
            try:
                is_same = FileIdentity.of(os.lstat(path)).is_same_file(self._expected[number])
            except OSError:
                is_same = False
            if not is_same:
                dropped.append(path)
                self._files.forget(number)
                self._paths[number] = None
                wanted = self._wanted[number]
                assert wanted is not None  # noqa: S101 - it has a copy
                self._missing[wanted.key] = number
        if dropped:
            self._seen = None
            self._copier.look_again()
            warn(
                f"{printable(dropped[0])}: this copy was removed or changed"
                + (f", as were {len(dropped) - 1} others" if len(dropped) > 1 else "")
                + ". Its windows are read by ranges. Do not write to the copies, and do not remove them while a job runs"
            )
        return bool(dropped)

    def close(self) -> None:
        """Close the files, and end the processes that fetch and copy."""
        self._copier.close()
        self._ranges.close()
        self._files.close()
