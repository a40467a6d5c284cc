"""From a window database and its sequence databases to `WINDOWS.db.index`, which maps windows to bytes.

Enter: both. Leaves: the file of `sharded_eden.format.index`. Costs one pass over the windows, and one over each sequence
database whose addresses `build` has not recorded. Memory: some 150 bytes for each run of windows (as a rule a run is a contig),
and the addresses of `CONTIGS_AT_ONCE` contigs.

    window_mappings ──in the order of the windows──▶ runs (contig, first window)
                                                       │ by sample
    sequence databases ──addresses──────────────────▶ join by contig ID ──▶ the index
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, shown
from sharded_eden.format import schema
from sharded_eden.format.fingerprint import fingerprint_of_rows
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.index import NO_TAG, RUN, SAMPLE, FileIdentity, index_path, write_index
from sharded_eden.format.pages.addresses import AT, LOCAL, OVERFLOW, REASON, REASONS, Addresses
from sharded_eden.format.pages.recorded import addresses_of
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sqlite import open_read_only, publishing, table_columns, unreadable
from sharded_eden.jobs import Engine, EngineName, Meter, Progress, Say, run_tasks

ROWS_AT_ONCE = 1 << 17
"""Windows that are read together."""
CONTIGS_AT_ONCE = 1 << 22
"""Contigs whose addresses are joined together, and the samples they belong to."""
MAX_TAGS = 1 << 16
"""With more distinct control tags than this, the index holds none: they are then taken from the sequence IDs."""

MISSING = "it is not in its sequence database"
NO_DATABASE = "there is no sequence database of its sample"
NO_SAMPLE = "its ID names no sample"
SHORT = "it is shorter than its windows, or not as long as the window database says"

_WINDOWS = "SELECT window_idx, sequence_id, window_in_seq_idx FROM window_mappings ORDER BY window_idx"
_FIRST, _IN_CONTIG, _LAST, _SAMPLE = "first_window", "first_in_contig", "last_in_contig", "sample"


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """What an index holds."""

    path: Path
    windows: int
    addressed_windows: int
    contigs: int
    """Runs of consecutive windows of one contig: contigs, unless windows were left out or shuffled."""
    without_address: dict[str, int]
    """Runs without an address, by reason."""
    bytes_read: int
    """Bytes of sequence databases that were read because no addresses of them were recorded."""


def index_window_database(
    sequence_db_dir: str | os.PathLike[str],
    window_db: str | os.PathLike[str],
    *,
    jobs: int | None = 1,
    engine: EngineName = "local",
    address: str | None = None,
    progress: Progress | None = None,
) -> IndexResult:
    """Write the index of a window database; one that is there is replaced once the new one is whole.

    Args:
        sequence_db_dir: the folder of sequence databases.
        window_db: the window database; `window_db` + `.index` is written.
        jobs: sequence databases that are read at a time; None on Ray: as many as the cluster has processors.
        engine: `local`, or `ray`: the databases must then lie where all nodes see them.
        address: of the Ray cluster, `auto` for the one that this machine belongs to.
        progress: called with the bytes of sequence databases that are done and their total.

    Raises:
        MissingDatabase: there is no such window database, or no sequence database.
        DatabaseError: a database is damaged, changed while it was read, or its windows are not numbered densely from 0.
        UsageError: the index cannot be written, or another process is writing it.

    Example:
        >>> index_window_database("SEQDB", "train_windows.db").addressed_windows
        100000
    """
    path = Path(window_db)
    where = Engine(engine, jobs, address)
    paths = schema.discover_sample_databases(sequence_db_dir)
    if not path.is_file():
        raise MissingDatabase(f"{path}: no such window database")
    with publishing(index_path(path)) as unfinished:
        identity = FileIdentity.of(path.stat())
        with closing(open_read_only(path, io="read")) as database:
            try:
                windows = _Windows(database, path)
                frame = windows.runs(list(paths))
            except apsw.Error as error:
                raise unreadable(path, error) from error
        names = [name for name, is_used in zip(paths, windows.used, strict=True) if is_used]
        joined = _Joined(frame, windows, list(paths))
        total_bytes = sum(paths[name].stat().st_size for name in names)
        meter, done = Meter(progress, total_bytes), 0
        bytes_read = 0
        for found in _all_addresses({name: paths[name] for name in names}, where):
            joined.add(found)
            done += found.addresses.identity.size_bytes
            bytes_read += found.bytes_read
            meter.reach(done, 0)
        joined.finish()
        if FileIdentity.of(path.stat()) != identity:
            raise DatabaseError(f"{path}: it was changed while it was read. Run the command again")
        meta = {
            "total_windows": windows.total,
            "stride": windows.geometry.stride,
            "fingerprint": windows.fingerprint,
            "identity": list(identity),
            "samples": list(paths),
            "tags": windows.tags,
            "without_address": dict(joined.without.most_common()),
        }
        write_index(unfinished, meta, joined.samples, [joined.runs])
        meter.finish()
    return IndexResult(
        path=index_path(path),
        windows=windows.total,
        addressed_windows=joined.addressed_windows(windows.total),
        contigs=len(joined.runs),
        without_address=dict(joined.without.most_common()),
        bytes_read=bytes_read,
    )


# ---- windows -> runs ----


class _Windows:
    """The windows of a window database.

    Args:
        database: an open window database.
        path: how messages call it.
    """

    def __init__(self, database: apsw.Connection, path: Path) -> None:
        self._database, self._path = database, path
        for table in ("metadata", "window_mappings"):
            if not table_columns(database, table):
                raise DatabaseError(f"{path}: not a window database: it has no table {table}")
        metadata = dict(database.execute("SELECT key, value FROM metadata"))
        try:
            self.geometry = WindowGeometry.from_metadata(metadata)
            self._stated = None if metadata.get("total_windows") is None else int(metadata["total_windows"])
            stated_fingerprint = metadata.get("fingerprint")
            self.fingerprint = None if stated_fingerprint is None else int(stated_fingerprint)
        except (KeyError, TypeError, ValueError) as error:
            raise DatabaseError(
                f"{path}: not a window database: its metadata are incomplete ({shown(error)})"
            ) from error
        self._metadata = metadata
        self.total = 0
        self.tags: list[str] = []
        self.used: list[bool] = []
        """Of each sample, whether a window names it."""

    def runs(self, samples: Sequence[str]) -> pl.DataFrame:
        """Return the runs, sorted by window.

        Columns: `contig_id`, `first_window`, `first_in_contig`, `last_in_contig`, `length` (as `contig_lengths` has it, or -1),
        `sample` (its number; -1 where it has no database, -2 where the ID names none), `tag`.
        """
        parts = list(self._parts())
        if self._stated is not None and self._stated != self.total:
            raise DatabaseError(
                f"{self._path}: its metadata say {self._stated} windows, its table window_mappings has {self.total}"
            )
        if self.fingerprint is None:
            self.fingerprint = fingerprint_of_rows(self._database, self._metadata, self.total)
        if not parts:
            parts = [_run_frame([], [], [], [])]
        frame = pl.concat(parts).with_columns(self._sample_numbers(samples, parts))
        del parts
        self.used = np.bincount(frame[_SAMPLE].filter(frame[_SAMPLE] >= 0).to_numpy(), minlength=len(samples)) > 0  # type: ignore[assignment]
        return frame.with_columns(self._tag_numbers(frame), self._recorded_lengths(frame))

    def _parts(self) -> Iterator[pl.DataFrame]:
        cursor = self._database.execute(_WINDOWS)
        last: tuple[str, int] | None = None  # contig and window_in_seq_idx of the window before
        open_run: pl.DataFrame | None = None
        while rows := list(islice(cursor, ROWS_AT_ONCE)):
            window, ids, in_contig = zip(*rows, strict=True)
            try:
                numbers = np.array(window, dtype=np.int64), np.array(in_contig, dtype=np.int64)
                if set(map(type, window)) | set(map(type, in_contig)) != {int} or set(map(type, ids)) != {str}:
                    raise TypeError
                text = pl.Series(CONTIG_ID, ids, dtype=pl.String)
            except (TypeError, ValueError, OverflowError) as error:
                raise DatabaseError(
                    f"{self._path}: a row of window_mappings from window {shown(window[0])} on is not (integer, text, integer)"
                ) from error
            expected = np.arange(self.total, self.total + len(rows))
            wrong = np.flatnonzero(numbers[0] != expected)
            if len(wrong):
                raise DatabaseError(
                    f"{self._path}: its windows are not numbered from 0 without gaps: window {numbers[0][wrong[0]]} comes "
                    f"where {expected[wrong[0]]} should"
                )
            if numbers[1].min() < 0 or numbers[1].max() > np.iinfo(np.uint32).max - ROWS_AT_ONCE:
                raise DatabaseError(f"{self._path}: a window_in_seq_idx from window {self.total} on is out of range")
            is_first = np.ones(len(rows), dtype=np.bool_)
            is_first[1:] = (text[1:] != text[:-1]).to_numpy() | (np.diff(numbers[1]) != 1)
            if last is not None:
                is_first[0] = ids[0] != last[0] or in_contig[0] != last[1] + 1
            firsts = np.flatnonzero(is_first)
            lasts = np.append(firsts[1:], len(rows)) - 1
            frame = _run_frame(text.gather(firsts), numbers[0][firsts], numbers[1][firsts], numbers[1][lasts])
            if open_run is not None:
                if not is_first[0]:
                    end = numbers[1][firsts[0] - 1 if len(firsts) else -1]
                    open_run = open_run.with_columns(pl.lit(end, dtype=pl.Int64).alias(_LAST))
                frame = pl.concat([open_run, frame])
            yield frame[:-1]
            open_run, last = frame[-1:], (ids[-1], in_contig[-1])
            self.total += len(rows)
        if open_run is not None:
            yield open_run

    def _sample_numbers(self, samples: Sequence[str], parts: Sequence[pl.DataFrame]) -> pl.Series:
        """Return the number of the sample of each run: -1 where it has no database, -2 where its ID names none."""
        if len(samples) == 1:
            return pl.Series(_SAMPLE, np.zeros(sum(map(len, parts)), dtype=np.int64))
        numbers = {name: number for number, name in enumerate(samples)}
        found = []
        for part in parts:
            prefix = part[CONTIG_ID].str.split_exact("__", 2).struct.field("field_1")
            distinct = prefix.unique().to_list()
            of_prefix = {p: -2 if p is None else numbers.get(".".join(p.split("-")[1:]), -1) for p in distinct}
            found.append(prefix.replace_strict(of_prefix, return_dtype=pl.Int64))
        return pl.concat(found).alias(_SAMPLE)

    def _tag_numbers(self, frame: pl.DataFrame) -> pl.Series:
        prefixes = frame[CONTIG_ID].str.split_exact("__", 1).struct.field("field_0")
        distinct = prefixes.unique(maintain_order=True)
        names = {prefix: schema.control_name(prefix) for prefix in islice(distinct, 2 * MAX_TAGS)}
        self.tags = sorted(set(names.values()))
        if len(distinct) > len(names) or len(self.tags) > MAX_TAGS:
            self.tags = []
            return pl.Series("tag", np.full(len(frame), NO_TAG, dtype=np.uint32))
        number = {name: k for k, name in enumerate(self.tags)}
        return prefixes.replace_strict({p: number[n] for p, n in names.items()}, return_dtype=pl.UInt32).alias("tag")

    def _recorded_lengths(self, frame: pl.DataFrame) -> pl.Series:
        """Return the length of each run's contig as `contig_lengths` has it, -1 where it says nothing."""
        found = np.full(len(frame), -1, dtype=np.int64)
        if {"first_window_idx", "length"} <= set(table_columns(self._database, "contig_lengths")):
            firsts, lengths = [], []
            cursor = self._database.execute(
                "SELECT first_window_idx, length FROM contig_lengths WHERE typeof(first_window_idx) = 'integer' "
                "AND typeof(length) = 'integer' ORDER BY first_window_idx"
            )
            while rows := list(islice(cursor, ROWS_AT_ONCE)):
                part = np.array(rows, dtype=np.int64)
                firsts.append(part[:, 0])
                lengths.append(part[:, 1])
            if firsts:
                first, length = np.concatenate(firsts), np.concatenate(lengths)
                at = np.searchsorted(first, frame[_FIRST].to_numpy(), side="right") - 1
                found = np.where(at >= 0, length[np.maximum(at, 0)], -1)
        return pl.Series(LENGTH, found)


