"""A compressed file -> its bytes. `xopen` reads all but bzip2 and xz files, which are read here.

A bzip2 or xz file may hold several streams, one after another (pbzip2 writes such files). If a stream after the first is
damaged, Python's `bz2.open` and `lzma.open` end without an error, and the rest of the file is missing. Here it is an error.

`xopen` is told the format of a Zstandard file that begins with a skippable frame, as pzstd writes it.

Sources: https://tukaani.org/xz/xz-file-format.txt (2.2, stream padding), RFC 8878 (3.1.2, skippable frames).
"""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, cast

from xopen import xopen

READ_BYTES = 1 << 17
BZIP2_START = b"BZh"
XZ_START = b"\xfd7zXZ\0"
XZ_PADDING = 4
"""The number of zeros after an xz stream must be a multiple of this."""


def decompressed(raw: BinaryIO) -> BinaryIO:
    """Open the decompressed bytes of a file that can seek; those of a file that is not compressed are its own.

    Errors while reading are those of the compression libraries, `EOFError` for data that end early.
    """
    start = raw.read(len(XZ_START))
    raw.seek(0)
    if start.startswith(BZIP2_START):
        return _buffered(_Streams(raw, bz2.BZ2Decompressor, BZIP2_START))
    if start == XZ_START:
        return _buffered(_Streams(raw, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), XZ_START, XZ_PADDING))
    is_skippable = start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50
    return xopen(raw, "rb", threads=0, format="zst" if is_skippable else None)


def _buffered(streams: _Streams) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(streams, READ_BYTES))


class _Streams(io.RawIOBase):
    """The data of a file of one or more streams, one after another.

    Args:
        raw: the compressed file.
        new: returns a decompressor of one stream.
        start: the first bytes of a stream.
        padding: zeros may follow a stream, in a multiple of this number; 0: none may.
    """

    def __init__(
        self,
        raw: BinaryIO,
        new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor],
        start: bytes,
        padding: int = 0,
    ) -> None:
        self._raw = raw
        self._new = new
        self._start = start
        self._padding = padding
        self._stream = new()
        self._number = 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast("bytearray", buffer)).cast("B")
        while len(view):
            block = b""
            if self._stream.eof:
                block = self._after_stream()
                if not block:
                    return 0
                self._stream, self._number = self._new(), self._number + 1
            elif self._stream.needs_input:
                block = self._raw.read(READ_BYTES)
                if not block:
                    raise EOFError(f"stream {self._number} has no end")
            try:
                data = self._stream.decompress(block, len(view))
            except (OSError, lzma.LZMAError) as error:
                raise OSError(f"stream {self._number}: {error}") from error
            if data:
                view[: len(data)] = data
                return len(data)
        return 0

    def _after_stream(self) -> bytes:
        """Return the first bytes of the next stream; b"" at the end of the file."""
        block = self._stream.unused_data or self._raw.read(READ_BYTES)
        zeros = 0
        while self._padding and block.startswith(b"\0"):
            rest = block.lstrip(b"\0")
            zeros += len(block) - len(rest)
            block = rest or self._raw.read(READ_BYTES)
        if zeros % (self._padding or 1):
            raise OSError(
                f"stream {self._number} is followed by {zeros:,} zeros, which is no multiple of {self._padding}"
            )
        if not block.startswith(self._start[: len(block)]):
            raise OSError(f"stream {self._number} is followed by bytes that begin no other")
        return block
