"""Room in the folder of local copies: what is removed for a new copy, and what never is."""

from __future__ import annotations

import os
from pathlib import Path

from sharded_eden.storage.copy_folder import NO_DIGEST, Room, Wanted, complete_path, partial_path, prepare
from sharded_eden.storage.objects import Version


def wanted(name: str, size_bytes: int = 1000) -> Wanted:
    return Wanted.of("s3://bucket/seqdb", name, Version(size_bytes, f"etag of {name}", ""), NO_DIGEST)


def copied(folder: Path, each: Wanted) -> Path:
    """A complete copy."""
    folder.mkdir(exist_ok=True)
    partial = partial_path(folder, each.key)
    partial.write_bytes(bytes(each.version.size_bytes))
    path = complete_path(folder, each.key, partial.stat().st_mtime_ns)
    partial.rename(path)
    return path


def test_copies_of_a_job_that_starts_later_are_not_removed(tmp_path):
    theirs = wanted("theirs")
    path = copied(tmp_path, theirs)
    ours = [wanted("one"), wanted("two")]
    prepare(tmp_path, ours)
    room = Room(tmp_path, 1500)
    assert room.fits(ours[0])
    prepare(tmp_path, [theirs])  # the other job starts
    assert not room.fits(ours[0])
    assert path.exists()


def test_an_unused_copy_makes_room(tmp_path):
    path = copied(tmp_path, wanted("old"))
    ours = wanted("ours")
    prepare(tmp_path, [ours])
    room = Room(tmp_path, 1500)
    assert room.fits(ours)
    room.reserve(ours)
    assert not path.exists()


def test_a_copy_that_was_touched_is_replaced_when_the_folder_is_full(tmp_path):
    ours = wanted("ours")
    path = copied(tmp_path, ours)
    prepare(tmp_path, [ours])
    os.utime(path, ns=(1, 1))
    room = Room(tmp_path, 1000)
    assert room.fits(ours)
    room.reserve(ours)
    assert not path.exists()


def test_a_touched_copy_is_counted_once(tmp_path):
    """No job holds its list: it is among the unused files, and among those that the new copy replaces."""
    ours = wanted("ours")
    path = copied(tmp_path, ours)
    os.utime(path, ns=(1, 1))
    (tmp_path / f"{'0' * 24}.1.sqlite").write_bytes(bytes(100))
    prepare(tmp_path, [wanted("other"), Wanted("x", Version(1, "", ""), NO_DIGEST, "0" * 24)])
    assert not Room(tmp_path, 1050).fits(ours)
    assert Room(tmp_path, 1100).fits(ours)
