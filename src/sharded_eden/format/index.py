"""`WINDOWS.db.index`: for each run of windows of one contig, where the bytes of that contig lie in its sequence database.

An uncompressed `.npz` archive, which `numpy.load` opens and every process maps into memory:

    meta.json    version; total_windows, stride, fingerprint and identity (size_bytes, mtime_ns, inode, device) of the window
                 database; samples, the sample names; tags, the names of the control tags; without_address, {reason: contigs}
                 folder, the sequence databases that were indexed; not for those at a URL
                 remote, {url, objects: {sample name: [ETag, modification time]}}, of `index --at URL` and `index URL`
    samples.npy  (S,) `SAMPLE`: page size and identity of each sequence database
    top.npy      (ceil(R / 64),) int64: the first window of every 64th run
    firsts.npy   (R,) int64: the first window of every run
    runs.npy     (R,) `RUN`: consecutive windows of one contig, sorted by window
    checks.npy   (ceil(R / 64),) int64: the checksum of every 64 runs, see `checksum`

Base b of a contig whose run has an address (`at >= 0`) lies

    b < local     at `at + b`, in a leaf page of the table's b-tree
    b >= local    with k = (b - local) // (page_bytes - 4): in overflow page `overflow + k`, after its 4-byte pointer. The page
                  that holds the byte at 1 GiB is never used by SQLite: pages from it on are one further.

Source: https://www.sqlite.org/fileformat2.html, sections 1.5, 1.6 and 2.3.
"""

from __future__ import annotations

import json
import mmap
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, printable
from sharded_eden.format.commands import index_command

VERSION = 1
RUNS_PER_BLOCK = 64
"""Runs between two entries of `top`: their first windows are compared at once."""
ALIGNMENT_BYTES = 64
NO_TAG = 0xFFFFFFFF
"""The number of a control tag that is not in the index: it is then taken from the sequence ID."""

