"""FASTA: blocks of bytes -> entries.

Enters: a stream of decompressed bytes. Leaves: (header, sequence, whether its residues are known to be sound). A block of a
megabyte is checked as a whole and its line ends are cut out in C: three times as fast as a loop over lines. A block with
anything unusual in it (white space, comments, an odd character) goes through such a loop after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from sharded_eden.errors import InputError
from sharded_eden.schema import NUCLEOTIDES

BLOCK_BYTES = 1 << 20

_SOUND = (NUCLEOTIDES + NUCLEOTIDES.lower() + "\r\n").encode()


class Entry(NamedTuple):
    """What any format gives for a record."""

    name: str
    description: str
    sequence: str
    checked: bool = False
    """Whether the sequence is known to hold nothing but IUPAC nucleotide letters."""


def fasta_entries(stream: BinaryIO, called: str) -> Iterator[Entry]:
    """Yield the entries of a FASTA file.

    Args:
        stream: its decompressed bytes.
        called: what messages call the file.

    Raises:
        InputError: it does not begin with a header.
    """
    header: str | None = None
    parts: list[str] = []
    checked = True
    line = 1
    for block, goes_on in _blocks(stream):
        if goes_on and block[0] not in _SOUND:
            raise InputError(f"{called}: is not FASTA: {chr(block[0])!r} within a line of bases")
        sound, pieces = _pieces(block)
        if not sound:
            pieces = _lines(block)
        for is_header, piece in pieces:
            if not is_header:
                if header is None and piece:
                    raise _no_header(called, block, line)
                parts.append(piece)
                checked = checked and sound
                continue
            if header is not None:
                yield _entry(header, parts, checked)
            header, parts, checked = piece, [], True
        if header is None:
            line += block.count(b"\n")
    if header is not None:
        yield _entry(header, parts, checked)


def _entry(header: str, parts: list[str], checked: bool) -> Entry:
    name, *description = header.split(None, 1) or [""]
    return Entry(name, description[0] if description else "", parts[0] if len(parts) == 1 else "".join(parts), checked)


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


def _pieces(block: bytes) -> tuple[bool, list[tuple[bool, str]]]:
    """Return whether a block holds just headers and sound residues, and if so its headers and what lies between them."""
    if b"\r" in block:
        block = block.replace(b"\r", b"")
    headers = []
    pieces: list[tuple[bool, str]] = []
    at, end = 0, len(block)
    while at < end:
        if block[at] == 62:  # >
            stop = block.find(b"\n", at)
            stop = end if stop < 0 else stop
            headers.append(block[at:stop])
            pieces.append((True, headers[-1][1:].decode()))
            at = stop + 1
            continue
        stop = block.find(b">", at)
        while stop > 0 and block[stop - 1] != 10:
            stop = block.find(b">", stop + 1)
        stop = end if stop < 0 else stop
        pieces.append((False, block[at:stop].replace(b"\n", b"").decode("latin-1")))
        at = stop
    return block.translate(None, _SOUND) == b"".join(headers).translate(None, _SOUND), pieces


def _lines(block: bytes) -> list[tuple[bool, str]]:
    """Return the headers of a block and what lies between them, line by line: white space and comments are left out."""
    lines = [line.strip() for line in block.decode().split("\n")]
    return [(line[0] == ">", line[1:] if line[0] == ">" else line) for line in lines if line and line[0] != "#"]


def _no_header(called: str, block: bytes, line: int) -> InputError:
    lines = enumerate((text.strip() for text in block.splitlines()), start=line)
    number, shown = next((number, text) for number, text in lines if text and not text.startswith(b"#"))
    what = "looks like FASTQ, not FASTA (seqtk seq -a converts it)" if shown.startswith(b"@") else "is not FASTA"
    return InputError(
        f"{called}: {what}: line {number} should begin with '>', but is {shown[:40].decode(errors='replace')!r}"
    )
