"""From input files to checked records, one at a time.

Input: files of the formats in `formats.py`, folders and glob patterns; FASTA, JSON lines and GenBank may be compressed with
gzip, bgzip, xz, zstd or bzip2. Output: `Record`s whose names and sequences have been checked. Needs the memory of one record
and a few blocks. An invalid file raises an `InputError` that names file, record and position.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sharded_eden.build import letters
from sharded_eden.build.formats import ENDINGS, FORMATS, ONLY_IF_NAMED, WITH_FIELDS, ReadOptions
from sharded_eden.build.skipped import BadRecord, Skip
from sharded_eden.build.source import STANDARD_INPUT, Source, check_text, describe
from sharded_eden.errors import InputError, UsageError, printable, shown, warn
from sharded_eden.format.commands import build_command
from sharded_eden.format.schema import CONTIGS_FILE, SKIPPED_FILE, check_sample_id

COMPRESSED_ENDINGS = (".gz", ".bgz", ".xz", ".zst", ".bz2")
"""Endings of compressed files, which may follow the ending of a format."""

_FORMAT_OF_ENDING = {ending: name for name, endings in ENDINGS.items() for ending in endings}

_PHYLO_TAG = re.compile(r"\|[A-Za-z]__[^|]{0,4096}\|")
"""A lineage tag as in the OpenGenome2 releases: `|d__Bacteria;p__Bacillota;...|`."""

PHYLO_SEPARATOR = "\x1f"
"""Between the tag and the description of a record while it is built, with `--phylo-tags keep`.

A description that holds it itself follows an empty tag.
"""


class Record(NamedTuple):
    """One sequence of a file."""

    name: str
    """The header up to its first white space; "" where the file has no names."""
    description: str
    """The rest of the header, often empty."""
    sequence: str
    """IUPAC nucleotide letters, in the case they came in, and stitch marks where these are kept; never empty."""
    ordinal: int
    """Its place in the file, 1-based."""
    sample: str = ""
    """The sample that `--sample-field` gives; "" without this option."""


def find_inputs(
    inputs: Sequence[str | os.PathLike[str]], *, format: str | None = None, out: Path | None = None
) -> list[Path]:
    """Return the files that files, folders and glob patterns name, in the order given, each once.

    A file that is given more than once, also through links, is read once; a warning names it.

    Args:
        inputs: a folder means all FASTA, JSON lines and GenBank files below it, also in linked folders, without hidden ones,
            sorted by path. A pattern means what it matches, sorted by path. An existing path is never taken for a pattern.
            `-` is standard input.
        format: only files of this format are taken from folders; needed for Parquet and Arrow.
        out: a folder that is left out, where an input folder holds it.

    Raises:
        InputError: one of them names no file, or a pipe; or a folder or a link in a folder cannot be read.
        UsageError: one of them is a URL, or not a path.
    """
    formats = tuple(name for name in FORMATS if name not in ONLY_IF_NAMED) if format is None else (format,)
    found: dict[Path, Path] = {}
    again: list[str] = []
    unread: dict[Path, Path] = {}
    for given in inputs:
        path = check_path(given, "input")
        if path.is_dir():
            files = _files_below(path, formats, out, again, unread)
        elif str(given) == STANDARD_INPUT:
            files = [path]
        elif path.exists():
            files = [_present(path)]
        else:
            matches = sorted(Path(match) for match in glob.glob(os.fspath(given), recursive=True))
            files = [
                file
                for match in matches
                for file in (_files_below(match, formats, out, again, unread) if match.is_dir() else [_present(match)])
            ]
        if not files:
            endings = " ".join(ending for name in formats for ending in ENDINGS[name])
            reason = f"holds no file to read ({endings}, or one of these with {' '.join(COMPRESSED_ENDINGS)})"
            if format is None and (left := [file for file in unread.values() if path in file.parents]):
                reason += f". For {printable(left[0].name)}, give its --format"
            raise InputError(
                f"{printable(path)}: {reason if path.is_dir() else 'no such file, and no file matches it as a pattern'}"
            )
        for file in files:
            first = found.setdefault(file.resolve(), file)
            if first is not file:
                again.append(f"{printable(file)} is {printable(first)}")
    if not found:
        raise InputError("no input was given: name files, folders or patterns")
    if again:
        more = f", and {len(again) - REPEATED_SHOWN:,} more" if len(again) > REPEATED_SHOWN else ""
        warn(f"inputs that are given more than once are read once: {'; '.join(again[:REPEATED_SHOWN])}{more}")
    left = [file for real, file in unread.items() if real not in found]
    if format is None and left:
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        warn(
            f"{printable(left[0])}{more} not read: in a folder, Parquet, Arrow and Megatron's files are read only with "
            "--format"
        )
    return list(found.values())


OWN_TABLES = (CONTIGS_FILE, SKIPPED_FILE)
"""Tables that `build` writes, which are no input."""

REPEATED_SHOWN = 5
"""The number of repeated inputs that a warning names."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_path(given: object, what: str) -> Path:
    """Return a local path.

    Args:
        given: what the user gave.
        what: its role, for the message: `input`, `--out`.

    Raises:
        UsageError: it is a URL, or cannot be a path.
    """
    try:
        text = os.fsdecode(given)  # type: ignore[arg-type]
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError) as error:
        raise UsageError(f"{what} {shown(given)} is not a path ({error})") from error
    if "\0" in text:
        raise UsageError(f"{what} {shown(given)} is not a path: it holds a NUL character")
    path = Path(text)
    if _URL.match(text) and (text.partition(":")[2].startswith("//") or not os.path.lexists(path.parts[0])):
        raise UsageError(
            f"{what} {shown(text)} is a URL: build reads and writes files of this machine only. Copy the data to a local "
            "folder, or mount them"
        )
    return path


