"""The worked examples of docs/contributing.md: each diff applies to the code, and the changed code works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "contributing.md").read_text()

USE = {
    "Add an input format": """
        import gzip
        from sharded_eden import build_sequence_dbs
        open("reads.fq", "w").write("@r1 first\\nACGT\\n+\\nIIII\\n@r2\\nGG\\n+r2\\nII\\n")
        assert build_sequence_dbs(["reads.fq"], "databases").bases == 6
        gzip.open("bad.fastq.gz", "wb").write(b"@r1\\nACGT\\n+\\nIII\\n")
        try:
            build_sequence_dbs(["bad.fastq.gz"], "other")
        except ValueError as error:
            assert "record 1: is not a FASTQ record" in str(error), error
        else:
            raise AssertionError("a record with another number of qualities was accepted")
    """,
    "Add a check of `verify`": """
        import sqlite3
        from sharded_eden import create_sample_database, verify
        create_sample_database("S", [("A__B-S__1", "ACGT")], "databases")
        connection = sqlite3.connect("databases/S/glm_dataset_S.sqlite")
        assert "only-n" not in {finding.check for finding in verify("databases", full=True).findings}
        connection.execute("INSERT INTO sequences VALUES ('A__B-S__2', 'NNnn'), ('A__B-S__3', '')")
        connection.commit()
        connection.close()
        (finding,) = [found for found in verify("databases", full=True).findings if found.check == "only-n"]
        assert finding.what.endswith("the letter N: 1"), finding
    """,
    "Add an option of an example": """
        import polars
        from sharded_eden import ShardedEdenDataset, create_sample_database, precompute_window_database
        create_sample_database("S", [("A__B-S__1", "ACGT" * 50)], "databases")
        polars.DataFrame({"contig_id": ["A__B-S__1"], "length": [200]}).write_parquet("split.parquet")
        precompute_window_database("split.parquet", "windows.db", window_size=64, stride=61)
        assert len(ShardedEdenDataset.open("databases", "windows.db", min_windows=3)) == 3
        try:
            ShardedEdenDataset.open("databases", "windows.db", min_windows=4)
        except ValueError as error:
            assert "has 3 rows, but min_windows=4" in str(error), error
        else:
            raise AssertionError("a split with too few windows was opened")
    """,
    "Add a trainer": """
        import torch
        from sharded_eden.train.keras import to_keras
        tokens, mask = torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4)
        assert to_keras({"tokens": tokens, "labels": tokens, "loss_mask": mask})[2] is mask
    """,
}


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs the program patch")
@pytest.mark.parametrize("title", USE)
def test_worked_example_applies_and_works(title, tmp_path):
    section = GUIDE[GUIDE.index(f"\n## {title}\n") :]
    (diff,) = re.findall(r"```diff\n(.*?)```", section[: (section + "\n## ").index("\n## ", 4)], flags=re.DOTALL)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["patch", "-p1", "--no-backup-if-mismatch"]
    done = subprocess.run(command, input=diff, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    patched = re.findall(r"^\+\+\+ b/(\S+)$", diff, flags=re.MULTILINE)
    for action in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *action, "--no-cache", "--config", ROOT / "pyproject.toml", *patched]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    code = "\n".join(line[8:] for line in USE[title].splitlines())
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_diff_is_tested():
    assert GUIDE.count("```diff") == len(USE)
