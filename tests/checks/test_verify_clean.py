"""`sharded-eden verify` finds nothing on clean data, never fails on garbage, and its exit status shows the result."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import worlds
from faults import (
    LONGEST,
    S1,
    SEQUENCES,
    TRAIN,
    VAL,
    World,
    a_letter_out_of_the_alphabet,
    contig_absent,
    copied_contig,
    distinct_sequences,
    fingerprint,
    found,
    leftover_wal,
    other_strand_copied,
    utf16,
    window_index_dropped,
    write_windows,
    write_world,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import execute, random_sequence, sample_db

import oracle
from sharded_eden import cli, pack_window_database, verify
from sharded_eden.checks import digests
from sharded_eden.checks.findings import CHECKS
from sharded_eden.errors import UsageError

# ---- nothing on clean data ----


def test_clean_data(clean_world):
    quick, full = clean_world.verify(), clean_world.verify(full=True)
    assert quick.findings == full.findings == []
    assert (quick.samples, quick.window_databases, quick.contigs) == (5, 2, 0)
    assert full.windows == quick.windows == quick.windows_read
    assert full.contigs == len(TRAIN | VAL)
    assert full.bases == sum(map(len, (TRAIN | VAL).values()))


def lengths() -> st.SearchStrategy[int]:
    """Around every boundary of windows of 64 bases at a stride of 50."""
    near = st.sampled_from([64, 114, 164, 214]).flatmap(lambda n: st.integers(n - 4, n + 4))
    return st.one_of(near, st.integers(64, 400), st.integers(10, 70))


@settings(max_examples=30, deadline=None)
@given(
    contig_lengths=st.lists(lengths(), max_size=7).map(lambda found: [64, *found]),
    samples=st.integers(1, 3),
    threshold=st.sampled_from([0, 1, 30, 64]),
    keep_tail=st.booleans(),
    ours=st.booleans(),
    totals=st.booleans(),
    pack=st.booleans(),
    seed=st.integers(0, 9),
)
def test_nothing_is_found_on_clean_data(
    tmp_path_factory, contig_lengths, samples, threshold, keep_tail, ours, totals, pack, seed
):
    folder = tmp_path_factory.mktemp("clean")
    contigs = {
        f"{('BCR', 'TCR', 'Méta')[i % 3]}__ECT-S{i % samples}__CT1-{i}": random_sequence(
            length, 1000 * seed + i, "ACGTNacgtn"
        )
        for i, length in enumerate(contig_lengths)
    }
    oracle.write_sequence_dbs(folder / "seqs", contigs)
    if ours:
        write_windows(folder / "windows.db", contigs, window_min_length_threshold=threshold, keep_tail=keep_tail)
    else:
        oracle.write_window_db(folder / "windows.db", contigs, 64, 50, threshold, totals)
    if pack:
        pack_window_database(folder / "windows.db", seed=seed, sequences=folder / "seqs")
    for full in (False, True):
        assert verify(folder / "seqs", [folder / "windows.db"], full=full).findings == []


def test_the_worlds_of_other_tests_are_clean(tmp_path, small):
    worlds.write(tmp_path)
    for full in (False, True):
        assert verify(tmp_path / "seqs", [tmp_path / "windows.db"], full=full).findings == []
        assert verify(small.sequence_db_dir, [small.window_db], full=full).findings == []


def test_what_the_commands_make_is_clean(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for sample in range(6):
        records = "".join(f">c{i}\n{random_sequence(900 + 50 * i, 10 * sample + i)}\n" for i in range(4))
        (tmp_path / f"in/s{sample}.fa").write_text(records)
    for by in ("sample", "contig"):
        for line in (
            "build in --out db --force",
            f"split db --out {by} --by {by} --val 0.3 --test 0 --seed 2",
            f"precompute {by}/train_split.parquet {by}/train.db --window-size 100 --stride 90 --pack",
            f"precompute {by}/val_split.parquet {by}/val.db --window-size 100 --stride 90 --keep-tail",
        ):
            assert cli.main(line.split()) == 0
        for full in ("", "--full"):
            line = f"verify db {by}/train.db {by}/val.db --by {by} {full}"
            assert cli.main(line.split()) == 0, capsys.readouterr().out
    capsys.readouterr()
    assert cli.main(["verify", "db", "contig/train.db", "contig/val.db"]) == 1
    assert "error (shared-sample) in contig/val.db" in capsys.readouterr().out
    execute(tmp_path / "db/s3/glm_dataset_s3.sqlite", "DELETE FROM sequences WHERE rowid = 2")
    assert cli.main(["verify", "db", "--full"]) == 1
    assert "error (table) in db/s3/glm_dataset_s3.sqlite" in capsys.readouterr().out
    shutil.rmtree("db/s3")
    assert cli.main(["verify", "db"]) == 1
    assert "it lists 1 samples that have no sequence database, such as 's3'" in capsys.readouterr().out


def test_windows_may_be_left_out_for_their_letters(tmp_path, monkeypatch):
    """With --max-ambiguous, windows and whole contigs are missing; that is not an error."""
    monkeypatch.setattr("sharded_eden.windows.write.BATCH_WINDOWS", 4)
    monkeypatch.setattr("sharded_eden.checks.lengths.CHUNK_ROWS", 3)
    letters = ("NNNNA", "ACGTN", "N")
    contigs = {
        f"BCR__ECT-A{i % 3}__CT1-{i}": "N" * (30 * i)
        + random_sequence(300, i, letters[i % 3])
        + random_sequence(200, i)
        for i in range(12)
    }
    world = write_world(tmp_path, contigs)
    whole = world.verify().windows
    write_windows(world.train, contigs, max_ambiguous=0.3, sequences=world.seqs, pack=True)
    assert 0 < world.verify().windows < whole
    for full in (False, True):
        assert world.verify(full=full).findings == []
    ((last,),) = worlds.query(
        world.train,
        "SELECT max(a.window_idx) FROM window_mappings AS a JOIN window_mappings AS b ON b.window_idx = a.window_idx + 1 "
        "WHERE a.sequence_id = b.sequence_id AND b.window_in_seq_idx > a.window_in_seq_idx + 1",
    )
    before = world.train.read_bytes()
    execute(
        world.train, f"UPDATE window_mappings SET window_in_seq_idx = window_in_seq_idx + 1 WHERE window_idx = {last}"
    )
    assert {finding.check for finding in world.verify(full=True).findings} >= {"fingerprint"}
    world.train.write_bytes(before)
    execute(world.train, "UPDATE window_mappings SET window_in_seq_idx = 99 WHERE window_idx = 2")
    assert "length" in {finding.check for finding in world.verify(full=True).findings}


def test_windows_of_other_tools_may_stand_in_any_order(world):
    """The specification requires no order: it is checked only in databases that precompute wrote."""
    rows = worlds.query(world.train, "SELECT sequence_id, window_in_seq_idx FROM window_mappings")
    random.Random(1).shuffle(rows)
    world.train.unlink()
    oracle.write_window_db(world.train, {}, 64, 50)
    execute(world.train, *[("INSERT INTO window_mappings VALUES (?, ?, ?)", (i, *row)) for i, row in enumerate(rows)])
    assert world.verify(full=True).findings == []
    execute(world.train, "UPDATE window_mappings SET window_in_seq_idx = 1 WHERE window_in_seq_idx = 2")
    assert {check for check, _ in found(world.verify(full=True))} == {"windows"}


def test_one_database_takes_ids_of_any_form(tmp_path):
    contigs = {"chromosome 1": random_sequence(500, 1), "x": random_sequence(70, 2)}
    (tmp_path / "seqs/any").mkdir(parents=True)
    connection = sqlite3.connect(tmp_path / "seqs/any/glm_dataset_any.sqlite")
    connection.execute(SEQUENCES)
    connection.executemany("INSERT INTO sequences VALUES (?, ?)", contigs.items())
    connection.commit()
    connection.close()
    for name, sequence in contigs.items():
        write_windows(tmp_path / f"{name[0]}.db", {name: sequence})
    for full in (False, True):
        assert verify(tmp_path / "seqs", [tmp_path / "c.db", tmp_path / "x.db"], full=full).findings == []
    oracle.write_sequence_dbs(tmp_path / "seqs", VAL)
    checks = {check for check, _ in found(verify(tmp_path / "seqs", [tmp_path / "c.db", tmp_path / "x.db"]))}
    assert checks == {"sample"}


# ---- implementation ----


def test_any_number_of_processes_finds_the_same(world):
    for plant in (distinct_sequences, copied_contig, leftover_wal, fingerprint):
        plant(world)
    alone = world.verify(full=True)
    assert len(alone.findings) >= 4
    assert world.verify(full=True, jobs=3) == alone


def test_special_databases_are_checked_like_others(world):
    """SQLite attaches no database of another encoding; a table without an index is copied, with an index."""
    utf16(world)
    window_index_dropped(world)
    contig_absent(world)
    execute(sample_db(world.folder, "S1"), "UPDATE sequences SET nt_sequence = substr(nt_sequence, 2)")
    checks = {check for check, _ in found(world.verify(full=True))}
    assert checks == {"encoding", "index", "contig", "length"}
    shutil.rmtree(world.seqs / "S0")
    assert found(world.verify()) >= {("index", "train.db"), ("sample", "train.db"), ("encoding", S1)}


def test_a_utf16_window_database(world):
    rows = {
        table: worlds.query(world.val, f"SELECT * FROM {table}")
        for table in ("metadata", "window_mappings", "contig_lengths")
    }
    creates = [row[0] for row in worlds.query(world.val, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
    world.val.unlink()
    execute(world.val, "PRAGMA encoding = 'UTF-16be'", *creates)
    for table, values in rows.items():
        execute(world.val, *[(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row) for row in values])
    assert found(world.verify(full=True)) == {("encoding", "val.db")}
    execute(sample_db(world.folder, "V1"), "DELETE FROM sequences WHERE rowid = 1")
    assert ("contig", "glm_dataset_V1.sqlite") in found(world.verify(full=True))


def test_long_contigs_are_read_in_pieces(world, monkeypatch):
    monkeypatch.setattr("sharded_eden.checks.sample.WHOLE_BYTES", 50)
    monkeypatch.setattr(digests, "PIECE_BASES", 7)
    monkeypatch.setattr("sharded_eden.checks.sample.PIECE_BASES", 7)
    assert world.verify(full=True).findings == []
    other_strand_copied(world)
    a_letter_out_of_the_alphabet(world)
    result = world.verify(full=True)
    assert found(result) >= {("alphabet", S1)}
    execute(
        sample_db(world.folder, "S1"),
        f"UPDATE sequences SET nt_sequence = '{TRAIN[LONGEST]}' WHERE contig_id = '{LONGEST}'",
    )
    (finding,) = [finding for finding in world.verify(full=True).findings if finding.check == "copied-contig"]
    assert f"{LONGEST!r} is 'Meta__ECT-V0__CT1-9'" in finding.what


@given(st.text("ACGTURYKMSWBDHVNacgtun", min_size=1, max_size=60), st.integers(1, 70))
def test_a_digest_is_that_of_either_strand(sequence, piece):
    other = oracle.reverse_complement(sequence.upper()).replace("T", "U")
    with pytest.MonkeyPatch.context() as patch:
        whole = digests.canonical_digest(sequence.encode())
        patch.setattr(digests, "PIECE_BASES", piece)
        assert digests.canonical_digest(other.encode()) == whole
        assert digests.canonical_digest(sequence.lower().encode()) == whole
        assert digests.canonical_digest(sequence.encode() + b"A") != whole


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2)), max_size=60), st.integers(1, 50))
def test_copies_are_found_in_buckets_of_any_size(tmp_path_factory, contigs, bucket):
    scratch = tmp_path_factory.mktemp("copies")
    files = [scratch / f"digests{sample}" for sample in range(2)]
    splits_of: dict[int, set[int]] = {}
    for sample, path in enumerate(files):
        with digests.DigestFile(path) as file:
            for ordinal, (content, split) in enumerate(contigs[sample::2]):
                digest = digests.canonical_digest(b"A" * content + b"C")
                file.add(digest, ordinal=ordinal, sample=sample, split=split)
                splits_of.setdefault(content, set()).add(split)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "BUCKET_RECORDS", bucket)
        found = digests.find_copies(files, scratch, examples=100)
    pairs = [pair for splits in splits_of.values() for pair in zip(sorted(splits), sorted(splits)[1:], strict=False)]
    assert {pair: copies.count for pair, copies in found.items()} == {pair: pairs.count(pair) for pair in pairs}
    for (one, other), copies in found.items():
        for (a, b), (c, d) in copies.examples:
            first, second = contigs[a::2][b], contigs[c::2][d]
            assert (first[0], first[1], second[1]) == (second[0], one, other)


# ---- never a traceback ----


def damage(path: Path, choose: random.Random) -> None:
    """Flip bytes, cut off the end, or write over a stretch."""
    data = bytearray(path.read_bytes())
    kind = choose.randrange(4)
    if kind == 0:
        del data[choose.randrange(len(data)) :]
    elif kind == 1:
        start = choose.randrange(len(data))
        stretch = min(choose.randrange(1, 600), len(data) - start)
        data[start : start + stretch] = choose.choice([bytes(stretch), choose.randbytes(stretch)])
    else:
        used = [i for i, byte in enumerate(data) if byte]
        for _ in range(choose.choice([1, 1, 3, 20])):
            data[choose.choice(used) if kind == 2 else choose.randrange(len(data))] = choose.randrange(256)
    path.write_bytes(data)


def damage_and_verify(clean_world: World, tmp_path: Path, seeds: range) -> int:
    """Return the number of data sets with findings."""
    count = 0
    for seed in seeds:
        choose = random.Random(seed)
        shutil.rmtree(tmp_path / "world", ignore_errors=True)
        shutil.copytree(clean_world.folder, tmp_path / "world")
        world = World(tmp_path / "world")
        path = choose.choice([world.train, world.val, sample_db(world.folder, "S1"), sample_db(world.folder, "V0")])
        damage(path, choose)
        full, quick = world.verify(full=True), world.verify()
        assert {finding.check for finding in full.findings + quick.findings} <= CHECKS.keys()
        assert full.findings or not quick.findings
        if path.is_relative_to(world.seqs):
            assert {finding.file for finding in full.findings + quick.findings} <= {str(path)}
        json.dumps(full.as_dict())
        count += bool(full.findings)
    return count


def test_garbage_is_a_finding_never_a_traceback(clean_world, tmp_path):
    assert damage_and_verify(clean_world, tmp_path, range(20)) > 10


@pytest.mark.slow
def test_more_garbage_is_a_finding_never_a_traceback(clean_world, tmp_path):
    assert damage_and_verify(clean_world, tmp_path, range(1000, 1300)) > 150


def test_a_damaged_contig_table_is_a_finding(world):
    (world.seqs / "contigs.parquet").write_bytes(b"PAR1 this is none PAR1")
    assert found(world.verify()) == {("table", "contigs.parquet")}


# ---- the command ----


def test_exit_status_and_json(world, capsys):
    line = ["verify", str(world.seqs), str(world.train), str(world.val)]
    assert cli.main(line) == 0
    assert capsys.readouterr().out.endswith("\nclean (a quick look; --full checks everything)\n")
    assert cli.main([*line, "--full", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_clean"] is True
    utf16(world)
    contig_absent(world)
    assert cli.main([*line, "--full"]) == 1
    out = capsys.readouterr().out
    assert f"error (contig) in {sample_db(world.folder, 'S1')}" in out
    assert f"warning (encoding) in {sample_db(world.folder, 'S1')}" in out
    assert out.endswith("\n2 findings (everything was checked)\n")
    assert cli.main([*line, "--full", "--json"]) == 1
    (first, second) = json.loads(capsys.readouterr().out)["findings"]
    assert set(first) == {"check", "severity", "file", "what", "fix"}
    assert (first["severity"], second["severity"]) == ("warning", "error")


def test_a_wrong_command_line_is_status_2(world, tmp_path, capsys):
    for options in (
        [str(world.seqs), str(world.train), str(world.train)],
        [str(world.seqs), "--jobs", "0"],
        [str(world.seqs), "--windows-read", "-1"],
        [str(world.seqs), "--scratch", str(tmp_path / "nowhere")],
        [str(world.seqs), "--by", "chromosome"],
        [],
    ):
        assert cli.main(["verify", *options]) == 2
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="by must be 'sample' or 'contig', not 'x'"):
        world.verify(by="x")


def test_what_is_not_there_is_a_finding(tmp_path, capsys):
    assert cli.main(["verify", str(tmp_path / "seqs"), str(tmp_path / "w.db")]) == 1
    out = capsys.readouterr().out
    assert f"error (file) in {tmp_path / 'seqs'}\n  no such folder of sequence databases" in out
    assert f"error (file) in {tmp_path / 'w.db'}\n  no such file" in out


def test_progress_ends_at_the_size_of_all_files(world):
    seen = []
    world.verify(full=True, progress=lambda done, total: seen.append((done, total)))
    size = sum(path.stat().st_size for path in [world.train, world.val, *world.seqs.rglob("*.sqlite")])
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_moves_within_one_database(world, monkeypatch, jobs):
    """With `full`, SQLite's integrity check and the reading of bases are reported before a database is finished."""
    monkeypatch.setattr("sharded_eden.progress.REPORT_SECONDS", 0)
    seen = []
    world.verify(full=True, jobs=jobs, progress=lambda done, total: seen.append(done))
    databases = len([world.train, world.val, *world.seqs.rglob("*.sqlite")])
    assert len(set(seen)) > databases + 3
    assert seen == sorted(seen)


def test_every_check_is_documented():
    page = (Path(__file__).parents[2] / "docs/verify.md").read_text()
    for check, meaning in CHECKS.items():
        assert f"| `{check}` | {meaning} |" in page
    assert page.count("\n| `") == len(CHECKS)
