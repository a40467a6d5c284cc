"""`ShardedEdenDataset`: window index -> training example, as tensors. `ArrayDataset` (`load/dataset.py`) makes the arrays.

Input: integers. Output: dicts of tensors over the memory of the arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from sharded_eden.load.dataset import ArrayDataset, Index
from sharded_eden.load.encode.batch import Example, Rows, collate
from sharded_eden.load.encode.compact import Expander, across_windows
from sharded_eden.load.encode.rows import Arrays, RowMaker
from sharded_eden.load.worker_exit import wait_for_senders_at_exit

_POSITION_IDS: dict[int, torch.Tensor] = {}
"""{T: (T,) int64}."""


def _causal_mask(length: int) -> torch.Tensor:
    """Return the attention mask of a row, (1, T, T) bool: true above the diagonal, where attention is forbidden."""
    with torch.inference_mode(False):  # tensors of this mode count no versions
        return torch.ones((1, length, length), dtype=torch.bool).triu(1)


def _shared_position_ids(seq_length: int) -> torch.Tensor:
    """Return the `position_ids` of all items of this length; new ones, if a user has written to the last ones."""
    found = _POSITION_IDS.get(seq_length)
    if found is None or found._version:  # of operations in place, on views of it, too
        with torch.inference_mode(False):  # tensors of this mode count no versions
            found = _POSITION_IDS[seq_length] = torch.arange(seq_length)
    return found


class ShardedEdenDataset(ArrayDataset, Dataset[Example]):
    """A map-style dataset of the windows of one split.

    An item is a dict of `tokens`, `labels`, `position_ids` (T,) int64, `loss_mask` (T,) float32 and, with
    `create_attention_mask`, `attention_mask` (1, T, T) bool, true where attention is forbidden. T is `seq_length`. A row is
    BOS, control tag, SEP, upper-cased bases, EOS, padding. Items share `position_ids` and `attention_mask`: do not write to
    these. All other tensors are your own, and so are those of batches.

    `dataset[i]` is window i in epoch 0, `dataset[epoch, i]` in any epoch: the epoch decides only the strand.
    With `objective="mlm"`, labels are not shifted: `labels` are the tokens before masking, everywhere, `loss_mask` is 0 where a
    token was not masked, and `padding_mask` (T,) bool is true on padding.
    Workers may be forked, spawned or come from a fork server: connections are opened where they are used.

    Arguments and errors are those of `sharded_eden.load.dataset.ArrayDataset`.

    Example:
        >>> from sharded_eden import ShardedEdenDataset
        >>> with ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db") as dataset:
        ...     row = dataset[0]
        >>> row["tokens"].shape, row["loss_mask"].sum()
        (torch.Size([1024]), tensor(1021.))
    """

    def _prepare(self) -> None:
        self._set_mask(_causal_mask(self.seq_length) if self.options.create_attention_mask else None)
        self._rows = self._tensor_maker(self._fetcher)
        self._items_are_batches = self.options.compact or self.options.packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_attention_mask": None}  # a user may have written to it, or do so later

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_mask(_causal_mask(self.seq_length) if self.options.create_attention_mask else None)
        wait_for_senders_at_exit()

    def _set_mask(self, mask: torch.Tensor | None) -> None:
        self._attention_mask = mask
        self._mask_version = 0 if mask is None else mask._version

    def _tensor_maker(self, fetcher: Any) -> RowMaker:
        """Return what makes the arrays under tensors; see `_array_maker`."""
        return RowMaker(self._format, fetcher, compact=self.options.compact, packed=self.options.packed, reuse=True)

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """The mask of all items, (1, T, T) bool; None without `create_attention_mask`. Do not write to it."""
        mask = self._attention_mask
        if mask is not None and mask._version != self._mask_version:  # a user has written to the last one
            self._set_mask(_causal_mask(self.seq_length))
        return self._attention_mask

    @property
    def position_ids(self) -> torch.Tensor:
        """0 to T - 1, (T,) int64: one tensor for all items and datasets, to save memory. Do not write to it."""
        return _shared_position_ids(self.seq_length)

    def __getitem__(self, index: Index) -> Example:
        if self._items_are_batches:
            return self.__getitems__([index])[0]
        ((wanted,), _) = self._windows_of([index])
        self._log([wanted])  # before it is read: a window that fails is in the log, too
        item = {name: torch.from_numpy(array) for name, array in self._rows.one(wanted).items()}
        item["position_ids"] = self.position_ids
        mask = self.attention_mask
        return item if mask is None else {**item, "attention_mask": mask}

    def __getitems__(self, indices: Sequence[Index]) -> Rows:
        """Return the items of many indices at once: a sequence of items over one buffer.

        PyTorch's `DataLoader` calls this for each batch.
        """
        wanted, sizes = self._windows_of(indices)
        self._log(wanted)
        return self._rows_of(self._rows.make(wanted, sizes))

    def _rows_of(self, arrays: Arrays) -> Rows:
        """Return arrays as tensors over the same memory, with the attention mask."""
        stacked = {name: torch.from_numpy(array) for name, array in arrays.items()}
        mask = self.attention_mask
        if mask is None or "codes" in stacked:
            return Rows(stacked, {})
        if "cu_seqlens" not in stacked:
            return Rows(stacked, {"attention_mask": mask})
        apart = across_windows(stacked["cu_seqlens"], self.seq_length)
        return Rows({**stacked, "attention_mask": apart[:, None] | mask}, {})

    def expander(self) -> Expander:
        """Return a module that expands compact batches of this dataset into tensors, on their device.

        Raises:
            UsageError: the tokenizer does not have one id per letter.
        """
        return Expander(self._format, self.attention_mask)

    @staticmethod
    def collate_fn(batch: Any) -> Any:
        """Collate items into a batch; see `sharded_eden.load.encode.batch.collate`."""
        return collate(batch)
