"""Targets that change one file of a prepared data set, then run a command that writes, or `bench`, on it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
from case import Case, Undecided, Wrong
from databases import read_all
from prepared import SAMPLES, STRIDE, T, change_file, changed_in, contents, receipts, rows_of, world

import oracle
import sharded_eden
from sharded_eden import build_sequence_dbs, pack_window_database, precompute_window_database, write_splits
from sharded_eden.windows.index import index_window_database


def fuzz_commands(case: Case) -> None:
    """Run `pack`, `split`, `precompute --max-ambiguous`, `index` or `bench` on a data set with a changed file."""
    choose = case.choose
    command = choose.choice((_pack, _pack, _pack, _split, _split, _precompute, _precompute, _run_index, _bench))
    command(case, world(case))


def _pack(case: Case, folder: Path) -> None:
    choose, name = case.choose, case.choose.choice(("train.db", "foreign.db"))
    path = folder / name
    change_file(case, path)
    sources: dict[str, Any] = {}
    if choose.random() < 0.5 or name == "foreign.db":
        sources = {"sequences": folder / "seqs"}
    before, rows, objects = contents(folder), _mappings(path), _objects(path)
    with case.package():
        pack_window_database(path, **sources)
    case.must_not_leave()
    changed = set(changed_in(before, contents(folder)))
    if changed - ({name, f"{name}.index"} if case.error is None else set()):  # an index of the old file is of no use
        raise Wrong(f"pack changed {changed} (error: {case.error})")
    if case.error is not None:
        return
    after = _mappings(path)
    if after != rows:
        raise Wrong(f"pack changed window_mappings: {rows!r:.200} -> {after!r:.200}")
    if (now := _objects(path)) - objects - {"packs"}:
        raise Wrong(f"pack added {now - objects}")
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
        blobs = [blob for (blob,) in database.execute("SELECT windows FROM packs ORDER BY pack_idx")]
    packed = [int.from_bytes(blob[at : at + 8], "little") for blob in blobs for at in range(0, len(blob), 8)]
    if sorted(packed) != [row[0] for row in rows]:
        raise Wrong(f"{len(packed)} windows in packs, {len(rows)} in window_mappings")
    read_all(case, folder / "seqs", path, packed=True)
    case.error = None


def _mappings(path: Path) -> list[Any]:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            database.text_factory = bytes
            rows = database.execute(
                "SELECT window_idx, sequence_id, window_in_seq_idx FROM window_mappings LIMIT 20000"
            ).fetchall()
            return sorted(rows, key=lambda row: (str(type(row[0])), row[0] if row[0] is not None else 0))
    except (sqlite3.Error, UnicodeDecodeError):
        return []


def _objects(path: Path) -> set[Any]:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            database.text_factory = bytes
            return {
                os.fsdecode(name) if isinstance(name, bytes) else name
                for (name,) in database.execute("SELECT name FROM sqlite_schema")
            }
    except (sqlite3.Error, UnicodeDecodeError):
        return set()


def _change_sequences(case: Case, folder: Path) -> None:
    """Change a sequence database or the table of contigs, or remove that."""
    choose, sample = case.choose, case.choose.choice(SAMPLES)
    table = folder / "seqs" / "contigs.parquet"
    if choose.random() < 0.4:
        table.unlink()
    path = (
        table if table.exists() and choose.random() < 0.6 else folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"
    )
    change_file(case, path)


def _split(case: Case, folder: Path) -> None:
    _change_sequences(case, folder)
    before = contents(folder)
    out = case.folder / "new"
    with case.package():
        write_splits(folder / "seqs", out, by=case.choose.choice(("contig", "sample")), val=0.3, test=0)
    case.must_not_leave(*([] if case.error else [out]))
    if changed_files := changed_in(before, contents(folder)):
        raise Wrong(f"split changed {changed_files}")
    if case.error is not None:
        return
    found = sorted(
        row for path in out.glob("*.parquet") for row in pl.read_parquet(path).select("contig_id", "length").rows()
    )
    expected = []
    for sample, rows in rows_of(folder / "seqs").items():
        if isinstance(rows, str):
            raise Undecided(f"sqlite3 {sqlite3.sqlite_version} cannot read {sample}: {rows}")
        if any(not isinstance(i, str) or not isinstance(s, str) for i, s in rows):
            raise Wrong(f"split accepted {rows!r:.200}")
        # In bytes: a letter beyond ASCII is no base, which the loader and verify report.
        expected += [(contig_id, len(bases.encode())) for contig_id, bases in rows]
    if found != sorted(expected):
        odd = set(found) ^ set(expected)
        raise Wrong(f"split holds other contigs than the databases: {sorted(odd)!r:.300}")


def _precompute(case: Case, folder: Path) -> None:
    sample = case.choose.choice(SAMPLES)
    change_file(case, folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite")
    before, out, split = contents(folder), case.folder / "new.db", folder / "splits" / "train_split.parquet"
    with case.package():
        precompute_window_database(split, out, T, STRIDE, max_ambiguous=0.5, sequences=folder / "seqs")
    case.must_not_leave(*([] if case.error else [out, out.with_name("new.db.index")]))
    if changed_files := changed_in(before, contents(folder)):
        raise Wrong(f"precompute changed {changed_files}")
    if case.error is not None:
        return
    expected = []
    for contig_id, length in sorted(pl.read_parquet(split).rows()):
        sample = oracle.sample_of(contig_id)
        path = folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
                ((bases,),) = database.execute(
                    "SELECT nt_sequence FROM sequences WHERE contig_id = ?", (contig_id,)
                ).fetchall()
            if len(bases) != length:
                raise Wrong(f"{contig_id} has {len(bases)} bases, the split says {length}")
            for k in oracle.windows_of(length, T, STRIDE):
                part = bases[k * STRIDE : k * STRIDE + T].upper()
                if not part or sum(c not in "ACGT" for c in part) / len(part) <= 0.5:
                    expected.append((contig_id.encode(), k))
        except (sqlite3.Error, TypeError, ValueError, AttributeError) as error:
            raise Wrong(f"precompute read {contig_id}, an independent reader fails: {error!r}") from error
    found = [row[1:] for row in _mappings(out)]
    if found != expected:
        raise Wrong(f"windows {sorted(set(found) ^ set(expected))!r:.300} differ")


def _run_index(case: Case, folder: Path) -> None:
    windows = folder / case.choose.choice(("train.db", "foreign.db"))
    sample = case.choose.choice(SAMPLES)
    change_file(case, case.choose.choice((windows, folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite")))
    index = windows.with_name(windows.name + ".index")
    with case.package():
        index_window_database(folder / "seqs", windows)
    case.must_not_leave(*([] if case.error else [index, folder / "seqs"]))
    if case.error is None:
        read_all(case, folder / "seqs", windows)


def _bench(case: Case, folder: Path) -> None:
    sample = case.choose.choice(SAMPLES)
    change_file(
        case, case.choose.choice((folder / "train.db", folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"))
    )
    before = contents(folder)
    with case.package():
        sharded_eden.bench(folder / "seqs", folder / "train.db", batch_size=8, max_workers=0, seconds=0.02)
    case.must_not_leave()
    if changed_files := changed_in(before, contents(folder)):
        raise Wrong(f"bench changed {changed_files}")


# ---- build, again ----


def fuzz_rebuild(case: Case) -> None:
    """Build again where a database, the manifest, the table of contigs or a receipt was changed."""
    folder, choose = world(case), case.choose
    original = rows_of(folder / "seqs")
    if choose.random() < 0.4 and (found := receipts(folder / "killed")):
        out, changed = folder / "killed", choose.choice(found)
    else:
        out, sample = folder / "seqs", choose.choice(SAMPLES)
        names = ("manifest.sqlite", "manifest.sqlite", "contigs.parquet", f"{sample}/glm_dataset_{sample}.sqlite")
        changed = out / choose.choice(names)
    change_file(case, changed)
    before = contents(out)
    inputs, force = [folder / "in"], choose.random() < 0.2
    if choose.random() < 0.3:
        (folder / "in" / "S3.fa").write_text(">new\nACGTACGT\n")
        original["S3"] = [("BCR__ECT-S3__CT1-1", "ACGTACGT")]
    with case.package():
        build_sequence_dbs(inputs, out, force=force)
    if case.error is not None:
        partial = [path for path in case.new_files if ".partial" in str(path)]
        if partial and not receipts(out):  # receipts are kept, so that the next run goes on from them
            raise Wrong(f"not removed: {partial}")
        return
    rows = rows_of(out)
    for sample, expected in original.items():
        name = f"{sample}/glm_dataset_{sample}.sqlite"
        if rows.get(sample) != expected and (force or contents(out).get(name) != before.get(name)):
            raise Wrong(f"{sample} holds {rows.get(sample)!r:.200}, expected {expected!r:.200}")
    if changed.name.startswith("glm_dataset") or (changed.name == "contigs.parquet" and not force):
        return
    table = sorted(pl.read_parquet(out / "contigs.parquet").select("contig_id", "length").rows())
    expected_table = sorted((contig_id, len(bases)) for rows in original.values() for contig_id, bases in rows)
    if table != expected_table:
        raise Wrong(f"contigs.parquet: {sorted(set(table) ^ set(expected_table))!r:.300} differ")


TARGETS = {"commands": fuzz_commands, "rebuild": fuzz_rebuild}
