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
"""`codes` (B, T) uint8; with control tags `tags` (B, G) int64, -1 behind shorter ones; whatever else is passed on."""


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

    def fill(self, bases: NDArray[np.uint8], reverse: bool, tag_length: int, codes: NDArray[np.uint8]) -> None:
        """Fill one row.

        Args:
            bases: (n,) uint8, the letters of the window.
            reverse: show the reverse complement.
            tag_length: tokens of the control tag.
            codes: (T,) uint8, written.

        Raises:
            UnicodeError: a letter that the tokenizer's table does not know.
        """
        form = self.format
        first = form.include_bos + tag_length + form.include_sep
        end = first + len(bases)
        least, most = self._all_known
        within = not len(bases) or (np.minimum.reduce(bases) >= least and np.maximum.reduce(bases) <= most)
        if not within and not self._known[bases].all():
            unknown = bases[~self._known[bases]][0]
            raise UnicodeError(f"byte {unknown} ({chr(unknown)!r}) has no id of its own in the tokenizer")
        codes[:first] = TAG
        if form.include_bos:
            codes[0] = BOS
        if form.include_sep:
            codes[first - 1] = SEP
        codes[first:end] = COMPLEMENT[bases[::-1]] if reverse else bases
        codes[end:] = PAD
        if form.include_eos:
            codes[end] = EOS


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
        ids[TAG] = encoding.pad
        weights = np.ones(256, dtype=np.float32)
        weights[np.isin(ids, list(encoding.special))] = 0
        weights[: TAG + 1] = 0
        self._format = row_format
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._ids, self._weights = ids, weights
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
        if "tags" in batch:
            self._put_tags(batch["tags"], tokens)
        labels[:, :-1] = tokens[:, 1:]
        labels[:, -1] = self._format.encoding.pad
        position_ids = torch.arange(length, device=codes.device).repeat(rows, 1)
        expanded = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
        if self._attention_mask is not None:
            mask = self._attention_mask.to(codes.device)
            expanded["attention_mask"] = mask.repeat(rows, 1, 1, 1)
        return expanded | passed_on

    def _on_cpu(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = len(codes)
        tokens, labels, loss_mask = self._buffers.get().get(rows)
        for k, row in enumerate(codes.numpy()):
            np.take(self._ids, row, out=tokens[k], mode="clip")
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

    def _put_tags(self, tags: torch.Tensor, tokens: torch.Tensor) -> None:
        first = int(self._format.include_bos)
        place = tokens[:, first : first + tags.shape[1]]
        place.copy_(torch.where(tags >= 0, tags, place))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": {}}
