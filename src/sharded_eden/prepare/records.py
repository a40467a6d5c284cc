"""From FASTA files to checked records, one at a time.

Enter: files, folders and glob patterns; plain or compressed with gzip, bgzip, xz, zstd or bzip2. Leave: `Record`s whose
names and residues are sound. Costs the memory of one record; a file that cannot be taken as it is ends in an `InputError`
that names file, record and position.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dnaio import FastaReader
from dnaio.exceptions import FileFormatError
from xopen import xopen

from sharded_eden.errors import InputError, UsageError
from sharded_eden.schema import NUCLEOTIDES, check_sample_id

FASTA_ENDINGS = (".fa", ".fasta", ".fna", ".ffn", ".fas", ".fsa")
COMPRESSED_ENDINGS = (".gz", ".bgz", ".xz", ".zst", ".bz2")
"""Files with a FASTA ending, and one of these behind it or none, are what is looked for in a folder."""

BGZF_START = b"\x1f\x8b\x08\x04"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file. Source: SAM/BAM format specification, section 4.1.2."""

_RESIDUES = (NUCLEOTIDES + NUCLEOTIDES.lower()).encode()
_NO_RESIDUE = re.compile(f"[^{_RESIDUES.decode()}]")


class Record(NamedTuple):
    """One sequence of a file."""

    name: str
    """The header up to its first white space."""
    description: str
    """The rest of the header, often empty."""
    sequence: str
    """IUPAC nucleotide letters, in the case they came in; never empty."""
    ordinal: int
    """Its place in the file, 1-based."""


class _Entry(NamedTuple):
    """What the FASTA reader builds, without checks of its own."""

    header: str
    sequence: str
    qualities: None


def find_inputs(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that files, folders and glob patterns stand for, in the order given, each once.

    Args:
        inputs: a folder stands for all FASTA files below it (hidden ones are left out), sorted by path; a pattern for
            what it matches, sorted too; anything else for itself.

    Raises:
        InputError: one of them stands for no file.
    """
    found: dict[Path, Path] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files = _fasta_files_below(path)
        elif path.exists():
            files = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
            files = [file for match in matches for file in (_fasta_files_below(match) if match.is_dir() else [match])]
        if not files:
            endings = " ".join(FASTA_ENDINGS)
            reason = f"holds no FASTA file ({endings}, or one of these with {' '.join(COMPRESSED_ENDINGS)})"
            raise InputError(
                f"{path}: {reason if path.is_dir() else 'no such file, and no file matches it as a pattern'}"
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError("no input was given: name FASTA files, folders or patterns")
    return list(found.values())


def _fasta_files_below(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, n) for n in names if not n.startswith(".") and _without_endings(n) != n]
    return sorted(files)


def _without_endings(file_name: str) -> str:
    """Return a file name without its FASTA ending and the compression ending behind it; as it is where it has none."""
    stem, ending = os.path.splitext(file_name)
    if ending.lower() in COMPRESSED_ENDINGS:
        stem, ending = os.path.splitext(stem)
    return stem if ending.lower() in FASTA_ENDINGS else file_name


def default_sample_id(path: str | os.PathLike[str]) -> str:
    """Return the sample ID that a file name stands for: `out/my-genome__v2.fa.gz` -> `my.genome_v2`.

    Raises:
        UsageError: nothing of the name can be kept.
    """
    stem = _without_endings(Path(path).name)
    sample_id = re.sub("_+", "_", re.sub("[^A-Za-z0-9._]", ".", stem)).lstrip(".").rstrip("_")
    if not sample_id:
        raise UsageError(f"{path}: its name gives no sample ID. Give one: --sample NAME")
    check_sample_id(sample_id, str(path))
    return sample_id


def read_records(path: str | os.PathLike[str], *, position: Callable[[int], object] | None = None) -> Iterator[Record]:
    """Yield the records of a FASTA file, each one checked.

    Args:
        path: the file; its compression is told by its ending or, failing that, by its content.
        position: called after each record with the bytes read from the file so far (as they lie on disk).

    Raises:
        InputError: the file is not FASTA, is cut short or damaged, holds no record, or a record has no name, no
            sequence or a character that is no IUPAC nucleotide letter.
    """
    path = Path(path)
    ordinal = 0
    for ordinal, entry in enumerate(_entries(path, position), start=1):
        name, *description = entry.header.split(None, 1) or [""]
        where = describe(path, ordinal, name)
        check_name(name, where)
        check_residues(entry.sequence, where)
        yield Record(name, "".join(description), entry.sequence, ordinal)
    if ordinal == 0:
        raise InputError(f"{path}: holds no FASTA record")


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
        raise InputError(
            f"{where}: position {found.start() + 1} holds {found.group()!r}, which is no IUPAC nucleotide letter "
            f"({NUCLEOTIDES}, either case)"
        )


def _entries(path: Path, position: Callable[[int], object] | None) -> Iterator[_Entry]:
    """Yield what the reader finds, and turn whatever it or a decompressor raises into an `InputError`."""
    ordinal = 0
    try:
        with path.open("rb") as raw:
            if raw.seekable():
                _check_bgzip_end(raw, path)
            tell = position if raw.seekable() else None
            with xopen(raw, "rb", threads=0) as file, FastaReader(file, sequence_class=_Entry) as reader:
                for entry in reader:
                    ordinal += 1
                    yield entry
                    if tell:
                        tell(raw.tell())
    except InputError:
        raise
    except Exception as error:  # dnaio's, OSError, EOFError, and an own one for each compression
        after = f" after record {ordinal}" if ordinal else ""
        raise InputError(f"{path}: {_cause(error)}{after} ({error})") from error


def _cause(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "truncated: the compressed data end early"
    if isinstance(error, FileFormatError):
        fastq = "but got '@" in str(error)
        return "looks like FASTQ, not FASTA (seqtk seq -a converts it)" if fastq else "is not FASTA"
    if isinstance(error, UnicodeDecodeError):
        return "is not text in UTF-8"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "may not be read"
    return "cannot be read, or is damaged"


def _check_bgzip_end(raw: BinaryIO, path: Path) -> None:
    """Refuse a bgzip file without its end block: cut between two blocks, it would look like a shorter, whole file."""
    start = raw.read(18)
    if start.startswith(BGZF_START) and start[12:14] == b"BC":
        raw.seek(-min(len(BGZF_END), raw.seek(0, os.SEEK_END)), os.SEEK_END)
        if raw.read() != BGZF_END:
            raise InputError(
                f"{path}: truncated: it is a bgzip file without the block that ends one. "
                "If you know it to be whole, compress it again: gzip -dc FILE | bgzip > NEW"
            )
    raw.seek(0)
