"""Targets that run `build` on a changed input file, each with its own judge.

The judges read the same bytes with the standard library, pyarrow and Polars, straight from docs/format.md.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import sqlite3
import subprocess
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet
from case import Case, Refused, Undecided, Wrong
from mutations import (
    BINARY_MUTATIONS,
    COMPRESS,
    TEXT_MUTATIONS,
    arrow_table,
    change_json,
    change_table,
    compressed,
    mutate,
    parquet_file,
)

import oracle
from sharded_eden import build_sequence_dbs

CORPUS = Path(__file__).parent / "corpus"
LETTERS = re.compile("[ACGTURYSWKMBDHVNacgturyswkmbdhvn]+")
Records = list[tuple[str, str]]


# ---- judges: bytes -> (name, sequence) of each record ----


def decompress(data: bytes) -> bytes:
    """Decompress by what the content is."""
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                return file.read()
        if data[:3] == b"BZh":
            return bz2.decompress(data)
        if data[:6] == b"\xfd7zXZ\0":
            return lzma.decompress(data)
        if data[:4] == b"\x28\xb5\x2f\xfd":
            return subprocess.run(["zstd", "-q", "-d", "-c"], input=data, capture_output=True, check=True).stdout
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, subprocess.CalledProcessError) as error:
        raise Refused(f"damaged: {error!r}") from error
    return data


def fasta_records(data: bytes) -> Records:
    """Read FASTA: every line end counts, white space around lines and '#' lines are left out, but not '#' and bases."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    records: list[tuple[str, list[str]]] = []
    for raw in data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        line = raw.strip()
        if line.startswith(b">"):
            records.append((_text(line[1:]), []))
        elif line and (
            not line.startswith(b"#")
            or (records and re.fullmatch(rb"(?i)[#@]*[ACGTURYSWKMBDHVN][ACGTURYSWKMBDHVN#@]*", line))
        ):
            if not records:
                raise Refused("bases before the first header")
            records[-1][1].append(_text(line))
    return [((header.split(None, 1) or [""])[0], "".join(parts)) for header, parts in records]


def json_records(data: bytes) -> Records:
    """Read one object a line."""
    records = []
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in data.split(b"\n"):
        text = _text(line)
        if not text.strip():
            continue
        try:
            fields = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            raise Refused(f"no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise Refused("no object")
        records.append(_record(fields))
    return records


def _record(fields: dict[str, Any]) -> tuple[str, str]:
    text = next((name for name in ("text", "sequence", "seq", "nt_sequence") if name in fields), None)
    if text is None:
        raise Refused("no sequence")
    name = next((name for name in ("record", "id", "name", "contig_id", "accession") if name in fields), None)
    return _named(fields[name] if name is not None else None), _value(fields[text])


def _value(value: object) -> str:
    if isinstance(value, bytes):
        value = _text(value)
    if not isinstance(value, str):
        raise Refused(f"a sequence that is {type(value).__name__}")
    return value


def _named(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, bytes, int)):
        raise Refused(f"a name that is {type(value).__name__}")
    text = _text(value) if isinstance(value, bytes) else str(value)
    try:
        text.encode()
    except UnicodeError as error:
        raise Refused("a name with lone surrogates") from error
    return (text.split(None, 1) or [""])[0]


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeError as error:
        raise Refused(f"not UTF-8: {error}") from error


def table_records(data: bytes, kind: str) -> Records:
    """Read a table whole, and check it fully."""
    try:
        if kind == "parquet":
            file = parquet_file(data)
            names = file.schema_arrow.names
            table = None
        else:
            table = arrow_table(data)
        names = names if table is None else table.column_names
        text = next((name for name in ("text", "sequence", "seq", "nt_sequence") if name in names), None)
        if text is None:
            raise Refused("no sequence")
        name = next((name for name in ("record", "id", "name", "contig_id", "accession") if name in names), None)
        wanted = [text] if name is None else [text, name]
        if any(names.count(column) > 1 for column in wanted):
            raise Refused("a column twice")
        table = file.read(columns=wanted, use_threads=False) if table is None else table
        table = table.select(wanted)
        table.validate(full=True)
        values = [table.column(i).to_pylist() for i in range(len(wanted))]
    except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        raise Refused(f"unreadable: {error}") from error
    if name is None:
        values.append([None] * len(values[0]))
    return [(_named(name), _value(text)) for text, name in zip(*values, strict=True)]


