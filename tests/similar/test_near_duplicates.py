"""`verify --near-duplicates` and `split --group-similar` on planted pairs, over real databases and the real sketch library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import oracle
from sharded_eden import cli, precompute_window_database, verify, write_splits
from sharded_eden.errors import MissingExtra, UsageError, WriteError
from sharded_eden.similar import pairs, sketch

RNG = np.random.default_rng(7)
LETTERS = np.frombuffer(b"ACGT", dtype=np.uint8)
COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


def random_contig(bases: int) -> str:
    return LETTERS[RNG.integers(0, 4, bases)].tobytes().decode()


def mutated(sequence: str, identity: float) -> str:
    letters = np.frombuffer(sequence.encode(), dtype=np.uint8).copy()
    changed = np.flatnonzero(RNG.random(len(letters)) >= identity)
    codes = np.searchsorted(LETTERS, letters[changed])
    letters[changed] = LETTERS[(codes + RNG.integers(1, 4, len(changed))) % 4]
    return letters.tobytes().decode()


def other_strand(sequence: str) -> str:
    return sequence.encode().translate(COMPLEMENT)[::-1].decode()


def name(sample: str, number: int) -> str:
    return f"BCR__ECT-{sample}__CT1-{number}"


PLANTED = {
    "copy": lambda s: mutated(s, 0.95),
    "other strand": lambda s: other_strand(mutated(s, 0.95)),
    "first half": lambda s: mutated(s, 0.95)[: len(s) // 2],
    "second half of the other strand": lambda s: other_strand(mutated(s, 0.95))[len(s) // 2 :],
    "lower case": lambda s: mutated(s, 0.95).lower(),
    "RNA": lambda s: mutated(s, 0.95).replace("T", "U"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Samples A and B: contig i of B is planted from contig i of A for the first six, the others are unrelated."""
    folder = tmp_path_factory.mktemp("similar")
    contigs = {name("A", i): random_contig(2500) for i in range(9)}
    contigs |= {name("B", i): plant(contigs[name("A", i)]) for i, plant in enumerate(PLANTED.values())}
    contigs |= {name("B", i): random_contig(2500) for i in range(6, 9)}
    contigs |= {
        name("C", 0): random_contig(9000),
        name("C", 1): contigs[name("A", 8)][:900],
    }  # below 1 kb: not compared
    oracle.write_sequence_dbs(folder / "seqdb", contigs)
    for sample in "ABC":
        ids = [each for each in contigs if oracle.sample_of(each) == sample]
        table = pl.DataFrame({"contig_id": ids, "length": [len(contigs[each]) for each in ids]})
        table.write_parquet(folder / f"{sample}.parquet")
        precompute_window_database(folder / f"{sample}.parquet", folder / f"{sample}.db", window_size=512, stride=500)
    return folder


def test_planted_pairs_are_reported_and_nothing_else(world, tmp_path):
    found = verify(
        world / "seqdb",
        [world / "A.db", world / "B.db", world / "C.db"],
        near_duplicates=True,
        pairs=tmp_path / "pairs.parquet",
    )
    assert (found.near_duplicates, found.not_compared) == (len(PLANTED), 1)
    (finding,) = found.findings
    assert (finding.check, finding.severity, finding.file) == ("near-duplicate", "warning", str(world / "B.db"))
    assert f"6 of its contigs resemble 6 contigs of {world / 'A.db'}" in finding.what
    assert "--group-similar" in finding.fix
    table = pl.read_parquet(tmp_path / "pairs.parquet")
    assert {(row["one"], row["other"]) for row in table.to_dicts()} == {(name("A", i), name("B", i)) for i in range(6)}
    assert set(table["split_of_one"]) == {str(world / "A.db")}
    assert set(table["split_of_other"]) == {str(world / "B.db")}
    assert table["containment"].is_between(0.2, 0.55).all(), "0.95^21 is 0.34"
    assert table["identity"].is_between(0.92, 0.98).all()


def test_without_the_option_nothing_is_compared(world):
    found = verify(world / "seqdb", [world / "A.db", world / "B.db"])
    assert (found.findings, found.near_duplicates) == ([], None)


def test_containment_equals_that_of_the_library(world):
    from sourmash import MinHash

    one, other = random_contig(70_000), ""
    other = mutated(one[10_000:], 0.97) + random_contig(200_000)
    theirs = []
    for sequence in (one, other):
        theirs.append(MinHash(n=0, ksize=sketch.K, scaled=sketch.SCALED))
        theirs[-1].add_sequence(sequence)
        assert sketch.hashes_of(sequence).tolist() == sorted(theirs[-1].hashes), "sketched in pieces, and at once"
        assert sketch.hashes_of(other_strand(sequence)).tolist() == sorted(theirs[-1].hashes)
    oracle.write_sequence_dbs(world / "two", {name("A", 0): one, name("B", 0): other})
    databases = {sample: world / "two" / sample / f"glm_dataset_{sample}.sqlite" for sample in "AB"}
    scratch = world / "scratch"
    scratch.mkdir()
    found = pairs.similar_contigs(databases, scratch, threshold=0.1)
    assert found.pairs["containment"].to_list() == [theirs[0].contained_by(theirs[1])]
    assert found.pairs["shared"].to_list() == [theirs[0].count_common(theirs[1])]


