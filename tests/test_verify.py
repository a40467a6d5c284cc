"""`sharded-eden verify` finds each planted fault by the check that is meant for it, and says what mends it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from faults import (
    FAULTS,
    VAL,
    found,
    index_damaged,
    index_gap,
    leftover_wal,
    no_primary_key,
    recorded_length,
    recorded_length_of_other_windows,
    unfinished_wal,
    utf16,
    window_index_dropped,
    windows_swapped,
    without_rowid,
    write_windows,
)
from sharded_eden.observe.findings import CHECKS
from worlds import execute


@pytest.mark.parametrize(("plant", "check", "file", "quick"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_each_planted_fault_is_found(world, plant, check, file, quick):
    plant(world)
    full = world.verify(full=True)
    assert (check, file) in found(full)
    for finding in full.findings:
        assert finding.check in CHECKS
        assert finding.what
        assert finding.mend
    if quick:
        assert (check, file) in found(world.verify())


WITH_OTHERS = {
    unfinished_wal,
    index_damaged,
    index_gap,
    recorded_length,
    recorded_length_of_other_windows,
    windows_swapped,
}
"""These make several findings: a contig that is not as long as recorded is one for either file."""
ALONE = [fault for fault in FAULTS if fault[0] not in WITH_OTHERS]


@pytest.mark.parametrize(("plant", "check", "file", "quick"), ALONE, ids=[fault[0].__name__ for fault in ALONE])
def test_a_fault_makes_one_finding(world, plant, check, file, quick):
    plant(world)
    assert found(world.verify(full=True)) == {(check, file)}
    assert found(world.verify()) == ({(check, file)} if quick else set())


# ---- how to mend ----


@pytest.mark.parametrize(
    "plant", [utf16, without_rowid, no_primary_key, leftover_wal, unfinished_wal, window_index_dropped]
)
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="there is no sqlite3 to type these commands into")
def test_what_is_said_to_mend_it_does(world, plant):
    plant(world)
    result = world.verify(full=True)
    (mend,) = {finding.mend for finding in result.findings if finding.severity == "warning"}
    if "close that program, then: " in mend:
        mend = mend.removeprefix("close that program, then: ")
    subprocess.run(mend, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert world.verify(full=True).findings == []


def test_the_command_for_windows_has_their_geometry(world):
    write_windows(world.val, VAL, keep_tail=True, window_min_length_threshold=10, special_tokens=4)
    execute(world.val, "DELETE FROM window_mappings WHERE window_idx = 1")
    (finding,) = world.verify().findings
    assert finding.check == "gap"
    assert finding.mend == (
        f"sharded-eden precompute SPLIT.parquet {world.val} --window-size 64 --stride 50 --window-min-length-threshold 10 "
        "--keep-tail --special-tokens 4"
    )
