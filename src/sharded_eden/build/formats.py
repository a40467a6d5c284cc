"""Input formats: FASTA, JSON lines, Parquet, Arrow, GenBank, Megatron. Each is one function: a source -> entries.

A record that is bad by itself is yielded as its error, `BadRecord`: the reader raises it, or leaves it out (`--skip-bad`). What
is wrong with the file, such as compressed data that end early, is raised.

To add a format, write a function here, and add its name to `FORMATS` and its file endings to `ENDINGS`. Packages that a
format needs are imported when a file of it is read; a missing one is an error that names the extra.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, cast

from sharded_eden.build.fasta import Entry, fasta_entries
from sharded_eden.build.fields import JSON, Pairs, choose, entries_of_rows, entry_of_object, sample_column
from sharded_eden.build.indexed import indexed_entries
from sharded_eden.build.skipped import BadRecord
from sharded_eden.build.source import MAX_LINE, Source, check_text, describe, text_lines
from sharded_eden.errors import EdenError, InputError, MissingExtra, UsageError, printable, shown
from sharded_eden.format.parquet_batches import BATCH_BYTES, batch_limit


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How input files are read."""

    format: str | None = None
    """One of `FORMATS`; None: the file's ending decides, FASTA for unknown endings."""
    text_field: str | None = None
    """The field or column of the sequence; None: the first of `TEXT_FIELDS` that exists."""
    id_field: str | None = None
    """The field or column of the record's name; None: the first of `ID_FIELDS` that exists, if any; "" for none."""

    phylo_tags: str = "refuse"
    """What is done with lineage tags inside sequences, one of `PHYLO_TAGS`."""
    stitch_marks: str = "refuse"
    """What is done with `@` and `#` inside sequences, one of `STITCH_MARK_CHOICES`."""
    sample_field: str | None = None
    """The field or column of the record's sample; in JSON lines also a path such as `meta.sample`. None: no field names it."""

    @property
    def as_settings(self) -> dict[str, str | None]:
        """The options for the manifest. Those of later versions are left out where they have their default."""
        later = {"phylo_tags": "refuse", "stitch_marks": "refuse", "sample_field": None}
        return {name: value for name, value in asdict(self).items() if name not in later or later[name] != value}

    @property
    def keeps_stitch_marks(self) -> bool:
        """Whether sequences may hold `@` and `#`."""
        return self.stitch_marks == "keep"

    def __post_init__(self) -> None:
        if self.phylo_tags not in PHYLO_TAGS:
            raise UsageError(f"--phylo-tags {shown(self.phylo_tags)} is not one of {', '.join(PHYLO_TAGS)}")
        if self.stitch_marks not in STITCH_MARK_CHOICES:
            raise UsageError(
                f"--stitch-marks {shown(self.stitch_marks)} is not one of {', '.join(STITCH_MARK_CHOICES)}"
            )
        if self.format is not None and self.format not in FORMATS:
            raise UsageError(f"--format {shown(self.format)} is not one of {', '.join(FORMATS)}")


PHYLO_TAGS = ("refuse", "strip", "keep")
"""Lineage tags are an error; are removed; are removed and kept in the column `phylo_tag` of `contigs.parquet`."""

STITCH_MARK_CHOICES = ("refuse", "keep")
"""`@` and `#`, as in stitched transcripts, are an error; stay in the sequences, where they never count in the loss."""


def fasta(source: Source, options: ReadOptions) -> Iterator[Entry | BadRecord]:
    """Yield the records of a FASTA file."""
    with source.stream() as stream:
        try:
            yield from fasta_entries(stream, source.called, stitch_marks=options.keeps_stitch_marks)
        except UnicodeDecodeError:
            _find_line_that_is_not_text(source)
            raise


def _find_line_that_is_not_text(source: Source) -> None:
    """Read a FASTA file again by lines, to find the first line that is not UTF-8."""
    ordinal = 0
    with Source(source.path, source.called) as again, again.stream() as stream:
        reader = io.BufferedReader(cast(io.RawIOBase, stream))
        lines = io.TextIOWrapper(reader, encoding="utf-8-sig", errors="surrogateescape")
        for number, line in enumerate(lines, start=1):
            ordinal += line.lstrip().startswith(">")
            if not line.lstrip().startswith("#"):
                check_text(line, f"{source.called}: record {ordinal}, line {number}")
        lines.detach()
        reader.detach()


