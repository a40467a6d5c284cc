"""Targets that run `precompute` on a changed split file, and `split` on a changed list of samples, each with its own judge."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import polars as pl
import pyarrow as pa
from case import Case, Undecided, Wrong
from inputs import CORPUS, changed_table
from mutations import BINARY_MUTATIONS, TEXT_MUTATIONS, mutate, parquet_file

import oracle
from sharded_eden import precompute_window_database, write_splits


def fuzz_split_file(case: Case) -> None:
    """Precompute windows from changed split files."""
    choose = case.choose
    data = choose.choice(sorted(CORPUS.glob("split*.parquet"))).read_bytes()
    if choose.random() < 0.65:
        data = changed_table(case, data, "parquet")
    if choose.random() < 0.5:
        data = mutate(choose, data, BINARY_MUTATIONS)
    path, out = case.folder / "train_split.parquet", case.folder / "windows.db"
    path.write_bytes(data)
    options = {"keep_tail": choose.random() < 0.3, "pack": choose.random() < 0.3}
    threshold = choose.choice((0, 0, 30))
    with case.package():
        precompute_window_database(path, out, 64, 50, threshold, **options)
    case.must_not_leave(*([] if case.error else [out]))
    if case.error is not None:
        return
    with closing(sqlite3.connect(f"file:{out}?mode=ro&immutable=1", uri=True)) as database:
        found = database.execute("SELECT * FROM window_mappings ORDER BY window_idx").fetchall()
    case.say("judge")
    try:
        file = parquet_file(data)
        names = file.schema_arrow.names
        if any(names.count(name) != 1 for name in ("contig_id", "length")):
            raise Wrong(f"accepted columns {names}")
        table = file.read(columns=["contig_id", "length"], use_threads=False).select(["contig_id", "length"])
        table.validate(full=True)
        ids, lengths = (table.column(i).to_pylist() for i in range(2))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Undecided(f"Polars reads it, Arrow does not: {error}") from error
    ids = [contig_id.decode() if isinstance(contig_id, bytes) else contig_id for contig_id in ids]
    if any(not isinstance(i, str) or not i for i in ids) or any(
        not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in lengths
    ):
        raise Wrong(f"accepted {list(zip(ids, lengths, strict=True))!r:.300}")
    if len(set(ids)) < len(ids):
        raise Wrong("accepted an ID twice")
    expected = [
        (contig_id, k)
        for contig_id, length in sorted(zip(ids, lengths, strict=True), key=lambda row: row[0].encode())
        for k in oracle.windows_of(length, 64, 50, threshold, keep_tail=options["keep_tail"])
    ]
    if found != [(i, *row) for i, row in enumerate(expected)]:
        raise Wrong(f"windows {found!r:.300}, expected {expected!r:.300}")


def fuzz_sample_list(case: Case) -> None:
    """Split with changed lists of samples."""
    contigs = {f"BCR__ECT-S{s}__CT1-{i}": "ACGT" * (s + 1) for s in range(4) for i in range(2)}
    oracle.write_sequence_dbs(case.folder / "seqs", contigs)
    data = mutate(case.choose, (CORPUS / "samples.txt").read_bytes(), TEXT_MUTATIONS)
    path, out = case.folder / "samples.txt", case.folder / "splits"
    path.write_bytes(data)
    with case.package():
        write_splits(case.folder / "seqs", out, val_samples=path, test=0)
    case.must_not_leave(*([] if case.error else [out]))
    if case.error is not None:
        return
    found = {name: pl.read_parquet(out / f"{name}_split.parquet")["contig_id"].to_list() for name in ("train", "val")}
    case.say("judge")
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeError as error:
        raise Wrong(f"accepted a list that is not UTF-8: {data!r}") from error
    names = {line.partition("#")[0].strip() for line in re.split("\r\n|\r|\n", text)} - {""}
    expected = {
        "train": sorted(i for i in contigs if oracle.sample_of(i) not in names),
        "val": sorted(i for i in contigs if oracle.sample_of(i) in names),
    }
    if found != expected:
        raise Wrong(f"split {found}, expected {expected} from {data!r}")


TARGETS = {"split-file": fuzz_split_file, "sample-list": fuzz_sample_list}