RUN = np.dtype({
    "names": ["first_window", "at", "sample", "first_in_contig", "length", "local", "overflow", "tag"],
    "formats": ["<i8", "<i8", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4"],
})  # fmt: skip
"""One run.

first_window: its first window. at: the file offset of base 0, -1 where there is no address and SQLite reads the contig. sample:
the number of the sequence database. first_in_contig: window_in_seq_idx of the first window. length: the contig's bases. local:
how many of them lie in the leaf page. overflow: the first overflow page, 1-based, 0 for none. tag: the number of the tag.
"""

SAMPLE = np.dtype({
    "names": ["page_bytes", "size_bytes", "mtime_ns", "inode", "device", "digest"],
    "formats": ["<u4", "<i8", "<i8", "<u8", "<u8", "V16"],
})  # fmt: skip
"""One sequence database: its page size, its `os.stat` values when it was read, and the XXH3-128 digest of its bytes
(zeros: no digest)."""


class FileIdentity(NamedTuple):
    """Distinguishes a file from another one at the same path."""

    size_bytes: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        """Return the identity in the result of `os.stat` or `os.fstat`."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)

    def is_same_file(self, other: FileIdentity) -> bool:
        """Return whether both are the same unchanged file.

        Device numbers are ignored: that of a network file system differs between machines.
        """
        return self[:3] == other[:3]

    def __str__(self) -> str:
        return f"{self.size_bytes:,} bytes, mtime_ns {self.mtime_ns}, inode {self.inode}"


def index_path(window_db: str | os.PathLike[str]) -> Path:
    """Return where the index of a window database lies: `train_windows.db` -> `train_windows.db.index`."""
    path = Path(window_db)
    return path.with_name(path.name + ".index")


def write_index(
    path: Path, meta: Mapping[str, Any], samples: NDArray[np.void], runs: Sequence[NDArray[np.void]]
) -> None:
    """Write an index to a path that `publishing` gave.

    Args:
        path: the file to write.
        meta: JSON-like; `version` is added.
        samples: (S,) `SAMPLE`.
        runs: parts of (R,) `RUN`, in the order of the windows.
    """
    all_runs = runs[0] if len(runs) == 1 else np.concatenate([np.empty(0, RUN), *runs])
    firsts = np.ascontiguousarray(all_runs["first_window"])
    top = firsts[::RUNS_PER_BLOCK]
    checks = np.fromiter((checksum(all_runs, firsts, block) for block in range(len(top))), "<i8", len(top))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("meta.json", json.dumps({"version": VERSION, **meta}))
        members = (
            ("samples", SAMPLE, samples), ("top", top.dtype, top), ("firsts", top.dtype, firsts), ("runs", RUN, all_runs),
            ("checks", checks.dtype, checks),
        )  # fmt: skip
        for name, dtype, values in members:
            info = zipfile.ZipInfo(f"{name}.npy")
            info.extra = _padding(archive, info)
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(
                    member,
                    {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(values),)},
                )
                member.write(np.ascontiguousarray(values).view(np.uint8).data)


def checksum(runs: NDArray[np.void], firsts: NDArray[np.int64], block: int) -> int:
    """Return the CRC-32 of the 64 runs of a block, of their first windows and of the first window of the next block.

    Args:
        runs: (R,) `RUN`.
        firsts: (R,) int64.
        block: in [0, ceil(R / 64)).
    """
    return _checksum(memoryview(np.ascontiguousarray(runs).view(np.uint8)), memoryview(firsts), block)  # type: ignore[arg-type]


def _checksum(runs: memoryview, firsts: memoryview, block: int) -> int:
    """Return `checksum`, of runs as bytes."""
    start = block * RUNS_PER_BLOCK
    of_runs = zlib.crc32(runs[start * RUN.itemsize : (start + RUNS_PER_BLOCK) * RUN.itemsize])
    return zlib.crc32(firsts[start : start + RUNS_PER_BLOCK + 1], of_runs)


def _padding(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return an extra field after which the member's data begin at a multiple of `ALIGNMENT_BYTES`."""
    assert archive.fp is not None  # noqa: S101 - open for writing
    zip64_bytes, empty_field_bytes = 20, 4
    start = archive.fp.tell() + 30 + len(info.filename.encode()) + zip64_bytes + empty_field_bytes
    fill = -start % ALIGNMENT_BYTES
    # Source: APPNOTE.TXT of the ZIP format, section 4.5; 0xD935 is the identifier that Android's zipalign uses for padding.
    return (0xD935).to_bytes(2, "little") + fill.to_bytes(2, "little") + bytes(fill)


_INTEGERS = np.dtype("<i8")
_MEMBERS = (("samples", SAMPLE), ("top", _INTEGERS), ("firsts", _INTEGERS), ("checks", _INTEGERS), ("runs", RUN))


class IndexFile:
    """An index, mapped into memory.

    Args:
        path: the file.

    Attributes:
        meta: what `meta.json` holds.
        samples: (S,) `SAMPLE`.
        top: (ceil(R / 64),) int64.
        firsts: (R,) int64.
        runs: (R,) `RUN`.
        checks: (ceil(R / 64),) int64.

    Raises:
        DatabaseError: it is not an index, is cut short, or has another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                self.meta: dict[str, Any] = json.loads(archive.read("meta.json"))
                if self.meta["version"] != VERSION:
                    raise ValueError(f"version {self.meta['version']!r}, this program reads version {VERSION}")
                self.memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                archive.read("samples.npy")  # checks its CRC; longer members have checksums of their parts
                self.samples, self.top, self.firsts, self.checks, self.runs = (
                    self._array(archive, file, f"{name}.npy", dtype) for name, dtype in _MEMBERS
                )
                if (
                    len(self.checks) != len(self.top)
                    or len(self.top) != -(-len(self.runs) // RUNS_PER_BLOCK)
                    or len(self.firsts) != len(self.runs)
                ):
                    raise ValueError(
                        f"{len(self.runs)} runs, {len(self.firsts)} firsts, {len(self.top)} entries of top"
                    )
                if len(self.meta["samples"]) != len(self.samples):
                    raise ValueError(f"{len(self.meta['samples'])} names of {len(self.samples)} samples")
                # Slices and items of these cost a fifth of those of arrays.
                self._runs_view = memoryview(self.runs.view(np.uint8))  # type: ignore[arg-type]
                self._firsts_view = memoryview(self.firsts)  # type: ignore[arg-type]
                self._top_view = memoryview(self.top)  # type: ignore[arg-type]
                self._checks_view = memoryview(self.checks)  # type: ignore[arg-type]
        except Exception as error:  # the readers of ZIP, JSON and NumPy headers raise many kinds
            raise DatabaseError(f"{path}: not a whole index of windows ({printable(str(error), 200)})") from error

    def check(self, block: int) -> None:
        """Raise an error for a block of 64 runs that has changed since it was written, or that contradicts `top`.

        Raises:
            DatabaseError: the file is damaged.
        """
        start, end = block * RUNS_PER_BLOCK, (block + 1) * RUNS_PER_BLOCK
        firsts, top = self._firsts_view, self._top_view
        is_sound = (
            _checksum(self._runs_view, firsts, block) == self._checks_view[block]
            and top[block] == firsts[start]
            and (end >= len(firsts) or top[block + 1] == firsts[end])
        )
        if not is_sound:
            raise DatabaseError(
                f"{printable(self.path)}: is damaged in its runs {start:,} to {end - 1:,}. Remove it, or write it again: "
                f"{index_command('SEQDB', self.path.with_suffix(''))}"
            )

    def check_all(self) -> None:
        """Check all blocks, before the runs are written to another file, with checksums of their own.

        Raises:
            DatabaseError: the file is damaged.
        """
        for block in range(len(self.top)):
            self.check(block)

    def _array(self, archive: zipfile.ZipFile, file: Any, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = np.frombuffer(file.read(4), "<u2").tolist()
        file.seek(info.header_offset + 30 + name_bytes + extra_bytes)
        start = file.tell()
        np.lib.format.read_magic(file)
        shape, _, found = np.lib.format.read_array_header_2_0(file)
        if found != dtype or len(shape) != 1 or file.tell() - start + shape[0] * dtype.itemsize != info.file_size:
            raise ValueError(f"{name} holds {found} {shape}")
        if file.tell() % 8:
            raise ValueError(f"{name} begins at byte {file.tell()}, which is not a multiple of 8")
        return np.frombuffer(self.memory, dtype=dtype, count=shape[0], offset=file.tell())


def identities_of(samples: NDArray[np.void]) -> list[FileIdentity]:
    """Return the identities in the entries of `samples`."""
    return list(map(FileIdentity._make, zip(*(samples[name].tolist() for name in FileIdentity._fields), strict=True)))


def identity_of(sample: NDArray[np.void]) -> FileIdentity:
    """Return the identity in one entry of `samples`."""
    return identities_of(sample.reshape(1))[0]
