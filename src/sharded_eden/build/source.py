"""One input file: its bytes, decompressed, hashed and counted in the same pass.

Input: a path. Output: a stream of decompressed bytes, the position reached on disk, and at the end the state of the file:
size, modification time and hash. The hash costs 1% of the time of the decompression.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import xxhash

from sharded_eden.build.decompress import decompressed
from sharded_eden.errors import EdenError, InputError, printable
from sharded_eden.format.kinds import SQLITE_MAGIC, kinds_of

BGZF_START = b"\x1f\x8b\x08\x04"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file. Source: SAM/BAM format specification, section 4.1.2."""

BLOCK_BYTES = 1 << 20

MAX_CONTIG_BASES = 999_999_000
"""The largest sequence: SQLite stores rows of at most 1,000,000,000 bytes, including the other column."""

MAX_LINE = MAX_CONTIG_BASES + (16 << 20)
"""The longest line of text: the longest sequence, and other fields."""

STANDARD_INPUT = "-"


class FileState(NamedTuple):
    """The state of a file when it was read."""

    path: str
    """Absolute, links resolved; `-` for standard input."""
    size_bytes: int
    mtime_ns: int
    hash: str
    """XXH3 (128 bits) of its bytes, hexadecimal.

    For `NAME.bin` of Megatron, size and time are the sums of those of it and `NAME.idx`, and the hash is that of both.
    """

    def looks_unchanged(self) -> bool:
        """Return whether size and modification time are the same; the file is then not read again."""
        try:
            now = os.stat(self.path)
            beside = _index_beside(Path(self.path))
            also = None if beside is None else beside.stat()
        except OSError:
            return False
        size_bytes, mtime_ns = _size_and_time(now, also)
        return (size_bytes, mtime_ns) == (self.size_bytes, self.mtime_ns)


MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
"""The first bytes of `NAME.idx`, the index of one of Megatron's datasets."""


def _index_beside(path: Path) -> Path | None:
    """Return `NAME.idx` where the file is one of Megatron's datasets: what is read of it depends on this index, too."""
    index = path.with_suffix(".idx")
    if index == path or not index.is_file():
        return None
    with index.open("rb") as file:
        return index if file.read(len(MEGATRON_MAGIC)) == MEGATRON_MAGIC else None


def _size_and_time(file: os.stat_result, index: os.stat_result | None) -> tuple[int, int]:
    if index is None:
        return file.st_size, file.st_mtime_ns
    return file.st_size + index.st_size, file.st_mtime_ns + index.st_mtime_ns


