"""One row as the model gets it: its tokens, labels and loss mask, and where its bases come from.

Input: a `ShardedEdenDataset` with the built-in tokenizer, and an index. Output: the row and its windows. The tensors are the
item of the dataset; the places are those of the windows that it read. Both are compared, so that what is shown is what is
trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharded_eden.errors import DatabaseError, UsageError
from sharded_eden.load.dataset import ShardedEdenDataset
from sharded_eden.load.encode.example import COMPLEMENT

SYMBOLS = {"bos": "^", "sep": "|", "eos": "$", "pad": "."}
"""How special tokens are written in rows of letters."""


@dataclass(frozen=True, kw_only=True)
class ShownWindow:
    """Where one window of a row comes from, and where it is in the row."""

    window_idx: int
    contig_id: str
    window_in_seq_idx: int
    start: int
    """Its first base in the contig, 0-based, on the strand of the database."""
    end: int
    """The base after its last one."""
    strand: str
    """`+`, or `-` where the row holds the reverse complement."""
    at: int
    """Where its header begins in the row."""
    first_base: int
    """Where its bases begin in the row."""
    end_of_bases: int
    end_in_row: int
    """After EOS, where rows have one."""

    def base_at(self, place: int) -> int:
        """Return the base of the contig that a place in the row shows, 0-based; the row is from `first_base` on."""
        offset = place - self.first_base
        return self.start + offset if self.strand == "+" else self.end - 1 - offset


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownRow:
    """A row: its windows, and (T,) tokens, labels and weights in the loss."""

    index: int
    """Of the window, or of the pack."""
    epoch: int
    packed: bool
    windows: tuple[ShownWindow, ...]
    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss_mask: NDArray[np.float32]
    symbols: dict[int, str]
    """{id of a special token: the letter that stands for it}."""

    @property
    def padding_from(self) -> int:
        """Where padding begins."""
        return self.windows[-1].end_in_row

    def text(self, ids: NDArray[np.int64]) -> str:
        """Return ids as letters, special tokens as symbols."""
        return "".join(self.symbols.get(each) or chr(each) for each in ids.tolist())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "index": self.index,
            "epoch": self.epoch,
            "packed": self.packed,
            "padding_from": self.padding_from,
            "windows": [asdict(window) for window in self.windows],
            "tokens": self.tokens.tolist(),
            "labels": self.labels.tolist(),
            "loss_mask": self.loss_mask.tolist(),
        }


def row_of(dataset: ShardedEdenDataset, index: int, epoch: int = 0) -> ShownRow:
    """Return a row of a dataset.

    Args:
        dataset: with the built-in tokenizer; not compact.
        index: of a window, or of a pack where the dataset is packed.
        epoch: decides the strand, with the seed of the dataset.

    Raises:
        IndexError: there is no such row.
        UsageError: the dataset has another tokenizer, or is compact.
        DatabaseError: the row does not hold the bases of its windows; this would be a fault of the loader.

    Example: `row_of(ShardedEdenDataset.open("seqdb", "train_windows.db"), 17).windows[0].start`.
    """
    if dataset.tokenizer is not None or dataset.options.compact:
        raise UsageError("a row can be shown only of a dataset with the built-in tokenizer and compact=False")
    item = dataset[epoch, index]
    tokens, labels = item["tokens"].numpy().copy(), item["labels"].numpy().copy()
    ids = {"bos": dataset.bos_id, "sep": dataset.sep_id, "eos": dataset.eos_id, "pad": dataset.pad_id}
    shown = []
    at = 0
    for window in dataset.fetch_many([(epoch, index)]):
        first = at + len(window.header)
        end = first + len(window.bases)
        stop = end + int(dataset.options.include_eos)
        bases = COMPLEMENT[window.bases[::-1]] if window.reverse else window.bases
        if not np.array_equal(tokens[at:first], window.header) or bases.tobytes().upper() != _letters(
            tokens[first:end]
        ):
            raise DatabaseError(
                f"{dataset.window_db_path}: tokens {at} to {stop} of row {index} are not window {window.window_idx}, "
                "from which they were made: please report this"
            )
        start = window.window_in_seq_idx * dataset.stride
        shown.append(
            ShownWindow(
                window_idx=window.window_idx,
                contig_id=window.sequence_id,
                window_in_seq_idx=window.window_in_seq_idx,
                start=start,
                end=start + len(window.bases),
                strand="-" if window.reverse else "+",
                at=at,
                first_base=first,
                end_of_bases=end,
                end_in_row=stop,
            )
        )
        at = stop
    return ShownRow(
        index=index % len(dataset),
        epoch=epoch,
        packed=bool(dataset.options.packed),
        windows=tuple(shown),
        tokens=tokens,
        labels=labels,
        loss_mask=item["loss_mask"].numpy().copy(),
        symbols={number: SYMBOLS[name] for name, number in ids.items() if number is not None},
    )


def _letters(ids: NDArray[np.int64]) -> bytes:
    return bytes(ids.tolist()) if not len(ids) or (ids.min() >= 0 and ids.max() < 256) else b""


def loss_text(weights: NDArray[np.float32]) -> str:
    """Return weights in the loss as letters: `1`, `0`, and `~` for any other."""
    return "".join("1" if weight == 1 else "0" if weight == 0 else "~" for weight in weights.tolist())


def other_weights(weights: NDArray[np.float32]) -> Sequence[float]:
    """Return the weights that `~` stands for, ascending."""
    return [round(float(weight), 6) for weight in np.unique(weights) if weight not in {0, 1}]
