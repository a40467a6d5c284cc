"""Targets that change one file of a prepared data set, then open it, or run a command on it.

The judge is `tests/oracle.py`, which reads the changed files with the standard library's sqlite3, and the unchanged data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from case import Case, Undecided, Wrong
from database_mutations import mutate_database
from inputs import built
from mutations import BINARY_MUTATIONS, change_table, mutate

import oracle
import sharded_eden
from sharded_eden import (
    ShardedEdenDataset,
    build_sequence_dbs,
    pack_window_database,
    precompute_window_database,
    verify,
    write_splits,
)
from sharded_eden.cli import main as run_command_line
from sharded_eden.windows.index import index_window_database

T, STRIDE = 64, 50
SAMPLES = ("S0", "S1", "S2.X")
READ_ONLY = {"dataset", "verify", "split", "precompute", "bench"}


# ---- the data set ----


def world(case: Case) -> Path:
    """Return a copy of the prepared data set, in the folder of the case."""
    folder = case.folder / "world"
    shutil.copytree(case.folder.parent / "template", folder)
    return folder


def contigs_of(sample: int) -> dict[str, str]:
    """Return the contigs of a sample: around window boundaries, and one that needs overflow pages."""
    choose = random.Random(sample)
    lengths = (200, 20, 164, 63, 5000 + 777 * sample) if sample < 2 else (165, 64)
    letters = ("ACGT", "ACGTacgtNn", "ACGTRYKMSWBDHVN")[sample]
    return {f"c{i}": "".join(choose.choices(letters, k=length)) for i, length in enumerate(lengths)}


def prepare(folder: Path) -> None:
    """Write the data set that every case of a process changes a copy of."""
    (folder / "in").mkdir(parents=True)
    for number, sample in enumerate(SAMPLES):
        text = "".join(f">{name} made up\n{sequence}\n" for name, sequence in contigs_of(number).items())
        (folder / "in" / f"{sample}.fa").write_text(text)
    build_sequence_dbs([folder / "in"], folder / "seqs")
    write_splits(folder / "seqs", folder / "splits", by="contig", val=0.2, test=0, seed=1)
    for name in ("train", "val"):
        split = folder / "splits" / f"{name}_split.parquet"
        precompute_window_database(split, folder / f"{name}.db", T, STRIDE, pack=name == "train")
    contigs = {contig: bases for rows in built(folder / "seqs").values() for contig, bases in rows}
    oracle.write_window_db(folder / "foreign.db", contigs, T, STRIDE)
    killed = folder / "killed"
    program = (
        "import os, sys; from sharded_eden import build_sequence_dbs\n"
        "build_sequence_dbs([sys.argv[1]], sys.argv[2], note=lambda text: os.path.exists(sys.argv[3]) and os._exit(9))"
    )
    mark = killed / "S1" / "glm_dataset_S1.sqlite"
    subprocess.run([sys.executable, "-c", program, str(folder / "in"), str(killed), str(mark)], check=False)


def receipts(folder: Path) -> list[Path]:
    """Return the receipts that a killed build left in its output folder."""
    return sorted((folder / ".partial-build" / "receipts").glob("*"))


def change_file(case: Case, path: Path) -> None:
    """Change a file of the data set by what it is."""
    what = "bytes"
    if path.suffix in {".db", ".sqlite"}:
        what = mutate_database(case.choose, path)
    elif path.suffix == ".parquet" and case.choose.random() < 0.7:
        data = path.read_bytes()
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
            data = change_table(case.choose, data, "parquet")
        path.write_bytes(data)
        what = "table"
    else:
        path.write_bytes(mutate(case.choose, path.read_bytes(), BINARY_MUTATIONS))
    case.done.append(f"{path.relative_to(case.folder)} ({what})")


def _contents(folder: Path) -> dict[str, str]:
    """Return {path: digest} of all files but `-shm`: SQLite makes and changes those whenever it opens a `-wal`, to read too."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in after.keys() | before.keys() if after.get(name) != before.get(name))


# ---- the dataset ----


