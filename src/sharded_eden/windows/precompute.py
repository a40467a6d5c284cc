"""From a split's Parquet file to its window database.

Input: a Parquet file with the columns `contig_id` and `length`. Output: one SQLite file, whose windows are numbered from 0
in the order of their contig IDs. Costs two passes over these two columns (and one more for every 4 million contigs of a
file that is not sorted) and a few hundred megabytes, whatever the length of the file.

    split_files   sound? sorted? how many? then contigs in order, 20,000 at a time
    window_rows   their rows, as pages of window_mappings, of its index and of contig_lengths
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from sharded_eden.errors import UsageError, printable, warn
from sharded_eden.format import schema
from sharded_eden.format.geometry import WindowGeometry, default_stride
from sharded_eden.format.kinds import expect
from sharded_eden.format.pages.btree import PageFile
from sharded_eden.format.publish import create_database, publishing
from sharded_eden.format.window_db import metadata_rows
from sharded_eden.progress import Progress
from sharded_eden.windows.ambiguity import AmbiguityFilter
from sharded_eden.windows.existing import existing_windows
from sharded_eden.windows.index import IndexResult, index_or_reason
from sharded_eden.windows.pack import PackResult, write_packs
from sharded_eden.windows.pack import pack_seed as checked_seed
from sharded_eden.windows.split_files import contigs_in_order, open_split, parts_of, sequence_db_dir_of, survey
from sharded_eden.windows.write import WindowWriter

DERIVED_FROM = "derived_from_fingerprint"
"""The key of `metadata` for the fingerprint of the window database that another one was derived from."""

CONTIGS, PACKING = "contigs", "packing"
"""The steps."""

PAGE_BYTES = 16_384
"""Four times SQLite's default page size: fewer pages to write, and as fast to read."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult:
    """The totals of a window database, and of what was left out of it."""

    path: Path
    windows: int
    sequences: int
    """Contigs with at least one window."""
    contigs_left_out: int
    """Contigs below the threshold, without a window."""
    bases: int
    """Bases of all contigs of the split."""
    unseen_bases: int
    """Bases in no row: tails, gaps between windows, contigs and windows left out."""
    ambiguous_windows: int = 0
    """Windows left out because too many of their letters are ambiguous."""
    packs: PackResult | None = None
    """The result of packing; None without packs."""
    index: IndexResult | None = field(default=None, compare=False)
    """The index beside the window database; None if it could not be written."""
    shown_bases: int = field(default=0, compare=False)
    """Bases in all rows together; a base in two rows counts twice."""
    no_index: str = field(default="", compare=False)
    """Why there is no index, and the command that writes it."""


