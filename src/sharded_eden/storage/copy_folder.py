"""The folder of local copies of sequence databases: names, which are complete, how much room is left, what may be removed.

    KEY.MTIME_NS.sqlite  a complete copy. KEY: of URL, object, version and digest. A file that was written to afterwards has
                         another modification time than its name says, and is not used
    .KEY.partial         an incomplete copy
    .KEY.use             the keys of the copies that a job may read; locked while one of its processes runs
    .copying             locked by the one process that copies

All jobs that name the same `cache_dir` share the folder. Files are made and removed only by the process that holds `.copying`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from sharded_eden.format.index import FileIdentity
from sharded_eden.storage.in_use import hold, locked_alone
from sharded_eden.storage.objects import Version

NO_DIGEST = bytes(16)

_COMPLETE = re.compile(r"([0-9a-f]{24})\.(\d+)\.sqlite")
_PARTIAL = re.compile(r"\.([0-9a-f]{24})\.partial")
_USE = re.compile(r"\.([0-9a-f]{24})\.use")


class Wanted(NamedTuple):
    """A sequence database that a job may read."""

    name: str
    """Of its object."""
    version: Version
    digest: bytes
    """XXH3-128 of its bytes, `NO_DIGEST` where it is not known."""
    key: str

    @classmethod
    def of(cls, url: str, name: str, version: Version, digest: bytes) -> Wanted:
        """Return it with the key of its copies."""
        same = version if not version.has_strong_etag else version[:2]
        return cls(name, version, digest, _digest(repr((url, name, tuple(same), digest)).encode()))


def copying_lock(folder: Path) -> Path:
    """Return the file that the process that copies holds locked."""
    return folder / ".copying"


def partial_path(folder: Path, key: str) -> Path:
    """Return where an incomplete copy lies."""
    return folder / f".{key}.partial"


def complete_path(folder: Path, key: str, mtime_ns: int) -> Path:
    """Return where a complete copy with this modification time lies."""
    return folder / f"{key}.{mtime_ns}.sqlite"


def prepare(folder: Path, wanted: Iterable[Wanted]) -> None:
    """Make the folder, and keep the copies of a job from being removed until this process ends.

    Raises:
        OSError: the folder cannot be made or written to, or its file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked_alone(copying_lock(folder)):
        pass
    content = "".join(sorted(each.key for each in wanted)).encode()
    hold(folder / f".{_digest(content)}.use", content)


def complete_copies(folder: Path, keys: Container[str] | None = None) -> dict[str, tuple[Path, FileIdentity]]:
    """Return the complete copies in a folder, {key: (path, identity)}.

    Args:
        folder: the folder.
        keys: look only for these; None for all. One `stat` is made for each that is there.
    """
    found: dict[str, tuple[Path, FileIdentity]] = {}
    for name in os.listdir(folder):
        match = _COMPLETE.fullmatch(name)
        if match and (keys is None or match.group(1) in keys):
            path = folder / name
            try:
                identity = FileIdentity.of(os.lstat(path))
            except FileNotFoundError:
                continue
            if identity.mtime_ns == int(match.group(2)):
                found[match.group(1)] = path, identity
    return found


class Room:
    """The contents of the folder, and the room in it. Only for the process that holds `.copying`.

    Args:
        folder: the folder.
        limit_bytes: complete and incomplete copies of all jobs together have at most so many bytes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        self._sizes: dict[str, int] = {}
        times: dict[str, int] = {}
        for name in os.listdir(folder):
            if _COMPLETE.fullmatch(name) or _PARTIAL.fullmatch(name):
                found = os.lstat(folder / name)
                self._sizes[name], times[name] = found.st_size, found.st_mtime_ns
        self._used_bytes = sum(self._sizes.values())
        self.complete = {key: identity.size_bytes for key, (_, identity) in complete_copies(folder).items()}
        self._unused = sorted(self._find_unused(), key=lambda name: times[name])  # the oldest first

    def _find_unused(self) -> list[str]:
        """Return the files that no running job may read. Lists of jobs that have ended are removed."""
        used: set[str] = set()
        for name in os.listdir(self._folder):
            match = _USE.fullmatch(name)
            if not match:
                continue
            path = self._folder / name
            with locked_alone(path) as is_free:
                if is_free is not None:
                    path.unlink()
                    continue
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # its job has ended, and another process has removed it
                continue
            if _digest(content) != match.group(1):  # it is being written at this moment
                return []
            text = content.decode()
            used.update(text[k : k + 24] for k in range(0, len(text), 24))
        return [name for name in self._sizes if name.lstrip(".").split(".")[0] not in used]

    def fits(self, each: Wanted) -> bool:
        """Return whether a copy is not there yet, and there is room for it, after files that no job uses are removed."""
        if self.complete.get(each.key) == each.version.size_bytes:
            return False
        if self._has_room(each, ()):
            return True
        if not self._has_room(each, self._unused):
            return False
        still_unused = set(self._find_unused())  # another job may have started since
        self._unused = [name for name in self._unused if name in still_unused]
        return self._has_room(each, self._unused)

    def _has_room(self, each: Wanted, unused: Iterable[str]) -> bool:
        """Return whether there is room for a copy, after these files and those that it replaces are removed."""
        removable = sum(self._sizes[name] for name in {*unused, *self._replaced_by(each)})
        missing_bytes = each.version.size_bytes - self._sizes.get(partial_path(self._folder, each.key).name, 0)
        return missing_bytes <= removable + min(self._limit_bytes - self._used_bytes, self._free_bytes())

    def _replaced_by(self, each: Wanted) -> list[str]:
        """Return copies of another size or modification time: somebody wrote to them."""
        return [name for name in self._sizes if name.startswith(f"{each.key}.")]

    def reserve(self, each: Wanted) -> None:
        """Make room for the whole of a copy, right after `fits`: remove files that no job uses, the oldest first."""
        partial = partial_path(self._folder, each.key).name
        for name in self._replaced_by(each):
            self._remove(name)
        missing_bytes = each.version.size_bytes - self._sizes.get(partial, 0)
        self._used_bytes += missing_bytes
        self._sizes[partial] = each.version.size_bytes
        self._unused = [name for name in self._unused if name != partial]
        while self._unused and (self._used_bytes > self._limit_bytes or self._free_bytes() < missing_bytes):
            self._remove(self._unused[0])

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        self._used_bytes -= self._sizes.pop(name, 0)
        if name in self._unused:
            self._unused.remove(name)

    def release(self, each: Wanted) -> None:
        """Remove an incomplete copy."""
        self._remove(partial_path(self._folder, each.key).name)

    def completed(self, each: Wanted, path: Path) -> None:
        """Note that a copy is complete."""
        self._sizes[path.name] = self._sizes.pop(partial_path(self._folder, each.key).name)
        self.complete[each.key] = each.version.size_bytes


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=12).hexdigest()
