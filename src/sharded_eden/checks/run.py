"""`verify`: checks databases before training.

    window databases ──one task each──▶ which samples they name, and where
            │                                       │
            │              sequence databases ──one task each, joined with their windows──▶ digests of contigs
            ▼                                                                                      │
    random windows, read as training reads them                              splits, compared with one another

Input: a folder of sequence databases and window databases. Output: findings. A quick check opens each database and reads a few
hundred windows of each split; with `full` every page and every base is read. Memory does not grow with contigs or windows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeVar, get_args

import polars as pl

from sharded_eden.build.manifest import Manifest
from sharded_eden.checks.addresses import add_findings, address_tasks, compare_addresses
from sharded_eden.checks.findings import Findings, Tally
from sharded_eden.checks.mixture import verify_mixture
from sharded_eden.checks.near_duplicates import NearDuplicates as Near
from sharded_eden.checks.near_duplicates import check_request, find_near_duplicates
from sharded_eden.checks.reading import read_windows
from sharded_eden.checks.remote import refuse_what_needs_files, verify_remote, with_urls
from sharded_eden.checks.result import VerifyResult
from sharded_eden.checks.sample import SampleReport, SampleTask, WindowsOfSample, verify_sample
from sharded_eden.checks.splits import copied_contigs, shared_samples
from sharded_eden.checks.windows import WindowsReport, WindowsTask, verify_windows
from sharded_eden.errors import DatabaseError, EdenError, MissingDatabase, UsageError
from sharded_eden.format.commands import build_command, quoted, split_command
from sharded_eden.format.parquet import parquet_source
from sharded_eden.format.schema import CONTIGS_FILE, MANIFEST_FILE, discover_sample_databases
from sharded_eden.jobs import Engine, EngineName, Say, run_tasks
from sharded_eden.load.source import named_sequences, named_window_dbs
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.progress import Meter, Progress
from sharded_eden.similar.groups import THRESHOLD
from sharded_eden.train.mixture_file import is_mixture_file

By = Literal["sample", "contig"]
Task = TypeVar("Task")
Report = TypeVar("Report")

TASKS_AT_ONCE = 32
"""Quick tasks sent to a process together; full tasks are sent one by one."""


def verify(
    sequence_db_dir: str | os.PathLike[str],
    window_dbs: Iterable[str | os.PathLike[str]] = (),
    *,
    full: bool = False,
    by: By = "sample",
    jobs: int | None = 1,
    engine: EngineName = "local",
    address: str | None = None,
    windows_read: int = 512,
    seed: int = 42,
    scratch: str | os.PathLike[str] | None = None,
    near_duplicates: bool = False,
    threshold: float = THRESHOLD,
    pairs: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Check sequence databases, and the window databases of their splits.

    Args:
        sequence_db_dir: the folder of sequence databases, or its URL in object storage. Window databases must then have an
            index; the objects are compared with it, and random windows are read by their addresses, all by this process.
        window_dbs: the window databases or their URLs, one for each split; a folder, for all `*_windows.db` in it; or the TOML
            or YAML file of a mixture, whose sources may have folders of their own.
        full: check every window and every base, not only a sample of them; not at a URL.
        by: what the splits divide: `sample` finds samples that are in two of them; `contig` accepts those. Where there is just
            one sequence database they are accepted anyway.
        jobs: number of tasks that run at the same time; None with Ray: one for each processor of the cluster.
        engine: `local`, or `ray`: databases and `scratch` must then lie where all nodes see them.
        address: of the Ray cluster, `auto` for the one that this machine belongs to.
        windows_read: random windows of each split that are read as training reads them.
        seed: another seed checks other windows.
        scratch: a folder for temporary files: with `full` 60 bytes a contig where there are several splits, 5 a window where
            there are packs; with `near_duplicates` 600 MB for a gigabase. None is the system's.
        near_duplicates: compare contigs of at least 1,000 bases with those of the other splits. Needs the extra `similar`, and
            memory for the IDs of all contigs.
        threshold: contigs are near-duplicates if one holds at least this share of the k-mers (k = 21) of the other, in (0, 1].
        pairs: a Parquet file for all such pairs: one, split_of_one, other, split_of_other, containment, identity.
        progress: called with the bytes of databases that are done and their total.

    Raises:
        UsageError: a window database is given twice, a number is invalid, a path is of another kind than expected,
            near-duplicates are requested with fewer than two window databases, or a URL with `full` or `near_duplicates`.
        MissingExtra: `near_duplicates` without sourmash.

    Example:
        >>> from sharded_eden import verify
        >>> verify("sequence_db_dir", ["windows"]).is_clean
        True
    """
    folder = named_sequences(sequence_db_dir)
    window_dbs = list(window_dbs)
    if mixtures := [each for each in window_dbs if is_mixture_file(each)]:
        if len(window_dbs) > 1 or near_duplicates or pairs is not None:
            raise UsageError(f"{mixtures[0]}: a mixture is verified by itself, and its sources are not compared")
        return verify_mixture(
            Path(mixtures[0]), folder, verify, full=full, by=by, jobs=jobs, engine=engine, address=address,
            windows_read=windows_read, seed=seed, scratch=scratch, progress=progress,
        )  # fmt: skip
    if isinstance(folder, str):
        refuse_what_needs_files(folder, window_dbs, full=full, near_duplicates=near_duplicates)
    given = [(path, each) for each in window_dbs for path in named_window_dbs(each, folder)]
    splits = [path for path, _ in given]
    if by not in get_args(By):
        raise UsageError(f"by must be 'sample' or 'contig', not {by!r}")
    where, seed = Engine(engine, jobs, address), int(seed)
    if windows_read < 0:
        raise UsageError(f"windows_read must be at least 0, not {windows_read}")
    for one, other in combinations(splits, 2):
        if os.path.realpath(one) == os.path.realpath(other):
            raise UsageError(f"{one} and {other} are the same window database: give each split once")
    if scratch is not None and not Path(scratch).is_dir():
        raise UsageError(f"scratch folder {scratch}: no such folder")
    if pairs is not None and not near_duplicates:
        raise UsageError("--pairs needs --near-duplicates")
    if near_duplicates:
        check_request(len(splits), threshold, pairs)
    with tempfile.TemporaryDirectory(prefix="sharded-eden-verify-", dir=scratch) as temporary:
        if isinstance(folder, str):
            found = verify_remote(
                folder, splits, Path(temporary), by=by, windows_read=windows_read, seed=seed, progress=progress
            )
            return with_urls(found, given)
        found = _Run(
            folder=folder,
            splits=splits,
            scratch=Path(temporary),
            full=full,
            by=by,
            engine=where,
            windows_read=windows_read,
            seed=seed,
            threshold=threshold if near_duplicates else None,
            pairs=None if pairs is None else Path(pairs),
            progress=progress,
        ).result()
        return with_urls(found, given)


