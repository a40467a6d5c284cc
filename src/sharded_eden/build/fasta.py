"""FASTA: blocks of bytes -> entries.

Input: a stream of decompressed bytes. Output: (name, description, sequence, whether all its characters are known to be
allowed). A block of 256 KiB is checked at once, and its line ends are removed in C: three times as fast as a loop over lines.
Only a block with white space, comments or an unexpected character is read line by line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from sharded_eden.build import letters
from sharded_eden.build.skipped import BadRecord
from sharded_eden.build.source import MAX_CONTIG_BASES, check_text, describe
from sharded_eden.errors import InputError, shown

BLOCK_BYTES = 1 << 18

MAX_ODD_LINE = 64 << 20
"""The largest number of bytes in a line with other characters than bases (a header, a comment)."""

Entry: TypeAlias = tuple[str, str, str, bool, str]
"""A record as every format yields it: name, description, sequence, whether the sequence is known to hold only allowed
characters, and the sample that `--sample-field` gives ("" without this option). A plain tuple: making a named one takes as long
as all other work on a short record.
"""


def fasta_entries(stream: BinaryIO, called: str, *, stitch_marks: bool = False) -> Iterator[Entry | BadRecord]:
    """Yield the entries of a FASTA file; the error of a record that cannot be stored, in its place.

    LF, CR LF and CR end a line. White space around lines and empty lines are left out, and so are comments: lines that begin
    with `#`, except those inside a record that are `#` and bases or a lineage tag, as a stitched transcript may be divided into
    lines.

    Args:
        stream: its decompressed bytes.
        called: the file's name in messages.
        stitch_marks: sequences may hold `@` and `#`; then a line inside a record is never a comment.

    Raises:
        InputError: it does not begin with a header, or has a line without end that is not of bases.
        UnicodeDecodeError: a header or a line of bases is not UTF-8.
    """
    sound = letters.allowed(stitch_marks=stitch_marks) + b"\n"
    header: bytes | None = None
    parts: list[str] = []
    checked = True
    is_dropped = False
    line = 1
    ordinal = bases = 0
    for block, goes_on in _blocks(stream, called, sound):
        if goes_on and block[0] not in sound and (rest := block.partition(b"\n"))[0].strip():
            if not is_dropped:
                yield _bad_letter(called, ordinal, header, bases, block)
            is_dropped, block = True, rest[2]  # noqa: PLW2901
            if not block:
                continue
        is_sound, before, records = _records(block, sound, stitch_marks=stitch_marks, inside=header is not None)
        if before:
            if header is None:
                raise _no_header(called, block, line)
            if not is_dropped:
                parts.append(before)
                checked = checked and is_sound
                bases += len(before)
                if bases > MAX_CONTIG_BASES:
                    name = _name(header)[0]
                    held = f"has more bases than SQLite holds in one value ({MAX_CONTIG_BASES:,})"
                    yield BadRecord(f"{describe(called, ordinal, name)}: {held}", "long", name)
                    is_dropped, parts = True, []
        if records:
            if header is not None and not is_dropped:
                parts = ["".join(parts)]  # frees the first copy
                yield (*_name(header), parts.pop(), checked, "")
            ordinal += len(records)
            header, last = records.pop()
            for head, sequence in records:
                yield (*_name(head), sequence, is_sound, "")
            parts, checked, bases, is_dropped = [last], is_sound, len(last), False
        elif header is None:
            line += block.count(b"\n")
    if header is not None and not is_dropped:
        parts = ["".join(parts)]
        yield (*_name(header), parts.pop(), checked, "")


def _bad_letter(called: str, ordinal: int, header: bytes | None, bases: int, block: bytes) -> BadRecord:
    """Return the error for a block that begins inside a line with a character that is no base."""
    name = _name(header)[0] if header else ""
    held = letters.problem(bases, block[:4].decode(errors="replace")[0])
    return BadRecord(f"{describe(called, ordinal, name)}: {held}", "letters", name)


def _name(header: bytes) -> tuple[str, str]:
    """Return the name in a header, and the description after it."""
    text = header.decode()
    name, _, description = text.partition(" ")
    if name and name.isprintable() and description.isprintable() and not description.startswith(" "):
        return name, description.rstrip()
    name, *rest = text.split(None, 1) or [""]
    return (name, rest[0].rstrip()) if rest else (name, "")


def _blocks(stream: BinaryIO, called: str, sound: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield blocks of whole lines, each ended by LF, and whether a block begins inside a line.

    Only a line of bases that is longer than a block is divided. Each byte is processed a fixed number of times, whatever the
    length of a line.
    """
    waiting: list[bytes] = []
    size = 0
    goes_on = is_odd = after_cr = False
    for part in _data(stream, called):
        data = part
        if after_cr or b"\r" in data:
            data = data[1:] if after_cr and data.startswith(b"\n") else data
            after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n") + 1
        if end:
            waiting.append(data[:end])
            yield b"".join(waiting), goes_on
            waiting, size = ([data[end:]], len(data) - end) if end < len(data) else ([], 0)
            goes_on = is_odd = False
            continue
        waiting.append(data)
        size += len(data)
        if size >= BLOCK_BYTES and not is_odd:
            block = b"".join(waiting)
            is_odd = bool(block.translate(None, sound))
            if not is_odd:
                yield block, goes_on
                waiting, size, goes_on = [], 0, True
        elif size > MAX_ODD_LINE:
            start = b"".join(waiting[:2])[:80]
            raise InputError(
                f"{called}: is not FASTA: a line of more than {MAX_ODD_LINE:,} bytes holds other characters than bases; it "
                f"begins with {shown(start)}"
            )
    if waiting:
        yield b"".join(waiting), goes_on