def json_lines(source: Source, options: ReadOptions) -> Iterator[Entry | BadRecord]:
    """Yield one entry for each line of JSON; empty lines are skipped."""
    with source.stream() as stream:
        for number, line in enumerate(text_lines(stream, source.called), start=1):
            if line.isspace():
                continue
            where = f"{source.called}: line {number}"
            try:
                pairs = JSON.decode(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: is not JSON ({error})") from error
            del line
            if not isinstance(pairs, Pairs):
                raise InputError(f"{where}: is not a JSON object, but {type(pairs).__name__}")
            made: Entry | BadRecord
            try:
                made = entry_of_object(pairs, options, where)
            except BadRecord as error:
                made = error
            yield made
            del pairs, made


def parquet(source: Source, options: ReadOptions) -> Iterator[Entry | BadRecord]:
    """Yield one entry for each row of a Parquet file, some 32 MB at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "formats") from error
    # Not a Python file: Arrow's threads may release it after the interpreter has ended, which aborts the process.
    with _reading(source, "Parquet"), pa.OSFile(os.fsencode(source.path)) as raw, pq.ParquetFile(raw) as file:
        text, name = choose(file.schema_arrow.names, options, source.called)
        rows = max(1, file.metadata.num_rows)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        for group in groups:
            if group.total_byte_size > group.num_rows * MAX_LINE:
                raise InputError(
                    f"{source.called}: {group.total_byte_size:,} bytes in {group.num_rows:,} rows are more than can be stored "
                    f"({MAX_LINE:,} each)"
                )
        size = sum(group.total_byte_size for group in groups)
        sample = sample_column(file.schema_arrow.names, options, source.called)
        columns = list(dict.fromkeys(column for column in (text, name, sample) if column is not None))
        limits = [batch_limit(file.schema_arrow.field(column), groups, source.called) for column in columns]
        batch_rows = max(1, min(BATCH_BYTES * rows // max(1, size), *(most for most, _ in limits)))
        shared = [column for column, (_, is_shared) in zip(columns, limits, strict=True) if is_shared]
        with pq.ParquetFile(raw, read_dictionary=shared) as again:
            yield from entries_of_rows(
                again.iter_batches(batch_rows, columns=columns), text, name, sample, source.called
            )


def arrow(source: Source, options: ReadOptions) -> Iterator[Entry | BadRecord]:
    """Yield one entry for each row of an Arrow IPC file (Feather, version 2) or stream, a record batch at a time."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtra("pyarrow", "formats") from error
    with _reading(source, "Arrow"), pa.OSFile(os.fsencode(source.path)) as raw:
        start = raw.read(6)
        raw.seek(0)
        if start.startswith(b"FEA1"):
            raise InputError(
                f"{source.called}: is Feather version 1, which is not supported. Write it as version 2: "
                "pyarrow.feather.write_feather(pyarrow.feather.read_table(FILE), NEW)"
            )
        is_file = start == b"ARROW1"
        reader = pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)
        text, name = choose(reader.schema.names, options, source.called)
        sample = sample_column(reader.schema.names, options, source.called)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        yield from entries_of_rows(batches, text, name, sample, source.called)


@contextmanager
def _reading(source: Source, what: str) -> Iterator[None]:
    """Turn every error of the Arrow library into an `InputError` that names the file."""
    try:
        yield
    except EdenError:
        raise
    except MemoryError as error:
        raise InputError(f"{source.called}: cannot be read as {what}: it needs more memory than there is") from error
    except Exception as error:  # OSError, ValueError, KeyError, NotImplementedError, and Arrow's own classes
        raise InputError(f"{source.called}: cannot be read as {what} ({printable(str(error), 300)})") from error


def genbank(source: Source, options: ReadOptions) -> Iterator[Entry | BadRecord]:
    """Yield the records of a GenBank file, by Biopython."""
    try:
        from Bio import SeqIO
        from Bio.Seq import UndefinedSequenceError
    except ImportError as error:
        raise MissingExtra("biopython", "formats") from error
    with source.stream() as stream:
        lines = _GenBankLines(text_lines(stream, source.called), source.called)
        ordinal = 0
        records: Iterator[Any] = iter(SeqIO.parse(lines, "genbank"))  # type: ignore[no-untyped-call]
        while True:
            try:
                record: Any = next(records, None)
                if record is None:
                    break
                ordinal += 1
                sequence = str(record.seq)
            except EdenError:
                raise
            except UndefinedSequenceError:
                where = describe(source.called, ordinal, str(record.id))
                what = "has no bases after ORIGIN; download it with them (gbwithparts)"
                yield BadRecord(f"{where}: {what}", "empty", str(record.id))
                continue
            except Exception as error:  # Biopython raises many kinds of exceptions for damaged files
                raise InputError(
                    f"{source.called}: is not GenBank, or damaged, after record {ordinal} ({printable(str(error), 300)})"
                ) from error
            lines.check_length(ordinal, str(record.id), len(sequence))
            description = "" if record.description == "<unknown description>" else str(record.description)
            yield str(record.id), description, sequence, False, ""
            del sequence, record
        lines.check_end(ordinal)


