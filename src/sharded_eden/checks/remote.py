"""`verify` for sequence databases in object storage: what can be checked without copying them.

Input: a URL, and window databases with indexes. Output: findings. Cost: one listing (for http and https one HEAD request for
each database), and one range request for each of some hundred random windows, 64 at a time.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from sharded_eden.checks.addresses import AddressesReport, AddressesTask, Comparison, Span
from sharded_eden.checks.findings import UNREADABLE, Findings, Tally
from sharded_eden.checks.result import VerifyResult
from sharded_eden.checks.sample import strange_letter
from sharded_eden.checks.splits import shared_samples
from sharded_eden.checks.windows import WindowsTask, verify_windows
from sharded_eden.errors import EdenError, UsageError
from sharded_eden.format.commands import (
    build_command,
    fetch_command,
    index_at_command,
    index_command,
    precompute_command,
    quoted,
    verify_command,
)
from sharded_eden.format.index import index_path
from sharded_eden.load.locate.remote import RemoteAddresses, RemoteSequences
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.options import ExampleOptions
from sharded_eden.load.read.plan import Request
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.progress import Meter, Progress
from sharded_eden.storage.objects import LISTING_SECONDS, Objects, StorageError
from sharded_eden.storage.urls import ObjectPath, is_url, object_name

SPANS_AT_ONCE = 64
"""Ranges that are requested together."""
STOPS_AFTER = 3
"""Windows that the storage does not serve, one after the other, after which no more are tried: each takes `request_seconds`."""

_ADVICE = "look at the address, the credentials and the network"

Given = str | os.PathLike[str]


def refuse_what_needs_files(url: str, window_dbs: Sequence[Given], *, full: bool, near_duplicates: bool) -> None:
    """Refuse checks that read whole sequence databases, and a URL without window databases.

    Raises:
        UsageError: with the commands to run instead.
    """
    if full or near_duplicates:
        option = "--full" if full else "--near-duplicates"
        paths = ["WINDOWS.db" if is_url(each) else each for each in window_dbs] or ["WINDOWS.db"]
        copy = [fetch_command(url, "DIR", paths[0]), *(index_command("DIR", each) for each in paths)]
        verify = verify_command("DIR", *paths, full=full) + " --near-duplicates" * near_duplicates
        raise UsageError(
            f"{option} reads every base, which needs local files. Copy the sequence databases, and verify the copies: "
            f"{' && '.join([*copy, verify])}"
        )
    if not window_dbs:
        raise UsageError(
            f"SEQDB is a URL: its objects are compared with the index of a window database. Name one: "
            f"{verify_command(url, 'WINDOWS.db')}"
        )


def verify_remote(
    url: str,
    splits: Sequence[Path],
    scratch: Path,
    *,
    by: str,
    windows_read: int,
    seed: int,
    progress: Progress | None,
) -> VerifyResult:
    """Check window databases, their indexes, the objects that these name, and random windows.

    Args:
        url: the folder of sequence databases.
        splits: the window databases; local files.
        scratch: a folder for temporary files.
        by: see `sharded_eden.checks.run.verify`.
        windows_read: random windows of each split.
        seed: chooses them.
        progress: called with the windows read and their total.
    """
    findings = Findings()
    meter, read = Meter(progress, len(splits) * windows_read), 0
    reports, objects = [], _Objects(url)
    for number, path in enumerate(splits):
        split = _Split(url, path, findings, seed, scratch / f"windows{number}")
        reports.append(split.report)
        if split.sequences is not None and split.report.is_open:
            read += split.check(split.sequences, objects, windows_read)
        meter.reach((number + 1) * windows_read)
    if by == "sample" and len(objects.samples) > 1:
        shared_samples(findings, reports, url)
    meter.finish()
    return VerifyResult(
        full=False,
        samples=len(objects.samples),
        window_databases=len(reports),
        windows=sum(report.windows for report in reports),
        windows_read=read,
        addresses_compared=0,
        contigs=0,
        bases=0,
        findings=findings.found,
    )


def with_urls(result: VerifyResult, given: Sequence[tuple[Path, Given]]) -> VerifyResult:
    """Name window databases that are at URLs by these, in place of their local copies.

    Args:
        result: it is changed.
        given: the file and what the user named, for each window database.
    """
    for path, url in given:
        if not is_url(url):
            continue
        for number, finding in enumerate(result.findings):
            if str(path) in finding.file + finding.what + finding.fix:
                fix = finding.fix.replace(quoted(path), path.name)
                result.findings[number] = replace(
                    finding,
                    file=finding.file.replace(str(path), str(url)),
                    what=finding.what.replace(str(path), str(url)),
                    fix=f"{fix}, then upload it to {url}" if fix != finding.fix else fix,
                )
    return result


class _Objects:
    """The objects below the URL, listed once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.samples: set[str] = set()
        self.are_served = True
        """False after `STOPS_AFTER` windows that could not be read."""

    def differences(self, addresses: RemoteAddresses) -> tuple[Tally, Tally, set[str]]:
        """Return the objects of an index that are missing, those that were replaced, and the samples of both.

        Raises:
            EdenError: the storage cannot be listed.
        """
        expected = addresses.versions
        self.samples |= expected.keys()
        found = Objects(self._url, LISTING_SECONDS).versions(map(object_name, expected))
        missing, replaced, broken = Tally(), Tally(), set()
        for sample, version in expected.items():
            there = found.get(object_name(sample))
            if there is None:
                missing.add(object_name(sample))
            elif not there.is_same_object(version):
                replaced.add(
                    f"{object_name(sample)} had {version.size_bytes:,} bytes and the ETag {version.etag!r}, it has "
                    f"{there.size_bytes:,} and {there.etag!r}"
                )
            else:
                continue
            broken.add(sample)
        return missing, replaced, broken


