"""`stats` and `report` on 21 real genomes, against `seqkit`, `assembly-stats` and plain Python, to the last digit."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sharded_eden
from sharded_eden import cli

GENOMES = Path(sharded_eden.__file__).resolve().parents[2] / "demo" / "genomes"
TOOLS = ("seqkit", "assembly-stats")
LETTERS = ("A", "C", "G", "T", "U", "N", "RYSWKMBDHV", "acgtunryswkmbdhv")
"""The letters that are counted together, in upper case, and all of lower case."""

pytestmark = pytest.mark.slow


def apt(*arguments: str, folder: Path) -> None:
    subprocess.run(["apt-get", "-qq", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def genomes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The genomes of the Debian package `ragout-examples`, phage lambda, and one of them with soft-masked runs."""
    folder = tmp_path_factory.mktemp("genomes")
    if not shutil.which("apt-get") or os.geteuid() != 0:
        pytest.skip("needs apt-get as root, for seqkit, assembly-stats and the genomes")
    apt("update", folder=folder)
    apt("install", "-y", "--no-install-recommends", *TOOLS, folder=folder)
    apt("download", "ragout-examples", folder=folder)
    subprocess.run(["dpkg", "-x", *map(str, folder.glob("ragout*.deb")), "package"], cwd=folder, check=True)
    (folder / "fasta").mkdir()
    sources = [*folder.glob("package/**/*.fasta.gz"), GENOMES / "phage_lambda_NC_001416.fa.gz"]
    for source in sources:
        name = re.sub(r"[^A-Za-z0-9]", "", source.name.split(".")[0])
        (folder / "fasta" / f"{name}.fa").write_bytes(gzip.decompress(source.read_bytes()))
    text = (folder / "fasta" / "O1biovar.fa").read_text()  # has letters for several bases
    masked = re.sub(
        r"^[^>].*", lambda line: re.sub(r"A{3,}|C{3,}|N+|Y", lambda run: run[0].lower(), line[0]), text, flags=re.M
    )
    (folder / "fasta" / "masked.fa").write_text(masked)
    files = sorted((folder / "fasta").iterdir())
    assert len(files) == 22
    return files


def table(*command: object) -> list[list[str]]:
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def rows_by_name(*command: object) -> dict[str, dict[str, str]]:
    """Return {file: {column: value}} of a table with a head and the file in the first column."""
    head, *rows = table(*command)
    return {Path(row[0]).stem: dict(zip(head, row, strict=True)) for row in rows}


@pytest.fixture(scope="module")
def found(genomes: list[Path]) -> dict[str, dict]:
    """What `stats --json` says of each sample, and of all as `""`."""
    folder = genomes[0].parent.parent
    sharded_eden.build_sequence_dbs(genomes, folder / "seqdb")
    command = [sys.executable, "-m", "sharded_eden", "stats", folder / "seqdb", "--by", "sample", "--json"]
    done = subprocess.run(command, check=True, capture_output=True)
    (part,) = json.loads(done.stdout)["parts"]
    return {"": part, **part["groups"]}


def test_seqkit_says_the_same(genomes: list[Path], found: dict[str, dict]) -> None:
    rows = rows_by_name("seqkit", "stats", "--all", "--tabular", *genomes)
    assert rows.keys() == found.keys() - {""}
    for name, row in rows.items():
        ours = found[name]
        letters = ours["composition"]
        assert row["num_seqs"] == str(ours["contigs"])
        assert row["sum_len"] == str(ours["bases"])
        assert row["min_len"] == str(ours["shortest"])
        assert row["max_len"] == str(ours["longest"])
        assert row["avg_len"] == f"{ours['mean']:.1f}"
        assert row["N50"] == str(ours["n50"])
        # seqkit divides by all letters, stats by A, C, G and T.
        assert row["GC(%)"] == f"{100 * (letters['g'] + letters['c']) / ours['bases']:.2f}"
    assert found[""]["bases"] == sum(int(row["sum_len"]) for row in rows.values())


def test_assembly_stats_says_the_same(genomes: list[Path], found: dict[str, dict]) -> None:
    rows = rows_by_name("assembly-stats", "-t", *genomes)
    assert rows.keys() == found.keys() - {""}
    for name, row in rows.items():
        ours = found[name]
        assert row["number"] == str(ours["contigs"])
        assert row["total_length"] == str(ours["bases"])
        assert row["shortest"] == str(ours["shortest"])
        assert row["longest"] == str(ours["longest"])
        assert row["mean_length"] == f"{ours['mean']:.2f}"
        assert (row["N50"], row["N50n"]) == (str(ours["n50"]), str(ours["l50"]))
        assert row["N_count"] == str(ours["composition"]["n"])


def test_every_letter_is_counted_as_seqkit_and_python_count_it(genomes: list[Path], found: dict[str, dict]) -> None:
    columns = [option for letters in LETTERS for option in ("--base-count", letters)]
    for path in genomes:
        upper = table("seqkit", "fx2tab", "--name", *columns[:-2], path)
        lower = table("seqkit", "fx2tab", "--name", "--case-sensitive", *columns[-2:], path)
        counts = [sum(int(row[1 + k]) for row in upper) for k in range(len(LETTERS) - 1)]
        counts.append(sum(int(row[1]) for row in lower))
        bases = "".join(line for line in path.read_text().splitlines() if not line.startswith(">"))
        assert counts[:-1] == [sum(map(bases.upper().count, letters)) for letters in LETTERS[:-1]]
        assert counts[-1] == sum(map(bases.count, LETTERS[-1]))
        ours = found[path.stem]["composition"]
        keys = ("a", "c", "g", "t", "u", "n", "other_ambiguous", "soft_masked")
        assert [ours[key] for key in keys] == counts
        assert ours["soft_masked_share"] == counts[-1] / len(bases)
        assert ours["ambiguous_share"] == sum(counts[4:7]) / len(bases)
        assert ours["gc_share"] == (counts[1] + counts[2]) / sum(counts[:4])
    masked = found["masked"]["composition"]
    assert masked["soft_masked"] > 100_000
    assert masked["other_ambiguous"] > 30
    assert found["O1Inaba"]["composition"]["n"] == 2102


def test_the_report_says_the_same(genomes: list[Path], found: dict[str, dict], tmp_path: Path) -> None:
    assert cli.main(["report", str(tmp_path / "report.html"), str(genomes[0].parent.parent / "seqdb")]) == 0
    text = (tmp_path / "report.html").read_text()
    joined = tmp_path / "all.fa"
    joined.write_bytes(b"".join(path.read_bytes().rstrip() + b"\n" for path in genomes))
    ((_, row),) = rows_by_name("assembly-stats", "-t", joined).items()
    numbers = {key: int(row[key]) for key in ("number", "total_length", "N50", "shortest", "longest")}
    assert f"{len(genomes)} samples, {numbers['number']:,} contigs, {numbers['total_length']:,} bases" in text
    assert f"N50 {numbers['N50']:,}, from {numbers['shortest']:,} to {numbers['longest']:,} bases" in text
    counts = table("seqkit", "fx2tab", "--name", "--base-count", "GC", "--base-count", "ACGT", joined)
    gc, certain = (sum(int(line[k]) for line in counts) for k in (1, 2))
    assert f"GC is {gc / certain:.1%}." in text
