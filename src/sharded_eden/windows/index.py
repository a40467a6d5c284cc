"""From a window database and its sequence databases to `WINDOWS.db.index`, which maps windows to bytes.

Input: both. Output: the file of `sharded_eden.format.index`. Costs one pass over the windows, and one over each sequence
database whose addresses `build` has not recorded. Memory: some 150 bytes for each run of windows (as a rule a run is a contig),
and the addresses of `CONTIGS_AT_ONCE` contigs.

    window_mappings ──in the order of the windows──▶ runs (contig, first window)
                                                       │ by sample
    sequence databases ──addresses──────────────────▶ join by contig ID ──▶ the index
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError, printable
from sharded_eden.format import schema
from sharded_eden.format.commands import index_command, quoted
from sharded_eden.format.index import RUN, SAMPLE, FileIdentity, IndexFile, index_path, write_index
from sharded_eden.format.pages.addresses import AT, LOCAL, OVERFLOW, REASON, REASONS, Addresses
from sharded_eden.format.pages.recorded import addresses_of
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sqlite import READ_ERRORS, has_rows_in_log, open_read_only, unreadable
from sharded_eden.jobs import Engine, EngineName, Say, run_tasks
from sharded_eden.progress import Meter, Progress
from sharded_eden.storage.urls import is_url
from sharded_eden.windows.remote_databases import RemoteDatabases
from sharded_eden.windows.runs import FIRST, IN_CONTIG, LAST, SAMPLE_NUMBER, TAG, WindowRuns

CONTIGS_AT_ONCE = 1 << 22
"""The numbers of contigs, and of their samples, whose addresses are joined at once."""

MISSING = "it is not in its sequence database, or its contig_id is too long for the page of its row"
NO_DATABASE = "there is no sequence database of its sample"
NO_SAMPLE = "its ID names no sample"
SHORT = "it is shorter than its windows, or not as long as the window database says"


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
    """Write the index of a window database; an existing index is replaced when the new one is complete.

    Args:
        sequence_db_dir: the folder of sequence databases, or its URL in object storage. Databases are then copied beside the
            index one after the other, read and removed.
        window_db: the window database; `window_db` + `.index` is written.
        jobs: number of sequence databases read at the same time; None with Ray: one for each processor of the cluster. With a
            URL, so many databases lie on the disk at the same time.
        engine: `local`, or `ray`: the databases must then lie where all nodes see them.
        address: of the Ray cluster, `auto` for the one that this machine belongs to.
        progress: called with the bytes of sequence databases done and their total.

    Raises:
        MissingDatabase: there is no such window database, or no sequence database.
        DatabaseError: a database is damaged, changed while it was read, or its windows are not numbered densely from 0.
        UsageError: the index cannot be written, another process is writing it, or Ray is asked to read a URL.

    Example:
        >>> index_window_database("SEQDB", "train_windows.db").addressed_windows
        100000
    """
    path = Path(window_db)
    where = Engine(engine, jobs, address)
    if not path.is_file():
        raise MissingDatabase(f"{printable(path)}: no such window database")
    _refuse_log(path)
    databases = _databases(sequence_db_dir, where)
    with publishing(index_path(path)) as unfinished:
        identity = FileIdentity.of(path.stat())
        with closing(open_read_only(path, io="read")) as database:
            try:
                windows = WindowRuns(database, path)
                frame = windows.runs(list(databases.sizes))
            except READ_ERRORS as error:
                raise unreadable(path, error) from error
        names = [name for name, is_used in zip(databases.sizes, windows.used, strict=True) if is_used]
        joined = _Joined(frame, windows, list(databases.sizes))
        total_bytes = sum(databases.sizes[name] for name in names)
        meter, done = Meter(progress, total_bytes), 0
        bytes_read = 0
        for found in databases.addresses(names, unfinished):
            joined.add(found)
            done += found.addresses.identity.size_bytes
            bytes_read += found.bytes_read
            meter.reach(done)
        joined.finish()
        if FileIdentity.of(path.stat()) != identity:
            raise DatabaseError(f"{printable(path)}: it was changed while it was read. Run the command again")
        _refuse_log(path)
        meta = {
            "total_windows": windows.total,
            "stride": windows.geometry.stride,
            "fingerprint": windows.fingerprint,
            "identity": list(identity),
            "samples": list(databases.sizes),
            "tags": windows.tags,
            "without_address": dict(joined.without.most_common()),
            **databases.meta(names),
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


def _refuse_log(window_db: Path) -> None:
    """Refuse a window database whose rows are not all in its file: the index is tied to the file."""
    if has_rows_in_log(window_db):
        raise DatabaseError(
            f"{printable(window_db)}: has a -wal file that is not empty: a program has it open, or stopped while it did. Close "
            "that program, or let SQLite move its rows into the database: "
            f"sqlite3 {quoted(window_db)} 'PRAGMA wal_checkpoint(TRUNCATE)'"
        )


def index_or_reason(sequence_db_dir: str | os.PathLike[str] | None, window_db: Path) -> tuple[IndexResult | None, str]:
    """Write the index of a new window database, if that is possible.

    Args:
        sequence_db_dir: the folder of sequence databases, None where it is not known.
        window_db: the window database.

    Returns:
        What was written, and why there is no index, with the command that writes it.
    """
    try:
        if sequence_db_dir is None:
            raise UsageError("the split does not name the folder of its sequence databases")
        return index_window_database(sequence_db_dir, window_db), ""
    except Exception as error:  # an index is optional: after any error the window database is still complete
        with suppress(OSError):
            index_path(window_db).unlink(missing_ok=True)
        command = index_command("SEQDB" if sequence_db_dir is None else sequence_db_dir, window_db)
        return None, f"no index ({' '.join(str(error).split()) or type(error).__name__}). Write it: {command}"


def renew_index(window_db: Path, before: FileIdentity) -> None:
    """Keep the index after a window database was replaced by one with the same windows.

    Args:
        window_db: the window database.
        before: the identity of the replaced database. The index of any other database is removed.
    """
    path = index_path(window_db)
    if not path.exists():
        return
    try:
        file = IndexFile(path)
        if not FileIdentity(*file.meta["identity"]).is_same_file(before):
            raise DatabaseError(f"{printable(path)}: it describes another window database")
        file.check_all()
        with publishing(path) as unfinished:
            identity = list(FileIdentity.of(window_db.stat()))
            write_index(unfinished, {**file.meta, "identity": identity}, file.samples, [file.runs])
    except (EdenError, KeyError, TypeError):
        path.unlink(missing_ok=True)


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


@dataclass(frozen=True)
class _Databases:
    """Sequence databases, in a folder or in object storage."""

    sizes: Mapping[str, int]
    """Bytes of each database, by sample."""
    addresses: Callable[[Sequence[str], Path], Iterator[_Found]]
    """(samples, locked name of the index) -> the addresses of each."""
    meta: Callable[[Sequence[str]], Mapping[str, Any]]
    """samples -> what the index says of where they are."""


def _databases(given: str | os.PathLike[str], engine: Engine) -> _Databases:
    if isinstance(given, str) and is_url(given):
        if engine.name != "local":
            raise UsageError("engine='ray' reads sequence databases on a shared file system. Leave it out for a URL")
        remote, jobs = RemoteDatabases(given), engine.jobs or 1

        def copied(names: Sequence[str], unfinished: Path) -> Iterator[_Found]:
            for name, addresses in remote.addresses(names, unfinished, jobs):
                yield _Found(name, addresses, addresses.identity.size_bytes)

        sizes = {name: version.size_bytes for name, version in remote.versions.items()}
        return _Databases(sizes, copied, lambda names: {"remote": remote.meta(names)})
    paths = schema.discover_sample_databases(given)

    def read(names: Sequence[str], _: Path) -> Iterator[_Found]:
        for ended in run_tasks(_find, [_Task(name, paths[name]) for name in names], engine):
            if ended.result is None:
                raise ended.error or EdenError(f"{ended.task.path}: no result")
            yield ended.result

    folder = os.path.abspath(given)
    return _Databases({name: path.stat().st_size for name, path in paths.items()}, read, lambda _: {"folder": folder})


class _Joined:
    """The runs of a window database, and their addresses.

    Args:
        frame: what `WindowRuns.runs` returned.
        windows: where they come from.
        samples: the names of all samples.
    """

    def __init__(self, frame: pl.DataFrame, windows: WindowRuns, samples: Sequence[str]) -> None:
        self.runs = np.zeros(len(frame), dtype=RUN)
        self.runs["at"] = -1
        for name in (FIRST, IN_CONTIG, TAG):
            self.runs[name] = frame[name].to_numpy()
        number = frame[SAMPLE_NUMBER].to_numpy()
        self.runs["sample"] = np.maximum(number, 0)
        self.samples = np.zeros(len(samples), dtype=SAMPLE)
        self.samples["page_bytes"] = 0
        self.without: Counter[str] = Counter()
        for value, reason in ((-1, NO_DATABASE), (-2, NO_SAMPLE)):
            if count := int(np.count_nonzero(number == value)):
                self.without[reason] += count
        self._numbers = {name: k for k, name in enumerate(samples)}
        self._geometry = windows.geometry
        # The runs of one sample are one slice of these.
        if number.size and (np.diff(number) < 0).any():
            order = np.argsort(number, kind="stable")
            frame = frame[order]
        else:
            order = np.arange(len(frame))
        self._order = order
        self._frame = frame.select(CONTIG_ID, LAST, LENGTH, SAMPLE_NUMBER)
        self._bounds = np.searchsorted(frame[SAMPLE_NUMBER].to_numpy(), np.arange(len(samples) + 1))
        self._waiting: list[_Found] = []
        self._waiting_contigs = 0

    def add(self, found: _Found) -> None:
        """Add the addresses of a sequence database."""
        number = self._numbers[found.name]
        identity = found.addresses.identity
        digest = np.frombuffer(found.addresses.digest.ljust(16, b"\0"), dtype="V16")[0]
        self.samples[number] = (found.addresses.page_bytes, *identity, digest)
        self._waiting.append(found)
        self._waiting_contigs += len(found.addresses.contigs)  # a sum at each call would be quadratic in the samples
        if self._waiting_contigs >= CONTIGS_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Join what waits."""
        waiting, self._waiting, self._waiting_contigs = self._waiting, [], 0
        by_number = {self._numbers[each.name]: each.addresses for each in waiting}
        for number, addresses in by_number.items():
            if addresses.without:
                low, high = self._bounds[number : number + 2]
                self.without[f"{addresses.without} (the whole database)"] += int(high - low)
        usable = {number: each for number, each in by_number.items() if not each.without}
        if not usable:
            return
        rows = np.concatenate([np.arange(*self._bounds[number : number + 2]) for number in usable])
        counts = [len(each.contigs) for each in usable.values()]
        number_of = pl.Series(SAMPLE_NUMBER, np.repeat(np.array(list(usable), dtype=np.int64), counts))
        known = pl.concat([each.contigs for each in usable.values()]).with_columns(number_of)
        # An ID that appears twice has no address: the right row is unknown.
        known = known.unique([CONTIG_ID, SAMPLE_NUMBER], keep="any") if known[REASON].max() else known
        found = self._frame[rows].join(
            known.rename({LENGTH: "bases"}), on=[CONTIG_ID, SAMPLE_NUMBER], how="left", maintain_order="left"
        )
        bases = found["bases"].fill_null(-1).cast(pl.Int64).to_numpy()
        reason = found[REASON].fill_null(0).to_numpy()
        is_missing = bases < 0
        recorded = found[LENGTH].to_numpy()
        last = found[LAST].to_numpy()
        starts_inside = (last == 0) | (last * self._geometry.stride < bases)
        least = self._geometry.least_lengths(last)
        is_short = ~is_missing & ~np.where(recorded >= 0, (recorded == bases) & starts_inside, bases >= least)
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
