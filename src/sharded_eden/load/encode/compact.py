"""Compact batches: 8 KB instead of 229 KB a window are sent to the device, which makes equal tensors, bit for bit.

A compact row is T codes, see `sharded_eden.load.encode.codes`. Control tags, whose ids are arbitrary, are separate tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sharded_eden.load.encode.buffers import RowBuffers
from sharded_eden.load.encode.codes import BLOCK_BYTES, SENT, CodeTables, check_compact
from sharded_eden.load.encode.example import RowFormat
from sharded_eden.load.read.connections import PerThread

CompactBatch = Mapping[str, torch.Tensor]
"""`codes` (B, T) uint8; with control tags `tags` (B, G) int64, padded with -1; and other keys.

Packed rows have `cu_seqlens` (B, S) int32 too, and tags of each window: (B, windows of a row, G)."""


class Expander:
    """Makes tokens, labels, loss mask and position ids of a compact batch, on the device where its codes are.

    Args:
        row_format: the layout of a row.
        attention_mask: (1, T, T) bool, added to each example; None for none.
    """

    def __init__(self, row_format: RowFormat, attention_mask: torch.Tensor | None = None) -> None:
        check_compact(row_format)
        self._format = row_format
        self._tables = CodeTables(row_format)
        self._tables_on: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
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
        is_masked = self._format.masking is not None
        if "tags" in batch:
            self._put_tags(batch["tags"], tokens, segments)
            if is_masked:
                self._put_tags(batch["tags"], labels, segments)
            else:
                labels[:, :-1] = tokens[:, 1:]
        if segments is None:
            position_ids = torch.arange(length, device=codes.device).repeat(rows, 1)
        else:
            position_ids, is_last = positions_in_windows(segments, length)
            if not is_masked:
                labels.masked_fill_(is_last, self._format.encoding.pad)
                loss_mask.masked_fill_(is_last, 0)
        expanded = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        if is_masked:
            expanded["padding_mask"] = codes == SENT.pad
        if self._attention_mask is not None:
            mask = self._attention_mask.to(codes.device).repeat(rows, 1, 1, 1)
            if segments is not None:
                mask |= across_windows(segments, length)[:, None]
            expanded["attention_mask"] = mask
        return expanded | passed_on

    def _on_cpu(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, labels, loss_mask = self._buffers.get().get(len(codes))
        block_rows = max(1, BLOCK_BYTES // codes.shape[1])
        for first in range(0, len(codes), block_rows):
            block = slice(first, first + block_rows)
            self._tables.expand(codes.numpy()[block], tokens[block], labels[block], loss_mask[block])
        return torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(loss_mask)

    def _on_device(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if codes.device not in self._tables_on:
            of_labels = self._tables.ids if self._tables.labels is None else self._tables.labels
            ids, labels, weights = map(torch.from_numpy, (self._tables.ids, of_labels, self._tables.weights))
            self._tables_on[codes.device] = ids.to(codes.device), labels.to(codes.device), weights.to(codes.device)
        ids, label_ids, weights = self._tables_on[codes.device]
        index = codes.int()
        tokens = ids[index]
        if self._format.masking is not None:
            return tokens, label_ids[index], weights[index]
        labels = torch.full_like(tokens, self._format.encoding.pad)
        labels[:, :-1] = tokens[:, 1:]
        loss_mask = torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
        loss_mask[:, :-1] = weights[index[:, 1:]]
        return tokens, labels, loss_mask

    def _put_tags(self, tags: torch.Tensor, tokens: torch.Tensor, segments: torch.Tensor | None) -> None:
        """Write the ids of control tags after each BOS: (B, G), or (B, windows of a row, G) in packed rows."""
        first = int(self._format.include_bos)
        if segments is None:
            place = tokens[:, first : first + tags.shape[1]]
            place.copy_(torch.where(tags >= 0, tags, place))
            return
        starts = segments[:, : tags.shape[1], None].long() + first
        row, window, k = torch.nonzero(tags >= 0, as_tuple=True)
        tokens[row, starts[row, window, 0] + k] = tags[row, window, k]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables_on": {}}


def positions_in_windows(cu_seqlens: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the position of each token in its window of a packed row, and which tokens are the last ones of a window.

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
