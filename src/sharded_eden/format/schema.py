"""Every table, column, metadata key, file name and ID rule of the format, in one place.

Input: names. Output: names, paths and SQL. No function opens a file; `discover_sample_databases` lists one folder.

    sequence ID   BCR__ECT-SAMPLE1__CT1-1
                  ^^^      ^^^^^^^  ^^^^^
                  tag      sample   contig
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from sharded_eden.errors import DatabaseError, InputError, MissingDatabase, UsageError, printable, shown
from sharded_eden.format.commands import build_command
from sharded_eden.format.many_files import for_many_files

CONTIG_ID = "contig_id"
LENGTH = "length"
CONTIGS_FILE = "contigs.parquet"
"""The table of all contigs, which `build` writes beside the sample folders."""
SKIPPED_FILE = "skipped.parquet"
"""The table of records that `build --skip-bad` left out."""
MANIFEST_FILE = "manifest.sqlite"
"""What each sample was built from; `build` writes it beside the sample folders."""

SPLITS = ("train", "val", "test")
SPLIT_SUFFIX, WINDOWS_SUFFIX = "_split.parquet", "_windows.db"
"""How the names of split files and window databases in a folder end."""

CREATE_SEQUENCES = """
CREATE TABLE sequences (
    contig_id TEXT PRIMARY KEY,
    nt_sequence TEXT NOT NULL
)"""

CREATE_METADATA = """
CREATE TABLE metadata (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
)"""

CREATE_WINDOW_MAPPINGS = """
CREATE TABLE window_mappings (
    window_idx INTEGER PRIMARY KEY,
    sequence_id TEXT NOT NULL,
    window_in_seq_idx INTEGER NOT NULL
)"""

CREATE_SEQUENCE_ID_INDEX = "CREATE INDEX idx_sequence_id ON window_mappings(sequence_id)"

CREATE_CONTIG_LENGTHS = """
CREATE TABLE contig_lengths (
    first_window_idx INTEGER PRIMARY KEY,
    length INTEGER NOT NULL
)"""

CREATE_PACKS = """
CREATE TABLE packs (
    pack_idx INTEGER PRIMARY KEY,
    windows BLOB NOT NULL
)"""
"""`windows` holds the indices of the windows of one row, in their order: little-endian int64."""

NUCLEOTIDES = "ACGTURYSWKMBDHVN"
"""The IUPAC nucleotide letters that a sequence may hold, in either case.

Source: IUPAC-IUB, "Nomenclature for incompletely specified bases in nucleic acid sequences", 1984.
"""

STITCH_MARKS = "@#"
"""What stitched transcripts of OpenGenome2 hold beside bases: `@` between joined parts, `#` between contigs. It never counts
in the loss.