class _GenBankLines:
    """The lines of a GenBank file, as the text file that Biopython reads from; a record that is cut short is refused."""

    def __init__(self, lines: Iterator[str], called: str) -> None:
        self._called = called
        self._declared: list[int | None] = []
        self._is_open = False
        self._size = 0
        first = next((line for line in lines if not line.isspace()), "")
        if first and not first.startswith("LOCUS"):
            raise InputError(f"{called}: is not GenBank: it begins with {shown(first.rstrip(), 40)}, not with LOCUS")
        self._lines = self._watched(chain([first] if first else [], lines))

    def _watched(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if line.startswith("LOCUS"):
                if self._is_open:
                    raise self._cut()
                self._is_open, self._size = True, 0
                found = _LOCUS_LENGTH.search(line)
                self._declared.append(int(found[1]) if found else None)
            elif line.startswith("//"):
                self._is_open = False
            elif not self._is_open and not line.isspace():
                raise InputError(
                    f"{self._called}: is damaged: after record {len(self._declared)} comes {shown(line.rstrip(), 40)}, which "
                    "belongs to no record: its LOCUS line is missing or damaged"
                )
            self._size += len(line)
            if self._size > 2 * MAX_LINE:
                raise InputError(
                    f"{self._called}: record {len(self._declared)}: is longer than {2 * MAX_LINE:,} characters"
                )
            yield line
        if self._is_open:
            raise self._cut()

    def _cut(self) -> InputError:
        return InputError(f"{self._called}: truncated: record {len(self._declared)} ends without the line //")

    def check_length(self, ordinal: int, name: str, bases: int) -> None:
        """Refuse a record that has another length than its LOCUS line says."""
        declared = self._declared[ordinal - 1] if ordinal <= len(self._declared) else None
        if declared is not None and declared != bases:
            raise InputError(
                f"{describe(self._called, ordinal, name)}: truncated or damaged: it has {bases:,} bases, its LOCUS line says "
                f"{declared:,}"
            )

    def check_end(self, ordinal: int) -> None:
        """Refuse a file with more LOCUS lines than records were read."""
        for _ in self._lines:
            pass
        if ordinal != len(self._declared):
            raise InputError(f"{self._called}: is damaged: {len(self._declared)} LOCUS lines, but {ordinal} records")

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def readline(self) -> str:
        """Return the next line, empty at the end."""
        return next(self._lines, "")

    def read(self, size: int = -1) -> str:
        """Return "" for 0, by which Biopython tests for text mode; the rest otherwise."""
        return "" if size == 0 else "".join(self._lines)


_LOCUS_LENGTH = re.compile(r"\s(\d+)\s+bp\b", re.ASCII)


def indexed(source: Source, options: ReadOptions) -> Iterator[Entry | BadRecord]:
    """Yield the documents of Megatron's indexed dataset of byte tokens: `NAME.bin`, with `NAME.idx` beside it."""
    yield from indexed_entries(source)


FORMATS: dict[str, Callable[[Source, ReadOptions], Iterator[Entry | BadRecord]]] = {
    "fasta": fasta,
    "jsonl": json_lines,
    "parquet": parquet,
    "arrow": arrow,
    "genbank": genbank,
    "indexed": indexed,
}

ENDINGS = {
    "fasta": (".fa", ".fasta", ".fna", ".ffn", ".fas", ".fsa"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "genbank": (".gb", ".gbk", ".gbff", ".genbank"),
    "indexed": (".bin",),
}

ONLY_IF_NAMED = ("parquet", "arrow", "indexed")
"""Formats that often hold other data: such files in a folder are read only with `--format`."""

WITH_FIELDS = ("jsonl", "parquet", "arrow")
"""Formats whose records have named fields, one of which may be the sample."""