def _run_frame(
    ids: Sequence[str] | pl.Series,
    first: Sequence[int] | NDArray[np.int64],
    in_contig: Sequence[int] | NDArray[np.int64],
    last: Sequence[int] | NDArray[np.int64],
) -> pl.DataFrame:
    types = {CONTIG_ID: pl.String, _FIRST: pl.Int64, _IN_CONTIG: pl.Int64, _LAST: pl.Int64}
    return pl.DataFrame(dict(zip(types, (ids, first, in_contig, last), strict=True)), schema=types)


# ---- addresses ----


@dataclass(frozen=True)
class _Task:
    """One sequence database."""

    name: str
    path: Path


@dataclass(frozen=True)
class _Found:
    """The addresses of a sequence database."""

    name: str
    addresses: Addresses
    bytes_read: int


def _find(task: _Task, say: Say) -> _Found:
    addresses, bytes_read = addresses_of(task.path)
    return _Found(task.name, addresses, bytes_read)


def _all_addresses(paths: Mapping[str, Path], engine: Engine) -> Iterator[_Found]:
    """Yield the addresses of each sequence database."""
    for ended in run_tasks(_find, [_Task(name, path) for name, path in paths.items()], engine):
        if ended.result is None:
            raise ended.error or EdenError(f"{ended.task.path}: no result")
        yield ended.result


