"""Compact batches: 8 KB a window on its way to the device instead of 229, and the tensors made there. Bit-identical.

A compact row is T bytes: the letters of the bases where their tokens will stand (strand already chosen), and a number below 5
everywhere else:

    codes       1    4  ...   3   A   C   g  ...   T    2    0    0
    tokens     BOS  tag...   SEP  65  67  71 ...   84  EOS  PAD  PAD

so that tokens and loss mask are one lookup each in a table of 256 entries. Control tags, whose ids are arbitrary, travel beside
the codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from sharded_eden.errors import UsageError
from sharded_eden.load.buffers import RowBuffers
from sharded_eden.load.connections import PerThread
from sharded_eden.load.example import COMPLEMENT, RowFormat, letters_within
from sharded_eden.load.tokenizer import UNKNOWN

PAD, BOS, EOS, SEP, TAG = range(5)
"""Codes of what is no base. They are control characters, which no sequence holds."""

CompactBatch = Mapping[str, torch.Tensor]
"""`codes` (B, T) uint8; with control tags `tags` (B, G) int64, -1 behind shorter ones; whatever else is passed on.

Packed rows have `cu_seqlens` (B, S) int32 too, and tags of each window: (B, windows of a row, G)."""


class CompactEncoder:
    """Fills rows of codes.

    Args:
        row_format: the layout of a row.

    Raises:
        UsageError: the tokenizer is no table, so that its tokens cannot be made on a device.
    """

    def __init__(self, row_format: RowFormat) -> None:
        self.format = row_format
        table = row_format.encoding.table
        if table is None:
            raise UsageError(
                "compact=True needs a tokenizer with one id per letter; this one must be called on the text of each window: "
                "leave compact=False"
            )
        self._known = table != UNKNOWN
        self._known[: TAG + 1] = False
        self._all_known = letters_within(self._known)
        weights = row_format.loss_weights()
        self._earning = np.ones(256, dtype=np.bool_) if weights is None else weights > 0
        self._earning[: TAG + 1] = False
        self._earning[EOS] = row_format.loss_on_eos

    def fill(self, bases: NDArray[np.uint8], reverse: bool, tag_length: int, codes: NDArray[np.uint8]) -> None:
        """Fill one row with one window.

        Args:
            bases: (n,) uint8, the letters of the window.
            reverse: show the reverse complement.
            tag_length: tokens of the control tag.
            codes: (T,) uint8, written.

        Raises:
            UnicodeError: a letter that the tokenizer's table does not know.
        """
        codes[self.add(0, bases, reverse, tag_length, codes) :] = PAD

    def add(
        self, start: int, bases: NDArray[np.uint8], reverse: bool, tag_length: int, codes: NDArray[np.uint8]
    ) -> int:
        """Write one window into a row from `start` on, and return where it ends; see `fill` for the rest."""
        form = self.format
        first = start + form.include_bos + tag_length + form.include_sep
        end = first + len(bases)
        least, most = self._all_known
        within = not len(bases) or (np.minimum.reduce(bases) >= least and np.maximum.reduce(bases) <= most)
        if not within and not self._known[bases].all():
            unknown = bases[~self._known[bases]][0]
            raise UnicodeError(f"byte {unknown} ({chr(unknown)!r}) has no id of its own in the tokenizer")
        codes[start:first] = TAG
        if form.include_bos:
            codes[start] = BOS
        if form.include_sep:
            codes[first - 1] = SEP
        codes[first:end] = COMPLEMENT[bases[::-1]] if reverse else bases
        if form.include_eos:
            codes[end] = EOS
            return end + 1
        return end

    def any_loss(self, codes: NDArray[np.uint8], cu_seqlens: NDArray[np.int32] | None = None) -> bool:
        """Tell whether any label earns a loss: of rows (B, T) uint8, packed where there are `cu_seqlens` (B, S)."""
        earning = self._earning[codes]
        earning[:, 0] = False  # what a window begins with is nobody's label
        if cu_seqlens is not None:
            row, boundary = np.nonzero(cu_seqlens < codes.shape[1])
            earning[row, cu_seqlens[row, boundary]] = False
        return bool(earning.any())


class Expander:
    """Makes tokens, labels, loss mask and position ids of a compact batch, on the device where its codes are.

    Args:
        row_format: the layout of a row.
        attention_mask: (1, T, T) bool, added to each example; None for none.
    """

    def __init__(self, row_format: RowFormat, attention_mask: torch.Tensor | None = None) -> None:
        encoding = row_format.encoding
        if encoding.table is None:
            raise UsageError("a tokenizer without a table has no compact batches")
        ids = encoding.table.copy()
        for code, token in ((PAD, encoding.pad), (BOS, encoding.bos), (EOS, encoding.eos), (SEP, encoding.sep)):
            ids[code] = encoding.pad if token is None else token
        ids[TAG] = UNKNOWN  # what stands there is in `tags`
        letter_weights = row_format.loss_weights()
        weights = np.ones(256, dtype=np.float32) if letter_weights is None else letter_weights.copy()
        weights[: TAG + 1] = 0
        weights[EOS] = row_format.loss_on_eos
        self._format = row_format
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._ids, self._weights = ids, weights
        same = (ids == np.arange(256)) | (ids == UNKNOWN)  # codes without an id are in no row
        self._are_ids = np.logical_and.accumulate(same)  # (256,) bool: codes up to this one are their own ids
        self._weighs_plainly = bool((weights[TAG + 1 :] == 1).all() and not weights[: TAG + 1].any())
        self._attention_mask = attention_mask
        self._buffers = PerThread(self._make_buffers, RowBuffers.clear)

    def _make_buffers(self) -> RowBuffers:
        return RowBuffers(self._format.seq_length)

    def __call__(self, batch: CompactBatch) -> dict[str, torch.Tensor]:
        """Return the batch that the same dataset gives without `compact`: (B, T) tensors."""
        passed_on = {name: tensor for name, tensor in batch.items() if name not in {"codes", "tags"}}
        codes = batch["codes"]  # (B, T) uint8
        rows, length = codes.shape
        tokens, labels, loss_mask = self._on_cpu(codes) if codes.device.type == "cpu" else self._on_device(codes)
        segments = batch.get("cu_seqlens")  # (B, S) int32
        if "tags" in batch:
            self._put_tags(batch["tags"], tokens, segments)
        labels[:, :-1] = tokens[:, 1:]
        labels[:, -1] = self._format.encoding.pad
        if segments is None:
            position_ids = torch.arange(length, device=codes.device).repeat(rows, 1)
        else:
            position_ids, is_last = positions_in_windows(segments, length)
            labels.masked_fill_(is_last, self._format.encoding.pad)
            loss_mask.masked_fill_(is_last, 0)
        expanded = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        if self._attention_mask is not None:
            mask = self._attention_mask.to(codes.device).repeat(rows, 1, 1, 1)
            if segments is not None:
                mask |= across_windows(segments, length)[:, None]
            expanded["attention_mask"] = mask
        return expanded | passed_on

    def _on_cpu(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, labels, loss_mask = self._buffers.get().get(len(codes))
        letters = codes.numpy()
        # Row by row: each is in the cache while its tokens and its loss mask are made.
        for k, row in enumerate(letters):
            if self._are_ids[row.max()]:
                tokens[k] = row
            else:
                np.take(self._ids, row, out=tokens[k], mode="clip")
            if self._weighs_plainly:
                np.greater(row[1:], TAG, out=loss_mask[k, :-1])
            else:
                np.take(self._weights, row[1:], out=loss_mask[k, :-1], mode="clip")
        loss_mask[:, -1] = 0
        return torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(loss_mask)

    def _on_device(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if codes.device not in self._tables:
            self._tables[codes.device] = (
                torch.from_numpy(self._ids).to(codes.device),
                torch.from_numpy(self._weights).to(codes.device),
            )
        ids, weights = self._tables[codes.device]
        index = codes.int()
        tokens = ids[index]
        loss_mask = torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
        loss_mask[:, :-1] = weights[index[:, 1:]]
        return tokens, torch.empty_like(tokens), loss_mask

    def _put_tags(self, tags: torch.Tensor, tokens: torch.Tensor, segments: torch.Tensor | None) -> None:
        """Write the ids of control tags behind each BOS: (B, G), or (B, windows of a row, G) in packed rows."""
        first = int(self._format.include_bos)
        if segments is None:
            place = tokens[:, first : first + tags.shape[1]]
            place.copy_(torch.where(tags >= 0, tags, place))
            return
        starts = segments[:, : tags.shape[1], None].long() + first
        row, window, k = torch.nonzero(tags >= 0, as_tuple=True)
        tokens[row, starts[row, window, 0] + k] = tags[row, window, k]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": {}}


def positions_in_windows(cu_seqlens: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each token stands in its window of a packed row, and which tokens are the last of theirs.

    Args:
        cu_seqlens: (B, S) integers: where each window begins, and T from the end of the last one on.
        length: T.

    Returns:
        (B, T) int64 and (B, T) bool, on the same device.
    """
    starts = cu_seqlens.long()
    begun = torch.zeros((len(starts), length + 1), dtype=torch.int64, device=starts.device)
    begun = begun.scatter_(1, starts, starts)[:, :-1].cummax(1).values
    is_last = torch.zeros((len(starts), length), dtype=torch.bool, device=starts.device)
    is_last.scatter_(1, starts[:, 1:] - 1, True)
    return torch.arange(length, device=starts.device) - begun, is_last


def across_windows(cu_seqlens: torch.Tensor, length: int) -> torch.Tensor:
    """Return which pairs of tokens belong to different windows of a packed row: (B, T, T) bool.

    Args:
        cu_seqlens: (B, S) integers, see `positions_in_windows`.
        length: T.
    """
    starts = cu_seqlens.long()
    window = torch.zeros((len(starts), length + 1), dtype=torch.int64, device=starts.device)
    window = window.scatter_(1, starts, 1)[:, :-1].cumsum(1)
    return window[:, :, None] != window[:, None, :]