def genbank_records(data: bytes) -> Records:
    """Read LOCUS, VERSION and ORIGIN of each record.

    As GenBank's format says: the header ends at FEATURES, so that a VERSION after it is none, and the first one counts; lines
    that begin with 12 spaces continue the line before them, ORIGIN too, whose text is not bases; a line that begins with //
    ends the record.
    """
    records: Records = []
    length: int | None = None
    name, parts, place = "", [], "header"
    for line in data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith("LOCUS"):
            found = re.search(r"(\d+) bp", line)
            if found is None:
                raise Undecided("no length in LOCUS")
            length, name, parts, place = int(found.group(1)), "", [], "header"
        elif line.startswith("//") and length is None:
            continue
        elif line.startswith("//"):
            sequence = "".join(parts)
            if len(sequence) != length:
                raise Refused(f"LOCUS says {length} bases, there are {len(sequence)}")
            records.append((name, sequence))
            length = None
        elif line.startswith("ORIGIN"):
            place = "ORIGIN"
        elif line.startswith("FEATURES"):
            place = "features"
        elif line.startswith("VERSION") and place == "header":
            name = name or (line[12:].split() or [""])[0]
        elif place == "bases" or (place == "ORIGIN" and not line.startswith(" " * 12)):
            place = "bases"
            parts.append(re.sub(r"\s", "", line[10:]))
    if length is not None:
        raise Refused("no // after the last record")
    return records


# ---- build ----