def precompute_window_database(
    split_parquet_file: str | os.PathLike[str],
    output_window_db: str | os.PathLike[str],
    window_size: int = 8192,
    stride: int | None = None,
    window_min_length_threshold: int = 0,
    *,
    keep_tail: bool = False,
    special_tokens: int = 3,
    max_ambiguous: float | None = None,
    sequences: str | os.PathLike[str] | None = None,
    pack: bool = False,
    pack_seed: int = 42,
    overwrite: bool = False,
    is_pattern: bool = False,
    derived_from: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], object] | None = None,
) -> PrecomputeResult:
    """Write the window database of a split.

    Args:
        split_parquet_file: a Parquet file with the columns `contig_id` (string or integer) and `length` (integer, bases), a
            folder of such files, which are parts of the split, or a pattern.
        output_window_db: the database. One that exists is replaced when the new one is complete, if it has the same geometry,
            the same contigs and no other packs.
        window_size: tokens of a training row, and bases that a window spans; the dataset's `seq_length`.
        stride: bases from the start of one window to the start of the next; None: see `default_stride`.
        window_min_length_threshold: windows with fewer bases than this are left out.
        keep_tail: add windows until the last base of every contig is shown.
        special_tokens: tokens of a row that are not bases (BOS, SEP, EOS); they reduce the usable bases.
        max_ambiguous: leave out windows with a larger share of letters other than A, C, G, T than this.
        sequences: the folder of sequence databases, for `max_ambiguous` and for the index. For the index alone, the folder
            that the split file names is used unless this is given; the window database is written even where no index can be.
        pack: add packs, see `sharded_eden.windows.pack`.
        pack_seed: another seed gives other packs.
        overwrite: replace any file of this name. Checkpoints of the old windows cannot be resumed on the new ones.
        is_pattern: `split_parquet_file` is a pattern such as `parts/*.parquet`; by default, names are taken literally.
        derived_from: recorded as the fingerprint of the window database that the split was read from.
        progress: called with the contigs done and their total; then, while windows are packed, with twice the windows.
        note: called with the name of each step as it begins: `contigs`, `packing`.

    Raises:
        UsageError: an invalid size, an output that cannot be written, or one that exists with another geometry, other
            contigs or other packs, unless `overwrite`.
        DatabaseError: a contig of the split is not in `sequences`, or has another length there.
        InputError: the split file is not such a table, or holds nulls, negative lengths or a contig twice.

    Warns:
        EdenWarning: no window is left, the stride leaves gaps, or contigs have no bases.

    Example:
        >>> from sharded_eden import precompute_window_database
        >>> result = precompute_window_database("splits/train_split.parquet", "new_windows.db", window_size=2048)
        >>> result.windows, result.unseen_bases
        (33, 6834)
    """
    split, output = Path(split_parquet_file), Path(output_window_db)
    expect(split, "SPLIT.parquet", "a Parquet file")
    geometry = WindowGeometry(
        window_size=window_size,
        stride=default_stride(window_size, special_tokens) if stride is None else stride,
        min_length=window_min_length_threshold,
        special_tokens=special_tokens,
        keep_tail=keep_tail,
    )
    pack_seed = checked_seed(pack_seed)
    if max_ambiguous is not None and sequences is None:
        raise UsageError("--max-ambiguous must read the bases (--sequences SEQDB)")
    parts = _parts_to_read(split, output, is_pattern=is_pattern)
    with ExitStack() as stack:
        ambiguity = None
        if max_ambiguous is not None and sequences is not None:
            ambiguity = stack.enter_context(closing(AmbiguityFilter(sequences, max_ambiguous, geometry)))
        contigs = stack.enter_context(open_split(split, parts))
        found = survey(contigs, split)
        existing = None if overwrite else existing_windows(output, split)
        if existing is not None:
            existing.check_geometry(geometry)
            if existing.packs is not None:
                existing.packs.check_seed(pack_seed if pack else None)
        unfinished = stack.enter_context(publishing(output))
        if note is not None:
            note(CONTIGS)
        roots = _create_tables(unfinished)
        with (
            PageFile(unfinished, PAGE_BYTES) as file,
            WindowWriter(file, roots, geometry, ambiguity) as writer,
        ):
            for batch in contigs_in_order(contigs, found, split):
                writer.add(batch)
                if progress is not None:
                    progress(writer.contigs, found.contigs)
        with closing(create_database(unfinished)) as database:
            database.execute("BEGIN")
            metadata: dict[str, float] = {
                **geometry.as_metadata(),
                "total_windows": writer.windows,
                "distinct_sequences": writer.sequences,
                "fingerprint": writer.fingerprint.value(),
            }
            optional = {DERIVED_FROM: derived_from, "max_ambiguous": max_ambiguous}
            metadata.update({key: value for key, value in optional.items() if value is not None})
            database.executemany("INSERT INTO metadata VALUES (?, ?)", metadata_rows(metadata))
            if existing is not None:
                existing.check_contigs(database, writer.fingerprint.value(), writer.windows)
            if pack and note is not None:
                note(PACKING)
            packs = write_packs(database, output, seed=pack_seed, progress=progress) if pack else None
            if packs is not None and existing is not None and existing.packs is not None:
                existing.packs.check_fingerprint(packs.fingerprint)
            database.execute("COMMIT")
    index, no_index = index_or_reason(sequences or sequence_db_dir_of(parts[0]), output)
    result = PrecomputeResult(
        path=output,
        index=index,
        no_index=no_index,
        windows=writer.windows,
        sequences=writer.sequences,
        contigs_left_out=writer.contigs - writer.sequences,
        bases=writer.bases,
        unseen_bases=writer.unseen_bases,
        shown_bases=writer.shown_bases,
        ambiguous_windows=writer.ambiguous_windows,
        packs=packs,
    )
    if result.windows == 0:
        many = f", or all have more ambiguous letters than {max_ambiguous:.0%}" if result.ambiguous_windows else ""
        warn(
            f"{output} holds no window: none of {found.contigs:,} contigs has {geometry.min_length:,} bases or more{many}"
        )
    if geometry.stride > geometry.usable:
        warn(
            f"stride={geometry.stride} is more than the {geometry.usable} bases that a window shows (window_size={window_size} "
            f"less {special_tokens} special tokens): no window shows {result.unseen_bases:,} of {result.bases:,} bases"
        )
    if found.empty and geometry.min_length == 0:
        warn(
            f"{split}: {found.empty:,} contigs have length 0 and get a window without bases each. "
            "Leave them out: --window-min-length-threshold 1"
        )
    return result


def _parts_to_read(split: Path, output: Path, *, is_pattern: bool) -> list[Path]:
    """Return the files of a split; refuse an output that is one of them."""
    parts = parts_of(split, is_pattern=is_pattern)
    if output.exists() and any(part.exists() and output.samefile(part) for part in parts):
        raise UsageError(f"{printable(output)} is the split file itself; give the window database another name")
    return parts


def _create_tables(unfinished: Path) -> dict[str, int]:
    """Create a window database without rows; return the root pages of its tables and indices by their names."""
    with closing(create_database(unfinished, page_size=PAGE_BYTES)) as database:
        for statement in (
            schema.CREATE_METADATA,
            schema.CREATE_WINDOW_MAPPINGS,
            schema.CREATE_SEQUENCE_ID_INDEX,
            schema.CREATE_CONTIG_LENGTHS,
        ):
            database.execute(statement)
        return dict(database.execute("SELECT name, rootpage FROM sqlite_schema"))
