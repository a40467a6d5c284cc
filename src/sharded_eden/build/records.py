"""From input files to checked records, one at a time.

Enter: files, folders and glob patterns; FASTA, JSON lines, GenBank, Parquet or Arrow, plain or compressed with gzip, bgzip, xz,
zstd or bzip2. Leave: `Record`s whose names and residues are sound. Costs the memory of one record and a few blocks; a file
that cannot be taken as it is ends in an `InputError` that names file, record and position.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sharded_eden.build.formats import ENDINGS, FORMATS, TABLES, ReadOptions
from sharded_eden.build.source import STANDARD_INPUT, Source
from sharded_eden.errors import InputError, UsageError
from sharded_eden.format.schema import NUCLEOTIDES, check_sample_id

COMPRESSED_ENDINGS = (".gz", ".bgz", ".xz", ".zst", ".bz2")
"""May stand behind the ending of a format."""

_FORMAT_OF_ENDING = {ending: name for name, endings in ENDINGS.items() for ending in endings}
_RESIDUES = (NUCLEOTIDES + NUCLEOTIDES.lower()).encode()
_NO_RESIDUE = re.compile(f"[^{_RESIDUES.decode()}]")


class Record(NamedTuple):
    """One sequence of a file."""

    name: str
    """The header up to its first white space; "" where the file has no names."""
    description: str
    """The rest of the header, often empty."""
    sequence: str
    """IUPAC nucleotide letters, in the case they came in; never empty."""
    ordinal: int
    """Its place in the file, 1-based."""


def find_inputs(
    inputs: Sequence[str | os.PathLike[str]], *, format: str | None = None, out: Path | None = None
) -> list[Path]:
    """Return the files that files, folders and glob patterns stand for, in the order given, each once.

    Args:
        inputs: a folder stands for all FASTA, JSON lines and GenBank files below it (hidden ones are left out), sorted
            by path; a pattern for what it matches, sorted too; anything else for itself. `-` is standard input.
        format: look for files of this format alone in folders, Parquet and Arrow included.
        out: a folder that is no input, even below one that is.

    Raises:
        InputError: one of them stands for no file.
    """
    formats = tuple(name for name in FORMATS if name not in TABLES) if format is None else (format,)
    found: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files = _files_below(path, formats, out)
        elif path.exists() or str(given) == STANDARD_INPUT:
            files = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
            files = [
                file for match in matches for file in (_files_below(match, formats, out) if match.is_dir() else [match])
            ]
        if not files:
            endings = " ".join(ending for name in formats for ending in ENDINGS[name])
            reason = f"holds no file to read ({endings}, or one of these with {' '.join(COMPRESSED_ENDINGS)})"
            raise InputError(
                f"{path}: {reason if path.is_dir() else 'no such file, and no file matches it as a pattern'}"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError("no input was given: name files, folders or patterns")
    return list(found.values())


def _files_below(folder: Path, formats: tuple[str, ...], out: Path | None) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if not n.startswith(".") and not (out and _same(Path(parent, n), out))]
        files += [Path(parent, n) for n in names if not n.startswith(".") and _split_name(n)[1] in formats]
    return sorted(files)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _split_name(file_name: str) -> tuple[str, str | None]:
    """Return a file name without its endings, and the format that they tell; as it is, and None, where they tell none."""
    stem, ending = os.path.splitext(file_name)
    if ending.lower() in COMPRESSED_ENDINGS:
        stem, ending = os.path.splitext(stem)
    found = _FORMAT_OF_ENDING.get(ending.lower())
    return (stem, found) if found else (file_name, None)


def default_sample_id(path: str | os.PathLike[str]) -> str:
    """Return the sample ID that a file name stands for: `out/my-genome__v2.fa.gz` -> `my.genome_v2`.

    Raises:
        UsageError: nothing of the name can be kept.
    """
    stem = _split_name(Path(path).name)[0]
    sample_id = re.sub("_+", "_", re.sub("[^A-Za-z0-9._]", ".", stem)).lstrip(".").rstrip("_")
    if not sample_id:
        raise UsageError(f"{path}: its name gives no sample ID. Give one: --sample NAME")
    check_sample_id(sample_id, str(path))
    return sample_id


def read_records(
    source: Source | str | os.PathLike[str],
    options: ReadOptions | None = None,
    *,
    position: Callable[[int], object] | None = None,
) -> Iterator[Record]:
    """Yield the records of a file, each one checked.

    Args:
        source: the file, or its path; its compression is told by its ending or, failing that, by its content.
        options: how it is read.
        position: called after each record with the bytes read from the file so far (as they lie on disk).

    Raises:
        InputError: the file is not of its format, is cut short or damaged, holds no record, or a record has no name, no
            sequence or a character that is no IUPAC nucleotide letter.
        MissingExtra: its format needs a package that is not installed.
    """
    if not isinstance(source, Source):
        with Source(Path(source)) as opened:
            yield from read_records(opened, options, position=position)
        return
    options = options or ReadOptions()
    name_of_format = options.format or _split_name(source.path.name)[1] or "fasta"
    needs_names = name_of_format in {"fasta", "genbank"}
    ordinal = 0
    make = Record._make
    for name, description, sequence, checked in FORMATS[name_of_format](source, options):
        ordinal += 1
        if not checked or not sequence or not name or not name.isprintable():
            where = describe(source.called, ordinal, name)
            if name or needs_names:
                check_name(name, where)
            check_residues(sequence, where)
        yield make((name, description, sequence, ordinal))
        del sequence  # the next one is read before this name is bound again
        if position is not None:
            position(source.position())
    if ordinal == 0:
        raise InputError(f"{source.called}: holds no record (read as {name_of_format})")


def describe(path: str | os.PathLike[str], ordinal: int, name: str) -> str:
    """Return how messages call a record: `reads.fa: record 3 (chr1)`."""
    return f"{path}: record {ordinal} ({name})" if name else f"{path}: record {ordinal}"


def check_name(name: str, where: str) -> None:
    """Refuse a name that cannot be looked up again.

    Raises:
        InputError: it is empty, or holds white space or control characters.
    """
    if not name:
        raise InputError(f"{where}: has no name (nothing behind its '>')")
    if not name.isprintable() or " " in name:
        raise InputError(f"{where}: its name {name!r} holds white space or control characters")


def check_residues(sequence: str, where: str) -> None:
    """Refuse a sequence that is empty or holds anything but IUPAC nucleotide letters.

    Raises:
        InputError: with the first such character and its 1-based position.
    """
    if not sequence:
        raise InputError(f"{where}: has no sequence")
    if sequence.encode("utf-8", "surrogatepass").translate(None, _RESIDUES) and (found := _NO_RESIDUE.search(sequence)):
        tag = " It looks like a phylogenetic tag; take the release without them." if found.group() == "|" else ""
        raise InputError(
            f"{where}: position {found.start() + 1} holds {found.group()!r}, which is no IUPAC nucleotide letter "
            f"({NUCLEOTIDES}, either case).{tag}"
        )
