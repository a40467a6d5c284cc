"""The characters that a sequence may hold, and what messages say of others. Pure."""

from __future__ import annotations

import re
from functools import cache

from sharded_eden.format.schema import NUCLEOTIDES, STITCH_MARKS

_NUCLEOTIDES = (NUCLEOTIDES + NUCLEOTIDES.lower()).encode()


@cache
def allowed(*, stitch_marks: bool) -> bytes:
    """Return the characters that a sequence may hold.

    Args:
        stitch_marks: with those of stitched transcripts.

    Example: `allowed(stitch_marks=True)[-2:]` is `b"@#"`.
    """
    return _NUCLEOTIDES + (STITCH_MARKS.encode() if stitch_marks else b"")


@cache
def _others(*, stitch_marks: bool) -> re.Pattern[str]:
    return re.compile(f"[^{allowed(stitch_marks=stitch_marks).decode()}]")


def first_other(sequence: str, *, stitch_marks: bool) -> re.Match[str] | None:
    """Return the first character that a sequence may not hold; None where there is none."""
    if not sequence.encode("utf-8", "surrogatepass").translate(None, allowed(stitch_marks=stitch_marks)):
        return None
    return _others(stitch_marks=stitch_marks).search(sequence)


def problem(at: int, character: str) -> str:
    """Return what is wrong with a character, at a 0-based position of a sequence that must not hold it."""
    held = (
        f"position {at + 1} holds {character!r}, which is not an IUPAC nucleotide letter ({NUCLEOTIDES}, either case)"
    )
    if character == "|":
        return f"{held}. It looks like a phylogenetic tag: --phylo-tags strip removes such tags, keep lists them."
    if character in STITCH_MARKS:
        return f"{held}. Stitched transcripts hold it: --stitch-marks keep allows it, and such labels do not count in the loss."
    return f"{held}."


def is_stitched(line: bytes) -> bool:
    """Return whether a line that begins with `#` is not a comment but bases of a stitched transcript, up to a lineage tag."""
    bases, bar, _ = line.partition(b"|")
    return bool(bases.strip(STITCH_MARKS.encode()) or bar) and not bases.translate(None, allowed(stitch_marks=True))