@dataclass(kw_only=True)
class _Run:
    """One run of `verify`; see that function."""

    folder: Path
    splits: Sequence[Path]
    scratch: Path
    full: bool
    by: By
    engine: Engine
    windows_read: int
    seed: int
    threshold: float | None
    """None: near-duplicates are not searched for."""
    pairs: Path | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self._findings = Findings()
        self._paths: dict[str, Path] = {}
        try:
            self._paths = discover_sample_databases(self.folder)
        except (DatabaseError, OSError) as error:
            is_missing = isinstance(error, MissingDatabase)
            fix = build_command(self.folder, force=True) if is_missing else f"ls -la {quoted(self.folder)}"
            with self._findings.checking("file", self.folder, fix):
                raise
        self._done = 0
        self._meter = Meter(self.progress, sum(map(_size, [*self.splits, *self._paths.values()])))

    def result(self) -> VerifyResult:
        """Run everything."""
        windows = self._check_windows()
        samples = self._check_samples(windows)
        broken = {report.task.sample_id for report in samples if Findings(report.findings).has_errors}
        read = sum(
            read_windows(self._findings, report, self._paths, broken, self.windows_read, self.seed)
            for report in windows
            if report.is_open and self._paths
        )
        compared = self._check_addresses(windows, broken)
        self._open_splits(windows)
        if self.by == "sample" and len(self._paths) > 1:
            shared_samples(self._findings, windows, self.folder)
        if self.full and len(windows) > 1:
            with self._findings.checking("copied-contig", self.folder, "give --scratch a folder with room"):
                files = [report.task.digests for report in samples if report.task.digests is not None]
                copied_contigs(self._findings, windows, list(self._paths.values()), files, self.scratch)
        self._meter.finish()
        similar = Near()
        if self.threshold is not None:
            similar = self._near_duplicates(windows, broken, self.threshold)
        return VerifyResult(
            full=self.full,
            samples=len(self._paths),
            window_databases=len(windows),
            windows=sum(report.windows for report in windows),
            windows_read=read,
            addresses_compared=compared,
            contigs=sum(report.contigs for report in samples),
            bases=sum(report.bases for report in samples),
            near_duplicates=similar.pairs,
            not_compared=similar.not_compared,
            findings=self._findings.found,
        )

    def _reports(
        self, check: Callable[[Task, Say], Report], tasks: Sequence[Task], paths: Iterable[Path]
    ) -> list[Report]:
        """Run the check of each path as a task, in this process or in several; return the reports in the order of tasks."""
        sizes = list(map(_size, paths)) or [0] * len(tasks)
        reached = [0] * len(tasks)  # bytes

        def heard(message: tuple[int, float]) -> None:
            number, share = message
            more = max(0, int(share * sizes[number]) - reached[number])  # a message may arrive after the result
            reached[number] += more
            self._done += more
            self._meter.reach(self._done)

        at_once = 1 if self.full else TASKS_AT_ONCE
        groups = [(first, check, tasks[first : first + at_once]) for first in range(0, len(tasks), at_once)]
        engine = Engine() if self.engine.name == "local" and len(groups) < 2 else self.engine
        reports: dict[int, list[Report]] = {}
        for ended in run_tasks(_check_group, groups, engine, heard=heard):
            if ended.result is None:
                raise ended.error or EdenError("a task of verify gave no report")
            first = ended.task[0]
            reports[first] = ended.result
            for number in range(first, first + len(ended.result)):
                heard((number, 1.0))
        return [report for first, _, _ in groups for report in reports[first]]

    # ---- each database ----

    def _check_windows(self) -> list[WindowsReport]:
        tasks = [
            WindowsTask(
                path=path,
                full=self.full,
                by_sample=len(self._paths) != 1,
                sequences=self.folder,
                seed=self.seed,
                copy=self.scratch / f"windows{number}",
            )
            for number, path in enumerate(self.splits)
        ]
        reports = self._reports(verify_windows, tasks, self.splits)
        for report in reports:
            missing = Tally()
            for sample in sorted(report.ranges.keys() - self._paths.keys() - {""}) if self._paths else ():
                missing.add(repr(sample))
            if missing.count:
                Findings(report.findings).error(
                    "sample",
                    report.path,
                    f"{missing.count} samples that it names have no sequence database in {self.folder}: {missing}",
                    f"{build_command(self.folder)}, or make splits and windows without them: "
                    f"{split_command(self.folder)}, then {report.fix}",
                )
            self._findings.found += report.findings
        return reports

    def _check_samples(self, windows: Sequence[WindowsReport]) -> list[SampleReport]:
        listed = self._listed()
        hashes = self._recorded_hashes() if self.full else {}
        tasks = [
            SampleTask(
                number=number,
                sample_id=sample,
                path=path,
                full=self.full,
                windows=tuple(_windows_of(sample, windows)),
                listed=listed.get(sample),
                rows_hash=hashes.get(sample),
                digests=self.scratch / f"digests{number}" if self.full and len(windows) > 1 else None,
            )
            for number, (sample, path) in enumerate(self._paths.items())
        ]
        reports = self._reports(verify_sample, tasks, self._paths.values())
        for report in reports:
            self._findings.found += report.findings
        return reports

    def _check_addresses(self, windows: Sequence[WindowsReport], broken: Collection[str]) -> int:
        """Compare the addresses of each index; return of how many windows."""
        compared = 0
        for report in windows:
            count = None if self.full else self.windows_read
            tasks = address_tasks(self._findings, report, self._paths, broken, self.folder, count, self.seed)
            reports = self._reports(compare_addresses, tasks, [])
            compared += add_findings(self._findings, report, self.folder, reports)
        return compared

    def _recorded_hashes(self) -> dict[str, str]:
        """Return {sample: the hash of its rows} as the manifest has them."""
        path = self.folder / MANIFEST_FILE
        with self._findings.checking("file", path, f"rm {quoted(path)}, then {build_command(self.folder, force=True)}"):
            with Manifest(self.folder) as manifest:
                found = {sample: manifest.sample(sample) for sample in self._paths}
            return {sample: recorded.rows_hash for sample, recorded in found.items() if recorded is not None}
        return {}

    def _listed(self) -> dict[str, tuple[int, int]]:
        """Return {sample: (contigs, bases)} as `contigs.parquet` has it."""
        table = self.folder / CONTIGS_FILE
        if not table.exists() or not self._paths:
            return {}
        fix = f"rm {quoted(table)}, which only split reads, to save time"
        with self._findings.checking("table", table, fix):
            with parquet_source(table, fix, DatabaseError) as source:
                sums = pl.scan_parquet(source, glob=False).group_by("sample").agg(pl.len(), pl.col("length").sum())
                listed = {sample: (n, bases) for sample, n, bases in sums.collect(engine="streaming").rows()}
            if missing := sorted(map(str, listed.keys() - self._paths.keys())):
                what = f"it lists {len(missing)} samples that have no sequence database, such as {missing[0]!r}"
                self._findings.error("table", table, what, f"{build_command(self.folder, force=True)}; or {fix}")
            return listed
        return {}

    def _open_splits(self, windows: Sequence[WindowsReport]) -> None:
        """Open each split as training does, so that `verify` is never clean where that fails."""
        for report in windows:
            if self._paths and not self._findings.has_errors:
                try:
                    ShardedEdenDataset.open(self.folder, report.path).close()
                except EdenError as error:
                    what = str(error).removeprefix(f"{report.path}: ")
                    self._findings.error("opening", report.path, what, report.fix)

    def _near_duplicates(self, windows: Sequence[WindowsReport], broken: Collection[str], threshold: float) -> Near:
        usable = {report.path: report.fix for report in windows if report.is_open}
        databases = {sample: path for sample, path in self._paths.items() if sample not in broken}
        with self._findings.checking("near-duplicate", self.folder, "give --scratch a folder with room"):
            return find_near_duplicates(
                self._findings,
                self.folder,
                databases,
                usable,
                self.scratch,
                threshold=threshold,
                by_contig=self.by == "contig" or len(self._paths) == 1,
                engine=self.engine,
                pairs_out=self.pairs,
                progress=self.progress,
            )
        return Near()


def _windows_of(sample: str, reports: Sequence[WindowsReport]) -> Iterator[WindowsOfSample]:
    """Yield where a sample's windows are in each window database that can be joined with it."""
    for split, report in enumerate(reports):
        ranges = report.ranges.get("") or report.ranges.get(sample)
        is_sound = not any(finding.check in {"file", "integrity"} for finding in report.findings)
        if ranges and report.geometry is not None and is_sound:
            yield WindowsOfSample(
                split=split,
                path=report.path,
                joined=report.joined,
                ranges=tuple(ranges),
                geometry=report.geometry,
                has_lengths=report.has_lengths,
                has_holes=report.max_ambiguous is not None,
                fix=report.fix,
            )


def _say_share(say: Say, number: int, share: float) -> None:
    say((number, share))


def _check_group(group: tuple[int, Callable[[Task, Say], Report], Sequence[Task]], say: Say) -> list[Report]:
    """Check some databases; `say` is called with (number of the task, share of it that is done)."""
    first, check, tasks = group
    reports = []
    for number, task in enumerate(tasks, start=first):
        reports.append(check(task, partial(_say_share, say, number)))
        say((number, 1.0))
    return reports


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