def test_pairs_do_not_depend_on_how_many_hashes_are_handled_at_once(world, monkeypatch, tmp_path):
    databases = {sample: world / "seqdb" / sample / f"glm_dataset_{sample}.sqlite" for sample in "ABC"}
    found = []
    for number, (hashes, counts) in enumerate([(1 << 23, 1 << 24), (50, 20)]):
        monkeypatch.setattr(pairs, "HASHES_AT_ONCE", hashes)
        monkeypatch.setattr(pairs, "MOST_COUNTS", counts)
        (tmp_path / str(number)).mkdir()
        found.append(pairs.similar_contigs(databases, tmp_path / str(number), threshold=0.1).named().rows())
    assert len(found[0]) == len(PLANTED)
    assert found[0] == found[1]


def test_more_copies_than_neighbours_stay_one_group(tmp_path):
    """A hash that 200 contigs hold is counted only for neighbours, and yet all of them are connected."""
    original = random_contig(1500)
    contigs = {name(f"S{i:03d}", 0): mutated(original, 0.97) for i in range(200)}
    contigs |= {name(f"T{i:03d}", 0): random_contig(1500) for i in range(300)}
    oracle.write_sequence_dbs(tmp_path / "seqdb", contigs)
    result = write_splits(tmp_path / "seqdb", tmp_path / "splits", val=0.1, test=0.1, group_similar=True)
    assert (result.similar.groups, result.similar.largest, result.similar.largest_share) == (1, 200, 0.4)
    homes = [
        split
        for split, part in result.parts.items()
        if any("-S" in each for each in pl.read_parquet(part.path)["contig_id"])
    ]
    assert len(homes) == 1


@pytest.mark.parametrize("by", ["sample", "contig"])
def test_splits_that_keep_groups_have_no_near_duplicates(tmp_path, by, capsys):
    contigs = {}
    for i in range(40):
        contigs[name(f"S{i}", 0)] = random_contig(2000)
        contigs[name(f"S{i}", 1)] = random_contig(1200)
        if i % 4 == 1:
            contigs[name(f"S{i}", 1)] = other_strand(mutated(contigs[name(f"S{i - 1}", 0)], 0.95))[400:1800]
    oracle.write_sequence_dbs(tmp_path / "seqdb", contigs)
    for grouped in (False, True):
        out = tmp_path / f"{grouped}"
        options = ["--by", by, "--val", "0.2", "--test", "0.2"] + ["--group-similar"] * grouped
        assert cli.main(["split", str(tmp_path / "seqdb"), "--out", str(out), *options]) == 0
        dbs = [out / f"{split}_windows.db" for split in ("train", "val", "test")]
        for split, db in zip(("train", "val", "test"), dbs, strict=True):
            precompute_window_database(out / f"{split}_split.parquet", db, window_size=512, stride=500)
        capsys.readouterr()
        status = cli.main(
            ["verify", str(tmp_path / "seqdb"), *map(str, dbs), "--by", by, "--near-duplicates", "--json"]
        )
        found = json.loads(capsys.readouterr().out)
        assert (status, found["near_duplicates"] > 0) == ((0, False) if grouped else (1, True))
        everything = pl.concat([pl.read_parquet(out / f"{split}_split.parquet") for split in ("train", "val", "test")])
        assert sorted(everything["contig_id"]) == sorted(contigs), "each contig is in one split"


def test_a_split_that_is_extended_keeps_groups(tmp_path):
    contigs = {name(f"S{i}", 0): random_contig(2000) for i in range(10)}
    oracle.write_sequence_dbs(tmp_path / "seqdb", contigs)
    first = write_splits(tmp_path / "seqdb", tmp_path / "out", val=0.2, test=0.2, group_similar=True)
    in_val = pl.read_parquet(first.parts["val"].path)["contig_id"][0]
    oracle.write_sequence_dbs(tmp_path / "seqdb", {name("NEW", 0): mutated(contigs[in_val], 0.96)})
    second = write_splits(tmp_path / "seqdb", tmp_path / "out", val=0.2, test=0.2, group_similar=True)
    assert name("NEW", 0) in pl.read_parquet(second.parts["val"].path)["contig_id"].to_list()
    both = {name("BRIDGE", 0): contigs[in_val] + contigs[pl.read_parquet(first.parts["train"].path)["contig_id"][0]]}
    oracle.write_sequence_dbs(tmp_path / "seqdb", both)
    with pytest.raises(UsageError, match="already, but they are in one group of similar sequences"):
        write_splits(tmp_path / "seqdb", tmp_path / "out", val=0.2, test=0.2, group_similar=True)


