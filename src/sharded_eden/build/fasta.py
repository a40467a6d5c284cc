"""FASTA: blocks of bytes -> entries.

Enters: a stream of decompressed bytes. Leaves: (header, sequence, whether its residues are known to be sound). A block of a
megabyte is checked as a whole and its line ends are cut out in C: three times as fast as a loop over lines. A block with
anything unusual in it (white space, comments, an odd character) goes through such a loop after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from sharded_eden.errors import InputError
from sharded_eden.format.schema import NUCLEOTIDES

BLOCK_BYTES = 1 << 18

_SOUND = (NUCLEOTIDES + NUCLEOTIDES.lower() + "\r\n").encode()


Entry: TypeAlias = tuple[str, str, str, bool]
"""What any format gives for a record: name, description, sequence, and whether the sequence is known to hold nothing but
IUPAC nucleotide letters. A plain tuple, since a named one takes as long to make as all else that is done to a short record.
"""


def fasta_entries(stream: BinaryIO, called: str) -> Iterator[Entry]:
    """Yield the entries of a FASTA file.

    Args:
        stream: its decompressed bytes.
        called: what messages call the file.

    Raises:
        InputError: it does not begin with a header.
    """
    header: bytes | None = None
    parts: list[str] = []
    checked = True
    line = 1
    for block, goes_on in _blocks(stream):
        if goes_on and block[0] not in _SOUND:
            raise InputError(f"{called}: is not FASTA: {chr(block[0])!r} within a line of bases")
        sound, before, records = _records(block)
        if before:
            if header is None:
                raise _no_header(called, block, line)
            parts.append(before)
            checked = checked and sound
        if records:
            if header is not None:
                parts = ["".join(parts)]  # so that no second copy waits beside it
                yield (*_name(header), parts.pop(), checked)
            header, last = records.pop()
            for head, sequence in records:
                yield (*_name(head), sequence, sound)
            parts, checked = [last], sound
        elif header is None:
            line += block.count(b"\n")
    if header is not None:
        parts = ["".join(parts)]
        yield (*_name(header), parts.pop(), checked)


def _name(header: bytes) -> tuple[str, str]:
    """Return the name in a header and the description behind it."""
    text = header.decode()
    name, _, description = text.partition(" ")
    if name and name.isprintable() and description.isprintable() and not description.startswith(" "):
        return name, description.rstrip()
    name, *rest = text.split(None, 1) or [""]
    return (name, rest[0].rstrip()) if rest else (name, "")


def _blocks(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield blocks that begin and end with a line, and whether a block goes on inside one.

    Only a line of bases that is longer than a block is divided: held back it would be copied again for each block.
    """
    rest = b""
    goes_on = False
    while data := stream.read(BLOCK_BYTES):
        data = rest + data if rest else data
        end = data.rfind(b"\n") + 1
        divided = not end and len(data) >= BLOCK_BYTES and not data.translate(None, _SOUND)
        if divided:
            end = len(data)
        block, rest = (data, b"") if end == len(data) else (data[:end], data[end:])
        if block:
            yield block, goes_on
            goes_on = divided
    if rest:
        yield rest, goes_on


def _records(block: bytes) -> tuple[bool, str, list[tuple[bytes, str]]]:
    """Divide a block at its headers.

    Returns:
        Whether it holds just headers and sound residues, the residues before its first header, and (header, residues) of
        each record.
    """
    if b"\r" in block:
        block = block.replace(b"\r", b"")
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
    if block.translate(None, _SOUND) == b">".join(headers).translate(None, _SOUND):
        return True, before, records
    return (False, *_records_by_line(block))


def _records_by_line(block: bytes) -> tuple[str, list[tuple[bytes, str]]]:
    """Do the same line by line: white space around lines, empty lines and comments are left out."""
    found: list[tuple[bytes, list[str]]] = [(b"", [])]
    for line in block.split(b"\n"):
        stripped = line.strip()
        if stripped[:1] == b">":
            found.append((stripped[1:], []))
        elif stripped and stripped[:1] != b"#":
            found[-1][1].append(stripped.decode())
    (_, before), *records = found
    return "".join(before), [(header, "".join(parts)) for header, parts in records]


def _no_header(called: str, block: bytes, line: int) -> InputError:
    lines = enumerate((text.strip() for text in block.splitlines()), start=line)
    number, shown = next((number, text) for number, text in lines if text and not text.startswith(b"#"))
    what = "looks like FASTQ, not FASTA (seqtk seq -a converts it)" if shown.startswith(b"@") else "is not FASTA"
    return InputError(
        f"{called}: {what}: line {number} should begin with '>', but is {shown[:40].decode(errors='replace')!r}"
    )
