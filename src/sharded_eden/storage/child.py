"""Asks for versions and copies of objects in a process of its own.

obstore's threads do not survive a fork, and the process that opens a dataset may fork workers. So a child process is started,
not forked; it does one task and ends. Cost: half a second to start it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, MissingExtra, UsageError, WriteError
from sharded_eden.storage.objects import Objects, StorageError, Version
from sharded_eden.storage.start import command, not_started

_ERRORS: tuple[type[EdenError], ...] = (StorageError, MissingDatabase, DatabaseError, WriteError, UsageError)
"""Subclasses first."""
_NO_EXTRA = "extra"

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sharded_eden.storage.child import main; "
    "main(*json.loads(sys.argv[2]))"
)


def versions_in_child(url: str, names: Sequence[str], seconds: float) -> dict[str, Version]:
    """Return the version of each object that exists, by one HEAD request each.

    Args:
        url: the folder of the objects.
        names: the objects.
        seconds: how long a request is tried.

    Raises:
        DatabaseError: the storage does not answer, or refuses.
        UsageError: the URL is not valid.
        MissingExtra: obstore is not installed.
    """
    found = _run("versions", url, seconds, dict.fromkeys(names))
    return {name: Version(*values) for name, values in found.items()}


def copy_in_child(
    url: str, copies: Mapping[str, tuple[Version, Path]], seconds: float, *, locks: Sequence[int] = ()
) -> None:
    """Copy objects to existing empty files.

    Args:
        url: the folder of the objects.
        copies: {name: (version, file)}.
        seconds: how long a request is tried.
        locks: file descriptors that the child holds until it ends, also when this process is killed: while their files are
            locked, nobody else writes to the copies.

    Raises:
        MissingDatabase: there is no such object.
        DatabaseError: it was replaced, or cannot be read.
        WriteError: a file cannot be written.
    """
    _run("copy", url, seconds, {name: [*version, str(path)] for name, (version, path) in copies.items()}, locks)


def _run(task: str, url: str, seconds: float, objects: Mapping[str, Any], locks: Sequence[int] = ()) -> Any:
    try:
        ended = subprocess.run(
            command(_CODE, [task, url, seconds, objects]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=tuple(locks),
            check=False,
        )
    except OSError as error:
        raise not_started(url, error) from error
    try:
        kind, answer = json.loads(ended.stdout)
    except ValueError:
        raise DatabaseError(f"{url}: the process that reads it has ended (exit status {ended.returncode})") from None
    if kind == _NO_EXTRA:
        raise MissingExtra("obstore", "cloud")
    for each in _ERRORS:
        if kind == each.__name__:
            raise each(answer)
    return answer


def main(task: str, url: str, seconds: float, objects: Mapping[str, Any]) -> None:
    """Do a task, and write [kind, answer] as JSON to the standard output."""
    kind: str = ""
    answer: Any = None
    try:
        storage = Objects(url, seconds)
        if task == "versions":
            answer = {name: version for name in objects if (version := storage.head(name)) is not None}
        else:
            _copy(storage, objects)
    except MissingExtra:
        kind = _NO_EXTRA
    except EdenError as error:
        names = [each.__name__ for each in _ERRORS if isinstance(error, each)]
        kind, answer = (names or [DatabaseError.__name__])[0], str(error)
    sys.stdout.write(json.dumps([kind, answer]))
    sys.stdout.flush()
    os._exit(0)  # without waiting for obstore's threads


def _copy(storage: Objects, copies: Mapping[str, Any]) -> None:
    from sharded_eden.format.publish import writing
    from sharded_eden.storage.copies import copy_object

    for name, (*version, path) in copies.items():
        with writing(path):
            copy_object(storage, name, Version(*version), Path(path))
