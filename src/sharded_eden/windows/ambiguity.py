"""Finds windows with too many letters other than A, C, G and T.

Input: windows of contigs, and the sequence databases. Output: a flag for each window. Reads every base once.
Assemblies hold megabases of N; a window of only N has no information, and no label to average a loss over.
"""

from __future__ import annotations

import os

import apsw
import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, UsageError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.commands import split_command
from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.sequence_db import sequence_db_problems
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, unreadable

_AMBIGUOUS = np.ones(256, dtype=np.bool_)
_AMBIGUOUS[list(b"ACGTacgt")] = False


class AmbiguityFilter:
    """Tells windows with few ambiguous letters from others.

    Args:
        sequence_db_dir: the folder of sequence databases.
        most: the largest share of letters other than A, C, G, T among the usable bases of a window, in [0, 1].
        geometry: how windows are cut.

    Raises:
        MissingDatabase: there is no such folder, or no database in it.
        UsageError: `most` is outside [0, 1].
    """

    def __init__(self, sequence_db_dir: str | os.PathLike[str], most: float, geometry: WindowGeometry) -> None:
        if not 0 <= most <= 1:
            raise UsageError(f"--max-ambiguous is a share between 0 and 1, not {most}")
        self._paths = schema.discover_sample_databases(sequence_db_dir)
        self._folder = sequence_db_dir
        self._most = most
        self._geometry = geometry
        self._sample = ""
        self._connection: apsw.Connection | None = None

    def keep(self, contig_id: str, length: int, windows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which windows of a contig to keep.

        Args:
            contig_id: the contig; asking for all contigs of a sample in sequence is fastest.
            length: its length in the split, in bases.
            windows: (n,) int64, window_in_seq_idx.

        Returns:
            (n,) bool.

        Raises:
            DatabaseError: the contig is absent, or of another length.
        """
        flags = _AMBIGUOUS[self._letters(contig_id, length)]
        starts = windows * self._geometry.stride
        ends = np.minimum(starts + self._geometry.usable, length)
        ambiguous = np.array(
            [np.count_nonzero(flags[s:e]) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]
        )
        # A division, because 0.29 * 100 < 29 in floating point: 29 of 100 letters must not count as more than 0.29.
        return np.asarray(ambiguous / np.maximum(ends - starts, 1) <= self._most)

    def _letters(self, contig_id: str, length: int) -> NDArray[np.uint8]:
        sample = next(iter(self._paths)) if len(self._paths) == 1 else schema.extract_sample_id(contig_id)
        if sample not in self._paths:
            raise DatabaseError(f"{self._folder}: contig {contig_id!r} names sample {sample!r}, which has no database")
        path = self._paths[sample]
        is_new = self._connection is None or sample != self._sample
        if self._connection is None or is_new:
            self.close()
            self._connection, self._sample = open_read_only(path), sample
        try:
            if is_new:
                for problem in sequence_db_problems(self._connection, path):
                    raise problem.error(path)
            found = self._connection.execute(
                "SELECT nt_sequence FROM sequences WHERE contig_id = ? COLLATE BINARY", (contig_id,)
            ).get
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        letters = found.encode("ascii", "replace") if isinstance(found, str) else found
        if isinstance(letters, (int, float)):
            raise DatabaseError(f"{printable(path)}: the sequence of contig {shown(contig_id)} is a number")
        if letters is None or len(letters) != length:
            raise DatabaseError(
                f"{path}: contig {contig_id!r} has {'no sequence' if letters is None else f'{len(letters)} bases'}, the split "
                f"says {length}. Make the split again: {split_command(self._folder)}"
            )
        return np.frombuffer(letters, dtype=np.uint8)

    def close(self) -> None:
        """Close the database that was read last."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
