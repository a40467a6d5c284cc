"""window index -> where its bytes are in object storage, from an index to which `sharded-eden index --at` has added the URL.

Input: the index. Output: addresses, read by `sharded_eden.load.read.remote`; with `cache_bytes`, by
`sharded_eden.load.read.copied` from local copies where they are complete. Opening makes no request: names, sizes and ETags are
in the index. Without such an index, or if a window has no address, opening is refused: SQLite reads local files only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NoReturn, cast

import apsw

from sharded_eden.errors import DatabaseError, MissingDatabase, UsageError, printable, shown, warn
from sharded_eden.format.commands import index_at_command, index_command
from sharded_eden.format.index import FileIdentity, IndexFile, index_path
from sharded_eden.load.locate.addresses import StaleIndex, WindowAddresses
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.copied import CopyReader
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.load.read.positioned import PositionedReader
from sharded_eden.load.read.remote import RangeReader, Traffic
from sharded_eden.load.read.sequences import SampleDatabase
from sharded_eden.storage.copier import CopySettings, wanted_of
from sharded_eden.storage.copy_folder import prepare
from sharded_eden.storage.objects import Version
from sharded_eden.storage.urls import ObjectPath, object_name

AHEAD_PER_REQUEST = 8
"""Windows announced per request in flight: `NextBatches` announces more when half of them have been read."""
BYTES_AHEAD = 32 << 20
"""The most bases that a worker announces."""


class RemoteSequences(SequenceReader):
    """Takes the place of `SequenceReader` where sequence databases are objects: SQLite cannot read them.

    Args:
        url: the folder of sequence databases.
        window_db: the window database; its index names them.

    Raises:
        MissingDatabase: there is no index.
        DatabaseError: the index is damaged, or describes no objects at this URL.
    """

    def __init__(self, url: str, window_db: Path) -> None:
        path = index_path(window_db)
        again = index_at_command(url, window_db)
        command = f"{index_command('SEQDB', window_db)} (where SEQDB is a local folder), then {again}"
        if not path.is_file():
            raise MissingDatabase(
                f"{printable(path)}: no such index. Sequence databases in object storage are read by the addresses in it. "
                f"Write it: {command}"
            )
        meta = IndexFile(path).meta
        try:
            remote = meta.get("remote")
            if remote is None:
                raise DatabaseError(f"{printable(path)}: does not name the objects at {url}. Add them: {again}")
            if remote["url"] != url:
                raise DatabaseError(
                    f"{printable(path)}: names the objects at {shown(remote['url'])}, sequence_db_dir is {shown(url)}. Add "
                    f"those: {again}"
                )
            if without := {str(reason): int(contigs) for reason, contigs in meta["without_address"].items()}:
                reason, contigs = next(iter(without.items()))
                raise DatabaseError(
                    f"{printable(path)}: {sum(without.values()):,} contigs have no address ({contigs:,}: "
                    f"{printable(reason, 200)}), and SQLite cannot read them in object storage. Copy the sequence databases to "
                    f"a local disk, or build and index them again: {command}"
                )
            names: list[str] = meta["samples"]
            self.etags: dict[str, list[str]] = remote["objects"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DatabaseError):
                raise
            raise DatabaseError(f"{printable(path)}: is damaged. Write it again: {command}") from error
        self.url = url
        self.paths = {name: cast("Path", ObjectPath(f"{url}/{object_name(name)}")) for name in names}
        self.only_sample = names[0] if len(names) == 1 else None

    def open_all(self, but: AbstractSet[str]) -> None:
        """Open nothing: ranges are requested when they are read."""

    def check_unchanged(self, samples: Iterable[str]) -> None:
        """Check nothing: each request names the ETag of its object."""

    def contig(self, contig_id: str) -> NoReturn:
        """Refuse to read a contig by SQLite.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"contig {shown(contig_id)}: SQLite cannot read {self.url}, and the contig has no address in the index. Copy the "
            "sequence databases to a local disk"
        )

    def connection(self, sample_id: str) -> apsw.Connection:
        """Refuse; see `database`."""
        return self.database(sample_id).connection

    def database(self, sample_id: str) -> SampleDatabase:
        """Refuse to connect to a sequence database.

        Raises:
            UsageError: always, except KeyError for a sample that does not exist.
        """
        if sample_id not in self.paths:
            raise KeyError(sample_id)
        raise UsageError(
            f"{self.paths[sample_id]}: SQLite cannot open it. db_connections, SQL and its JOIN with the window database need "
            "local files: copy the sequence databases to a local disk"
        )

    def close(self) -> None:
        """Close nothing."""


