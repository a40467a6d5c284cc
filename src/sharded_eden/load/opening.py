"""What opening a split decides and checks: the layout of its rows, whether packs fit them, gaps, padding, cut-off bases.

Input: an opened split and its options. Output: the layout; errors and warnings. Costs up to 16 windows where a tokenizer has no
table.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import UsageError, warn
from sharded_eden.format.commands import pack_by_tokens_command
from sharded_eden.load.encode.example import RowFormat
from sharded_eden.load.encode.masking import Masking
from sharded_eden.load.encode.tag_table import TableTags
from sharded_eden.load.encode.tags import ControlTags
from sharded_eden.load.encode.tokenizer import encoding_of, fingerprint_of, mask_id_of
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.options import ExampleOptions
from sharded_eden.load.read.fetch import WindowFetcher

logger = logging.getLogger(__name__)

WINDOWS_SAMPLED = 16
"""Windows on which the tokenizer is tried when a split is opened, evenly spaced."""

MOST_PADDING = 0.2
"""The share of tokens that may be padding because of the tokenizer without a warning."""

MOST_CUT = 0.02
"""The share of tokens that may be cut off without a warning, as in `sharded_eden.token_packs`."""


def row_format_of(
    options: ExampleOptions, seq_length: int, tokenizer: Any, index: WindowIndex, *, seed: int
) -> RowFormat:
    """Return the layout of the rows of a split; the seed decides which bases are masked.

    Raises:
        UsageError: the tokenizer lacks an id, or the packs were made for other rows.
    """
    ids = {name: getattr(options, name) for name in ("bos_id", "eos_id", "sep_id", "pad_id")}
    geometry, encoding = index.geometry, encoding_of(tokenizer, **ids)
    by_tokens = options.window_size is not None and (encoding.table is None or options.window_size != seq_length)
    if by_tokens and encoding.table is not None:
        raise UsageError(
            f"window_size={options.window_size} is for tokenizers of several bases a token; this one has one id per letter, so "
            f"that a row of seq_length={seq_length} shows as many bases: leave window_size= out"
        )
    row_format = RowFormat(
        seq_length,
        encoding,
        include_bos=options.has_bos,
        include_sep=options.has_sep,
        include_eos=options.include_eos,
        packed_bases=geometry.usable if options.packed else None,
        window_bases=geometry.usable if by_tokens else None,
        special_tokens=geometry.special_tokens,
        rebuild=index.pack_again_command(),
        mask_ambiguous=options.mask_ambiguous,
        soft_mask_weight=options.soft_mask_weight,
        loss_on_eos=options.loss_on_eos,
        masking=_masking_of(options, tokenizer, seed),
    )
    if options.packed:
        _check_packs(index, row_format)
    _warn_of_special_ids(tokenizer, row_format)
    return row_format


def _warn_of_special_ids(tokenizer: Any, row_format: RowFormat) -> None:
    """Warn in the log of a tokenizer that adds BOS or EOS by itself, or gives a base the id of a special token."""
    encoding, name = row_format.encoding, type(tokenizer).__name__
    added = {token for token in ("bos", "eos") if getattr(row_format, f"include_{token}")}
    shared: dict[str, str] = {}
    for letter in "ACGT":
        with suppress(Exception):  # a tokenizer need not know every letter
            ids = encoding.text_to_ids(letter * 3)
            added -= {token for token, at in (("bos", 0), ("eos", -1)) if ids[at] != getattr(encoding, token)}
            (alone,) = encoding.text_to_ids(letter)
            shared |= {token: letter for token, id_ in row_format.special_ids.items() if id_ == alone}
    for token, letter in shared.items():
        logger.warning(
            "%s encodes %s with id %d, which is also that of %s: such bases do not count in the loss. Pass %s_id=",
            name, letter, getattr(encoding, token), token.upper(), token,
        )  # fmt: skip
    for token in sorted(added - set(shared)):
        logger.warning(
            "%s adds %s to each text by itself, so that rows have it twice. Pass include_%s=False, or a tokenizer that adds "
            "no special tokens",
            name, token.upper(), token,
        )  # fmt: skip


def _masking_of(options: ExampleOptions, tokenizer: Any, seed: int) -> Masking | None:
    if options.objective != "mlm":
        return None
    mask_id = mask_id_of(tokenizer, options.mask_id)
    return Masking(mask_id, float(options.mlm_share), int(options.mlm_span), seed)


def tags_of(
    options: ExampleOptions, index: WindowIndex, row_format: RowFormat, seed: int
) -> ControlTags | TableTags | None:
    """Return the tags of rows, None for rows without."""
    if options.tags is not None:
        return TableTags(index, row_format, str(options.tags), options.tag_template, options.tag_dropout, seed)
    return ControlTags(index, row_format) if options.use_control_tags else None


def _check_packs(index: WindowIndex, row_format: RowFormat) -> None:
    """Refuse packs that were made for other rows or another tokenizer.

    Raises:
        UsageError: the packs count bases and the dataset counts tokens, or the other way round; or they were made for another
            `seq_length` or with another tokenizer.
    """
    row_tokens, tokenizer = (index.metadata.get(key) for key in ("pack_row_tokens", "pack_tokenizer"))
    again = pack_by_tokens_command(index.path, row_format.seq_length, force="total_packs" in index.metadata)
    if row_format.window_bases is None:
        if row_tokens is not None:
            raise UsageError(
                f"{index.path}: its packs were made by token counts, for rows of {row_tokens} tokens. Pass "
                f"seq_length={row_tokens}, window_size={index.geometry.window_size} and the tokenizer of the packs"
            )
        return
    if row_tokens is None:
        raise UsageError(f"{index.path}: its packs count one token for each base. Pack by token counts: {again}")
    if row_tokens != row_format.seq_length:
        raise UsageError(
            f"{index.path}: its packs were made for rows of {row_tokens} tokens, the dataset asks for "
            f"seq_length={row_format.seq_length}. Pass seq_length={row_tokens}, or pack again: {again}"
        )
    if tokenizer != fingerprint_of(row_format.encoding.text_to_ids):
        raise UsageError(
            f"{index.path}: its packs were made with another tokenizer, which makes other numbers of tokens. Pass that one, "
            f"or pack again: {again}"
        )


def warn_of_rows(index: WindowIndex, fetcher: WindowFetcher, row_format: RowFormat, *, packed: bool) -> None:
    """Warn of gaps between windows, and of a tokenizer that leaves a fifth of a row empty or makes more tokens than it holds.

    What concerns the tokenizer is logged, as is that it is slow. Errors of windows that cannot be read or encoded are raised
    when training reads them.
    """
    room, stride = fetcher.least_room, index.geometry.stride
    if room < stride <= index.geometry.usable:
        warn(
            f"rows of this dataset show {room} bases, but windows start every {stride}: {stride - room} bases "
            f"between two windows are never seen. Precompute with --stride {room} or less."
        )
    total = index.total_windows
    if row_format.encoding.table is not None or not total or (packed and row_format.window_bases is not None):
        return
    windows = sorted({int(k) for k in np.linspace(0, total - 1, WINDOWS_SAMPLED)})
    try:
        found = _tokens_of(windows, fetcher, row_format)
    except Exception:  # a tokenizer may raise anything
        return
    beside, bases, tokens = found.T  # (n,) each
    if not tokens.sum():
        return
    length = row_format.seq_length
    full = np.minimum(length, beside + bases)  # with one token for each base
    used = np.minimum(length, beside + tokens)
    if row_format.window_bases is not None:  # a window that ends with its contig is short for that reason
        full = np.where(bases < row_format.window_bases, used, full)
    rows = full.sum() if packed else len(windows) * length
    padding, cut = (full - used).sum() / rows, (np.maximum(beside + tokens - length, 0)).sum() / tokens.sum()
    bases_per_token = bases.sum() / tokens.sum()
    geometry = index.geometry
    longer = int(bases_per_token * (length - geometry.special_tokens)) + geometry.special_tokens
    if padding > MOST_PADDING:
        logger.warning(
            "%s",
            f"{index.path}: {padding:.0%} of the tokens of a row are padding, because the tokenizer makes one token of "
            f"{bases_per_token:.1f} bases. Precompute longer windows (--window-size {longer}) and pass window_size={longer}. "
            f"For short contigs, pack those by token counts: {pack_by_tokens_command(index.path, length)}",
        )
    if cut > MOST_CUT:
        logger.warning(
            "%s",
            f"{index.path}: rows of {length} tokens cut off {cut:.0%} of the tokens of their windows, which have "
            f"{geometry.window_size} bases. Precompute shorter windows: --window-size {longer}",
        )


def _tokens_of(windows: Sequence[int], fetcher: WindowFetcher, row_format: RowFormat) -> NDArray[np.int64]:
    """Return for each window the special tokens, the bases and the tokens of its row, (n, 3) int64."""
    letters = np.empty((len(windows), row_format.buffer_bases), dtype=np.uint8)
    placed = fetcher.fill([(0, window) for window in windows], [1] * len(windows), letters)
    rows = []
    for k, (first, end) in enumerate(zip(placed.first, placed.end, strict=True)):
        text = letters[k, first:end].tobytes().decode("ascii").upper()
        ids = row_format.encoding.text_to_ids(text)
        rows.append((first + row_format.include_eos, end - first, len(ids)))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)