class _Split:
    """One window database. Its index is opened, and errors are added, when this is made."""

    def __init__(self, url: str, path: Path, findings: Findings, seed: int, copy: Path) -> None:
        self._url, self._path, self._findings, self._seed = url, path, findings, seed
        self._index_path = index_path(path)
        self._fix = f"{index_command('SEQDB', path)}, where SEQDB is a local folder, then {index_at_command(url, path)}"
        self.sequences: RemoteSequences | None = None
        with findings.checking("addresses", self._index_path, self._fix):
            self.sequences = RemoteSequences(url, path)
        samples = None if self.sequences is None else self.sequences.paths
        self.report = verify_windows(
            WindowsTask(
                path=path,
                full=False,
                by_sample=samples is None or len(samples) != 1,
                sequences=cast("Path", ObjectPath(url)),
                seed=seed,
                copy=copy,
            ),
            lambda share: None,
        )
        findings.found += self.report.findings

    def check(self, sequences: RemoteSequences, objects: _Objects, count: int) -> int:
        """Compare the objects with the index, and read windows; return how many were read."""
        report, options = self.report, ExampleOptions()
        assert report.geometry is not None  # noqa: S101 - it is open
        read = 0
        with (
            self._findings.checking("addresses", self._index_path, self._fix),
            closing(WindowIndex(self._path, io="read")) as index,
            closing(
                RemoteAddresses(
                    index,
                    sequences,
                    stride=report.geometry.stride,
                    in_flight=options.requests_in_flight,
                    seconds=options.request_seconds,
                    copies=None,
                    read_ahead=False,
                )
            ) as addresses,
        ):
            try:
                missing, replaced, broken = objects.differences(addresses)
            except EdenError as error:
                self._findings.error("file", self._url, str(error), _ADVICE)
                return 0
            if missing.count:
                what = (
                    f"{missing.count:,} sequence databases that its windows name are missing at {self._url}: {missing}"
                )
                self._findings.error("sample", self._path, what, "upload them")
            if replaced.count:
                what = f"{replaced.count:,} objects at {self._url} are not those that were indexed: {replaced}"
                fix = f"upload the files that were indexed, then {index_at_command(self._url, self._path)}"
                self._findings.error("addresses", self._index_path, what, fix)
            read = self._read(addresses, index, sequences, broken, count if objects.are_served else 0, objects)
        self._open()
        return read

    def _read(
        self,
        addresses: RemoteAddresses,
        index: WindowIndex,
        sequences: RemoteSequences,
        broken: set[str],
        count: int,
        objects: _Objects,
    ) -> int:
        """Read the first, the last and `count` random windows."""
        report, total = self.report, self.report.windows
        assert report.geometry is not None  # noqa: S101 - it is open
        chosen = {*random.Random(self._seed).sample(range(total), min(count, total)), 0, total - 1} if count else ()
        task = AddressesTask(
            window_db=self._path,
            paths=sequences.paths,
            broken=frozenset(broken),
            stride=report.geometry.stride,
            window_size=report.geometry.window_size,
            total=total,
            windows=sorted(chosen),
        )
        found = AddressesReport()
        comparison = _Reading(task, found, addresses, index, sequences)
        comparison.run(lambda share: None)
        for path, tally in comparison.empty.items():
            self._findings.without_bases(path, tally, self._path, report.geometry)
        for path, tally in comparison.strange.items():
            again = f"{build_command('SEQDB', force=True)}, upload the file, then {self._fix}"
            self._findings.error("alphabet", path, str(tally), again)
        if comparison.unread.count:
            objects.are_served = not comparison.is_stopped
            others = (
                f"the last {STOPS_AFTER} one after the other, and no others were tried"
                if comparison.is_stopped
                else "and no others of their sequence databases were tried"
            )
            what = f"{comparison.unread.count:,} windows cannot be read, {others}: {comparison.unread}"
            self._findings.error("file", self._url, what, _ADVICE)
        if found.wrong.count:
            what = f"{found.wrong.count:,} windows: {found.wrong}"
            self._findings.error("addresses", self._index_path, what, self._fix)
        return found.compared

    def _open(self) -> None:
        """Open the split as training does."""
        if not self._findings.has_errors:
            try:
                ShardedEdenDataset.open(self._url, self._path).close()
            except EdenError as error:
                what = str(error).removeprefix(f"{self._path}: ")
                fix = precompute_command(self._path, geometry=self.report.geometry, force=True)
                self._findings.error("opening", self._path, what, fix)