class _Joined:
    """The runs of a window database, as they get their addresses.

    Args:
        frame: what `_Windows.runs` returned.
        windows: where they come from.
        samples: the names of all samples.
    """

    def __init__(self, frame: pl.DataFrame, windows: _Windows, samples: Sequence[str]) -> None:
        self.runs = np.zeros(len(frame), dtype=RUN)
        self.runs["at"] = -1
        for name in (_FIRST, _IN_CONTIG, "tag"):
            self.runs[name] = frame[name].to_numpy()
        number = frame[_SAMPLE].to_numpy()
        self.runs["sample"] = np.maximum(number, 0)
        self.samples = np.zeros(len(samples), dtype=SAMPLE)
        self.samples["page_bytes"] = 0
        self.without: Counter[str] = Counter()
        for value, reason in ((-1, NO_DATABASE), (-2, NO_SAMPLE)):
            if count := int(np.count_nonzero(number == value)):
                self.without[reason] += count
        self._numbers = {name: k for k, name in enumerate(samples)}
        self._stride = windows.geometry.stride
        # The runs of one sample are one slice of these.
        if number.size and (np.diff(number) < 0).any():
            order = np.argsort(number, kind="stable")
            frame = frame[order]
        else:
            order = np.arange(len(frame))
        self._order = order
        self._frame = frame.select(CONTIG_ID, _LAST, LENGTH, _SAMPLE)
        self._bounds = np.searchsorted(frame[_SAMPLE].to_numpy(), np.arange(len(samples) + 1))
        self._waiting: list[_Found] = []

    def add(self, found: _Found) -> None:
        """Take in the addresses of a sequence database."""
        number = self._numbers[found.name]
        identity = found.addresses.identity
        digest = np.frombuffer(found.addresses.digest.ljust(16, b"\0"), dtype="V16")[0]
        self.samples[number] = (found.addresses.page_bytes, *identity, digest)
        self._waiting.append(found)
        if sum(len(each.addresses.contigs) for each in self._waiting) >= CONTIGS_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Join what waits."""
        waiting, self._waiting = self._waiting, []
        by_number = {self._numbers[each.name]: each.addresses for each in waiting}
        for number, addresses in by_number.items():
            if addresses.without:
                low, high = self._bounds[number : number + 2]
                self.without[f"{addresses.without} (the whole database)"] += int(high - low)
        usable = {number: each for number, each in by_number.items() if not each.without}
        if not usable:
            return
        rows = np.concatenate([np.arange(*self._bounds[number : number + 2]) for number in usable])
        known = pl.concat(
            each.contigs.with_columns(pl.lit(number, dtype=pl.Int64).alias(_SAMPLE)) for number, each in usable.items()
        )
        # An ID that appears twice has no address: one row is as good as the other.
        known = known.unique([CONTIG_ID, _SAMPLE], keep="any") if known[REASON].max() else known
        found = self._frame[rows].join(
            known.rename({LENGTH: "bases"}), on=[CONTIG_ID, _SAMPLE], how="left", maintain_order="left"
        )
        bases = found["bases"].fill_null(-1).cast(pl.Int64).to_numpy()
        reason = found[REASON].fill_null(0).to_numpy()
        is_missing = bases < 0
        recorded = found[LENGTH].to_numpy()
        is_short = ~is_missing & (
            (found[_LAST].to_numpy() * self._stride > bases) | ((recorded >= 0) & (recorded != bases))
        )
        has_address = ~is_missing & ~is_short & (reason == 0)
        places = self._order[rows]
        chosen = places[has_address]
        for name, column in (("at", AT), (LENGTH, "bases"), (LOCAL, LOCAL), (OVERFLOW, OVERFLOW)):
            self.runs[name][chosen] = found[column].to_numpy()[has_address]
        for text, count in ((MISSING, is_missing.sum()), (SHORT, is_short.sum())):
            if count:
                self.without[text] += int(count)
        for code, count in zip(
            *np.unique(reason[~is_missing & ~is_short & (reason > 0)], return_counts=True), strict=True
        ):
            self.without[REASONS[code]] += int(count)

    def addressed_windows(self, total: int) -> int:
        """Return how many windows have an address."""
        counts = np.diff(self.runs["first_window"], append=total)
        return int(counts[self.runs["at"] >= 0].sum())
