"""Packs by token counts, for tokenizers with a varying number of bases a token: k-mers with odd ends, byte-pair encoding.

Input: a window database, its sequence databases and a tokenizer. Output: the table `packs` of the window database. Costs two
calls of the tokenizer for each window, because the two strands of a window can have different numbers of tokens; the
larger one counts, so that the pack fits whichever strand training uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, MissingExtra, UsageError, printable, warn
from sharded_eden.format.kinds import expect
from sharded_eden.format.schema import discover_sample_databases
from sharded_eden.load.encode.example import RowFormat, reverse_complement
from sharded_eden.load.encode.stitch_marks import refuse_stitch_marks
from sharded_eden.load.encode.tokenizer import encoding_of, fingerprint_of, text_to_ids_of
from sharded_eden.load.locate.addresses import open_addresses
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.read.databases import SequenceReader
from sharded_eden.load.read.fetch import WindowFetcher
from sharded_eden.progress import Progress
from sharded_eden.windows.pack import PackResult, TokenCounts, pack_window_database

WINDOWS_AT_ONCE = 256

MOST_CUT = 0.02
"""The share of tokens that may be cut off without a warning."""


def tokenizer_of_file(path: str | os.PathLike[str]) -> Any:
    """Return the tokenizer in a `tokenizer.json`, or in a folder that holds one.

    Raises:
        UsageError: there is no such file, or `tokenizers` cannot read it.
        MissingExtra: the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "transformers") from error
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare exceptions
        raise UsageError(f"{printable(file)}: is no tokenizer.json ({printable(str(error), 200)})") from error


def pack_by_tokens(
    window_db: str | os.PathLike[str],
    sequence_db_dir: str | os.PathLike[str],
    *,
    tokenizer: Any,
    seq_length: int,
    seed: int = 42,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PackResult:
    """Fill rows of `seq_length` tokens with whole windows, whose tokens the tokenizer counts.

    A dataset opens them with `packed=True`, this `seq_length`, and `window_size=` that of the window database.

    Args:
        window_db: the window database; its windows may have more or fewer bases than a row has tokens.
        sequence_db_dir: the folder of sequence databases.
        tokenizer: as for `ShardedEdenDataset`.
        seq_length: tokens of a row.
        seed: another seed gives other packs.
        overwrite: replace other packs.
        progress: called with the windows done, counted twice, and their total.

    Raises:
        UsageError: the tokenizer cannot encode a window, or the database has other packs.
        DatabaseError: the databases do not belong together, or cannot be read.

    Warns:
        EdenWarning: windows have more tokens than a row, which cuts off more than 2% of all tokens.

    Example:
        >>> from sharded_eden import NucleotideTokenizer, pack_by_tokens
        >>> packs = pack_by_tokens(
        ...     "unpacked_windows.db",
        ...     "sequence_db_dir",
        ...     tokenizer=NucleotideTokenizer(),
        ...     seq_length=2048,
        ... )
        >>> packs.window_size
        2048
    """
    path, folder = Path(window_db), Path(sequence_db_dir)
    expect(folder, "SEQDB", "a folder of sequence databases")
    if seq_length < 1:
        raise UsageError(f"seq_length must be at least 1, not {seq_length}")
    text_to_ids = text_to_ids_of(tokenizer)
    totals = np.zeros(2, dtype=np.int64)
    counts = TokenCounts(
        row_tokens=seq_length,
        tokenizer=fingerprint_of(text_to_ids),
        of_windows=lambda: _token_counts(path, folder, text_to_ids, seq_length, totals),
    )
    result = pack_window_database(path, seed=seed, overwrite=overwrite, progress=progress, token_counts=counts)
    tokens, cut = totals.tolist()
    if cut > MOST_CUT * tokens:
        warn(
            f"{printable(path)}: rows of {seq_length} tokens cut off {cut / tokens:.0%} of the tokens of their windows. "
            "Precompute shorter windows: a smaller --window-size and --stride"
        )
    return result


def _token_counts(
    path: Path, folder: Path, text_to_ids: Any, seq_length: int, totals: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Yield the tokens of windows with their special tokens, in the order of the windows, (n,) int64, at most those of a row.

    `totals` (2,) int64 gets all tokens, and those that are cut off because their window alone has more than a row.
    """
    paths = discover_sample_databases(folder)
    with closing(WindowIndex(path)) as index, closing(SequenceReader(paths)) as reader:
        geometry = index.geometry
        # Without special tokens, a row of the built-in tokenizer holds all bases of its window.
        row = RowFormat(
            geometry.window_size, encoding_of(None), include_bos=False, include_sep=False, include_eos=False
        )
        addresses = open_addresses(
            path,
            sequence_db_dir=folder,
            window_db_identity=index.identity,
            paths=paths,
            identities=reader.unchanged.identities,
            stride=geometry.stride,
            total_windows=index.total_windows,
            read_ahead=True,
        )
        try:
            fetcher = WindowFetcher(index, reader, addresses, row, tags=None, split=str(path), seed=0, rc_aug=False)
            letters = np.empty((WINDOWS_AT_ONCE, geometry.window_size), dtype=np.uint8)
            for first in range(0, index.total_windows, WINDOWS_AT_ONCE):
                windows = range(first, min(first + WINDOWS_AT_ONCE, index.total_windows))
                rows = letters[: len(windows)]
                placed = fetcher.fill([(0, window) for window in windows], [1] * len(windows), rows)
                counts = np.empty(len(windows), dtype=np.int64)
                for k, window in enumerate(windows):
                    shown = rows[k, placed.first[k] : min(placed.end[k], placed.first[k] + geometry.usable)]
                    counts[k] = geometry.special_tokens + _most_tokens(shown, text_to_ids, fetcher, window)
                totals += counts.sum(), np.maximum(counts - seq_length, 0).sum()
                yield np.minimum(counts, seq_length)
        finally:
            if addresses is not None:
                addresses.close()


def _most_tokens(letters: NDArray[np.uint8], text_to_ids: Any, fetcher: WindowFetcher, window: int) -> int:
    """Return the number of tokens of the strand that has more of them."""
    try:
        text = letters.tobytes().decode("ascii").upper()
        if not text.isprintable():
            raise UnicodeError("it has control characters")
        refuse_stitch_marks(letters)
        return max(len(text_to_ids(text)), len(text_to_ids(reverse_complement(text))))
    except UnicodeError as error:
        raise fetcher.unreadable_letters(window, error) from error
    except DatabaseError:
        raise
    except Exception as error:
        raise UsageError(f"the tokenizer cannot encode window {window}: {printable(str(error), 200)}") from error