def placed(records: Records, sample: str, refused: set[str] | None = None) -> dict[str, list[tuple[str, str]]]:
    """Return {sample: [(contig ID, sequence)]} as docs/format.md says, or refuse.

    With `refused`, samples in which a name or an ID is there twice are left out and added to it.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    names: set[tuple[str, str]] = set()
    for name, sequence in records:
        if not LETTERS.fullmatch(sequence):
            raise Refused(f"no sequence of letters: {sequence[:60]!r}")
        parts = name.split("__", 2)
        prefix, dash, rest = parts[1].partition("-") if len(parts) == 3 else ("", "", "")
        has_form = bool(len(parts) == 3 and parts[0] and parts[2] and prefix and dash and rest)
        own = oracle.sample_of(name) if has_form else sample
        if name and (own, name) in names:
            if refused is None:
                raise Refused(f"two records named {name!r}")
            refused.add(own)
        names.add((own, name))
        rows = found.setdefault(own, [])
        rows.append((name if has_form else f"BCR__ECT-{own}__CT1-{len(rows) + 1}", sequence))
    if not found:
        raise Refused("no record")
    for own, rows in found.items():
        if len({contig_id for contig_id, _ in rows}) < len(rows):
            if refused is None:
                raise Refused("an ID twice")
            refused.add(own)
    return {own: rows for own, rows in found.items() if own not in (refused or ())}


def built(out: Path) -> dict[str, list[tuple[str, str]]]:
    """Return {sample: [(contig ID, sequence)]} of a folder of sequence databases."""
    found = {}
    for path in sorted(out.glob("*/glm_dataset_*.sqlite")):
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
            found[path.parent.name] = database.execute(
                "SELECT contig_id, nt_sequence FROM sequences ORDER BY rowid"
            ).fetchall()
    return found


def _build(case: Case, name: str, data: bytes, judge: Any) -> None:
    path, out = case.folder / name, case.folder / "out"
    path.write_bytes(data)
    with case.package():
        build_sequence_dbs([path], out)
    found = built(out)
    # A sample with a name or an ID twice does not keep the others of its file from being built.
    case.must_not_leave(*([] if case.error and not found else [out]))
    if case.error is not None:
        if found:
            _judge_the_others(found, judge, data, upper=name.startswith("S.gb"))
        return
    case.say("judge")
    try:
        expected = placed(judge(data), "S")
    except Refused as reason:
        raise Wrong(f"accepted, but {reason}: {found!r:.300}") from reason
    if name.startswith("S.gb"):  # Biopython gives bases in upper case
        found = {s: [(i, q.upper()) for i, q in rows] for s, rows in found.items()}
        expected = {s: [(i, q.upper()) for i, q in rows] for s, rows in expected.items()}
    if found != expected:
        raise Wrong(f"built {found!r:.400}, expected {expected!r:.400}")
    table = pl.read_parquet(out / "contigs.parquet").select("sample", "contig_id", "length").rows()
    rows = [(sample, contig_id, len(bases)) for sample in sorted(expected) for contig_id, bases in expected[sample]]
    if table != rows:
        raise Wrong(f"contigs.parquet holds {table!r:.300}, expected {rows!r:.300}")
    if left := [path for path in out.rglob("*") if "partial" in path.name]:
        raise Wrong(f"not removed: {left}")


def _judge_the_others(found: dict[str, list[tuple[str, str]]], judge: Any, data: bytes, *, upper: bool) -> None:
    """Check the samples that were built of a file in which others were refused."""
    refused: set[str] = set()
    try:
        expected = placed(judge(data), "S", refused)
    except Refused as reason:
        raise Wrong(f"built {found!r:.300}, but {reason}") from reason
    if upper:
        found, expected = (
            {s: [(i, q.upper()) for i, q in rows] for s, rows in each.items()} for each in (found, expected)
        )
    if not refused or found != expected:
        raise Wrong(f"built {found!r:.300}, expected {expected!r:.300} without {sorted(refused)}")


def fuzz_fasta(case: Case) -> None:
    """Build from changed FASTA."""
    data = case.choose.choice(sorted(CORPUS.glob("*.fa"))).read_bytes()
    data = mutate(case.choose, data, TEXT_MUTATIONS)
    _build(case, "S.fa", data, lambda data: fasta_records(decompress(data)))


def fuzz_compressed(case: Case) -> None:
    """Build from compressed FASTA, JSON lines or GenBank, changed before or after compression."""
    kind = case.choose.choice(sorted(COMPRESS))
    ending, judge = case.choose.choice([("fa", fasta_records), ("jsonl", json_records), ("gb", genbank_records)])
    text = case.choose.choice(sorted(CORPUS.glob(f"*.{ending}"))).read_bytes()
    data = compressed(case.choose, text, kind)
    _build(case, f"S.{ending}.{kind}", data, lambda data: judge(decompress(data)))


def fuzz_jsonl(case: Case) -> None:
    """Build from changed JSON lines."""
    data = case.choose.choice(sorted(CORPUS.glob("*.jsonl"))).read_bytes()
    data = mutate(case.choose, data, (change_json, change_json, *TEXT_MUTATIONS[:5]))
    _build(case, "S.jsonl", data, lambda data: json_records(decompress(data)))


def fuzz_genbank(case: Case) -> None:
    """Build from changed GenBank."""
    data = case.choose.choice(sorted(CORPUS.glob("*.gb"))).read_bytes()
    data = mutate(case.choose, data, TEXT_MUTATIONS)
    _build(case, "S.gb", data, lambda data: genbank_records(decompress(data)))


def _fuzz_table(case: Case, kind: str, ending: str) -> None:
    data = case.choose.choice(sorted(CORPUS.glob(f"records*.{ending}"))).read_bytes()
    if case.choose.random() < 0.65:
        data = changed_table(case, data, kind)
    if case.choose.random() < 0.5:
        data = mutate(case.choose, data, BINARY_MUTATIONS)
    _build(case, f"S.{ending}", data, lambda data: table_records(data, kind))


def changed_table(case: Case, data: bytes, kind: str) -> bytes:
    try:
        return change_table(case.choose, data, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return data  # Arrow does not write such a table


def fuzz_parquet(case: Case) -> None:
    """Build from changed Parquet."""
    _fuzz_table(case, "parquet", "parquet")


def fuzz_arrow(case: Case) -> None:
    """Build from changed Arrow files, streams and Feather."""
    _fuzz_table(case, "arrow", "arrow")


TARGETS = {
    "fasta": fuzz_fasta,
    "compressed": fuzz_compressed,
    "jsonl": fuzz_jsonl,
    "genbank": fuzz_genbank,
    "parquet": fuzz_parquet,
    "arrow": fuzz_arrow,
}
