"""`stats` against independent readers: dnaio and Biopython for letters and lengths, sets of positions for what windows show."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import dnaio
import numpy as np
import polars as pl
import pytest
import worlds
from Bio.SeqUtils import gc_fraction
from faults import write_windows, write_world
from hypothesis import given
from hypothesis import strategies as st

import oracle
import sharded_eden
from sharded_eden import DatabaseError, InputError, UsageError, cli
from sharded_eden.describe import sample as sample_module
from sharded_eden.describe.lengths import LengthDistribution
from sharded_eden.describe.letters import StrangeLetter, count_letters
from sharded_eden.describe.stats import stats
from sharded_eden.describe.windows import REASONS, WindowCounts
from sharded_eden.format.geometry import WindowGeometry

GENOMES = Path(sharded_eden.__file__).resolve().parents[2] / "demo" / "genomes"


# ---- the parts ----

geometries = st.builds(
    lambda window, stride, least, special, tail: (window, stride, least, special, tail),
    st.integers(1, 40), st.integers(1, 50), st.integers(0, 50), st.integers(0, 5), st.booleans(),
).map(lambda g: WindowGeometry(
    window_size=g[0], stride=g[1], min_length=g[2], special_tokens=g[3], keep_tail=g[4] and g[0] > g[3]
))  # fmt: skip


def positions(geometry, length, windows):
    """The bases of each row, as lists of positions."""
    starts = [k * geometry.stride for k in windows]
    return [range(s, min(s + geometry.usable, length)) for s in starts]


@given(geometries, st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_windows_show_what_sets_of_positions_say(geometry, lengths):
    counts = WindowCounts(geometry=geometry)
    counts.add(np.array(lengths), geometry.counts(np.array(lengths)))
    rows = [positions(geometry, length, range(geometry.count(length))) for length in lengths]
    assert counts.windows == sum(map(len, rows))
    assert counts.bases_in_rows == sum(len(row) for each in rows for row in each)
    assert counts.bases_shown == sum(len(set().union(*each)) for each in rows)
    assert sum(counts.unseen.values()) == sum(lengths) - counts.bases_shown
    assert set(counts.unseen) <= set(REASONS)
    assert all(bases > 0 for bases in counts.unseen.values())


@given(geometries, st.integers(0, 200))
def test_the_option_that_is_named_shows_the_bases(geometry, length):
    counts = WindowCounts(geometry=geometry)
    counts.add(np.array([length]), geometry.counts(np.array([length])))
    unseen = counts.unseen
    for reason, changes in {
        "keep_tail": {"keep_tail": True},
        "window_min_length_threshold": {"min_length": 0},
        "keep_tail_and_threshold": {"keep_tail": True, "min_length": 0},
    }.items():
        if bases := unseen.get(reason):
            alone = ("keep_tail", "window_min_length_threshold") if reason == "keep_tail_and_threshold" else ()
            bases += sum(unseen.get(each, 0) for each in alone)
            other = WindowGeometry(**{**vars(geometry), **changes})
            more = set().union(*positions(other, length, range(other.count(length))))
            assert len(more) == counts.bases_shown + bases
    if set(counts.unseen) == {"stride"}:
        other = WindowGeometry(**{**vars(geometry), "stride": geometry.usable, "keep_tail": True, "min_length": 0})
        assert len(set().union(*positions(other, length, range(other.count(length))))) == length


@given(geometries, st.integers(1, 200), st.data())
def test_windows_that_were_left_out_or_are_there_twice(geometry, length, data):
    n = geometry.count(length)
    if not n:
        return
    windows = sorted(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6)))
    counts = WindowCounts(geometry=geometry)
    counts.add_listed(length, np.array(windows))
    rows = positions(geometry, length, windows)
    assert counts.bases_in_rows == sum(map(len, rows))
    assert counts.bases_shown == len(set().union(*rows))
    assert sum(counts.unseen.values()) == length - counts.bases_shown
    assert all(bases > 0 for bases in counts.unseen.values())


@given(st.lists(st.lists(st.integers(0, 300), max_size=30), max_size=4))
def test_lengths_against_numpy(parts):
    distribution = LengthDistribution()
    for k, part in enumerate(parts):
        other = distribution if k % 2 else LengthDistribution()
        other.add(np.array(part, dtype=np.int64))
        if other is not distribution:
            distribution.merge(other)
    lengths = np.sort(np.array([each for part in parts for each in part], dtype=np.int64))[::-1]
    assert (distribution.contigs, distribution.bases) == (len(lengths), lengths.sum())
    if not len(lengths):
        return
    summary = distribution.as_dict()
    for q, value in summary["quantiles"].items():
        assert value == pytest.approx(np.quantile(lengths, float(q)), rel=1e-12)
    if lengths.sum():
        l50 = next(k for k in range(1, len(lengths) + 1) if 2 * lengths[:k].sum() >= lengths.sum())
        assert (summary["n50"], summary["l50"]) == (lengths[l50 - 1], l50)


@given(st.lists(st.text("ACGTacgtNnRYu", max_size=40), min_size=1, max_size=8), st.integers(1, 64))
def test_letters_against_a_counter(contigs, block):
    ends = np.cumsum([len(contig) for contig in contigs])
    letters = np.frombuffer("".join(contigs).encode(), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharded_eden.describe.letters.BLOCK_BASES", block)
        counts = count_letters(letters, ends)
    for contig, row in zip(contigs, counts.tolist(), strict=True):
        upper = Counter(contig.upper())
        known = [upper[letter] for letter in "ACGTUN"]
        assert row == [*known, len(contig) - sum(known), sum(map(str.islower, contig))]


def test_a_letter_that_is_no_nucleotide_is_refused_with_its_place():
    with pytest.raises(StrangeLetter) as caught:
        count_letters(np.frombuffer(b"ACGTACG-AC", dtype=np.uint8), np.array([4, 10]))
    assert (chr(caught.value.letter), caught.value.at) == ("-", 7)


# ---- real genomes ----


@pytest.fixture(scope="module")
def genomes(tmp_path_factory):
    """A draft assembly and a phage, built, split by contig and cut into windows."""
    folder = tmp_path_factory.mktemp("genomes")
    files = [GENOMES / "helicobacter_pylori_SJM180_draft.fa.xz", GENOMES / "phage_lambda_NC_001416.fa.gz"]
    sharded_eden.build_sequence_dbs(files, folder / "seqs")
    sharded_eden.write_splits(folder / "seqs", folder / "splits", by="contig", val=0.1, test=0.1)
    for split in ("train", "val", "test"):
        sharded_eden.precompute_window_database(
            folder / "splits" / f"{split}_split.parquet", folder / "splits" / f"{split}_windows.db", 8192, 7992
        )
    records = []
    for file in files:
        with dnaio.open(file) as reader:
            records.append([record.sequence for record in reader])
    return folder, records


def test_real_genomes_against_dnaio_and_biopython(genomes):
    folder, (draft, phage) = genomes
    result = stats(folder / "seqs", folder / "splits", by="sample")
    whole, *splits = result.parts
    contigs = draft + phage
    letters = Counter("".join(contigs))
    found = whole.as_dict()
    lengths = sorted(map(len, contigs), reverse=True)
    assert (found["contigs"], found["bases"], found["samples"]) == (len(contigs), sum(lengths), 2)
    assert (found["shortest"], found["longest"]) == (lengths[-1], lengths[0])
    assert found["quantiles"]["0.5"] == np.median(lengths)
    composition = found["composition"]
    for letter in "ACGTN":
        assert composition[letter.lower()] == letters[letter] + letters[letter.lower()]
    assert composition["gc_share"] == pytest.approx(gc_fraction("".join(contigs), ambiguous="remove"), rel=1e-12)
    assert composition["soft_masked"] == sum(count for letter, count in letters.items() if letter.islower())
    assert {group["bases"] for group in found["groups"].values()} == {sum(map(len, draft)), len(phage[0])}

    assert [part.path.name for part in splits] == ["test_windows.db", "train_windows.db", "val_windows.db"]
    geometry = WindowGeometry()
    for part in splits:
        name = part.path.name.replace("_windows.db", "_split.parquet")
        of_split = pl.read_parquet(folder / "splits" / name)
        assert part.total.lengths.bases == of_split["length"].sum()
        assert part.total.windows.windows == geometry.counts(of_split["length"].to_numpy()).sum()
        assert part.total.windows.bases - part.total.windows.bases_shown == geometry.unseen_bases(
            of_split["length"].to_numpy()
        )
        alone = stats(part.path, by="sample").parts[0].as_dict()
        with_sequences = part.as_dict()
        assert {**with_sequences, "composition": None, "groups": None} == {
            **alone, "composition": None, "groups": None
        }  # fmt: skip
    summed = sum(part.total.letters.counts for part in splits)
    assert (summed == whole.total.letters.counts).all()
    assert whole.unassigned_contigs == 0


def test_a_split_file_alone_has_the_same_lengths(genomes):
    folder, _ = genomes
    split = stats(folder / "splits" / "train_split.parquet", by="tag").parts[0]
    windows = stats(folder / "splits" / "train_windows.db", by="tag").parts[0]
    for key in ("contigs", "bases", "n50", "l50", "quantiles"):
        assert split.as_dict()[key] == windows.as_dict()[key]
    assert split.groups.keys() == windows.groups.keys() == {"bcr"}


def test_processes_give_the_same_counts(genomes):
    folder, _ = genomes
    one, two = (stats(folder / "seqs", folder / "splits", by="tag", jobs=jobs).as_dict() for jobs in (1, 2))
    assert one == two


def test_a_sample_says_so_and_keeps_lengths_and_windows_exact(genomes, capsys):
    folder, _ = genomes
    exact = stats(folder / "seqs", folder / "splits")
    estimated = stats(folder / "seqs", folder / "splits", sample=0.5)
    assert exact.is_exact
    assert not estimated.is_exact
    whole, part = exact.parts[0].as_dict(), estimated.parts[0].as_dict()
    assert 0 < part["composition"]["letters"] < whole["composition"]["letters"]
    assert {**whole, "composition": None} == {**part, "composition": None}
    assert exact.parts[1].as_dict()["windows"] == estimated.parts[1].as_dict()["windows"]
    assert part["composition"]["gc_share"] == pytest.approx(whole["composition"]["gc_share"], abs=0.02)
    assert cli.main(["stats", str(folder / "seqs"), "--sample", "0.5"]) == 0
    assert "estimates from 0.5 of the contigs" in capsys.readouterr().out


# ---- odd databases ----


def test_long_contigs_in_pieces_and_whole_ones_are_counted_alike(tmp_path, monkeypatch):
    worlds.write(tmp_path)
    whole = stats(tmp_path / "seqs", tmp_path / "windows.db", by="tag").as_dict()
    monkeypatch.setattr(sample_module, "PIECE_BASES", 37)
    assert stats(tmp_path / "seqs", tmp_path / "windows.db", by="tag").as_dict() == whole
    monkeypatch.setattr(sample_module, "CHUNK_CONTIGS", 1)
    assert stats(tmp_path / "seqs", tmp_path / "windows.db", by="tag").as_dict() == whole
    text = "".join(worlds.CONTIGS.values())
    composition = whole["parts"][0]["composition"]
    assert composition["letters"] == len(text)
    assert composition["soft_masked"] == sum(map(str.islower, text))
    assert composition["n"] == text.upper().count("N")


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-8"])
def test_databases_of_other_programs_are_counted(tmp_path, encoding):
    """Another encoding, no index on `sequence_id`, no `contig_lengths`, windows in any order."""
    contigs = worlds.CONTIGS
    oracle.write_sequence_dbs(tmp_path / "usual", contigs)
    for sample in {path.name for path in (tmp_path / "usual").iterdir()}:
        target = worlds.sample_db(tmp_path, sample)
        target.parent.mkdir(parents=True)
        source = tmp_path / "usual" / sample / target.name
        worlds.execute(
            target,
            f"PRAGMA encoding = '{encoding}'",
            "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL) WITHOUT ROWID",
        )
        rows = sqlite3.connect(source).execute("SELECT contig_id, nt_sequence FROM sequences").fetchall()
        worlds.execute(target, *(("INSERT INTO sequences VALUES (?, ?)", row) for row in rows))
    oracle.write_window_db(tmp_path / "windows.db", contigs, 64, 50)
    usual = stats(tmp_path / "usual", tmp_path / "windows.db", by="tag").as_dict()["parts"]
    worlds.execute(
        tmp_path / "windows.db",
        "DROP INDEX idx_sequence_id",
        "CREATE TABLE mixed AS SELECT * FROM window_mappings ORDER BY random()",
        "UPDATE window_mappings SET (sequence_id, window_in_seq_idx) = "
        "(SELECT sequence_id, window_in_seq_idx FROM mixed WHERE mixed.rowid = window_mappings.window_idx + 1)",
    )
    found = stats(tmp_path / "seqs", tmp_path / "windows.db", by="tag").as_dict()["parts"]
    assert [{**part, "path": ""} for part in found] == [{**part, "path": ""} for part in usual]
    with pytest.raises(UsageError, match="no table contig_lengths"):
        stats(tmp_path / "windows.db")


def test_windows_that_were_left_out_as_ambiguous(tmp_path):
    contigs = {"BCR__ECT-S0__CT1-1": "ACGT" * 25 + "N" * 120 + "ACGT" * 40, "BCR__ECT-S0__CT1-2": "N" * 70}
    oracle.write_sequence_dbs(tmp_path / "seqs", contigs)
    write_windows(tmp_path / "w.db", contigs, max_ambiguous=0.5, sequences=tmp_path / "seqs")
    whole, part = stats(tmp_path / "seqs", tmp_path / "w.db").parts
    rows = worlds.query(tmp_path / "w.db", "SELECT sequence_id, window_in_seq_idx FROM window_mappings")
    seen = {base for _, k in rows for base in range(50 * k, min(50 * k + 61, 380))}
    assert {name for name, _ in rows} == {"BCR__ECT-S0__CT1-1"}
    assert len(rows) < WindowGeometry(window_size=64, stride=50).count(380)
    assert part.total.windows.bases_shown == len(seen)
    assert part.total.windows.unseen["left_out_windows"] > 0
    assert part.options()["left_out_windows"] == "--max-ambiguous above 0.5"
    assert (whole.unassigned_contigs, whole.unassigned_bases, whole.too_short_bases) == (1, 70, 0)
    assert stats(tmp_path / "w.db").parts[0].as_dict()["windows"] == part.as_dict()["windows"]


def test_contigs_too_short_for_a_window(tmp_path):
    contigs = {f"BCR__ECT-S0__CT1-{k}": worlds.random_sequence(length, k) for k, length in enumerate((20, 30, 200))}
    oracle.write_sequence_dbs(tmp_path / "seqs", contigs)
    write_windows(tmp_path / "w.db", contigs, window_min_length_threshold=40)
    whole, part = stats(tmp_path / "seqs", tmp_path / "w.db").parts
    assert (whole.unassigned_contigs, whole.unassigned_bases, whole.too_short_bases) == (2, 50, 50)
    assert part.total.lengths.contigs == 1


def test_packed_tokens_are_those_of_the_packs(tmp_path):
    write_windows(tmp_path / "w.db", worlds.CONTIGS)
    before = stats(tmp_path / "w.db").parts[0]
    packed = sharded_eden.pack_window_database(tmp_path / "w.db")
    part = stats(tmp_path / "w.db").parts[0]
    assert part.useful_packed == packed.useful == before.if_packed.share
    assert (part.if_packed, before.useful_packed, before.if_packed.is_exact) == (None, None, True)
    assert part.total.windows.useful_padded == packed.useful_padded
    assert part.total.windows.useful_tokens == packed.useful_tokens


@given(geometries, st.lists(st.integers(0, 200), min_size=1, max_size=8), st.data())
def test_row_lengths_are_those_of_sets_of_positions(geometry, lengths, data):
    counts, merged = WindowCounts(geometry=geometry), WindowCounts(geometry=geometry)
    bases = []
    for length in lengths:
        n = geometry.count(length)
        windows = range(n)
        if n and data.draw(st.booleans()):
            windows = sorted(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6)))
            counts.add_listed(length, np.array(windows))
        else:
            counts.add(np.array([length]), np.array([n]))
        bases += map(len, positions(geometry, length, windows))
        merged.merge(counts)
        counts = WindowCounts(geometry=geometry)
    rows = merged.rows
    short = dict(zip(rows.short.values.tolist(), rows.short.counts.tolist(), strict=True))
    assert Counter(bases) == Counter(short) + Counter({geometry.usable: rows.full})


@pytest.mark.parametrize("windows", [3_000, 6_000, 150_000])
def test_the_share_if_packed_is_that_of_packs(tmp_path, windows):
    """Log-normal lengths, as in metagenomes."""
    lengths = np.maximum(np.random.default_rng(3).lognormal(np.log(300), 1.1, windows), 20).astype(int)
    ids = [f"BCR__ECT-S0__CT1-{k}" for k in range(windows)]
    pl.DataFrame({"contig_id": ids, "length": lengths}).write_parquet(tmp_path / "s.parquet")
    sharded_eden.precompute_window_database(tmp_path / "s.parquet", tmp_path / "w.db", 1024, 1021)
    found = stats(tmp_path / "w.db").parts[0].if_packed
    packed = sharded_eden.pack_window_database(tmp_path / "w.db").useful
    assert found.is_exact == (windows == 3_000)
    assert found.share == (packed if found.is_exact else pytest.approx(packed, abs=5e-4))


def test_packs_of_another_tokenizer_are_counted_in_its_tokens(world):
    (packs,) = worlds.query(world.train, "SELECT value FROM metadata WHERE key = 'total_packs'")[0]
    worlds.execute(
        world.train,
        "INSERT INTO metadata VALUES ('pack_row_tokens', 32), ('pack_tokenizer', 1)",
        "UPDATE metadata SET value = 200 WHERE key = 'pack_useful_tokens'",
    )
    assert stats(world.train).parts[0].useful_packed == 200 / (packs * 32)


# ---- what does not belong together is an error ----


def test_windows_of_contigs_that_are_not_in_the_databases(world):
    worlds.execute(world.seqs / "S1" / "glm_dataset_S1.sqlite", "DELETE FROM sequences WHERE contig_id LIKE '%-3'")
    with pytest.raises(DatabaseError, match=r"of its 42 windows are of contigs that are not in"):
        stats(world.seqs, world.train)


def test_a_contig_that_is_in_two_databases(world):
    worlds.execute(
        world.seqs / "S1" / "glm_dataset_S1.sqlite",
        ("INSERT INTO sequences VALUES (?, ?)", ("BCR__ECT-S0__CT1-0", "A" * 200)),
    )
    with pytest.raises(DatabaseError, match="names sample 'S0'"):
        stats(world.seqs, world.train)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE contig_lengths SET length = length + 1", "but its windows were made for"),
        ("UPDATE window_mappings SET window_in_seq_idx = 99 WHERE window_idx = 3", "has window number 99"),
        ("UPDATE window_mappings SET window_in_seq_idx = 'x' WHERE window_idx = 3", "not an integer"),
        ("UPDATE metadata SET value = 12 WHERE key = 'pack_useful_tokens'", "packs hold 12 useful tokens"),
        ("UPDATE metadata SET value = value - 1 WHERE key = 'total_windows'", "windows should be numbered"),
    ],
)
def test_a_window_database_that_contradicts_itself(world, statement, message):
    worlds.execute(world.train, statement)
    with pytest.raises(DatabaseError, match=message):
        stats(world.seqs, world.train)


def test_letters_that_are_no_nucleotides(world):
    worlds.execute(
        world.seqs / "S1" / "glm_dataset_S1.sqlite",
        ("UPDATE sequences SET nt_sequence = ? WHERE contig_id LIKE '%-1'", ("ACGT-ACGTACGTACGTACG",)),
    )
    with pytest.raises(DatabaseError, match=r"'BCR__ECT-S1__CT1-1' holds '-' at base 4"):
        stats(world.seqs)


def test_an_id_with_a_nul_character_is_refused_by_its_name(world):
    with_nul = "INSERT INTO sequences VALUES ('BCR__ECT-S1__a' || char(0) || 'b', 'ACGT')"
    worlds.execute(worlds.sample_db(world.folder, "S1"), with_nul)
    with pytest.raises(DatabaseError, match=r"contig 'BCR__ECT-S1__a\\x00b' has a NUL character"):
        stats(world.seqs, world.train)


def test_wrong_paths_and_options(world, tmp_path):
    bad = tmp_path / "bad.parquet"
    pl.DataFrame({"contig_id": ["a"], "length": [-1]}).write_parquet(bad)
    with pytest.raises(InputError, match="has -1 bases"):
        stats(bad)
    for arguments, message in [
        ([world.train, world.train], "is given twice"),
        ([world.seqs, world.seqs], "both sequence databases"),
        ([world.folder / "nothing"], "no such file or folder"),
        ([worlds.__file__], "is neither"),
        ([world.seqs / "S1" / "glm_dataset_S1.sqlite"], "is a sequence database; expected"),
        ([], "nothing to count"),
        (["s3://bucket/seqs"], "is a URL"),
    ]:
        with pytest.raises(UsageError, match=message):
            stats(*arguments)
    with pytest.raises(UsageError, match="sample must be a share"):
        stats(world.seqs, sample=2)
    with pytest.raises(UsageError, match="by must be"):
        stats(world.seqs, by="contig")


# ---- the command ----


def test_the_command_prints_a_table_and_json(clean_world, capsys):
    assert cli.main(["stats", str(clean_world.seqs), str(clean_world.train), "--by", "sample"]) == 0
    printed = capsys.readouterr().out
    assert "--keep-tail" in printed
    rows = {line.rsplit("  ", 2)[0].strip() or "head": line.split() for line in printed.splitlines() if line}
    assert "windows per contig" in printed
    assert any(words[-2:] == ["2,952", "2,352"] for words in rows.values())
    assert cli.main(["stats", str(clean_world.seqs), str(clean_world.train), "--by", "sample", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["parts"][1]["groups"]["S1"]["windows"]["windows"] == 14
    assert data == stats(clean_world.seqs, clean_world.train, by="sample").as_dict()
    assert cli.main(["stats", str(clean_world.folder / "nothing")]) == 2


def test_counting_loads_no_torch(clean_world):
    program = (
        "import sys; from sharded_eden import cli\n"
        f"assert cli.main(['stats', {str(clean_world.seqs)!r}, {str(clean_world.train)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_world_has_two_splits(tmp_path):
    world = write_world(tmp_path)
    parts = stats(world.seqs, world.train, world.val).parts
    assert [part.total.windows.windows for part in parts[1:]] == [42, 8]
    assert parts[0].unassigned_contigs == 0
