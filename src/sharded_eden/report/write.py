"""`report`: sequence databases, window databases and access logs -> one HTML file.

    stats, by sample and by tag ──▶ figures of the data ──▶
    access logs, counted in one pass ──▶ verdicts, figures ──▶ one page
    windows of the longest contigs ──▶ coverage ──▶

Input: as for `stats`, and a folder of access logs. Output: an HTML file of about 5 MB, whatever the size of the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sharded_eden
from sharded_eden.describe.access_logs import access_log_files
from sharded_eden.describe.part import Part
from sharded_eden.describe.stats import stats
from sharded_eden.errors import UsageError, printable
from sharded_eden.format.commands import report_command
from sharded_eden.format.kinds import begins_with, check_replaceable
from sharded_eden.format.publish import publishing
from sharded_eden.progress import Progress
from sharded_eden.report import data_figures, log_figures
from sharded_eden.report.coverage import longest_contigs
from sharded_eden.report.figure import Figure, graph_objects, number, percent
from sharded_eden.report.match import EVALUATION, matched
from sharded_eden.report.page import Page, Section, html_of
from sharded_eden.report.reads import Reads, count_reads
from sharded_eden.report.verdicts import Verdict, verdicts

SOME_READS = "“Window against time”, and the distances and spreads of reads in a row, come from some of the reads."


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What was written."""

    path: Path
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    """For each split with access logs: what they say."""

    @property
    def faults(self) -> list[str]:
        """Where access logs differ from what the sampler promises."""
        return [
            f"{split}: {each.text}" for split, found in self.verdicts.items() for each in found if each.level == "fault"
        ]


def write_report(
    out: str | os.PathLike[str],
    *paths: str | os.PathLike[str],
    logs: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> ReportResult:
    """Write a report about prepared data, and about what a training run read of them.

    Args:
        out: the HTML file.
        paths: the folder of sequence databases, and window databases or folders of them.
        logs: a folder of access logs (`log_windows=True`, `log_dir`). Each log is matched with the window database that has the
            windows that it names.
        jobs: sequence databases that are read at the same time.
        progress: called with the bytes of sequence databases that are done and their total.

    Raises:
        UsageError: a path is of another kind, or access logs are given without a window database.
        MissingDatabase: there are no sequence databases, or no access logs.
        MissingExtra: Plotly is not installed.
        DatabaseError: a database is damaged.
        InputError: an access log is none, or belongs to another window database.

    Example:
        >>> from sharded_eden import write_report
        >>> write_report("report.html", "sequence_db_dir", "windows", logs="logs").faults
        []
    """
    graph_objects()
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"{printable(out)}: is a folder; name the HTML file to write")
    check_replaceable(out, "OUT.html", "a report", lambda path: begins_with(path, b"<!DOCTYPE html>"))
    files = [] if logs is None else access_log_files(logs)
    counted = stats(*paths, by="sample", jobs=jobs, progress=progress)
    tags = stats(*paths, by="tag", letters=False, jobs=jobs)
    parts = _sorted(counted.parts)
    tag_parts = _sorted(tags.parts)
    if parts[0].kind != "sequence databases":
        raise UsageError(f"give the folder of sequence databases first: {report_command()}")
    names = data_figures.names_of(parts)
    splits = {names[part.path]: part for part in parts if part.split is not None}
    databases = {name: part.path for name, part in splits.items()}
    reads: dict[str, Reads] = {}
    for (name, split), logs_of in matched(files, databases).items() if files else ():
        called = name if split == name else f"{name} (logs of {split})"
        state = splits[name].split
        if state is not None:
            is_evaluation = data_figures.last_of(split) in EVALUATION
            reads[called] = count_reads(called, logs_of, state.windows, is_evaluation=is_evaluation)
    found = {split: verdicts(each) for split, each in reads.items()}
    page = Page(
        title="What the model is fed" if splits else "What is in the data",
        subtitle=_subtitle(parts, list(splits)),
        footer=f"Written by sharded-eden {sharded_eden.__version__}. All counts are exact."
        + (f" {SOME_READS}" if reads else ""),
    )
    of_reads = [Verdict(each.level, f"{split}: {each.text}") for split, some in found.items() for each in some]
    page.sections.append(Section(title="In words", verdicts=[*of_reads, *_facts(parts, tag_parts[0])]))
    for split in data_figures.in_order(list(reads)):
        each = reads[split]
        page.sections.append(
            Section(
                title=f"What was read: {split}",
                text=f"{each.rows:,} reads of {each.windows:,} windows, in {number(len(each.passes))} pass"
                f"{'es' * (len(each.passes) != 1)}, from {each.files:,} access log{'s' * (each.files != 1)}.",
                figures=log_figures.of_reads(each),
            )
        )
    figures: list[Figure | None] = [data_figures.lengths(parts), data_figures.gc(parts), data_figures.letters(parts)]
    figures.append(data_figures.useful_tokens(parts))
    title = "Are the splits alike?" if len(splits) > 1 else "Contigs and letters"
    page.sections.append(Section(title=title, figures=_present(figures)))
    groups = _present([data_figures.by_group(parts, "sample"), data_figures.by_group(tag_parts, "tag")])
    if groups:
        page.sections.append(Section(title="Samples and tags", figures=groups))
    covered = [
        data_figures.coverage(name, longest_contigs(part.path, part.split.geometry))
        for name, part in splits.items()
        if part.split is not None
    ]
    if _present(covered):
        page.sections.append(Section(title="Coverage", figures=_present(covered)))
    with publishing(out) as unfinished:
        unfinished.write_text(html_of(page), encoding="utf-8")
    return ReportResult(path=out, verdicts=found)