def fuzz_dataset(case: Case) -> None:
    """Open a data set with a changed file and read every window."""
    folder, choose = world(case), case.choose
    windows = folder / choose.choice(("train.db", "foreign.db"))
    _index(case, folder, windows)
    sample = choose.choice(SAMPLES)
    candidates = [windows, windows, folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"]
    index = windows.with_name(windows.name + ".index")
    if index.exists():
        candidates += [index, index]
    change_file(case, choose.choice(candidates))
    before = _contents(folder)
    _read(case, folder / "seqs", windows)
    if changed := _changed(before, _contents(folder)):
        raise Wrong(f"opening changed {changed}")


def _index(case: Case, folder: Path, windows: Path) -> None:
    """Write the index of the window database, in half of the cases."""
    if case.choose.random() < 0.5:
        index_window_database(folder / "seqs", windows)


def _read(case: Case, sequences: Path, windows: Path, packed: bool | None = None) -> None:
    choose = case.choose
    options: dict[str, Any] = {
        "use_control_tags": choose.random() < 0.3,
        "io": choose.choice(("auto", "mmap", "read")),
        "read_with": choose.choice(("auto", "blob", "substr")),
        "packed": choose.random() < 0.25 if packed is None else packed,
        "compact": choose.random() < 0.25,
    }
    case.done.append(f"dataset({options})")
    total, batches = None, choose.random() < 0.7
    rows: dict[int, Any] = {}
    with case.package(), ShardedEdenDataset(None, sequences, windows, T, stride=STRIDE, **options) as dataset:
        total = len(dataset)
        if total > 10_000:
            raise Wrong(f"a length of {total}")
        expand = dataset.expander() if options["compact"] else None
        for start in range(0, total, 16):
            indices = list(range(start, min(total, start + 16)))
            if batches:
                batch = dataset.collate_fn(dataset.__getitems__(indices))
                batch = batch if expand is None else expand(batch)
                for at, index in enumerate(indices):
                    rows[index] = batch["tokens"][at].tolist()
            else:
                for index in indices:
                    item = dataset[index]
                    if expand is not None:
                        item = {name: value[0] for name, value in expand(dataset.collate_fn([item])).items()}
                    rows[index] = item["tokens"].tolist()
    case.must_not_leave()
    if total is not None:
        _judge_rows(case, sequences, windows, total, rows, options["use_control_tags"], options["packed"])


def _judge_rows(
    case: Case,
    sequences: Path,
    windows: Path,
    total: int,
    rows: dict[int, list[int]],
    tags: bool,
    packed: bool,
) -> None:
    try:
        with closing(sqlite3.connect(f"file:{windows}?mode=ro&immutable=1", uri=True)) as database:
            (count,) = database.execute(f"SELECT count(*) FROM {'packs' if packed else 'window_mappings'}").fetchone()
            packs = dict(database.execute("SELECT pack_idx, windows FROM packs")) if packed else {}
            special = dict(database.execute("SELECT key, value FROM metadata")).get("special_tokens", 3)
    except sqlite3.Error as error:
        raise Wrong(f"opened, but sqlite3 says {error}") from error
    if count != total and case.error is None:  # a window that is missing is noticed where it is read
        raise Wrong(f"a length of {total}, {count} rows")
    # In a pack a window has as many bases as the metadata leave room for, which may be changed too.
    usable = T - int(special)
    for index in case.choose.sample(sorted(rows), min(30, len(rows))):
        try:
            expected = _expected(sequences, windows, index, packs if packed else None, tags, usable, "sequences")
            failure = None
        except (sqlite3.Error, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            if "decode" in str(error):
                raise Undecided(f"sqlite3 cannot decode the whole sequence: {error!r:.200}") from error
            expected, failure = [], error
        if rows[index] == expected:
            continue
        # Where a page is damaged, the row that the index of the IDs leads to may be another one than the row that has the ID.
        # Both are what the file holds; integrity_check, and so `verify --full`, reports it.
        if _is_damaged(sequences):
            with contextlib.suppress(sqlite3.Error, TypeError, ValueError, AttributeError, KeyError, IndexError):
                table = "sequences NOT INDEXED"
                if rows[index] == _expected(sequences, windows, index, packs if packed else None, tags, usable, table):
                    continue
        if failure is not None:
            raise Wrong(f"item {index} is {rows[index][:24]}..., but an independent reader fails: {failure!r}")
        raise Wrong(f"item {index} is {_letters(rows[index])}, expected {_letters(expected)}")


def _is_damaged(sequences: Path) -> bool:
    """Tell whether SQLite's own check finds a sequence database damaged."""
    for path in sequences.glob("*/glm_dataset_*.sqlite"):
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
                if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                    return True
        except (sqlite3.Error, UnicodeDecodeError):
            return True
    return False


def _expected(
    sequences: Path, windows: Path, index: int, packs: dict[int, bytes] | None, tags: bool, usable: int, table: str
) -> list[int]:
    """Return the tokens of an item, or of a pack, as `tests/oracle.py` reads them."""
    if packs is None:
        item = oracle.item(sequences, windows, index, seq_length=T, stride=STRIDE, control_tags=tags, table=table)
        return [int(token) for token in item["tokens"]]
    wanted = [int.from_bytes(packs[index][at : at + 8], "little") for at in range(0, len(packs[index]), 8)]
    row = [token for one in wanted for token in _shown(sequences, windows, one, tags, usable, table)]
    return row + [oracle.PAD] * (T - len(row))


def _shown(sequences: Path, windows: Path, index: int, tags: bool, usable: int, table: str) -> list[int]:
    """Return the tokens of a window in a pack: no padding, and at most `usable` bases."""
    item = oracle.item(sequences, windows, index, seq_length=T, stride=STRIDE, control_tags=tags, table=table)
    tokens = [int(token) for token in item["tokens"]]
    tokens = tokens[: max(i for i, token in enumerate(tokens) if token != oracle.PAD) + 1]
    return [*tokens[:-1][: len(tokens) - _bases(item) - 1 + usable], oracle.EOS]


def _bases(item: dict[str, Any]) -> int:
    """Return how many tokens of an item are bases: those that a label has a loss for."""
    return int(sum(item["loss_mask"]))


def _letters(tokens: list[int]) -> str:
    return "".join(chr(token) if token > 31 else "_bes"[token] if token < 4 else "?" for token in tokens)


# ---- verify ----


def fuzz_verify(case: Case) -> None:
    """Check a data set with a changed file; where that finds nothing, it must open, and its windows must be readable."""
    folder, choose = world(case), case.choose
    sample = choose.choice(SAMPLES)
    windows = folder / choose.choice(("train.db", "val.db", "foreign.db"))
    _index(case, folder, windows)
    candidates = [
        windows,
        folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite",
        folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite",
        folder / "seqs" / "contigs.parquet",
        folder / "seqs" / "manifest.sqlite",
    ]
    changed = choose.choice(candidates)
    original = _rows_of(folder / "seqs")
    change_file(case, changed)
    before = _contents(folder)
    full = choose.random() < 0.5
    result = None
    with case.package():
        if choose.random() < 0.2:
            with contextlib.redirect_stdout(_Utf8()), contextlib.redirect_stderr(_Utf8()):
                run_command_line(["verify", str(folder / "seqs"), str(windows), "--by", "contig", *["--full"] * full])
        else:
            result = verify(folder / "seqs", [windows], full=full, by="contig", windows_read=64)
    case.must_not_leave()
    if changed_files := _changed(before, _contents(folder)):
        raise Wrong(f"verify changed {changed_files}")
    if result is None or not result.is_clean:
        return
    case.done.append(f"verify is clean (full={full})")
    errors: list[str] = []
    with case.package(), ShardedEdenDataset(None, folder / "seqs", windows, T, stride=STRIDE) as dataset:
        try:
            for index in range(len(dataset)) if full else ():
                dataset[index]
        except sharded_eden.errors.EdenError as error:
            errors.append(str(error))
    if isinstance(case.error, sharded_eden.errors.GeometryMismatch):
        return  # another window size that fits the rows is not damage
    if case.error is not None or errors:
        raise Wrong(f"verify found nothing, but reading fails: {case.error or errors[0]}")
    if full and changed.name.startswith("glm_dataset") and (found := _rows_of(folder / "seqs")) != original:
        lost = [name for name in original.keys() | found.keys() if original.get(name) != found.get(name)]
        raise Wrong(f"verify --full found nothing, but rows of {lost} are not those that were built")


def _rows_of(sequences: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(sequences.glob("*/glm_dataset_*.sqlite")):
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
                found[path.parent.name] = database.execute(
                    "SELECT contig_id, nt_sequence FROM sequences ORDER BY rowid"
                ).fetchall()
        except sqlite3.Error as error:
            found[path.parent.name] = str(error)
            continue
        # A BLOB of the same bytes is read as the same bases.
        found[path.parent.name] = [
            (name, bases.decode("latin-1") if isinstance(bases, bytes) else bases)
            for name, bases in found[path.parent.name]
        ]
    return found


class _Utf8(io.TextIOWrapper):
    """An output that only takes what UTF-8 can hold, as a terminal or a log file does."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")


# ---- the other commands ----


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
    before, rows, objects = _contents(folder), _mappings(path), _objects(path)
    with case.package():
        pack_window_database(path, **sources)
    case.must_not_leave()
    changed = set(_changed(before, _contents(folder)))
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
    _read(case, folder / "seqs", path, packed=True)
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
    before = _contents(folder)
    out = case.folder / "new"
    with case.package():
        write_splits(folder / "seqs", out, by=case.choose.choice(("contig", "sample")), val=0.3, test=0)
    case.must_not_leave(*([] if case.error else [out]))
    if changed_files := _changed(before, _contents(folder)):
        raise Wrong(f"split changed {changed_files}")
    if case.error is not None:
        return
    found = sorted(
        row for path in out.glob("*.parquet") for row in pl.read_parquet(path).select("contig_id", "length").rows()
    )
    expected = []
    for sample, rows in _rows_of(folder / "seqs").items():
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
    before, out, split = _contents(folder), case.folder / "new.db", folder / "splits" / "train_split.parquet"
    with case.package():
        precompute_window_database(split, out, T, STRIDE, max_ambiguous=0.5, sequences=folder / "seqs")
    case.must_not_leave(*([] if case.error else [out, out.with_name("new.db.index")]))
    if changed_files := _changed(before, _contents(folder)):
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
        _read(case, folder / "seqs", windows)


def _bench(case: Case, folder: Path) -> None:
    sample = case.choose.choice(SAMPLES)
    change_file(
        case, case.choose.choice((folder / "train.db", folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"))
    )
    before = _contents(folder)
    with case.package():
        sharded_eden.bench(folder / "seqs", folder / "train.db", batch_size=8, max_workers=0, seconds=0.02)
    case.must_not_leave()
    if changed_files := _changed(before, _contents(folder)):
        raise Wrong(f"bench changed {changed_files}")


# ---- build, again ----


def fuzz_rebuild(case: Case) -> None:
    """Build again where a database, the manifest, the table of contigs or a receipt was changed."""
    folder, choose = world(case), case.choose
    original = _rows_of(folder / "seqs")
    if choose.random() < 0.4 and (found := receipts(folder / "killed")):
        out, changed = folder / "killed", choose.choice(found)
    else:
        out, sample = folder / "seqs", choose.choice(SAMPLES)
        names = ("manifest.sqlite", "manifest.sqlite", "contigs.parquet", f"{sample}/glm_dataset_{sample}.sqlite")
        changed = out / choose.choice(names)
    change_file(case, changed)
    before = _contents(out)
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
    rows = _rows_of(out)
    for sample, expected in original.items():
        name = f"{sample}/glm_dataset_{sample}.sqlite"
        if rows.get(sample) != expected and (force or _contents(out).get(name) != before.get(name)):
            raise Wrong(f"{sample} holds {rows.get(sample)!r:.200}, expected {expected!r:.200}")
    if changed.name.startswith("glm_dataset") or (changed.name == "contigs.parquet" and not force):
        return
    table = sorted(pl.read_parquet(out / "contigs.parquet").select("contig_id", "length").rows())
    expected_table = sorted((contig_id, len(bases)) for rows in original.values() for contig_id, bases in rows)
    if table != expected_table:
        raise Wrong(f"contigs.parquet: {sorted(set(table) ^ set(expected_table))!r:.300} differ")


TARGETS = {
    "dataset": fuzz_dataset,
    "verify": fuzz_verify,
    "commands": fuzz_commands,
    "rebuild": fuzz_rebuild,
}
