"""`sharded-eden verify` finds each planted fault by the documented check, and names the fix."""

from __future__ import annotations

import shlex
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
from worlds import execute, query

from sharded_eden import cli, pack_window_database
from sharded_eden.checks.findings import CHECKS


@pytest.mark.parametrize(("plant", "check", "file", "quick"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_each_planted_fault_is_found(world, plant, check, file, quick):
    plant(world)
    full = world.verify(full=True)
    assert (check, file) in found(full)
    for finding in full.findings:
        assert finding.check in CHECKS
        assert finding.what
        assert finding.fix
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
"""Faults with several findings: a contig that is not as long as recorded is a finding for both files."""
ALONE = [fault for fault in FAULTS if fault[0] not in WITH_OTHERS]


@pytest.mark.parametrize(("plant", "check", "file", "quick"), ALONE, ids=[fault[0].__name__ for fault in ALONE])
def test_a_fault_makes_one_finding(world, plant, check, file, quick):
    plant(world)
    assert found(world.verify(full=True)) == {(check, file)}
    assert found(world.verify()) == ({(check, file)} if quick else set())


# ---- how to fix ----


@pytest.mark.parametrize(
    "plant", [utf16, without_rowid, no_primary_key, leftover_wal, unfinished_wal, window_index_dropped]
)
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="there is no sqlite3 to type these commands into")
def test_the_proposed_command_fixes_it(world, plant):
    plant(world)
    result = world.verify(full=True)
    (fix,) = {finding.fix for finding in result.findings if finding.severity == "warning"}
    if "close that program, then: " in fix:
        fix = fix.removeprefix("close that program, then: ")
    subprocess.run(fix, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert world.verify(full=True).findings == []


@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize("has_lengths", [True, False])
def test_packing_again_fixes_packs(world, monkeypatch, seed, has_lengths):
    monkeypatch.setattr("sharded_eden.checks.packs.PACKS_AT_ONCE", 3)
    monkeypatch.setattr("sharded_eden.checks.packs.WINDOWS_AT_ONCE", 5)
    pack_window_database(world.train, seed=seed, overwrite=True)
    if not has_lengths:
        execute(world.train, "DROP TABLE contig_lengths", "DELETE FROM metadata WHERE key = 'fingerprint'")
    assert world.verify(full=True).findings == []
    ((first, other),) = query(
        world.train,
        "SELECT a.windows, b.windows FROM packs AS a JOIN packs AS b WHERE a.pack_idx = 1 AND b.pack_idx = 9",
    )
    execute(world.train, ("UPDATE packs SET windows = ? WHERE pack_idx = 1", (first + other,)))
    findings = world.verify(full=True).findings
    window = int.from_bytes(other[:8], "little")
    assert [finding.what for finding in findings] == [
        "1 packs hold more than the 64 tokens of a row: pack 1 needs 128",
        f"1 windows are in more than one pack, or in one twice: window {window}",
    ]
    (fix,) = {finding.fix for finding in findings}
    assert ("--seed 7" in fix, "--sequences" in fix) == (seed == 7, not has_lengths)
    assert cli.main(shlex.split(fix)[1:]) == 0
    assert world.verify(full=True).findings == []


def test_findings_about_packs(world):
    total = dict(query(world.train, "SELECT key, value FROM metadata"))["total_packs"]
    last_two = query(world.train, f"SELECT windows FROM packs WHERE pack_idx >= {total - 2}")
    lost = sorted(int.from_bytes(blob[i : i + 8], "little") for (blob,) in last_two for i in range(0, len(blob), 8))
    execute(world.train, f"DELETE FROM packs WHERE pack_idx >= {total - 2}")
    assert [finding.what for finding in world.verify().findings] == [
        f"metadata total_packs={total}, but the table packs holds packs 0 to {total - 3}"
    ]
    execute(world.train, f"UPDATE metadata SET value = {total - 2} WHERE key = 'total_packs'")
    assert [finding.what for finding in world.verify(full=True).findings] == [
        f"{len(lost)} windows are in no pack: {'; '.join(f'window {w}' for w in lost)}"
    ]


@pytest.mark.parametrize(("seed", "options"), [(42, "--pack"), (7, "--pack --pack-seed 7")])
def test_the_command_for_windows_keeps_their_packs(world, seed, options):
    pack_window_database(world.train, seed=seed, overwrite=True)
    execute(world.train, "UPDATE metadata SET value = value + 1 WHERE key = 'total_windows'")
    assert {finding.fix for finding in world.verify().findings} == {
        f"sharded-eden precompute SPLIT.parquet {world.train} --window-size 64 --stride 50 {options} --force"
    }


def test_the_command_for_windows_has_their_geometry(world):
    write_windows(world.val, VAL, keep_tail=True, window_min_length_threshold=10, special_tokens=4)
    execute(world.val, "DELETE FROM window_mappings WHERE window_idx = 1")
    (finding,) = world.verify().findings
    assert finding.check == "gap"
    assert finding.fix == (
        f"sharded-eden precompute SPLIT.parquet {world.val} --window-size 64 --stride 50 --window-min-length-threshold 10 "
        "--keep-tail --special-tokens 4 --force"
    )