def _present(figures: Sequence[Figure | None]) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _sorted(parts: Sequence[Part]) -> list[Part]:
    """Return the sequence databases, then the splits in their usual order."""
    names = data_figures.names_of(parts)
    places = data_figures.in_order(list(names.values()))
    return sorted(parts, key=lambda part: -1 if part.split is None else places.index(names[part.path]))


def _subtitle(parts: Sequence[Part], splits: Sequence[str]) -> str:
    whole = parts[0]
    samples = whole.samples or 0
    lengths = whole.total.lengths
    words = f"{samples:,} sample{'s' * (samples != 1)}, {lengths.contigs:,} contigs, {lengths.bases:,} bases"
    return words + (f"; {len(splits)} split{'s' * (len(splits) != 1)}: {', '.join(splits)}" if splits else "")


def _facts(parts: Sequence[Part], tagged: Part) -> list[Verdict]:
    """Return the numbers in words that come first."""
    whole, names = parts[0], data_figures.names_of(parts)
    facts = []
    for part in parts:
        counts = part.total.windows
        if part.split is None or counts is None:
            continue
        name = names[part.path]
        packed = "" if part.useful_packed is None else f", {percent(part.useful_packed)} in packed rows"
        facts.append(
            f"{name}: {counts.windows:,} windows of {part.split.geometry.window_size:,} tokens from "
            f"{counts.contigs:,} contigs. "
            f"{percent(counts.useful_padded)} of the tokens are useful in padded rows{packed}."
        )
        if unseen := counts.bases - counts.bases_shown:
            options = part.options()
            shown = "; ".join(
                f"{options[reason]} would show {bases:,}"
                for reason, bases in counts.unseen.items()
                if reason in options
            )
            facts.append(
                f"{name}: {unseen:,} bases ({percent(unseen / max(1, counts.bases))}) of these contigs are in no "
                f"window. {shown}."
            )
    if whole.unassigned_contigs:
        facts.append(
            f"{whole.unassigned_contigs:,} contigs with {whole.unassigned_bases or 0:,} bases have no window in "
            f"any of these splits."
        )
    letters = whole.total.letters
    if letters is not None and letters.bases:
        facts.append(
            f"GC is {percent(letters.gc)}. {percent(letters.ambiguous / letters.bases)} of the letters are not A, "
            f"C, G or T, and "
            f"{percent(letters.soft_masked / letters.bases)} are lower case (repeats)."
        )
    if len(tagged.groups) == 1:
        facts.append(f"All contigs have the tag {next(iter(tagged.groups))}.")
    lengths = whole.total.lengths
    if lengths.contigs:
        facts.append(
            f"Half of all bases are in contigs of at least {lengths.n50:,} bases (N50). The longest has "
            f"{int(lengths.values[-1]):,}."
        )
    return [Verdict("note", fact) for fact in facts]