class RemoteAddresses(WindowAddresses):
    """The index of a window database whose sequence databases are objects.

    Args:
        index: the window database.
        sequences: from the same index.
        stride: bases from one window to the next.
        in_flight: requests of a worker at the same time.
        seconds: how long a request is tried.
        copies: the folder of local copies, and the most bytes of them; None for none.
        read_ahead: announce windows of copies that are not in the page cache to the kernel.

    Raises:
        DatabaseError: the index describes another window database, or is damaged.
    """

    def __init__(
        self,
        index: WindowIndex,
        sequences: RemoteSequences,
        *,
        stride: int,
        in_flight: int,
        seconds: float,
        copies: tuple[Path, int] | None,
        read_ahead: bool,
    ) -> None:
        self._copies: CopySettings | None = None
        self._url, self._in_flight, self._seconds = sequences.url, in_flight, seconds
        self._etags = sequences.etags
        self._fingerprint = index.fingerprint
        self.ahead = (AHEAD_PER_REQUEST * in_flight, BYTES_AHEAD)
        try:
            super().__init__(
                index.path,
                self._as_indexed(index.identity, index_path(index.path)),
                sequences.paths,
                {},
                stride=stride,
                total_windows=index.total_windows,
                read_ahead=read_ahead,
            )
        except StaleIndex as error:
            raise DatabaseError(
                f"{printable(index_path(index.path))}: {error}. Write it again: {index_command('SEQDB', index.path)}, then "
                f"{index_at_command(self._url, index.path)}"
            ) from error
        if copies is not None:
            folder, limit_bytes = copies
            self._copies = CopySettings(self._url, str(index.path), str(folder), limit_bytes, seconds)
            self._check_copies(folder, limit_bytes)

    def _check_copies(self, folder: Path, limit_bytes: int) -> None:
        """Warn where no copy can be made."""
        wanted = [each for each in wanted_of(self._file, self._url) if each is not None]
        try:
            prepare(folder, wanted)
        except OSError as error:
            self._copies = None
            warn(
                f"{printable(folder)}: sequence databases are not copied, windows are read by ranges: {error.strerror}. Name "
                "another folder: cache_dir='FOLDER'"
            )
            return
        smallest = min(wanted, key=lambda each: each.version.size_bytes, default=None)
        if smallest and smallest.version.size_bytes > limit_bytes:
            warn(
                f"cache_bytes={limit_bytes} is less than the smallest sequence database, {printable(self._url)}/"
                f"{smallest.name}, has: {smallest.version.size_bytes}. None is copied, windows are read by ranges"
            )

    def _as_indexed(self, found: FileIdentity, path: Path) -> FileIdentity:
        """Return the identity of a window database that was copied with its modification time, as it was before."""
        meta: Mapping[str, Any] = IndexFile(path).meta
        described = FileIdentity(*meta["identity"])
        is_copy = found[:2] == described[:2] and meta["fingerprint"] == self._fingerprint
        return described if is_copy else found

    def _is_as_indexed(self, number: int) -> bool:
        """Return whether the object is known: each request checks its version."""
        return self.names[number] in self._etags

    def _open(self) -> None:
        super()._open()
        if self.changed_samples:
            raise StaleIndex(f"it has no ETag of {self.changed_samples[0]}")
        self._versions = [each and each.version for each in wanted_of(self._file, self._url)]

    @property
    def versions(self) -> dict[str, Version]:
        """The version that each sequence database had when it was indexed: {sample: version}."""
        return {name: version for name, version in zip(self.names, self._versions, strict=True) if version is not None}

    @property
    def traffic(self) -> Traffic:
        """What this thread has read from the storage by ranges."""
        return cast("RangeReader | CopyReader", self._readers.get()).traffic

    @property
    def copies(self) -> tuple[int, int, bool]:
        """What this thread reads from copies; see `CopyReader.state`."""
        reader = cast("RangeReader | CopyReader", self._readers.get())
        return reader.state if isinstance(reader, CopyReader) else (0, 0, False)

    def _make_reader(self) -> PositionedReader:
        reader = RangeReader(
            self._url, self.names, self._versions, self.page_bytes, in_flight=self._in_flight, seconds=self._seconds
        )
        if self._copies is None:
            return cast("PositionedReader", reader)
        copied = CopyReader(
            reader, self._copies, wanted_of(self._file, self._url), self.page_bytes, read_ahead=self._read_ahead
        )
        return cast("PositionedReader", copied)