class _Reading(Comparison):
    """Windows that are read by their addresses only: SQLite reads local files."""

    def __init__(
        self,
        task: AddressesTask,
        report: AddressesReport,
        addresses: RemoteAddresses,
        index: WindowIndex,
        sequences: RemoteSequences,
    ) -> None:
        super().__init__(task, report, addresses, index, sequences)
        self.strange: dict[Path, Tally] = {}
        self.empty: dict[Path, Tally] = {}
        self.unread = Tally()
        """What the storage did not serve."""
        self.is_stopped = False
        self._bases_ahead = max(1, addresses.ahead[1] // task.window_size)

    def run(self, say: object) -> None:
        """Read windows, many requests at the same time, until the storage serves none of several."""
        in_a_row = 0
        spans = self.spans(lambda share: None)
        while group := list(islice(spans, min(SPANS_AT_ONCE, self._bases_ahead))):
            is_announced = False
            for number, span in enumerate(group):
                if self.is_broken(span):
                    continue
                try:
                    if not is_announced:
                        rest = [each for each in group[number:] if not self.is_broken(each)]
                        self._addresses.announce([request for each in rest for request in self._requests(each)])
                        is_announced = True
                    self._read(span)
                    in_a_row = 0
                except StorageError as error:
                    self._broken.add(self._addresses.names[span.address[0]])
                    self.unread.add(str(error))
                    in_a_row += 1
                    if in_a_row == STOPS_AFTER:
                        self.is_stopped = True
                        return
                    is_announced = False  # an error ends all requests
                except UNREADABLE as error:
                    self.failed(span, error)
                    in_a_row, is_announced = 0, False

    def _is_in_place(self, span: Span) -> bool:
        if span.address[0] < 0:
            self.wrong(span, "has no address")
            return False
        return super()._is_in_place(span)

    def _requests(self, span: Span) -> Iterator[Request]:
        """Yield one request for each window of a span."""
        sample, at, local, overflow, start, length, _ = span.address
        for number in range(span.windows):
            first = start + number * self._task.stride
            bases = min(self._task.window_size, length - first)
            if bases > 0:
                yield sample, at, local, overflow, first, length, bases, 0

    def _read(self, span: Span) -> None:
        stated, length = self._index.contig_length(span.first), span.address[5]
        if stated is not None and stated != length:
            self.wrong(span, f"is of a contig of {stated:,} bases, here of {length:,}")
            return
        path = self._task.paths[self._addresses.names[span.address[0]]]
        memory = np.empty(self._task.window_size, dtype=np.uint8)
        letters = memoryview(memory)  # type: ignore[arg-type]  # a buffer
        for request in self._requests(span):
            self._addresses.read([request], letters)
            if strange := strange_letter(bytes(letters[: request[6]])):
                what = f"a window of {span.contig_id!r} in {self._task.window_db} holds {strange} after its start"
                self.strange.setdefault(path, Tally()).add(what)
        if length == 0:
            self.empty.setdefault(path, Tally()).add(repr(span.contig_id))
        self._report.compared += span.windows
