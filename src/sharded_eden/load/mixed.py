"""Rows of several datasets in one batch: (source, epoch, index) -> example, bit for bit that of its dataset.

Input: open datasets. Output: the items of any of them, as one map-style dataset. Cost: as one dataset, where all sources
have index files and equal row layouts: they are read into one buffer and encoded together. Layouts that differ
(control tags, special tokens, weights of letters) are encoded one layout at a time and copied into one batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sharded_eden.errors import EdenError, UsageError, shown
from sharded_eden.load.encode.batch import Example, Rows, collate
from sharded_eden.load.encode.compact import Expander
from sharded_eden.load.encode.rows import Arrays, RowMaker
from sharded_eden.load.options import ExampleOptions
from sharded_eden.load.read.fetch import Wanted
from sharded_eden.load.read.mixed import MixedFetcher, SourceWindow
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.shuffle import EPOCHS

Item = tuple[int, int, int]
"""(source, epoch, window or pack index)."""


class MixedRows(Dataset[Example]):
    """The items of several datasets.

    Args:
        datasets: the sources.
        names: what messages call them.

    Raises:
        UsageError: sources with another `seq_length`, tokenizer or special ids, or of which only some are packed, compact or
            have an attention mask; compact sources whose letters have other weights in the loss.
    """

    def __init__(self, datasets: Sequence[ShardedEdenDataset], names: Sequence[str]) -> None:
        self.datasets = list(datasets)
        self.names = list(names)
        for name, dataset in zip(self.names, self.datasets, strict=True):
            if not len(dataset):
                raise UsageError(
                    f"{name} ({dataset.window_db_path}) holds no window, so there is nothing to stream. Leave it out, or "
                    "precompute it from a split that has contigs"
                )
            self._check_fits(name, dataset)
        layouts: dict[Hashable, int] = {}
        self._layout_of = [layouts.setdefault(_layout(dataset), len(layouts)) for dataset in self.datasets]
        members = [[k for k, layout in enumerate(self._layout_of) if layout == n] for n in range(len(layouts))]
        fetchers = [dataset._fetcher for dataset in self.datasets]
        self._fetchers = [MixedFetcher(fetchers, each) for each in members]
        firsts = [(self.datasets[each[0]], fetcher) for each, fetcher in zip(members, self._fetchers, strict=True)]
        self._tensor_makers = [first._tensor_maker(fetcher) for first, fetcher in firsts]
        self._array_makers = [first._array_maker(fetcher) for first, fetcher in firsts]
        self._tag_length = max(1, *(maker._tag_length for maker in self._tensor_makers))
        self._lengths = list(map(len, self.datasets))
        self._is_plain = not any(each.options.packed or each.options.log_windows for each in self.datasets)
        self._has_tags = any(dataset.options.has_tags for dataset in self.datasets)

    def _check_fits(self, name: str, dataset: ShardedEdenDataset) -> None:
        """Refuse a source whose rows cannot be in one batch with those of the first source."""
        first, first_name = self.datasets[0], self.names[0]
        for what, here, there in zip(_COMMON, _common(dataset), _common(first), strict=True):
            if here != there:
                raise UsageError(
                    f"{name} has {what} {shown(here)}, but {first_name} has {shown(there)}: the sources of a mixture must "
                    "have the same"
                )
        ids, wanted = dataset._format.encoding, first._format.encoding
        if ids.table is None or wanted.table is None:
            same = dataset.tokenizer is first.tokenizer
        else:
            same = np.array_equal(ids.table, wanted.table)
        if not same:
            raise UsageError(
                f"{name} has other token ids for letters than {first_name}: give all sources of a mixture the same tokenizer"
            )

    # ---- what a stream and its trainers ask of a dataset ----

    @property
    def split(self) -> str:
        """The split of the sources: "train" if any is for training."""
        splits = [dataset.split for dataset in self.datasets]
        return "train" if "train" in splits else splits[0]

    @property
    def seq_length(self) -> int:
        """Tokens of a row."""
        return self.datasets[0].seq_length

    @property
    def seed(self) -> int:
        """The seed of the first source."""
        return self.datasets[0].seed

    @property
    def options(self) -> ExampleOptions:
        """The options of the first source; `compact` and `packed` are those of all."""
        return self.datasets[0].options

    @property
    def window_db_path(self) -> str:
        """The window databases, for messages."""
        return ", ".join(dataset.window_db_path for dataset in self.datasets[:3]) + (
            "..." if len(self.names) > 3 else ""
        )

    @property
    def has_table(self) -> bool:
        """Whether the tokenizer has one id per letter."""
        return self.datasets[0].has_table

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.datasets)} sources, {len(self)} rows, seq_length={self.seq_length})"

    def __getitem__(self, item: Item) -> Example:
        if self.datasets[0].options.compact:
            return self.__getitems__([item])[0]
        source, epoch, index = item
        return self.datasets[source][epoch, index]

    def __getitems__(self, items: Sequence[Item]) -> Rows:
        """Return the examples of many items, over one buffer."""
        arrays = self._make(self._tensor_makers, items)
        if "codes" in arrays and self._has_tags:
            _widen_tags(arrays, len(items), self._tag_length, packed=self.datasets[0].options.packed)
        return self.datasets[0]._rows_of(arrays)

    def arrays(self, items: Sequence[Item]) -> Arrays:
        """Return the rows of many items as NumPy arrays; see `ArrayDataset.arrays`."""
        return self._make(self._array_makers, items)

    def _make(self, makers: Sequence[RowMaker], items: Sequence[Item]) -> Arrays:
        """Return rows, one layout at a time."""
        by_layout: dict[int, list[int]] = {}
        for k, (source, _, _) in enumerate(items):
            by_layout.setdefault(self._layout_of[source], []).append(k)
        fetchers = [self._fetchers[layout] for layout in by_layout]
        for fetcher in fetchers:
            fetcher.lacks_loss = False
        if len(by_layout) < 2:
            arrays = makers[next(iter(by_layout), 0)].make(*self._wanted(items))
        else:
            parts = [
                (places, makers[layout].make(*self._wanted([items[k] for k in places])))
                for layout, places in by_layout.items()
            ]
            arrays = _merged(parts, len(items), self.seq_length)
        if fetchers and all(fetcher.lacks_loss for fetcher in fetchers):
            fetchers[0].warn_of_loss()
        return arrays

    def _wanted(self, items: Sequence[Item], *, log: bool = True) -> tuple[list[Wanted], list[int]]:
        """Return the windows of all rows, and how many each row has."""
        lengths = self._lengths
        if self._is_plain and all(
            type(epoch) is type(index) is int and 0 <= epoch < EPOCHS and 0 <= index < lengths[source]
            for source, epoch, index in items
        ):
            return [(epoch, SourceWindow.of(source, index)) for source, epoch, index in items], [1] * len(items)
        by_source: dict[int, list[int]] = {}
        for k, (source, _, _) in enumerate(items):
            by_source.setdefault(source, []).append(k)
        wanted: list[list[Wanted]] = [[]] * len(items)
        sizes = [1] * len(items)
        for source, places in by_source.items():
            dataset = self.datasets[source]
            windows, numbers = dataset._windows_of([items[k][1:] for k in places])
            if log:
                dataset._log(windows)
            at = 0
            for k, size in zip(places, numbers, strict=True):
                wanted[k] = [(epoch, SourceWindow.of(source, window)) for epoch, window in windows[at : at + size]]
                sizes[k] = size
                at += size
        return [window for row in wanted for window in row], sizes

    @property
    def items_ahead(self) -> int:
        """The most items to `announce` beyond a batch: 0 while what is read is in the page cache."""
        ahead = max(fetcher.windows_ahead for fetcher in self._fetchers)
        return ahead * len(self) // sum(dataset._index.total_windows for dataset in self.datasets) if ahead else 0

    def announce(self, items: Sequence[Item]) -> None:
        """Tell the kernel which items are read soon. An error is raised when they are read."""
        by_layout: dict[int, list[Item]] = {}
        for item in items:
            by_layout.setdefault(self._layout_of[item[0]], []).append(item)
        with suppress(EdenError):
            for layout, of_layout in by_layout.items():
                self._fetchers[layout].announce([window for _, window in self._wanted(of_layout, log=False)[0]])

    @staticmethod
    def collate_fn(batch: Any) -> Any:
        """Collate items into a batch; see `sharded_eden.load.encode.batch.collate`."""
        return collate(batch)

    def expander(self) -> Expander:
        """Return a module that expands compact batches of all sources into tensors, on their device."""
        return self.datasets[0].expander()

    def close(self) -> None:
        """Close all sources."""
        with ExitStack() as parts:  # all are closed, also after an error
            for dataset in self.datasets:
                parts.callback(dataset.close)
            for fetcher in self._fetchers:
                parts.callback(fetcher.close)


_COMMON = (
    "seq_length", "compact", "packed", "create_attention_mask", "objective", "the id of MASK",
    "the special ids (BOS, EOS, SEP, PAD)",
    "BOS and weights of letters in the loss, in compact rows,",
)  # fmt: skip


def _common(dataset: ShardedEdenDataset) -> tuple[object, ...]:
    """Return what the sources of a mixture have in common, in the order of `_COMMON`."""
    options, row_format = dataset.options, dataset._format
    ids = row_format.encoding
    # A compact batch is expanded with one table of weights, and has its tags after BOS.
    compact = (
        (row_format.include_bos, options.mask_ambiguous, float(options.soft_mask_weight), options.loss_on_eos)
        if options.compact
        else None
    )
    return (
        dataset.seq_length, bool(options.compact), bool(options.packed), bool(options.create_attention_mask),
        options.objective, None if row_format.masking is None else row_format.masking.mask_id,
        (ids.bos, ids.eos, ids.sep, ids.pad), compact,
    )  # fmt: skip


def _layout(dataset: ShardedEdenDataset) -> Hashable:
    """Return what the rows of two datasets must share to be encoded together, beside what all sources share."""
    options, row_format = dataset.options, dataset._format
    return (
        row_format.include_bos, row_format.include_sep, row_format.include_eos, row_format.packed_bases,
        row_format.window_bases, row_format.special_tokens, options.has_tags,
        options.mask_ambiguous, float(options.soft_mask_weight), options.loss_on_eos,
        row_format.masking,
    )  # fmt: skip


def _merged(parts: Sequence[tuple[list[int], Arrays]], count: int, seq_length: int) -> Arrays:
    """Return rows of several layouts as one batch.

    Args:
        parts: the places of some rows, and these rows.
        count: rows of the batch.
        seq_length: T.
    """
    merged: Arrays = {}
    for name in dict.fromkeys(name for _, arrays in parts for name in arrays):
        having = [(places, arrays[name]) for places, arrays in parts if name in arrays]
        shape = [max(sizes) for sizes in zip(*(array.shape[1:] for _, array in having), strict=True)]
        filling = {"tags": -1, "cu_seqlens": seq_length}.get(name)
        whole = merged[name] = np.empty((count, *shape), dtype=having[0][1].dtype)
        if filling is not None:  # their width differs, and layouts without control tags have no `tags`
            whole.fill(filling)
        elif len(having) < len(parts):
            raise EdenError(f"some rows of a batch have {name}, others do not")
        for places, array in having:
            place: Any = (places, *(slice(0, size) for size in array.shape[1:]))
            whole[place] = array
    segments = merged.get("cu_seqlens")
    if segments is not None and segments.shape[1] > 2 and (segments[:, -2] == seq_length).all():
        merged["cu_seqlens"] = np.ascontiguousarray(segments[:, :-1])
    return merged


def _widen_tags(arrays: Arrays, rows: int, length: int, *, packed: bool) -> None:
    """Give all compact batches of a mixture with control tags an array of tags, -1 where a row has none.

    A batch of single items takes the names of its first item: without tags, it would lose those of the others.
    """
    tags = arrays.get("tags")
    if tags is None:
        arrays["tags"] = np.full((rows, 1, length) if packed else (rows, length), -1, dtype=np.int64)
    elif not packed and tags.shape[1] < length:
        arrays["tags"] = np.full((rows, length), -1, dtype=np.int64)
        arrays["tags"][:, : tags.shape[1]] = tags
