"""`verify` and `bench` take the file of a mixture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import worlds
from mixtures import write_sources
from test_mixture_file import contents

from sharded_eden import bench, verify
from sharded_eden.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sources(tmp_path)
    (tmp_path / "mixture.yaml").write_text(json.dumps(contents()))
    return tmp_path


def test_every_source_is_verified(folder):
    result = verify(folder / "source0" / "seqs", [folder / "mixture.yaml"])
    assert result.is_clean, result.findings
    assert (result.window_databases, result.windows) == (3, 31)
    assert result.windows_read == 31
    worlds.execute(worlds.sample_db(folder / "source1", "V"), "DELETE FROM sequences")
    result = verify(folder / "source0" / "seqs", [folder / "mixture.yaml"])
    assert not result.is_clean
    assert all("source1" in finding.file for finding in result.findings)


def test_sources_that_do_not_fit_together_are_found(folder):
    other = worlds.write(folder / "other", worlds.CONTIGS, window_size=32, stride=20)
    parts = contents()
    parts["sources"]["source 2"] |= {
        "window_db_path": str(other / "windows.db"), "sequence_db_dir": str(other / "seqs"),
    }  # fmt: skip
    (folder / "mixture.yaml").write_text(json.dumps(parts))
    result = verify(folder / "source0" / "seqs", [folder / "mixture.yaml"])
    assert [finding.check for finding in result.findings] == ["mixture"]


def test_a_warning_does_not_hide_that_sources_do_not_fit_together(folder):
    test_sources_that_do_not_fit_together_are_found(folder)
    (folder / "source0" / "windows.db.index").unlink()
    worlds.execute(folder / "source0" / "windows.db", "DROP INDEX idx_sequence_id")
    result = verify(folder / "source0" / "seqs", [folder / "mixture.yaml"])
    assert [(each.severity, each.check) for each in result.findings] == [("warning", "index"), ("error", "mixture")]


def test_sequence_databases_that_sources_share_count_once(folder):
    parts = contents()
    parts["sources"]["again"] = parts["sources"]["source 0"]
    parts["sources"]["and again"] = {**parts["sources"]["source 0"], "sequence_db_dir": "source0/../source0/seqs"}
    (folder / "mixture.yaml").write_text(json.dumps(contents()))
    once = verify(folder / "source0" / "seqs", [folder / "mixture.yaml"], full=True)
    (folder / "mixture.yaml").write_text(json.dumps(parts))
    shared = verify(folder / "source0" / "seqs", [folder / "mixture.yaml"], full=True)
    assert (shared.samples, shared.contigs, shared.bases) == (once.samples, once.contigs, once.bases)
    assert shared.windows == once.windows + 2 * 11


def test_a_mixture_is_verified_by_itself(folder):
    with pytest.raises(UsageError, match="its sources are not compared"):
        verify(folder / "source0" / "seqs", [folder / "mixture.yaml"], pairs=folder / "pairs.parquet")
    with pytest.raises(UsageError, match="a mixture is verified by itself"):
        verify(folder / "source0" / "seqs", [folder / "mixture.yaml", folder / "source0" / "windows.db"])


def test_a_mixture_is_measured(folder):
    result = bench(folder / "source0" / "seqs", folder / "mixture.yaml", seconds=0.05, max_workers=1, batch_size=4)
    assert result.windows == 31
    assert {loader.compact for loader in result.loaders} == {False}
    assert result.warm_windows_per_second > 0