def _data(stream: BinaryIO, called: str) -> Iterator[bytes]:
    """Yield the bytes of a stream without the byte order mark of UTF-8."""
    start = b""
    while len(start) < 3 and (more := stream.read(3 - len(start))):
        start += more
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        check_text(start.decode(errors="surrogateescape"), called)
    if start and start != b"\xef\xbb\xbf":
        yield start
    while data := stream.read(BLOCK_BYTES):
        yield data


def _records(
    block: bytes, sound: bytes, *, stitch_marks: bool, inside: bool
) -> tuple[bool, str, list[tuple[bytes, str]]]:
    """Divide a block at its headers; `inside`: it begins in a record.

    Returns:
        Whether it holds only headers and allowed characters, the letters before its first header, and (header, letters) of each
        record.
    """
    first, *chunks = block.split(b">")
    if chunks and not (first[-1:] in b"\n" and all(chunk[-1:] == b"\n" for chunk in chunks[:-1])):
        first, *chunks = (b"\n" + block).split(b"\n>")  # a header may hold another '>'
    before = first.replace(b"\n", b"").decode("latin-1")
    records = []
    headers = [b""]
    for chunk in chunks:
        header, _, body = chunk.partition(b"\n")
        headers.append(header)
        records.append((header, body.replace(b"\n", b"").decode("latin-1")))
    is_comment = bool(before) and not inside
    if not is_comment and block.translate(None, sound) == b">".join(headers).translate(None, sound):
        return True, before, records
    return (False, *_records_by_line(block, stitch_marks=stitch_marks, inside=inside))


def _records_by_line(block: bytes, *, stitch_marks: bool, inside: bool) -> tuple[str, list[tuple[bytes, str]]]:
    """Do what `_records` does line by line: white space around lines, empty lines and comments are left out."""
    found: list[tuple[bytes, list[str]]] = [(b"", [])]
    for line in block.split(b"\n"):
        stripped = line.strip()
        if stripped[:1] == b">":
            found.append((stripped[1:], []))
            inside = True
        elif stripped and (stripped[:1] != b"#" or (inside and (stitch_marks or letters.is_stitched(stripped)))):
            found[-1][1].append(stripped.decode())
    (_, before), *records = found
    return "".join(before), [(header, "".join(parts)) for header, parts in records]


def _no_header(called: str, block: bytes, line: int) -> InputError:
    lines = enumerate((text.strip() for text in block.splitlines()), start=line)
    number, text = next((number, text) for number, text in lines if text and not text.startswith(b"#"))
    what = "looks like FASTQ, not FASTA (seqtk seq -a converts it)" if text.startswith(b"@") else "is not FASTA"
    start = shown(text[:200].decode(errors="replace"), 40)
    return InputError(f"{called}: {what}: line {number} should begin with '>', but is {start}")
