"""Finds and opens the databases that a user names, and the addresses of windows: in a folder, or in object storage.

Input: a folder or URL, and the window database. Output: readers. Costs one `stat` a database in a folder, no request for a URL.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sharded_eden.errors import MissingDatabase, UsageError, printable
from sharded_eden.format.commands import index_command
from sharded_eden.format.kinds import expect, sequence_folder, window_database_or_folder
from sharded_eden.format.schema import discover_sample_databases
from sharded_eden.load.locate.addresses import WindowAddresses, open_addresses
from sharded_eden.load.locate.cached import cache_folder, local_window_db
from sharded_eden.load.locate.remote import RemoteAddresses, RemoteSequences
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.options import ExampleOptions
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.load.read.samples import names_only
from sharded_eden.storage.urls import folder_url, is_url

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def named_sequences(path: PathLike) -> Path | str:
    """Return the folder of sequence databases that a user names, or its URL.

    Raises:
        UsageError: it is something else, or a URL of a scheme that is not read.
    """
    return folder_url(path, "SEQDB") if isinstance(path, str) and is_url(path) else sequence_folder(path)


def named_window_dbs(path: PathLike, sequence_db_dir: PathLike, cache_dir: PathLike | None = None) -> list[Path]:
    """Return the window database that a user names, those of a folder, or the local copy of one at a URL.

    Args:
        path: the window database.
        sequence_db_dir: its sequence databases; where they are at a URL, it must have an index.
        cache_dir: where the local copy is put; see `ExampleOptions`.

    Raises:
        MissingDatabase: there is no such object.
        UsageError: it is something else.
    """
    if is_url(path):
        return [Path(local_window_db(path, os.fspath(sequence_db_dir), ExampleOptions(cache_dir=cache_dir)))]
    return window_database_or_folder(path)


COPIES = "sequences"
"""The folder in `cache_dir` that holds copies of sequence databases."""


def open_sequences(sequence_db_dir: str, window_db: str | os.PathLike[str], options: ExampleOptions) -> SequenceReader:
    """Return the sequence databases of a folder or URL.

    Raises:
        MissingDatabase: there are none, or a URL is given and the window database has no index.
        DatabaseError: the index names no objects at the URL.
        UsageError: something else is at the path, or `cache_bytes` is given for a folder.
    """
    if is_url(sequence_db_dir):
        WindowIndex(window_db, io=options.io).close()  # its errors are clearer than that its index is missing
        return RemoteSequences(sequence_db_dir, Path(window_db))
    if options.cache_bytes is not None:
        raise UsageError(
            f"cache_bytes={options.cache_bytes} limits copies of sequence databases in object storage, but sequence_db_dir is "
            f"the folder {printable(sequence_db_dir)}. Leave cache_bytes out"
        )
    try:
        paths = discover_sample_databases(sequence_db_dir)
    except MissingDatabase:
        expect(
            Path(sequence_db_dir), "sequence_db_dir", "a folder of sequence databases"
        )  # its error says what is there
        raise
    return SequenceReader(paths, io=options.io, read_with=options.read_with)


def addresses_of(
    index: WindowIndex, reader: SequenceReader, *, sequence_db_dir: str, stride: int, options: ExampleOptions
) -> WindowAddresses | None:
    """Return the addresses of windows; None where SQLite reads them all.

    Raises:
        DatabaseError: sequence databases are in object storage, and the index describes another window database.
    """
    if isinstance(reader, RemoteSequences):
        return RemoteAddresses(
            index,
            reader,
            stride=stride,
            in_flight=options.requests_in_flight,
            seconds=options.request_seconds,
            copies=None if options.cache_bytes is None else (cache_folder(options) / COPIES, options.cache_bytes),
            read_ahead=options.read_ahead,
        )
    addresses = open_addresses(
        index.path,
        sequence_db_dir=Path(sequence_db_dir),
        window_db_identity=index.identity,
        paths=reader.paths,
        identities=reader.unchanged.identities,
        stride=stride,
        total_windows=index.total_windows,
        read_ahead=options.read_ahead,
    )
    if addresses is not None and addresses.was_alone and not names_only(index, addresses.names[0]):
        logger.warning(
            "%s is not used: it was written when %s was the only sequence database, and has windows of other samples in it. "
            "Write it again: %s",
            addresses.path, addresses.names[0], index_command(sequence_db_dir, index.path),
        )  # fmt: skip
        addresses.close()
        return None
    return addresses
