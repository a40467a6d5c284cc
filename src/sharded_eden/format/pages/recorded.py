"""Addresses that `build` has recorded beside a sequence database: `glm_dataset_S1.sqlite.addresses`.

Input: a database. Output: its addresses, from the record where that describes the file, else from the pages of the file.
The record is a Parquet file with the columns of `Addresses.contigs`. Its metadata hold the identity of the database and the
digest of its bytes. A copy has another identity: the digest then decides, by reading the database once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import xxhash

from sharded_eden.errors import DatabaseError, printable
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.pages.addresses import ADDRESS_SCHEMA, BLOCK_BYTES, Addresses, read_addresses
from sharded_eden.format.sqlite import is_mutable_now

VERSION = 1
_KEY = "sharded-eden addresses"


def record_path(database: Path) -> Path:
    """Return where the addresses of a sequence database are recorded."""
    return database.with_name(database.name + ".addresses")


def record_addresses(database: Path, record: Path) -> None:
    """Read the addresses of a database and write them to a new file.

    Args:
        database: a complete sequence database that no process writes to. Renaming it does not change its identity.
        record: the file to write.
    """
    found = read_addresses(database)
    described = {
        "version": VERSION,
        "page_bytes": found.page_bytes,
        "identity": list(found.identity),
        "digest": found.digest.hex(),
        "without": found.without,
    }
    with record.open("wb") as file:  # Polars takes some names for patterns or addresses
        found.contigs.write_parquet(file, metadata={_KEY: json.dumps(described)}, compression="zstd", statistics=False)


def addresses_of(database: Path) -> tuple[Addresses, int]:
    """Return the addresses of a sequence database, and how many of its bytes were read for that.

    Raises:
        as `sharded_eden.format.pages.addresses.read_addresses`.
    """
    bytes_read = 0
    if not is_mutable_now(database):
        found = _recorded(record_path(database))
        if found is not None:
            now = FileIdentity.of(database.stat())
            if now.is_same_file(found.identity):
                return _as_now(found, now), 0
            if found.digest and now.size_bytes == found.identity.size_bytes:
                bytes_read = now.size_bytes
                digest, now = _digest(database)
                if digest == found.digest:
                    return _as_now(found, now), bytes_read
    found = read_addresses(database)
    return found, bytes_read + (found.identity.size_bytes if found.digest else 0)


def _recorded(record: Path) -> Addresses | None:
    """Return the contents of a record; None where none can be read."""
    try:
        with record.open("rb") as file:
            described = json.loads(pl.read_parquet_metadata(file)[_KEY])
            file.seek(0)
            if described["version"] != VERSION:
                return None
            contigs = pl.read_parquet(file)
        if dict(contigs.schema) != ADDRESS_SCHEMA:
            return None
        return Addresses(
            page_bytes=described["page_bytes"],
            identity=FileIdentity(*described["identity"]),
            digest=bytes.fromhex(described["digest"]),
            contigs=contigs,
            without=described["without"],
        )
    except (OSError, KeyError, TypeError, ValueError, pl.exceptions.PolarsError):
        return None  # it only saves time


def _as_now(found: Addresses, identity: FileIdentity) -> Addresses:
    return Addresses(
        page_bytes=found.page_bytes,
        identity=identity,
        digest=found.digest,
        contigs=found.contigs,
        without=found.without,
    )


def _digest(database: Path) -> tuple[bytes, FileIdentity]:
    """Return the XXH3-128 digest of a file's bytes, and the identity of the file while it was read."""
    digest = xxhash.xxh3_128()
    memory = bytearray(BLOCK_BYTES)
    descriptor = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = FileIdentity.of(os.fstat(descriptor))
        while got := os.readv(descriptor, [memory]):
            digest.update(memoryview(memory)[:got])
        after = FileIdentity.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if before != after:
        raise DatabaseError(
            f"{printable(database)}: it was changed while it was read ({before} before, {after} now). Run it again"
        )
    return digest.digest(), after


def move_record(database: Path, moved: Path) -> None:
    """Move the record of a database that was renamed; a database without a record has none afterwards either."""
    try:
        os.replace(record_path(database), record_path(moved))
    except FileNotFoundError:
        record_path(moved).unlink(missing_ok=True)
