"""Checks, when a dataset is opened, that the samples that windows name have sequence databases."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from sharded_eden.errors import DatabaseError, InputError, MissingDatabase, shown
from sharded_eden.format.commands import build_command, split_command
from sharded_eden.format.schema import extract_sample_id, has_sequence_id_form
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.databases import SequenceReader

SEEKS_OF_ONLY_SAMPLE = 4096
"""The number of IDs that are checked if there is only one sequence database, which needs no sample IDs."""


def _check_only_sample(
    only_sample: str, index: WindowIndex, sequence_db_dir: str | os.PathLike[str], holds: Callable[[str], bool]
) -> None:
    """Raise an error for windows of other samples if only one sample has a sequence database.

    IDs that name no sample are accepted, and so are those of contigs that the database holds, whatever sample they name.

    Args:
        only_sample: the sample of the database.
        index: the windows.
        sequence_db_dir: the folder of the database.
        holds: returns whether the database holds a contig.

    Raises:
        MissingDatabase: an ID names another sample, and the database does not hold its contig.
    """
    for sequence_id in islice(index.sequence_ids_by_prefix(2), SEEKS_OF_ONLY_SAMPLE):
        if (
            has_sequence_id_form(sequence_id)
            and (sample_id := extract_sample_id(sequence_id)) != only_sample
            and not holds(sequence_id)
        ):
            raise MissingDatabase(
                f"{index.path} names contig {shown(sequence_id)} of sample {shown(sample_id)}, but {sequence_db_dir} holds the "
                f"sequence database of {shown(only_sample)} only. Build that sample ({build_command(sequence_db_dir)}), or "
                f"make splits without it ({split_command(sequence_db_dir)})"
            )


def names_only(index: WindowIndex, sample_id: str) -> bool:
    """Return whether all sequence IDs of a window database name one sample."""
    try:
        return all(extract_sample_id(sequence_id) == sample_id for sequence_id in index.sequence_ids_by_prefix(2))
    except InputError:
        return False


def check_samples(index: WindowIndex, reader: SequenceReader, sequence_db_dir: str | os.PathLike[str]) -> None:
    """Raise an error for windows of samples without a sequence database.

    Args:
        index: the windows.
        reader: the sequence databases.
        sequence_db_dir: their folder.

    Raises:
        MissingDatabase: a window names a sample that has none.
        DatabaseError: an ID names no sample, and there are several databases.
    """
    if len(reader.paths) == 1:
        only = next(iter(reader.paths))
        _check_only_sample(only, index, sequence_db_dir, lambda contig_id: reader.contig(contig_id) is not None)
        return
    for sequence_id in index.sequence_ids_by_prefix(2):
        try:
            sample_id = extract_sample_id(sequence_id)
        except InputError as error:
            raise DatabaseError(f"{index.path}: {error}") from error
        if sample_id not in reader.paths:
            raise MissingDatabase(
                f"{index.path} names contig {shown(sequence_id)} of sample {shown(sample_id)}, but "
                f"{Path(sequence_db_dir) / sample_id} holds no glm_dataset_{sample_id}.sqlite. Build that sample "
                f"({build_command(sequence_db_dir)}), or make splits without it ({split_command(sequence_db_dir)})"
            )
