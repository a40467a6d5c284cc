"""This machine: features of SQLite, file descriptors, processors, GPUs, and the file system of a folder."""

from __future__ import annotations

import os
import re
import resource
from array import array
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from sharded_eden.errors import printable


class Mount(NamedTuple):
    """The mounted file system that holds a path."""

    point: str
    """Where it is mounted."""
    type: str
    """Its type, for example `ext4`, `nfs4`, `lustre`, `overlay`."""
    source: str
    """What is mounted there."""


def sqlite_features() -> dict[str, Any]:
    """Return the version of SQLite in apsw, the longest value it accepts in bytes, and {feature: why it fails, or empty}.

    The features are tried on a database in memory.
    """
    import apsw

    def blob(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE s (n TEXT); INSERT INTO s VALUES ('ACGT')")
        with connection.blob_open("main", "s", "n", 1, False) as value:
            value.seek(1)
            if value.read(2) != b"CG":
                raise ValueError("reads other bytes")

    def numbers(connection: apsw.Connection) -> None:
        rows = connection.execute("SELECT value FROM carray(?)", (apsw.carray(array("q", [3, 1 << 40])),)).fetchall()
        if rows != [(3,), (1 << 40,)]:
            raise ValueError(f"returns {rows}")

    def threads(connection: apsw.Connection) -> None:
        if "THREADSAFE=0" in apsw.compile_options:
            raise ValueError("SQLite was compiled with THREADSAFE=0")

    def trust(connection: apsw.Connection) -> None:
        from sharded_eden.format.sqlite import trust_nothing

        trust_nothing(connection)

    tried = {"blob_io": blob, "carray": numbers, "threads": threads, "untrusted_schemas": trust}
    with closing(apsw.Connection(":memory:")) as connection:
        longest = connection.limit(apsw.SQLITE_LIMIT_LENGTH)
        features = {name: _failure(function, connection) for name, function in tried.items()}
    return {"version": apsw.sqlite_lib_version(), "longest_value_bytes": longest, "features": features}


def _failure(function: Callable[[Any], None], argument: Any) -> str:
    try:
        function(argument)
    except Exception as error:  # whatever a feature that is missing raises
        return f"{type(error).__name__}: {error}"
    return ""


def file_descriptors() -> dict[str, int | None]:
    """Return the soft and the hard limit on file descriptors of this process; None stands for no limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (None if each == resource.RLIM_INFINITY else each for each in limits)
    return {"soft": soft, "hard": hard}


def gpus(root: Path = Path("/")) -> list[str]:
    """Return the models of the GPUs that the drivers of NVIDIA and AMD list. No framework is imported.

    Args:
        root: the folder that holds `proc` and `sys`.
    """
    found = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", _text(path), flags=re.MULTILINE)
        found.append(printable(model[1] if model else "NVIDIA GPU", 80))
    for path in sorted(root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")):
        units = re.search(r"^simd_count (\d+)$", _text(path), flags=re.MULTILINE)
        if units and int(units[1]):  # a node without such units is a processor
            found.append("AMD GPU")
    return found


def mount_of(path: Path, mounts: str | None = None) -> Mount | None:
    """Return the file system that holds a path; None where the system does not list them (macOS).

    Args:
        path: an existing file or folder.
        mounts: the text of `/proc/self/mountinfo`; None reads it. Its fields: proc_pid_mountinfo(5).
    """
    text = _text(Path("/proc/self/mountinfo")) if mounts is None else mounts
    real, best = path.resolve(), None
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, of_type = before.split(), after.split()
        if not separator or len(fields) < 5 or len(of_type) < 2:
            continue
        point = _unescaped(fields[4])
        # Of two mounts at one point, the later one hides the other.
        if real.is_relative_to(point) and (best is None or len(point) >= len(best.point)):
            best = Mount(point, of_type[0], _unescaped(of_type[1]))
    return best


def _unescaped(field: str) -> str:
    r"""Return a field of mountinfo in which a space is written `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""


def tells_what_is_cached(file: Path) -> bool | None:
    """Return whether a read of a file can ask for what the page cache holds only (`RWF_NOWAIT`, preadv2(2)).

    None where the file is empty or cannot be read.
    """
    if not hasattr(os, "preadv") or not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return True if os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT) else None
    except BlockingIOError:  # it is not in the page cache
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
