"""One input file: its bytes, decompressed, hashed and counted in the same pass.

Enters: a path. Leaves: a stream of decompressed bytes, how far it has come on disk, and in the end what the file was: size,
time of change and hash. Costs 1% of the decompression for the hash.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import xxhash
from xopen import xopen

from sharded_eden.errors import EdenError, InputError

BGZF_START = b"\x1f\x8b\x08\x04"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file. Source: SAM/BAM format specification, section 4.1.2."""

BLOCK_BYTES = 1 << 20

STANDARD_INPUT = "-"


class FileState(NamedTuple):
    """What a file was when it was read."""

    path: str
    """Absolute, links resolved; `-` for standard input."""
    size_bytes: int
    mtime_ns: int
    hash: str
    """XXH3 (128 bits) of its bytes, hexadecimal."""

    def looks_unchanged(self) -> bool:
        """Tell whether the file has the size and the time of change it had: then it is not read again."""
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size_bytes, self.mtime_ns)


class Source:
    """An open input file.

    Args:
        path: the file.
        called: what messages call it, where that is not its path (standard input).
    """

    def __init__(self, path: Path, called: str | None = None) -> None:
        self.path = path
        self.called = called or str(path)
        try:
            self._raw = path.open("rb")
        except OSError as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else "may not be read"
            raise InputError(f"{self.called}: {reason} ({error.strerror})") from error
        self._tee = _Tee(self._raw)
        self._stat = os.fstat(self._raw.fileno())

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """Open the decompressed bytes; what goes wrong with them becomes an `InputError`.

        Raises:
            InputError: the file is cut short, damaged, or cannot be read.
        """
        try:
            if self._raw.seekable():
                self._check_bgzip_end()
            with xopen(cast(BinaryIO, self._tee), "rb", threads=0) as file:
                yield file
        except EdenError:
            raise
        except Exception as error:  # OSError, EOFError, and an own one for each compression
            cause = (
                "truncated: the compressed data end early"
                if isinstance(error, EOFError)
                else "is not text in UTF-8"
                if isinstance(error, UnicodeDecodeError)
                else "cannot be read, or is damaged"
            )
            raise InputError(f"{self.called}: {cause} ({error})") from error

    def position(self) -> int:
        """Return the bytes read so far, as they lie on disk."""
        return self._tee.position

    def finish(self) -> FileState:
        """Read what no reader asked for, and return what the file was."""
        while self._tee.read(BLOCK_BYTES):
            pass
        path = STANDARD_INPUT if self.called == STANDARD_INPUT else str(self.path.resolve())
        return FileState(path, self._stat.st_size, self._stat.st_mtime_ns, self._tee.digest.hexdigest())

    def _check_bgzip_end(self) -> None:
        """Refuse a bgzip file without its end block: cut between two blocks, it would look like a shorter, whole file."""
        raw = self._raw
        start = raw.read(18)
        if start.startswith(BGZF_START) and start[12:14] == b"BC":
            raw.seek(-min(len(BGZF_END), raw.seek(0, os.SEEK_END)), os.SEEK_END)
            if raw.read() != BGZF_END:
                raise InputError(
                    f"{self.called}: truncated: it is a bgzip file without the block that ends one. "
                    "If you know it to be whole, compress it again: gzip -dc FILE | bgzip > NEW"
                )
        raw.seek(0)


def file_state(path: Path, called: str | None = None) -> FileState:
    """Return what a file is now, by reading it."""
    with Source(path, called) as source:
        return source.finish()


class _Tee(io.RawIOBase):
    """A file that hashes each of its bytes once, in order, while it is read."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.digest = xxhash.xxh3_128()
        self._hashed = 0
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = self._raw.seek(offset, whence)
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        data = self._raw.read(-1 if size is None else size)
        fresh = self.position + len(data) - self._hashed
        if fresh > 0:
            self.digest.update(data if fresh == len(data) else data[-fresh:])
            self._hashed += fresh
        self.position += len(data)
        return data

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Leave the file open: what is behind the compressed data is still to be hashed."""
