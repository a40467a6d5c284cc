"""The fingerprint of a window database: one integer over the geometry and every (contig_id, length).

Checkpoints store it. It does not depend on page sizes, on the layout of the file or on packs. BLAKE2b (RFC 7693), cut to
63 bits so that it fits a SQLite INTEGER.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import apsw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from sharded_eden.format.geometry import WindowGeometry
from sharded_eden.format.schema import CONTIG_ID, LENGTH

SAMPLED_ROWS = 1024
"""Rows that are hashed where a window database has no fingerprint."""


class Fingerprint:
    """A running fingerprint: add the contigs that have windows, in the order of the windows, in chunks of any size.

    Where windows may have been left out, add the windows too. They count only if contigs have fewer windows than follow
    from their lengths.
    """

    def __init__(self, geometry: WindowGeometry) -> None:
        self._geometry = geometry
        self._hash = blake2b(digest_size=8, person=b"eden contigs")
        self._windows_hash = blake2b(digest_size=8, person=b"eden left out")
        self._windows = self._whole = 0
        self._hash.update(repr(sorted(geometry.as_metadata().items())).encode())

    def update(self, contigs: pl.DataFrame) -> None:
        """Add a chunk of contigs with the columns `contig_id` and `length`."""
        text = contigs.select(CONTIG_ID, LENGTH).write_csv(include_header=False, separator="\t", quote_style="never")
        self._hash.update(text.encode())
        self._whole += int(self._geometry.counts(contigs[LENGTH].to_numpy()).sum())

    def update_lines(self, lines: bytes | memoryview, lengths: NDArray[np.int64]) -> None:
        """Add a chunk of contigs as UTF-8 lines (contig_id, tab, length, line feed), and lengths, (n,) int64."""
        self._hash.update(lines)
        self._whole += int(self._geometry.counts(lengths).sum())

    def update_windows(self, contig: NDArray[np.int64], in_contig: NDArray[np.int64]) -> None:
        """Add the next windows: the number of the contig of each, from 0, and window_in_seq_idx, both (n,) int64."""
        self._windows_hash.update(np.stack([contig, in_contig], axis=1).astype("<i8").tobytes())
        self._windows += len(contig)

    def value(self) -> int:
        """Return the fingerprint of what was fed so far, an integer in [0, 2**63)."""
        whole = self._hash.copy()
        if self._windows not in {0, self._whole}:
            whole.update(self._windows_hash.digest())
        return int.from_bytes(whole.digest(), "big") >> 1


class PackFingerprint:
    """A running fingerprint of packs: add them in their order, in chunks of any size."""

    def __init__(self, geometry: WindowGeometry) -> None:
        self._sizes = blake2b(
            repr((geometry.window_size, geometry.special_tokens)).encode(), digest_size=8, person=b"eden packs"
        )
        self._windows = blake2b(digest_size=8, person=b"eden packed")

    def update(self, sizes: Sequence[int], windows: bytes) -> None:
        """Add packs: the number of windows of each, and all of their indices, little-endian int64."""
        self._sizes.update(np.array(sizes, dtype="<i8").tobytes())
        self._windows.update(windows)

    def value(self) -> int:
        """Return the fingerprint of what was fed so far, an integer in [0, 2**63)."""
        whole = self._sizes.copy()
        whole.update(self._windows.digest())
        return int.from_bytes(whole.digest(), "big") >> 1


def fingerprint_of_rows(window_db: apsw.Connection, metadata: Mapping[str, int], total_windows: int) -> int:
    """Return a fingerprint for a window database that has none: a hash over its metadata and 1,024 fixed rows.

    Args:
        window_db: an open window database.
        metadata: its `metadata` table.
        total_windows: its number of windows; the rows are evenly spaced over them.
    """
    digest = blake2b(digest_size=8, person=b"eden sampled")
    digest.update(repr((sorted(WindowGeometry.from_metadata(metadata).as_metadata().items()), total_windows)).encode())
    rows = min(SAMPLED_ROWS, total_windows)
    for k in range(rows):
        window_idx = k * (total_windows - 1) // max(1, rows - 1)
        found = window_db.execute(
            "SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = ?", (window_idx,)
        ).fetchone()
        digest.update(repr((window_idx, found)).encode())
    return int.from_bytes(digest.digest(), "big") >> 1