class Source:
    """An open input file.

    Args:
        path: the file.
        called: its name in messages, where that is not its path (standard input).

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, path: Path, called: str | None = None) -> None:
        self.path = path
        self.called = called or printable(path)
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
        """Open the decompressed bytes; every error while reading them becomes an `InputError`.

        Raises:
            InputError: the file is cut short, damaged, a SQLite database, or cannot be read.
        """
        try:
            self._refuse_database()
            self._check_bgzip_end()
            with decompressed(cast(BinaryIO, self._tee)) as file:
                yield file
        except EdenError:
            raise
        except MemoryError as error:
            raise InputError(f"{self.called}: reading it needs more memory than there is") from error
        except Exception as error:  # OSError, EOFError, and the error class of each compression library
            cause = "cannot be read, or is damaged"
            if self._has_bytes_after_gzip():
                cause = (
                    "its gzip data are followed by bytes that are not gzip. If they are not needed, write a file without them: "
                    "gzip -dc FILE > NEW"
                )
            elif isinstance(error, EOFError):
                cause = "truncated: the compressed data end early"
            raise InputError(f"{self.called}: {cause} ({error})") from error

    def position(self) -> int:
        """Return the number of bytes read so far from disk."""
        return self._tee.position

    def finish(self) -> FileState:
        """Read the rest of the file, and return its state."""
        while self._tee.read(BLOCK_BYTES):
            pass
        if self.called == STANDARD_INPUT:
            return FileState(STANDARD_INPUT, self._stat.st_size, self._stat.st_mtime_ns, self._tee.digest.hexdigest())
        path, digest, also = self.path.resolve(), self._tee.digest.copy(), None
        try:
            if (index := _index_beside(path)) is not None:
                with index.open("rb") as file:
                    also = os.fstat(file.fileno())
                    while block := file.read(BLOCK_BYTES):
                        digest.update(block)
        except OSError as error:
            raise InputError(f"{printable(index or path)}: cannot be read ({error.strerror})") from error
        return FileState(str(path), *_size_and_time(self._stat, also), digest.hexdigest())

    def _refuse_database(self) -> None:
        """Raise an error for a SQLite database, such as one of this package, that names its kind."""
        if self._raw.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
            kind = next(iter(kinds_of(self.path)), "a SQLite database")
            raise InputError(
                f"{self.called}: is {kind}; expected a file of sequences (FASTA, JSON lines, Parquet, Arrow, GenBank, Megatron)"
            )
        self._raw.seek(0)

    def _check_bgzip_end(self) -> None:
        """Raise an error for a bgzip file without its end block: a file cut between two blocks would look complete."""
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

    def _has_bytes_after_gzip(self) -> bool:
        """Return whether anything but gzip data and zeros follows a whole gzip member."""
        member = None
        members = 0
        try:
            with self.path.open("rb") as file:
                while data := file.read(16_384):  # limits the memory: gzip expands by at most 1,032
                    while data:
                        if member is None:
                            data = data.lstrip(b"\0") if members else data
                            if data and not data.startswith(b"\x1f\x8b"[: len(data)]):
                                return members > 0
                            member = zlib.decompressobj(wbits=31)
                        member.decompress(data)
                        data = member.unused_data
                        if member.eof:
                            member, members = None, members + 1
        except (OSError, zlib.error):
            return False
        return False


def file_state(path: Path, called: str | None = None) -> FileState:
    """Read a file, and return its state."""
    with Source(path, called) as source:
        return source.finish()


def describe(called: str, ordinal: int, name: str) -> str:
    """Return the description of a record for messages: `reads.fa: record 3 (chr1)`."""
    return f"{called}: record {ordinal} ({printable(name, 80)})" if name else f"{called}: record {ordinal}"


def text_lines(stream: BinaryIO, called: str) -> Iterator[str]:
    """Yield the lines of a text: LF, CR LF and CR end one, and each comes with LF. A byte order mark is skipped.

    Args:
        stream: the decompressed bytes.
        called: the file's name in messages.

    Raises:
        InputError: a line is not UTF-8, or longer than any that could be stored.
    """
    binary = io.BufferedReader(cast(io.RawIOBase, stream), BLOCK_BYTES)
    text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape")
    number = 0
    while True:
        number += 1
        parts: list[str] = []
        size = 0
        while part := text.readline(BLOCK_BYTES):
            parts.append(part)
            size += len(part)
            if part.endswith("\n"):
                break
            if size > MAX_LINE:
                raise InputError(f"{called}: line {number}: is longer than {MAX_LINE:,} characters")
        if not parts:
            text.detach()
            binary.detach()
            return
        line = parts[0] if len(parts) == 1 else "".join(parts)
        del parts
        if not line.isascii():
            check_text(line, f"{called}: line {number}")
        yield line
        del line


def check_text(text: str, where: str) -> None:
    """Raise an error for a text that was decoded from invalid UTF-8, or that holds lone surrogates.

    Raises:
        InputError: with the first such byte and its place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise InputError(
                f"{where}: is UTF-16, not UTF-8. Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
            ) from None
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"lone surrogate U+{code:04X}"
        raise InputError(f"{where}: is not text in UTF-8: {what} at character {error.start + 1}") from None


class _Tee(io.RawIOBase):
    """A file that hashes its bytes, once and in order, while it is read."""

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
        """Do nothing: the bytes after the compressed data must still be hashed."""
