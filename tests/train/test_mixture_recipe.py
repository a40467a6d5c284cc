"""The recipe of examples/evo2_miniature.toml on real genomes: killed in each of its stages, it resumes exactly."""

from __future__ import annotations

import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from mixture_job import GLOBAL, MICRO, tomllib
from resume import row_hashes

from sharded_eden import build_sequence_dbs, precompute_window_database
from sharded_eden.load.encode.tokenizer import NucleotideTokenizer
from sharded_eden.train.mixture_file import mixture_config
from sharded_eden.windows.index import index_window_database

if not (ROOT := Path(__file__).resolve().parent.parent.parent).joinpath("demo").is_dir():
    pytest.skip("only in a checkout", allow_module_level=True)

pytestmark = pytest.mark.slow

JOB = ROOT / "tests" / "helpers" / "mixture_job.py"
KILLED_AT = {"short": 13, "long": 6}
GENOMES = {
    "ecoli": ("escherichia_coli_K12_MG1655.fa.xz", "Escherichia"),
    "vibrio": ("vibrio_cholerae_H1_draft.fa.xz", "Vibrio"),
    "staphylococcus": ("staphylococcus_aureus_USA300_draft.fa.xz", "Staphylococcus"),
    "helicobacter": ("helicobacter_pylori_SJM180_draft.fa.xz", "Helicobacter"),
}
LINES = 1500
"""Of each genome: enough for one pass and more."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The file of the recipe beside its sources, prepared as it says; every third line of a genome is lower case."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copy(ROOT / "examples" / "evo2_miniature.toml", folder / "recipe.toml")
    for name, (file, tag) in {**GENOMES, "phage": ("phage_lambda_NC_001416.fa.gz", "Phage")}.items():
        fasta = ROOT / "demo" / "genomes" / file
        if file.endswith(".xz"):
            with lzma.open(fasta, "rt") as text:
                lines = list(islice(filter(str.strip, text), LINES))
            while lines[-1].startswith(">"):  # its sequence was cut off
                lines.pop()
            fasta = folder / f"{name}.fa"
            masked = [x if k % 3 or x.startswith(">") else x.lower() for k, x in enumerate(lines)]
            fasta.write_text("".join(masked))
        build_sequence_dbs([fasta], folder / name / "sequences", tag=tag)
        windows = folder / name / "windows.db"
        precompute_window_database(
            folder / name / "sequences" / "contigs.parquet",
            windows,
            1024,
            998,
            keep_tail=True,
            pack=True,
            special_tokens=26,
        )
        index_window_database(folder / name / "sequences", windows)
    return folder / "recipe.toml"


def start(recipe: Path, folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(JOB), str(recipe), str(folder)]
    return subprocess.Popen(
        command, cwd=recipe.parent, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )


def lines_of(folder: Path) -> list[list[str]]:
    rows = folder / "rows.txt"
    text = rows.read_text() if rows.exists() else ""
    return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]


def test_the_recipe_is_killed_in_each_stage_and_resumes_exactly(recipe, tmp_path, monkeypatch):
    for stage, step in KILLED_AT.items():
        process = start(recipe, tmp_path)
        try:
            until = time.monotonic() + 120
            while not any(int(line[0]) == step for line in lines_of(tmp_path / stage)):
                assert process.poll() is None, "the job ended by itself"
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with (tmp_path / stage / "rows.txt").open("a") as file:  # what was being written does not count
            file.write("\n")
    assert start(recipe, tmp_path).wait(timeout=240) == 0

    monkeypatch.chdir(recipe.parent)
    config = tomllib.loads(recipe.read_text())
    losses = {}
    for name, length in (("short", 1024), ("long", 4096)):
        stage = config["stages"][name]
        options = {"seed": 42, **config["options"], **stage["options"]}
        stream = mixture_config(stage["mixture"]).open(tokenizer=NucleotideTokenizer(), sequence_db_dir=None, **options)
        batch = stream.dataset.expander()(stream.collate_fn(stream.__getitems__(range(stage["steps"] * GLOBAL))))
        assert batch["tokens"].shape[1] == length
        told = [line for line in lines_of(tmp_path / name) if len(line) == 2 + MICRO]
        check_rows(told, row_hashes(batch["tokens"]), stage["steps"])
        check_batch(batch)
        losses[name] = [float(line[1]) for line in told]
        if name == "short":
            phases = [
                Counter(stream.names[item[0]] for item in stream.windows_at(part))
                for part in (range(64), range(64, stage["steps"] * GLOBAL))
            ]
            assert "helicobacter" not in phases[0]
            assert phases[1]["helicobacter"] > 25
    assert sum(losses["short"][-10:]) < sum(losses["short"][:10])
    weights = [torch.load(tmp_path / name / "trained.ckpt", weights_only=True)["global_step"] for name in losses]
    assert weights == [config["stages"][name]["steps"] for name in losses]
    assert losses["long"][0] < losses["short"][0] - 1, "the second stage began with the weights of the first"


def check_rows(told: list[list[str]], expected: list[str], steps: int) -> None:
    """Compare the rows of each step, in all attempts, with those of the stream."""
    seen: dict[int, list[str]] = {}
    for step, group in ((int(line[0]), line[2:]) for line in told):
        seen.setdefault(step, []).extend(group)
    assert sorted(seen) == list(range(steps))
    for step, rows in seen.items():  # a step after a checkpoint may have been trained twice
        own = expected[step * GLOBAL : (step + 1) * GLOBAL]
        assert set(rows) == set(own)
        assert rows[-GLOBAL:] == own
    assert len(told) > GLOBAL // MICRO * steps, "steps after the last checkpoint were repeated"


def check_batch(batch: dict[str, torch.Tensor]) -> None:
    """Check that rows have weights of repeats, tags and several windows."""
    weights = set(batch["loss_mask"].unique().tolist())
    assert {0.0, 1.0} < weights
    assert any(abs(weight - 0.1) < 1e-6 for weight in weights)
    tags = {bytes(row[1:13].tolist()) for row in batch["tokens"]}
    assert any(b"<ctrl_escher" in tag for tag in tags)
    assert batch["cu_seqlens"].shape[1] > 2, "rows hold several windows"
