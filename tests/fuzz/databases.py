"""Targets that change one file of a prepared data set, then open it or check it.

The judge is `tests/oracle.py`, which reads the changed files with the standard library's sqlite3, and the unchanged data set.
"""

from __future__ import annotations

import contextlib
import io
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from case import Case, Undecided, Wrong
from prepared import SAMPLES, STRIDE, T, change_file, changed_in, contents, rows_of, world

import oracle
import sharded_eden
from sharded_eden import ShardedEdenDataset, verify
from sharded_eden.cli import main as run_command_line
from sharded_eden.windows.index import index_window_database

# ---- the dataset ----


def fuzz_dataset(case: Case) -> None:
    """Open a data set with a changed file and read every window."""
    folder, choose = world(case), case.choose
    windows = folder / choose.choice(("train.db", "foreign.db"))
    write_index_sometimes(case, folder, windows)
    sample = choose.choice(SAMPLES)
    candidates = [windows, windows, folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite"]
    index = windows.with_name(windows.name + ".index")
    if index.exists():
        candidates += [index, index]
    change_file(case, choose.choice(candidates))
    read_all(case, folder / "seqs", windows)


def write_index_sometimes(case: Case, folder: Path, windows: Path) -> None:
    """Write the index of the window database, in half of the cases."""
    if case.choose.random() < 0.5:
        index_window_database(folder / "seqs", windows)


def read_all(case: Case, sequences: Path, windows: Path, packed: bool | None = None) -> None:
    choose = case.choose
    options: dict[str, Any] = {
        "use_control_tags": choose.random() < 0.3,
        "io": choose.choice(("auto", "mmap", "read")),
        "read_with": choose.choice(("auto", "blob", "substr")),
        "packed": choose.random() < 0.25 if packed is None else packed,
        "compact": choose.random() < 0.25,
    }
    case.done.append(f"dataset({options})")
    batches = choose.random() < 0.7
    before = contents(sequences.parent)
    lengths: list[int] = []
    rows: dict[int, list[int]] = {}
    with case.package():
        _fill(rows, lengths, batches, None, sequences, windows, T, stride=STRIDE, **options)
    case.must_not_leave()
    # Before the judge reads: its connections may write, and one that SQLite closes last removes a -wal.
    if changed := changed_in(before, contents(sequences.parent)):
        raise Wrong(f"opening changed {changed}")
    if lengths:
        _judge_rows(case, sequences, windows, lengths[0], rows, options["use_control_tags"], options["packed"])


def _fill(rows: dict[int, list[int]], lengths: list[int], batches: bool, *arguments: Any, **options: Any) -> None:
    """Read all rows of a dataset, which is freed on return: the memory map of an index ends with it."""
    with ShardedEdenDataset(*arguments, **options) as dataset:
        total = len(dataset)
        lengths.append(total)
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
    write_index_sometimes(case, folder, windows)
    candidates = [
        windows,
        folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite",
        folder / "seqs" / sample / f"glm_dataset_{sample}.sqlite",
        folder / "seqs" / "contigs.parquet",
        folder / "seqs" / "manifest.sqlite",
    ]
    changed = choose.choice(candidates)
    original = rows_of(folder / "seqs")
    change_file(case, changed)
    before = contents(folder)
    full = choose.random() < 0.5
    result = None
    with case.package():
        if choose.random() < 0.2:
            with contextlib.redirect_stdout(_Utf8()), contextlib.redirect_stderr(_Utf8()):
                run_command_line(["verify", str(folder / "seqs"), str(windows), "--by", "contig", *["--full"] * full])
        else:
            result = verify(folder / "seqs", [windows], full=full, by="contig", windows_read=64)
    case.must_not_leave()
    if changed_files := changed_in(before, contents(folder)):
        raise Wrong(f"verify changed {changed_files}")
    if result is None or not result.is_clean:
        return
    case.done.append(f"verify is clean (full={full})")
    with case.package():
        _read_each(folder / "seqs", windows, all_windows=full)
    if isinstance(case.error, sharded_eden.errors.GeometryMismatch):
        return  # another window size that fits the rows is not damage
    if case.error is not None:
        raise Wrong(f"verify found nothing, but reading fails: {case.error}")
    if full and changed.name.startswith("glm_dataset") and (found := rows_of(folder / "seqs")) != original:
        lost = [name for name in original.keys() | found.keys() if original.get(name) != found.get(name)]
        raise Wrong(f"verify --full found nothing, but rows of {lost} are not those that were built")


def _read_each(sequences: Path, windows: Path, *, all_windows: bool) -> None:
    with ShardedEdenDataset(None, sequences, windows, T, stride=STRIDE) as dataset:
        for index in range(len(dataset)) if all_windows else ():
            dataset[index]


class _Utf8(io.TextIOWrapper):
    """An output that only takes what UTF-8 can hold, as a terminal or a log file does."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")


TARGETS = {"dataset": fuzz_dataset, "verify": fuzz_verify}
