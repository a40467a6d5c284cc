"""What is not FASTA: JSON lines, Parquet, Arrow, GenBank. Each format is one function: a source -> entries.

A new format is a function here, its name in `FORMATS`, and its file endings in `ENDINGS`. Packages that a format needs are
imported when a file of it is read; one that is missing is an error that names the extra.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

from sharded_eden.build.fasta import Entry, fasta_entries
from sharded_eden.build.source import Source
from sharded_eden.errors import EdenError, InputError, MissingExtra, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 32 << 20
"""Bases of a Parquet file that are decoded at once, unless a single one is longer."""

_PLAIN_JSON = json.JSONDecoder(strict=False)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How input files are read."""

    format: str | None = None
    """One of `FORMATS`; told by the file's ending unless given, FASTA where that says nothing."""
    text_field: str | None = None
    """The field or column of the sequence; unless given, the first there is of `TEXT_FIELDS`."""
    id_field: str | None = None
    """The field or column of the record's name; unless given, the first there is of `ID_FIELDS`; "" for none."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise UsageError(f"--format {self.format!r} is none of {', '.join(FORMATS)}")


TEXT_FIELDS = ("text", "sequence", "seq", "nt_sequence")
ID_FIELDS = ("record", "id", "name", "contig_id", "accession")
"""The first of each pair are those of the OpenGenome2 releases, where some files have no `record`."""


def fasta(source: Source, options: ReadOptions) -> Iterator[Entry]:
    """Yield the records of a FASTA file."""
    with source.stream() as stream:
        yield from fasta_entries(stream, source.called)


def json_lines(source: Source, options: ReadOptions) -> Iterator[Entry]:
    """Yield one entry for each line of JSON; empty lines are left out."""
    with source.stream() as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{source.called}: line {number}"
            try:
                fields = _PLAIN_JSON.decode(line.decode())
            except ValueError as error:
                raise InputError(f"{where}: is no JSON ({error})") from error
            del line
            if not isinstance(fields, dict):
                raise InputError(f"{where}: is no JSON object, but {type(fields).__name__}")
            text, name = _choose(list(fields), options, where)
            yield _entry(fields.get(name), fields[text], where, text)


def parquet(source: Source, options: ReadOptions) -> Iterator[Entry]:
    """Yield one entry for each row of a Parquet file, some 32 MB at a time."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "formats") from error
    try:
        with pq.ParquetFile(source.path, memory_map=False) as file:
            text, name = _choose(file.schema_arrow.names, options, source.called)
            rows = max(1, file.metadata.num_rows)
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            batch_rows = int(min(65_536, max(1, BATCH_BYTES * rows // max(1, size))))
            columns = [text] if name is None else [text, name]
            yield from _rows(file.iter_batches(batch_rows, columns=columns), text, name, source.called)
    except (OSError, ValueError) as error:
        raise _damaged(source, "Parquet", error) from error


def arrow(source: Source, options: ReadOptions) -> Iterator[Entry]:
    """Yield one entry for each row of an Arrow IPC file (Feather, version 2) or stream, a record batch at a time."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtra("pyarrow", "formats") from error
    try:
        with pa.OSFile(str(source.path)) as raw:
            is_file = raw.read(6) == b"ARROW1"
            raw.seek(0)
            reader = pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)
            text, name = _choose(reader.schema.names, options, source.called)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            yield from _rows(batches, text, name, source.called)
    except (OSError, ValueError) as error:
        raise _damaged(source, "Arrow", error) from error


def genbank(source: Source, options: ReadOptions) -> Iterator[Entry]:
    """Yield the records of a GenBank file, by Biopython."""
    try:
        from Bio import SeqIO
        from Bio.Seq import UndefinedSequenceError
    except ImportError as error:
        raise MissingExtra("biopython", "formats") from error
    with source.stream() as stream:
        lines = _text_lines(stream)
        first = next((line for line in lines if line.strip()), "")
        if first and not first.startswith("LOCUS"):
            raise InputError(f"{source.called}: is not GenBank: it begins with {first[:40].rstrip()!r}, not with LOCUS")
        ordinal = 0
        records: Iterator[Any] = iter(
            SeqIO.parse(  # type: ignore[no-untyped-call]
                _Lines(chain([first] if first else [], lines)), "genbank"
            )
        )
        while True:
            record: Any = None
            try:
                record = next(records)
                ordinal += 1
                sequence = str(record.seq)
            except StopIteration:
                return
            except UndefinedSequenceError:
                raise InputError(
                    f"{source.called}: record {ordinal} ({record.id}): has no bases behind ORIGIN; "
                    "download it with them (gbwithparts)"
                ) from None
            except (ValueError, AssertionError, IndexError) as error:
                raise InputError(
                    f"{source.called}: is not GenBank, or damaged, after record {ordinal} ({error})"
                ) from error
            description = "" if record.description == "<unknown description>" else record.description
            yield record.id, description, sequence, False


FORMATS: dict[str, Callable[[Source, ReadOptions], Iterator[Entry]]] = {
    "fasta": fasta,
    "jsonl": json_lines,
    "parquet": parquet,
    "arrow": arrow,
    "genbank": genbank,
}

ENDINGS = {
    "fasta": (".fa", ".fasta", ".fna", ".ffn", ".fas", ".fsa"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "genbank": (".gb", ".gbk", ".gbff", ".genbank"),
}

TABLES = ("parquet", "arrow")
"""Formats that hold other things too, and that compress themselves."""


def _choose(names: list[str], options: ReadOptions, where: str) -> tuple[str, str | None]:
    """Return the fields of the sequence and of the name, None where there is none."""
    texts = TEXT_FIELDS if options.text_field is None else (options.text_field,)
    ids = ID_FIELDS if options.id_field is None else (options.id_field,) if options.id_field else ()
    text = next((name for name in texts if name in names), None)
    if text is None:
        raise InputError(
            f"{where}: has no field {' or '.join(map(repr, texts))}, but {names}. Name it: --text-field NAME"
        )
    name = next((name for name in ids if name in names), None)
    if name is None and options.id_field:
        raise InputError(f"{where}: has no field {options.id_field!r}, but {names}. Name it: --id-field NAME")
    return text, name


def _entry(name: object, text: object, where: str, field: str) -> Entry:
    if not isinstance(text, str):
        raise InputError(f"{where}: its field {field!r} is no text, but {type(text).__name__}")
    if name is None:
        return "", "", text, False
    first, *description = str(name).split(None, 1) or [""]
    return first, description[0] if description else "", text, False


def _rows(batches: Iterator[pa.RecordBatch], text: str, name: str | None, called: str) -> Iterator[Entry]:
    row = 0
    for batch in batches:
        texts = batch.column(text)
        names = None if name is None else batch.column(name)
        for i in range(batch.num_rows):
            row += 1
            value = texts[i].as_py()
            yield _entry(None if names is None else names[i].as_py(), value, f"{called}: row {row}", text)


def _damaged(source: Source, what: str, error: Exception) -> EdenError:
    if isinstance(error, EdenError):
        return error
    return InputError(f"{source.called}: cannot be read as {what} ({error})")


def _text_lines(stream: BinaryIO) -> Iterator[str]:
    for line in stream:
        yield line.decode()


class _Lines:
    """Lines as the file that Biopython reads from."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def readline(self) -> str:
        """Return the next line, empty at the end."""
        return next(self._lines, "")

    def read(self, size: int = -1) -> str:
        """Return nothing for 0, which asks whether this is text; the rest otherwise."""
        return "" if size == 0 else "".join(self._lines)