def _present(file: Path) -> Path:
    """Return a file, if it is a readable regular file."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        link = f" to {printable(os.readlink(file))}" if file.is_symlink() else ""
        raise InputError(f"{printable(file)}: is a link{link} that leads nowhere ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        once = ", but a pipe, which can be read only once. Give its data as standard input: COMMAND | " + build_command(
            "SEQDB", given=STANDARD_INPUT
        )
        raise InputError(f"{printable(file)}: is neither a file nor a folder{once if stat.S_ISFIFO(mode) else ''}")
    return file


def _files_below(
    folder: Path, formats: tuple[str, ...], out: Path | None, again: list[str], unread: dict[Path, Path]
) -> list[Path]:
    """Return the files of a folder, links followed.

    A folder that is reached twice is read once and added to `again`. Files that need `--format` are added to `unread`, where
    `formats` are others.
    """
    files = []
    walked: dict[tuple[int, int], str] = {}

    def refuse(error: OSError) -> None:
        raise InputError(f"{printable(error.filename)}: cannot be read ({error.strerror})") from error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        state = os.stat(parent)
        first = walked.setdefault((state.st_dev, state.st_ino), parent)
        if first is not parent:
            again.append(f"{printable(parent)} is {printable(first)}")
            folders.clear()
            continue
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not (out and _same(Path(parent, n), out)))
        of_format = {n: _split_name(n)[1] for n in sorted(names) if not n.startswith(".")}
        files += [_present(Path(parent, n)) for n, of in of_format.items() if of in formats]
        lower = set(map(str.lower, names))
        for n, of in of_format.items():
            if of in ONLY_IF_NAMED and of not in formats and n not in OWN_TABLES:
                file = Path(parent, n)
                if of != "indexed" or f"{_split_name(n)[0]}.idx".lower() in lower:
                    unread.setdefault(file.resolve(), file)
    return sorted(files)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _split_name(file_name: str) -> tuple[str, str | None]:
    """Return a file name without its endings, and their format; the whole name and None for unknown endings."""
    stem, ending = os.path.splitext(file_name)
    if ending.lower() in COMPRESSED_ENDINGS:
        stem, ending = os.path.splitext(stem)
    found = _FORMAT_OF_ENDING.get(ending.lower())
    return (stem, found) if found else (file_name, None)


SAMPLE_FROM = ("file", "folder")
"""Which name gives the sample of records that name none: that of their file, or of the folder that holds it."""


def default_sample_id(path: str | os.PathLike[str], sample_from: str = "file") -> str:
    """Return the sample ID that a path gives.

    Args:
        path: of an input file.
        sample_from: `file`: `out/my-genome__v2.fa.gz` -> `my.genome_v2`; `folder`: `GCF_000005845.2/genomic.fna` ->
            `GCF_000005845.2`.

    Raises:
        UsageError: no character of the name can be kept, or the name is too long.
    """
    by_folder = sample_from == "folder"
    stem = Path(os.path.abspath(path)).parent.name if by_folder else _split_name(Path(path).name)[0]
    sample_id = re.sub("_+", "_", re.sub("[^A-Za-z0-9._]", ".", stem)).lstrip(".").rstrip("_")
    if not sample_id:
        raise UsageError(
            f"{printable(path)}: the name of the {sample_from} gives no sample ID. Give one: --sample NAME"
        )
    check_sample_id(sample_id, printable(path))
    return sample_id


def read_records(
    source: Source | str | os.PathLike[str],
    options: ReadOptions | None = None,
    *,
    position: Callable[[int], object] | None = None,
    skip: Skip | None = None,
) -> Iterator[Record]:
    """Yield the records of a file, each one checked.

    Args:
        source: the file, or its path; its ending, or else its content, tells how it is compressed.
        options: how it is read.
        position: called after each record with the number of bytes read from disk so far.
        skip: called with each bad record, which is then left out; None: the first one is an error.

    Raises:
        InputError: the file is not of its format, is cut short or damaged, holds no record, or a record has no name, no
            sequence or a character that is not allowed in sequences. With `skip`: all of its records are bad.
        MissingExtra: its format needs a package that is not installed.
    """
    if not isinstance(source, Source):
        with Source(Path(source)) as opened:
            yield from read_records(opened, options, position=position, skip=skip)
        return
    options = options or ReadOptions()
    name_of_format = options.format or _split_name(source.path.name)[1] or "fasta"
    needs_names = name_of_format in {"fasta", "genbank"}
    if options.sample_field is not None and name_of_format not in WITH_FIELDS:
        raise InputError(
            f"{source.called}: --sample-field {shown(options.sample_field)} names a field, which only {', '.join(WITH_FIELDS)} "
            f"have; this file is read as {name_of_format}"
        )
    ordinal = 0
    skipped: list[BadRecord] = []  # the first one
    bad = 0
    make = Record._make
    for entry in FORMATS[name_of_format](source, options):
        ordinal += 1
        try:
            if isinstance(entry, BadRecord):
                raise entry
            name, description, sequence, checked, sample = entry
            del entry
            if not checked or not sequence or not name or not name.isprintable() or not description.isprintable():
                where = describe(source.called, ordinal, name)
                description, sequence = _checked(name, description, sequence, where, options, name or needs_names)
        except BadRecord as error:
            if skip is None:
                raise
            skip(source.called, ordinal, error)
            skipped, bad = skipped or [error], bad + 1
            continue
        yield make((name, description, sequence, ordinal, sample))
        del sequence  # frees this record before the next one is read
        if position is not None:
            position(source.position())
    if ordinal == 0:
        raise InputError(f"{source.called}: holds no record (read as {name_of_format})")
    if bad == ordinal:
        raise InputError(f"{source.called}: all of its {bad:,} records are bad. The first: {skipped[0]}")


def _checked(
    name: str, description: str, sequence: str, where: str, options: ReadOptions, needs_name: object
) -> tuple[str, str]:
    """Return the description and the sequence of a record, without lineage tags.

    Raises:
        BadRecord: its name, its description or its sequence is invalid.
    """
    phylo_tag = ""
    if options.phylo_tags != "refuse" and "|" in sequence:
        sequence, phylo_tag = _without_tags(sequence, where, name)
    if needs_name:
        check_name(name, where)
    try:
        check_text(description, f"{where}: its description")
    except InputError as error:
        raise BadRecord(str(error), "name", name) from None
    check_residues(sequence, where, name, stitch_marks=options.keeps_stitch_marks)
    if options.phylo_tags == "keep" and (phylo_tag or PHYLO_SEPARATOR in description):
        description = f"{phylo_tag}{PHYLO_SEPARATOR}{description}"
    return description, sequence


def _without_tags(sequence: str, where: str, name: str) -> tuple[str, str]:
    """Return a sequence without its lineage tags, and the tag; "" where it has none.

    Raises:
        BadRecord: it has different ones.
    """
    tags = sorted(set(_PHYLO_TAG.findall(sequence)))
    if len(tags) > 1:
        what = f"holds {len(tags)} different phylogenetic tags: {shown(tags[0])}, {shown(tags[1])}"
        raise BadRecord(f"{where}: {what}", "tag", name)
    return _PHYLO_TAG.sub("", sequence), tags[0] if tags else ""


def check_name(name: str, where: str) -> None:
    """Raise an error for an invalid record name.

    Raises:
        BadRecord: it is empty, or holds white space or control characters.
    """
    if not name:
        raise BadRecord(f"{where}: has no name (nothing follows its '>')", "name")
    if not name.isprintable() or " " in name:
        raise BadRecord(f"{where}: its name {shown(name)} holds white space or control characters", "name", name)


def check_residues(sequence: str, where: str, name: str = "", *, stitch_marks: bool = False) -> None:
    """Refuse a sequence that is empty or holds anything but IUPAC nucleotide letters, and stitch marks where these are kept.

    Raises:
        BadRecord: with the first such character and its 1-based position.
    """
    if not sequence:
        raise BadRecord(f"{where}: has no sequence", "empty", name)
    if found := letters.first_other(sequence, stitch_marks=stitch_marks):
        raise BadRecord(f"{where}: {letters.problem(found.start(), found.group())}", "letters", name)
