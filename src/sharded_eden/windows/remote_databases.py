"""Sequence databases in object storage, for `index`: copied one by one beside the index, read, and removed.

Input: a URL. Output: addresses of contigs. Cost: one listing, and one request for each 8 MB. On disk: at most `jobs` databases
at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError, printable
from sharded_eden.format.commands import index_at_command, index_command
from sharded_eden.format.index import FileIdentity
from sharded_eden.format.pages.addresses import Addresses, read_addresses
from sharded_eden.format.publish import write_error
from sharded_eden.storage.bandwidth import Bandwidth
from sharded_eden.storage.copies import copy_object
from sharded_eden.storage.objects import REQUEST_SECONDS, Objects, Version, check_is_versioned
from sharded_eden.storage.urls import folder_url, object_name


class RemoteDatabases:
    """The sequence databases below a URL, by one listing.

    Args:
        url: the folder of sequence databases.

    Attributes:
        url: without slashes at its end.
        versions: {sample: version of its database}, sorted.

    Raises:
        MissingDatabase: there are none.
        DatabaseError: the storage cannot be listed.
        UsageError: the URL is not valid, or its server has no listing.
    """

    def __init__(self, url: str) -> None:
        self.url = url = folder_url(url, "SEQDB")
        if url.startswith(("http://", "https://")):
            raise UsageError(
                f"{printable(url)}: http servers have no listing. Index the local files, then add the URL: "
                f"{index_command()}, then {index_at_command(url)}"
            )
        self._objects = Objects(url, REQUEST_SECONDS)
        self._listed = self._objects.listed()
        names = sorted({name.split("/")[0] for name in self._listed})
        self.versions: dict[str, Version] = {
            name: self._listed[object_name(name)]
            for name in names
            if name and not name.startswith(".") and object_name(name) in self._listed
        }
        if not self.versions:
            raise MissingDatabase(f"{printable(url)}: holds no <sample>/glm_dataset_<sample>.sqlite")

    def meta(self, names: Iterable[str]) -> dict[str, object]:
        """Return what `index --at` adds to an index."""
        return {"url": self.url, "objects": {name: list(self.versions[name][1:]) for name in names}}

    def addresses(self, names: Iterable[str], unfinished: Path, jobs: int) -> Iterator[tuple[str, Addresses]]:
        """Yield (sample, addresses), in the order in which databases are done.

        Args:
            names: the samples.
            unfinished: a locked name of `publishing`; databases are copied to this name with `.0`, `.1` ... at its end.
            jobs: databases at the same time.

        Raises:
            DatabaseError: a database is damaged, was replaced, or has a `-wal` or `-journal` object beside it.
            WriteError: the disk is full.
        """
        for name in os.listdir(unfinished.parent):  # left by a command that was killed, maybe one with more jobs
            if name.startswith(f"{unfinished.name}.") and name.removeprefix(f"{unfinished.name}.").isdecimal():
                unfinished.with_name(name).unlink()
        shared = Bandwidth(None)  # an error of one copy ends all
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            free.put(unfinished.with_name(f"{unfinished.name}.{number}"))

        def read(name: str) -> tuple[str, Addresses]:
            copy = free.get()
            try:
                return name, self._read(name, copy, shared)
            finally:
                copy.unlink(missing_ok=True)
                free.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            running: set[Future[tuple[str, Addresses]]] = set()
            try:
                for name in names:
                    running.add(pool.submit(read, name))
                    if len(running) > jobs:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from (each.result() for each in done)
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (each.result() for each in done)
            except BaseException as error:
                shared.close(error)
                pool.shutdown(cancel_futures=True)
                raise

    def _read(self, name: str, copy: Path, shared: Bandwidth) -> Addresses:
        name, version = object_name(name), self.versions[name]
        where = f"{self.url}/{name}"
        check_is_versioned(where, version)
        for suffix in ("-wal", "-journal"):
            if self._listed.get(name + suffix, Version(0, "", "")).size_bytes:
                raise DatabaseError(
                    f"{printable(where)}: {name}{suffix} is beside it: the database was uploaded while a program wrote to it. "
                    "Close that program, and upload the database again"
                )
        try:
            os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            copy_object(self._objects, name, version, copy, bandwidth=shared)
        except EdenError:  # a missing object is an OSError, too
            raise
        except OSError as error:
            raise write_error(copy, error.strerror or str(error)) from error
        try:
            found = read_addresses(copy)
        except EdenError as error:
            raise DatabaseError(printable(str(error).replace(str(copy), where), 2000)) from error
        return replace(found, identity=FileIdentity(version.size_bytes, 0, 0, 0))  # the copy is removed