def test_lists_are_never_extended_silently(tmp_path):
    contigs = {name(f"S{i}", 0): random_contig(2000) for i in range(6)}
    contigs[name("S1", 0)] = mutated(contigs[name("S0", 0)], 0.97)
    oracle.write_sequence_dbs(tmp_path / "seqdb", contigs)
    listed = tmp_path / "val.txt"
    listed.write_text("S0\n")
    with pytest.raises(UsageError, match=r"'S1' resembles 'S0', which is named in --val-samples"):
        write_splits(tmp_path / "seqdb", tmp_path / "out", val_samples=listed, test=0, group_similar=True)
    listed.write_text("S0\nS1\n")
    result = write_splits(tmp_path / "seqdb", tmp_path / "out", val_samples=listed, test=0, group_similar=True)
    assert result.parts["val"].samples == 2


def test_a_group_that_is_too_large_is_an_error_that_names_its_size(world, capsys, tmp_path):
    arguments = [
        "split",
        str(world / "seqdb"),
        "--out",
        str(tmp_path),
        "--group-similar",
        "--val",
        "0.2",
        "--test",
        "0",
    ]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "2 samples, 'A' among them, resemble each other and would fill one split: " in said
    assert "and --largest-group allows 50%" in said
    assert not list(tmp_path.iterdir())
    assert cli.main([*arguments, "--largest-group", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "1 groups of similar samples (6 pairs of contigs); the largest has 2 samples" in out
    assert "1 contigs were not compared" in out


@pytest.mark.parametrize("threshold", ["0", "1.5", "nan"])
def test_thresholds_outside_the_range_are_refused(world, threshold, capsys, tmp_path):
    verifying = ["verify", str(world / "seqdb"), str(world / "A.db"), str(world / "B.db"), "--near-duplicates"]
    assert cli.main([*verifying, "--threshold", threshold]) == 2
    splitting = ["split", str(world / "seqdb"), "--out", str(tmp_path), "--group-similar"]
    assert cli.main([*splitting, "--threshold", threshold]) == 2
    assert "must be above 0 and at most 1" in capsys.readouterr().err


def test_invalid_requests(world, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="name the window databases of 2 to 62 splits, not of 1"):
        verify(world / "seqdb", [world / "A.db"], near_duplicates=True)
    with pytest.raises(UsageError, match="--pairs needs --near-duplicates"):
        verify(world / "seqdb", [world / "A.db"], pairs=tmp_path / "pairs.parquet")
    with pytest.raises(UsageError, match="--largest-group 0 is invalid"):
        write_splits(world / "seqdb", tmp_path, group_similar=True, largest_group=0)
    monkeypatch.setitem(__import__("sys").modules, "sourmash", None)
    with pytest.raises(MissingExtra, match=r"pip install '.\[similar\]'"):
        verify(world / "seqdb", [world / "A.db", world / "B.db"], near_duplicates=True)
    with pytest.raises(MissingExtra, match=r"pip install '.\[similar\]'"):
        write_splits(world / "seqdb", tmp_path, group_similar=True)


LIMITED = """
import resource, sys
from sharded_eden import cli
for limit in (100, 8_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, 8_000))
    assert cli.main(sys.argv[1:]) == 1
"""


def test_temporary_files_that_cannot_be_written_are_named(world, tmp_path):
    (tmp_path / "file").touch()
    options = {"group_similar": True, "largest_group": 1}
    with pytest.raises(WriteError, match=r"file/new: cannot be written \(Not a directory\)\. .* --scratch DIR"):
        write_splits(world / "seqdb", tmp_path / "out", scratch=tmp_path / "file/new", **options)
    with pytest.raises(UsageError, match=r"--scratch: 's3://x/y' is a URL"):
        write_splits(world / "seqdb", tmp_path / "out", scratch="s3://x/y", **options)
    splitting = ["split", str(world / "seqdb"), "--out", str(tmp_path / "out"), "--group-similar"]
    splitting += ["--largest-group", "1", "--val", "0.4", "--test", "0", "--scratch", str(tmp_path / "a/b")]
    done = subprocess.run([sys.executable, "-c", LIMITED, *splitting], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, table in zip(done.stderr.splitlines(), ("contigs", "hashes"), strict=True):
        message = (
            rf"{tmp_path}/a/b/.*{table}\.parquet: cannot be written \(.*File too large .*another folder: --scratch DIR"
        )
        assert re.search(message, line)
    assert not list((tmp_path / "a/b").iterdir())
