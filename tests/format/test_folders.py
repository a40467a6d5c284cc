"""Folders of sequence databases in which something cannot be read: an error, never a sample that is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import worlds

from sharded_eden.errors import DatabaseError
from sharded_eden.format.schema import discover_sample_databases

PROGRAM = """
import sys
from sharded_eden import cli
from sharded_eden.errors import DatabaseError
from sharded_eden.format.schema import discover_sample_databases
try:
    discover_sample_databases("seqs")
except DatabaseError as error:
    print(error)
for line in ("stats seqs", "show seqs windows.db 0", "verify seqs windows.db"):
    sys.stdout.flush()
    assert cli.main(line.split()) == 1, line
"""


def without_privileges(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder; root, who may read everything, gives that up."""
    program = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        without = "-dac_override,-dac_read_search"
        program = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}", *program]
        if subprocess.run([*program[:3], "true"], capture_output=True, check=False).returncode:
            pytest.skip("setpriv is not there, or may not drop capabilities")
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)


def test_a_sample_without_permission_is_an_error(tmp_path: Path) -> None:
    worlds.write(tmp_path)
    (tmp_path / "seqs" / "S1").chmod(0)
    try:
        ran = without_privileges(PROGRAM, tmp_path)
    finally:
        (tmp_path / "seqs" / "S1").chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    words = "seqs/S1/glm_dataset_S1.sqlite: cannot be read (Permission denied)"
    assert ran.stdout.startswith(words)
    assert ran.stderr.count(f"{words}\n") == 2
    assert f"{words}\n  fix: ls -la seqs" in ran.stdout


def test_folders_that_are_no_samples_are_left_out(tmp_path: Path) -> None:
    worlds.write(tmp_path)
    seqs = tmp_path / "seqs"
    (seqs / ("x" * 250)).mkdir()
    (seqs / "empty").mkdir()
    (seqs / "loop").mkdir()
    (seqs / "loop" / "glm_dataset_loop.sqlite").symlink_to("glm_dataset_loop.sqlite")
    (seqs / "around").symlink_to("around")
    (seqs / "file").symlink_to(tmp_path / "windows.db")
    (seqs / "elsewhere").symlink_to(tmp_path / "nothing")
    (seqs / "dangling").mkdir()
    (seqs / "dangling" / "glm_dataset_dangling.sqlite").symlink_to("nowhere")
    assert list(discover_sample_databases(seqs)) == ["S0", "S1", "S2.X"]


@pytest.mark.parametrize("name", ["nowhere", "a/b", "x" * 5000, "windows.db", "around"])
def test_a_missing_folder_is_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "windows.db").touch()
    (tmp_path / "around").symlink_to("around")
    with pytest.raises(DatabaseError, match="no such folder"):
        discover_sample_databases(tmp_path / name)


@pytest.mark.parametrize("closed", ["seqs", "other"])
def test_a_folder_without_permission_is_an_error(tmp_path: Path, closed: str) -> None:
    worlds.write(tmp_path)
    (tmp_path / "other/below").mkdir(parents=True)
    (tmp_path / "seqs/S7").symlink_to(tmp_path / "other/below")
    (tmp_path / closed).chmod(0)
    try:
        ran = without_privileges(PROGRAM.partition("for line")[0], tmp_path)
    finally:
        (tmp_path / closed).chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    at = "seqs" if closed == "seqs" else "seqs/S7/glm_dataset_S7.sqlite"
    assert ran.stdout == f"{at}: cannot be read (Permission denied)\n"
