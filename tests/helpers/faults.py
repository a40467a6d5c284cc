"""A small data set with two splits, and every fault that `verify` must find in it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import worlds
from worlds import execute, random_sequence, sample_db

import oracle
from sharded_eden import precompute_window_database, verify
from sharded_eden.checks.run import VerifyResult

TRAIN = {
    f"BCR__ECT-S{sample}__CT1-{contig}": random_sequence(length, 10 * sample + contig)
    for sample in range(3)
    for contig, length in enumerate((200, 20, 164, 400))
}
VAL = {
    f"Meta__ECT-V{sample}__CT1-{contig}": random_sequence(150, 90 + 10 * sample + contig)
    for sample in (0, 1)
    for contig in (0, 1)
}


class World(NamedTuple):
    """Sequence databases with two splits of whole samples, made by precompute."""

    folder: Path

    @property
    def seqs(self) -> Path:
        return self.folder / "seqs"

    @property
    def train(self) -> Path:
        return self.folder / "train.db"

    @property
    def val(self) -> Path:
        return self.folder / "val.db"

    def verify(self, **options) -> VerifyResult:
        return verify(self.seqs, [self.train, self.val], **options)


def write_world(folder: Path, train=TRAIN, val=VAL) -> World:
    oracle.write_sequence_dbs(folder / "seqs", train | val)
    write_windows(folder / "train.db", train, pack=True)
    write_windows(folder / "val.db", val)
    return World(folder)


def write_windows(path: Path, contigs, **options) -> None:
    split = path.with_suffix(".parquet")
    pl.DataFrame({"contig_id": list(contigs), "length": [len(s) for s in contigs.values()]}).write_parquet(split)
    precompute_window_database(split, path, 64, 50, overwrite=True, **options)


def found(result: VerifyResult) -> set[tuple[str, str]]:
    return {(finding.check, Path(finding.file).name) for finding in result.findings}


# ---- the planted faults ----

S1 = "glm_dataset_S1.sqlite"
LONGEST = "BCR__ECT-S1__CT1-3"


def truncate_sample(world: World) -> None:
    os.truncate(sample_db(world.folder, "S1"), sample_db(world.folder, "S1").stat().st_size - 4096)


def truncate_inside_a_page(world: World) -> None:
    os.truncate(world.val, world.val.stat().st_size - 100)


def empty_file(world: World) -> None:
    os.truncate(world.val, 0)


def missing_sample(world: World) -> None:
    shutil.rmtree(world.seqs / "S1")


def contig_absent(world: World) -> None:
    execute(sample_db(world.folder, "S1"), f"DELETE FROM sequences WHERE contig_id = '{LONGEST}'")


def contig_shortened(world: World) -> None:
    execute(
        sample_db(world.folder, "S1"),
        f"UPDATE sequences SET nt_sequence = substr(nt_sequence, 1, 100) WHERE contig_id = '{LONGEST}'",
    )


def contig_shortened_by_one(world: World) -> None:
    execute(
        sample_db(world.folder, "S1"),
        f"UPDATE sequences SET nt_sequence = substr(nt_sequence, 2) WHERE contig_id = '{LONGEST}'",
    )


def index_gap(world: World) -> None:
    execute(world.train, "DELETE FROM window_mappings WHERE window_idx = 7")


def index_gap_without_totals(world: World) -> None:
    index_gap(world)
    execute(world.train, "DELETE FROM metadata WHERE key = 'total_windows'")


def total_windows(world: World) -> None:
    execute(world.train, "UPDATE metadata SET value = value + 1 WHERE key = 'total_windows'")


def distinct_sequences(world: World) -> None:
    execute(world.train, "UPDATE metadata SET value = value + 1 WHERE key = 'distinct_sequences'")


def sample_in_two_splits(world: World) -> None:
    write_windows(world.val, VAL | {LONGEST: TRAIN[LONGEST]})
    write_windows(world.train, {name: sequence for name, sequence in TRAIN.items() if name != LONGEST})


def copied_contig(world: World, change: Callable[[str], str] = str) -> None:
    copy = change(TRAIN[LONGEST])
    val = VAL | {"Meta__ECT-V0__CT1-9": copy}
    execute(sample_db(world.folder, "V0"), ("INSERT INTO sequences VALUES (?, ?)", ("Meta__ECT-V0__CT1-9", copy)))
    write_windows(world.val, val)


def other_strand_copied(world: World) -> None:
    copied_contig(world, lambda sequence: oracle.reverse_complement(sequence).lower().replace("t", "u"))


def utf16(world: World) -> None:
    rewrite(sample_db(world.folder, "S1"), "PRAGMA encoding = 'UTF-16le'")


def leftover_wal(world: World) -> None:
    sample_db(world.folder, "S1").with_name(f"{S1}-wal").write_bytes(b"")


def unfinished_wal(world: World) -> None:
    """The files of a killed writer: its last transaction is only in the log."""
    path = sample_db(world.folder, "S1")
    program = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode = WAL'); "
        "c.execute('CREATE TABLE notes (text)'); c.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.with_name(f"{S1}-wal").stat().st_size > 0


def without_rowid(world: World) -> None:
    rewrite(sample_db(world.folder, "S1"), create=f"{SEQUENCES} WITHOUT ROWID")


def view(world: World) -> None:
    path = sample_db(world.folder, "S1")
    execute(path, "ALTER TABLE sequences RENAME TO other", "CREATE VIEW sequences AS SELECT * FROM other")


def no_primary_key(world: World) -> None:
    rewrite(sample_db(world.folder, "S1"), create="CREATE TABLE sequences (contig_id TEXT, nt_sequence TEXT)")


def foreign_schema(world: World) -> None:
    execute(sample_db(world.folder, "S1"), "ALTER TABLE sequences RENAME COLUMN nt_sequence TO dna")


def foreign_windows(world: World) -> None:
    execute(world.val, "DROP TABLE metadata")


def metadata_lost(world: World) -> None:
    execute(world.val, "DELETE FROM metadata WHERE key = 'stride'")


def metadata_impossible(world: World) -> None:
    execute(world.val, "UPDATE metadata SET value = -1 WHERE key = 'stride'")


def metadata_no_number(world: World) -> None:
    execute(world.val, "UPDATE metadata SET value = 'many' WHERE key = 'stride'")


def windows_swapped(world: World) -> None:
    execute(
        world.train,
        "UPDATE window_mappings SET window_idx = -1 WHERE window_idx = 3",
        "UPDATE window_mappings SET window_idx = 3 WHERE window_idx = 9",
        "UPDATE window_mappings SET window_idx = 9 WHERE window_idx = -1",
    )


def window_index_dropped(world: World) -> None:
    execute(world.train, "DROP INDEX idx_sequence_id")


def a_letter_out_of_the_alphabet(world: World) -> None:
    execute(sample_db(world.folder, "S1"), "UPDATE sequences SET nt_sequence = 'X' || substr(nt_sequence, 2)")


def no_text(world: World) -> None:
    execute(sample_db(world.folder, "S1"), "UPDATE sequences SET nt_sequence = zeroblob(length(nt_sequence))")


def recorded_length(world: World) -> None:
    execute(world.train, "UPDATE contig_lengths SET length = length + 1 WHERE first_window_idx = 0")


def recorded_length_of_other_windows(world: World) -> None:
    execute(world.train, "UPDATE contig_lengths SET length = length + 500 WHERE first_window_idx = 0")


def recorded_length_with_a_fraction(world: World) -> None:
    execute(world.train, "UPDATE contig_lengths SET length = length + 0.5 WHERE first_window_idx = 0")


def fingerprint(world: World) -> None:
    execute(world.train, "UPDATE metadata SET value = value + 1 WHERE key = 'fingerprint'")


def packs_dropped(world: World) -> None:
    execute(world.train, "DROP TABLE packs")


def packs_of_another_shape(world: World) -> None:
    execute(world.train, "ALTER TABLE packs RENAME COLUMN windows TO rows")


def packs_without_a_key(world: World) -> None:
    execute(
        world.train,
        "CREATE TABLE other (pack_idx, windows)",
        "INSERT INTO other SELECT * FROM packs",
        "DROP TABLE packs",
        "ALTER TABLE other RENAME TO packs",
    )


def total_packs(world: World) -> None:
    execute(world.train, "UPDATE metadata SET value = value + 1 WHERE key = 'total_packs'")


def total_packs_lost(world: World) -> None:
    execute(world.train, "DELETE FROM metadata WHERE key = 'total_packs'")


def pack_lost(world: World) -> None:
    execute(world.train, "DELETE FROM packs WHERE pack_idx = 3")


def pack_cut(world: World) -> None:
    execute(world.train, "UPDATE packs SET windows = substr(windows, 1, 7) WHERE pack_idx = 3")


def pack_of_windows_that_are_not_there(world: World) -> None:
    execute(world.train, ("UPDATE packs SET windows = ? WHERE pack_idx = 3", ((10_000).to_bytes(8, "little"),)))


def pack_overfull(world: World) -> None:
    """All windows of one pack moved to another: each window is still in one pack."""
    execute(
        world.train,
        "UPDATE packs SET windows = (SELECT group_concat(hex(windows), '') FROM packs WHERE pack_idx < 2) WHERE pack_idx = 0",
        "DELETE FROM packs WHERE pack_idx = 1",
        "UPDATE packs SET pack_idx = pack_idx - 1 WHERE pack_idx > 1",
        "UPDATE metadata SET value = value - 1 WHERE key = 'total_packs'",
    )
    ((digits,),) = worlds.query(world.train, "SELECT windows FROM packs WHERE pack_idx = 0")
    execute(world.train, ("UPDATE packs SET windows = ? WHERE pack_idx = 0", (bytes.fromhex(digits),)))


def window_in_two_packs(world: World) -> None:
    execute(world.train, "UPDATE packs SET windows = (SELECT windows FROM packs WHERE pack_idx = 4) WHERE pack_idx = 3")


def window_in_no_pack(world: World) -> None:
    """The last window of a pack with several."""
    execute(
        world.train, "UPDATE packs SET windows = substr(windows, 1, length(windows) - 8) WHERE length(windows) = 16"
    )


def pack_useful_tokens(world: World) -> None:
    execute(world.train, "UPDATE metadata SET value = value - 1 WHERE key = 'pack_useful_tokens'")


def pack_fingerprint(world: World) -> None:
    execute(world.train, "UPDATE metadata SET value = value + 1 WHERE key = 'pack_fingerprint'")


def packs_in_another_order(world: World) -> None:
    execute(
        world.train,
        "UPDATE packs SET pack_idx = -1 WHERE pack_idx = 3",
        "UPDATE packs SET pack_idx = 3 WHERE pack_idx = 5",
        "UPDATE packs SET pack_idx = 5 WHERE pack_idx = -1",
    )


def index_damaged(world: World) -> None:
    """An index entry that differs from its row: the pages are valid, their contents are not."""
    path = sample_db(world.folder, "S1")
    data = path.read_bytes()
    leaf = next(
        page for page in range(0, len(data), 4096) if data[page] == 10 and LONGEST.encode() in data[page:][:4096]
    )
    at = data.index(LONGEST.encode(), leaf)
    path.write_bytes(data[:at] + LONGEST[:-1].encode() + b"7" + data[at + len(LONGEST) :])


SEQUENCES = "CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)"


def rewrite(path: Path, pragma: str = "", create: str = SEQUENCES) -> None:
    """Write the same contigs into a database of another kind."""
    rows = worlds.query(path, "SELECT contig_id, nt_sequence FROM sequences")
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute(pragma)
    connection.execute(create)
    connection.executemany("INSERT INTO sequences VALUES (?, ?)", rows)
    connection.commit()
    connection.close()


FAULTS = [
    # the fault, the check that finds it and the file it names, whether a quick check finds it
    (truncate_sample, "file", S1, True),
    (truncate_inside_a_page, "file", "val.db", True),
    (empty_file, "file", "val.db", True),
    (missing_sample, "sample", "train.db", True),
    (contig_absent, "contig", S1, True),
    (contig_shortened, "length", S1, True),
    (contig_shortened_by_one, "length", S1, False),
    (index_gap, "gap", "train.db", True),
    (index_gap_without_totals, "gap", "train.db", True),
    (total_windows, "totals", "train.db", True),
    (distinct_sequences, "totals", "train.db", False),
    (sample_in_two_splits, "shared-sample", "val.db", True),
    (copied_contig, "copied-contig", "val.db", False),
    (other_strand_copied, "copied-contig", "val.db", False),
    (utf16, "encoding", S1, True),
    (leftover_wal, "leftover", S1, True),
    (unfinished_wal, "leftover", S1, True),
    (without_rowid, "layout", S1, True),
    (view, "layout", S1, True),
    (no_primary_key, "index", S1, True),
    (foreign_schema, "schema", S1, True),
    (foreign_windows, "schema", "val.db", True),
    (metadata_lost, "metadata", "val.db", True),
    (metadata_impossible, "metadata", "val.db", True),
    (metadata_no_number, "metadata", "val.db", True),
    (windows_swapped, "order", "train.db", True),
    (window_index_dropped, "index", "train.db", True),
    (a_letter_out_of_the_alphabet, "alphabet", S1, True),
    (no_text, "alphabet", S1, True),
    (recorded_length, "fingerprint", "train.db", False),
    (recorded_length_of_other_windows, "windows", "train.db", False),
    (recorded_length_with_a_fraction, "windows", "train.db", False),
    (fingerprint, "fingerprint", "train.db", False),
    (packs_dropped, "packs", "train.db", True),
    (packs_of_another_shape, "packs", "train.db", True),
    (packs_without_a_key, "packs", "train.db", True),
    (total_packs, "packs", "train.db", True),
    (total_packs_lost, "packs", "train.db", True),
    (pack_lost, "packs", "train.db", True),
    (pack_cut, "packs", "train.db", True),
    (pack_of_windows_that_are_not_there, "packs", "train.db", True),
    (pack_overfull, "packs", "train.db", True),
    (window_in_two_packs, "packs", "train.db", True),
    (window_in_no_pack, "packs", "train.db", False),
    (pack_useful_tokens, "packs", "train.db", False),
    (pack_fingerprint, "packs", "train.db", False),
    (packs_in_another_order, "packs", "train.db", False),
    (index_damaged, "integrity", S1, False),
]