Source: `Evo2Dataset.CONTROL_TAGS` of NVIDIA BioNeMo, and `mask_control_tags` of Savanna, with which Evo 2 was trained.
"""


def split_file_name(split: str) -> str:
    """Return the Parquet file name of a split: `train` -> `train_split.parquet`."""
    return f"{split}{SPLIT_SUFFIX}"


def sample_database_path(sequence_db_dir: str | os.PathLike[str], sample_id: str) -> Path:
    """Return where the sequence database of a sample lies."""
    return Path(sequence_db_dir, sample_id, f"glm_dataset_{sample_id}.sqlite")


def discover_sample_databases(sequence_db_dir: str | os.PathLike[str]) -> dict[str, Path]:
    """Return {sample ID: database path} of every sample folder that holds its database, sorted by sample ID.

    Raises:
        MissingDatabase: the folder does not exist, or holds no sequence database.
        DatabaseError: a folder in it cannot be read: its sample would be left out.
    """
    folder = Path(sequence_db_dir)
    if not _is(stat.S_ISDIR, folder):
        raise MissingDatabase(
            f"{printable(folder)}: no such folder of sequence databases. Make one: {build_command(folder)}"
        )
    try:
        with os.scandir(folder) as entries:
            # Links are followed when their database is looked up, where errors name the path.
            names = sorted(e.name for e in entries if not e.name.startswith(".") and (e.is_symlink() or e.is_dir()))
    except OSError as error:
        raise DatabaseError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
    paths = [sample_database_path(folder, name) for name in names]
    are_files = for_many_files(lambda path: _is(stat.S_ISREG, path), paths)
    found = {name: path for name, path, is_file in zip(names, paths, are_files, strict=True) if is_file}
    if not found:
        raise MissingDatabase(
            f"No SQLite sequence databases found in {printable(folder)}: looked for <sample>/glm_dataset_<sample>.sqlite "
            f"in {len(names)} folders. Make them: {build_command(folder)}"
        )
    return found


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    """Return whether a path leads to a file or a folder; `Path.is_file` of Python 3.14 hides errors of permission."""
    try:
        return kind(path.stat().st_mode)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
            return False
        raise DatabaseError(f"{printable(path)}: cannot be read ({error.strerror})") from error


def extract_sample_id(sequence_id: str) -> str:
    """Return the sample part of a sequence ID: `BCR__ECT-SAMPLE1__CT1-1` -> `SAMPLE1`.

    Raises:
        InputError: the ID has no second part between double underscores.

    Example:
        >>> from sharded_eden import extract_sample_id
        >>> extract_sample_id("BCR__ECT-SAMPLE1__CT1-1")
        'SAMPLE1'
    """
    parts = sequence_id.split("__", 2)
    if len(parts) < 2:
        raise InputError(
            f"sequence ID {shown(sequence_id)} names no sample: expected the form BCR__ECT-SAMPLE1__CT1-1. "
            "Several sequence databases need such IDs; a single one does not."
        )
    return ".".join(parts[1].split("-")[1:])


def control_name(sequence_id: str) -> str:
    """Return the lower-cased part of a sequence ID before its first `__` (the whole ID where there is none)."""
    return sequence_id.split("__", 1)[0].lower()


def control_tag(name: str) -> str:
    """Return the text of a control tag: `bcr` -> `<ctrl_bcr>`."""
    return f"<ctrl_{name}>"


def make_sequence_id(tag: str, sample_id: str, ordinal: int) -> str:
    """Return the sequence ID of the `ordinal`-th contig (1-based) of a sample."""
    return f"{tag}__ECT-{sample_id}__CT1-{ordinal}"


def has_sequence_id_form(name: str) -> bool:
    """Return whether a record's name has the form `TAG__X-SAMPLE__CONTIG`, with no part empty."""
    if "__" not in name:
        return False
    parts = name.split("__", 2)
    if len(parts) != 3 or not parts[0] or not parts[2]:
        return False
    prefix, dash, sample = parts[1].partition("-")
    return bool(prefix and dash and sample)


def check_sample_id(sample_id: str, source: str) -> None:
    """Raise an error for a sample ID that cannot name a folder, or that a sequence ID would change.

    Args:
        sample_id: the ID to check.
        source: where it came from, for the message (`--sample`, or a record of a file).

    Raises:
        UsageError: with the reason.
    """
    check_folder_name(sample_id, source)
    carried = extract_sample_id(make_sequence_id("BCR", sample_id, 1))
    if carried != sample_id:
        raise UsageError(
            f"{source}: the sample name {sample_id!r} does not survive in a sequence ID, from which {carried!r} would be read. "
            f"Use letters, digits, '.' and single '_' ('-' becomes '.', '__' separates)."
        )


def check_folder_name(sample_id: str, source: str) -> None:
    """Raise an error for a sample ID that cannot name a folder, or that names one outside the output folder.

    Raises:
        UsageError: with the reason.
    """
    reason = (
        "it is empty"
        if not sample_id
        else "it holds a NUL character"
        if "\0" in sample_id
        else "it would leave the output folder"
        if "/" in sample_id or "\\" in sample_id or sample_id in {".", ".."}
        else "a name that begins with '.' is hidden, and kept for unfinished work"
        if sample_id.startswith(".")
        else f"the name of its database would be longer than {MAX_NAME_BYTES} bytes"
        if not _is_file_name(f".{sample_database_path('', sample_id).name}.partial-journal")
        else "it holds characters that cannot be printed"
        if not sample_id.isprintable()
        else "the table of all contigs has this name"
        if sample_id == CONTIGS_FILE
        else "the manifest has this name"
        if sample_id == MANIFEST_FILE
        else "the table of skipped records has this name"
        if sample_id == SKIPPED_FILE
        else ""
    )
    if reason:
        raise UsageError(f"{source}: {shown(sample_id)} cannot name a sample: {reason}.")


MAX_NAME_BYTES = 255
"""The longest file name on nearly every file system."""


def _is_file_name(name: str) -> bool:
    """Return whether a name is short enough for a file; a name that is not UTF-8 is refused elsewhere."""
    return len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


def check_tag(tag: str) -> None:
    """Raise an error for a tag (the part before the first `__`) that a sequence ID would change.

    Raises:
        UsageError: with the reason.
    """
    if not tag or "/" in tag or " " in tag or not tag.isprintable() or f"{tag}__".split("__", 1)[0] != tag:
        raise UsageError(
            f"--tag {shown(tag)} cannot begin a sequence ID: it must not be empty, hold '__', '/', white space or control "
            "characters, or end in '_'."
        )
