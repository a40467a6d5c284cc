"""Opening and publishing files."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sharded_eden.errors import UsageError
from sharded_eden.format import publish
from sharded_eden.format.publish import create_database, publishing
from sharded_eden.format.sqlite import open_read_only


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.db"
    with publishing(path) as partial:
        partial.write_text("new")
        assert partial.parent == path.parent
        assert partial.name.startswith(".")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(TypeError), publishing(path) as partial:
        partial.write_bytes(b"half") and partial.write_text(None)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file.db"]


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    path = tmp_path / "file.db"
    code = (
        "import os, signal, sys; from sharded_eden.format.publish import publishing\n"
        "with publishing(sys.argv[1]) as partial:\n"
        "    partial.write_text('x' * 1000); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert [name.endswith(".partial") for name in os.listdir(tmp_path)] == [True]
    with publishing(path) as partial:
        assert partial.read_bytes() == b""
        partial.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.db"]


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "file.db"
    with publishing(path) as partial:
        partial.write_text("first")
        with pytest.raises(UsageError, match="another process is writing here"), publishing(path):
            pass
    assert path.read_text() == "first"


@pytest.mark.parametrize("ending", ["published", "failed"])
def test_a_writer_that_ends_between_opening_and_locking_loses_nothing(tmp_path, monkeypatch, ending):
    """The second writer then has a descriptor of the published file, and must not empty it."""
    path = tmp_path / "file.db"
    path.write_text("old")
    first = publishing(path)
    first.__enter__().write_text("first")
    lock, late = publish.lock, [True]

    def lock_late(descriptor: int, target: Path) -> None:
        if late.pop() if late else False:
            if ending == "published":
                first.__exit__(None, None, None)
            else:
                assert not first.__exit__(KeyError, KeyError("failed"), None)
        lock(descriptor, target)

    monkeypatch.setattr(publish, "lock", lock_late)
    kept = "first" if ending == "published" else "old"
    with publishing(path) as partial:
        assert path.read_text() == kept
        partial.write_text("second")
        with pytest.raises(UsageError, match="another process is writing here"), publishing(path):
            pass
        assert path.read_text() == kept
    assert path.read_text() == "second"
    assert os.listdir(tmp_path) == ["file.db"]


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_log_of_an_older_database_is_not_left_beside_a_new_one(tmp_path, suffix):
    """SQLite would apply it to the new file."""
    path = tmp_path / "windows.db"
    path.write_text("old")
    beside = tmp_path / f"windows.db{suffix}"
    beside.write_text("log")
    with pytest.raises(UsageError, match="a -wal or -journal file is beside it"), publishing(path):
        pass
    assert (path.read_text(), beside.read_text()) == ("old", "log")


@pytest.mark.parametrize("log", ["of a writer", b"", b"x" * 600, "its first page"], ids=repr)
def test_reading_leaves_a_log_beside_a_database_as_it_is(tmp_path, log):
    path, beside = tmp_path / "windows.db", tmp_path / "windows.db-wal"
    writer = sqlite3.connect(path)
    writer.execute("CREATE TABLE t (a)")
    rows = 0
    if log == "of a writer":
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        rows, left = 1, (path.read_bytes(), beside.read_bytes())
        writer.close()
        path.write_bytes(left[0])  # as a killed writer leaves them: closing has moved the rows into the database
        beside.write_bytes(left[1])
    else:
        writer.close()
        beside.write_bytes(path.read_bytes()[:4096] if isinstance(log, str) else log)
    before = path.read_bytes(), beside.read_bytes()
    connection = open_read_only(path)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (rows,)
    connection.close()
    assert (path.read_bytes(), beside.read_bytes()) == before


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "file.db").mkdir()
    with (
        pytest.raises(UsageError, match="a folder has this name"),
        publishing(tmp_path / "file.db"),
    ):
        pass
    assert os.listdir(tmp_path) == ["file.db"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), publishing(tmp_path / "file" / "below.db"):
        pass


@pytest.mark.parametrize("name", ["plain.db", "a b#c?d%e.db", os.fsdecode(b"\xff.db")], ids=ascii)
def test_databases_are_created_under_any_name(tmp_path, name):
    with publishing(tmp_path / name) as partial:
        connection = create_database(partial)
        connection.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        connection.close()
    assert os.listdir(tmp_path) == [name]
    reader = open_read_only(tmp_path / name)
    assert reader.execute("SELECT x FROM t").get == 1
    with pytest.raises(Exception, match="readonly"):
        reader.execute("INSERT INTO t VALUES (2)")
    reader.close()


@pytest.mark.parametrize(("io", "mapped"), [("mmap", True), ("read", False), ("auto", False)])
def test_mapping_is_the_callers_choice(tmp_path, io, mapped):
    sqlite3.connect(tmp_path / "x.db").execute("CREATE TABLE t (x)").connection.close()
    connection = open_read_only(tmp_path / "x.db", io=io)
    assert (connection.pragma("mmap_size") > 0) == mapped
    connection.close()


def publish_interrupted_at(line: int, path: Path) -> bool:
    """Raise KeyboardInterrupt at one of the lines that run before the block; return whether the block began."""
    lines, has_begun = 0, False

    def trace(frame, event, _):
        nonlocal lines
        if frame.f_code.co_filename != publish.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with publishing(path):
            sys.settrace(before)
            has_begun = True
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return has_begun


def test_ctrl_c_at_any_line_before_a_file_is_written_leaves_none(tmp_path):
    line = 1
    while not publish_interrupted_at(line, tmp_path / str(line) / "x"):
        assert not list((tmp_path / str(line)).glob("*")), line
        line += 1
    assert line > 20
