"""A pack as one example: several whole windows in one row, each with its own positions, labels and attention.

    tokens        BOS SEP A C G EOS  BOS SEP T T EOS  PAD PAD
    position_ids   0   1  2 3 4  5    0   1  2 3  4    0   1
    cu_seqlens     0                  6                11     13     (padding is a segment of its own: it ends at T)

Input: a pack index. Output: the tensors of a window, and `cu_seqlens` (S,) and `max_seqlen` (), int32;
in a batch `cu_seqlens` is (B, S), rows with fewer segments repeat T. Costs one lookup a pack in addition to its windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import apsw
import numpy as np

from sharded_eden.errors import DatabaseError
from sharded_eden.format.commands import pack_command
from sharded_eden.format.sqlite import READ_ERRORS, table_columns, unreadable
from sharded_eden.load.locate.windows import WindowIndex

if TYPE_CHECKING:
    from sharded_eden.load.encode.batch import Example

_LOOKUP = "SELECT windows FROM carray(?) AS wanted LEFT JOIN packs ON pack_idx = wanted.value"


class PackIndex:
    """pack index -> the windows of a row.

    Args:
        index: the window database.

    Raises:
        DatabaseError: it has no packs, or not all of them.
    """

    def __init__(self, index: WindowIndex) -> None:
        self._index = index
        if not {"pack_idx", "windows"} <= set(table_columns(index.connection, "packs")):
            raise DatabaseError(f"{index.path} holds no packs. Add them: {pack_command(index.path)}")
        try:
            first, last = index.connection.execute(
                "SELECT (SELECT min(pack_idx) FROM packs), (SELECT max(pack_idx) FROM packs)"
            ).get
        except READ_ERRORS as error:
            raise unreadable(index.path, error) from error
        self.total = index.metadata.get("total_packs", -1)
        self.fingerprint = index.metadata.get("pack_fingerprint", 0)
        if (first, last) != ((0, self.total - 1) if self.total else (None, None)):
            raise DatabaseError(
                f"{index.path}: its metadata have total_packs={self.total}, the table packs holds "
                f"{'none' if first is None else f'{first} to {last}'}. Pack it again: {self._cure}"
            )

    @property
    def _cure(self) -> str:
        return pack_command(self._index.path, seed=self._index.metadata.get("pack_seed", 42), force=True)

    def windows(self, packs: Sequence[int]) -> list[list[int]]:
        """Return the window indices of each pack.

        Raises:
            DatabaseError: a pack is missing or damaged.
        """
        if not packs:
            return []
        wanted = apsw.carray(np.array(packs, dtype=np.int64))
        try:
            rows = self._index.connection.execute(_LOOKUP, (wanted,)).fetchall()
        except READ_ERRORS as error:
            raise unreadable(self._index.path, error) from error
        self._index.check_unchanged()
        if len(rows) != len(packs):
            raise DatabaseError(f"{self._index.path}: a pack is there twice. Pack it again: {self._cure}")
        members = []
        for pack, (blob,) in zip(packs, rows, strict=True):
            if not isinstance(blob, bytes) or not blob or len(blob) % 8:
                raise DatabaseError(
                    f"{self._index.path}: pack {pack} is missing or damaged. Pack it again: {self._cure}"
                )
            members.append(np.frombuffer(blob, dtype="<i8").tolist())
        if not all(0 <= w < self._index.total_windows for row in members for w in row):
            raise DatabaseError(
                f"{self._index.path}: packs name windows that are not there. Pack it again: {self._cure}"
            )
        return members


def flatten_rows(batch: Example) -> Example:
    """Return the rows of a packed batch joined into one row, for attention kernels of variable length.

    Args:
        batch: (B, T) tensors, `cu_seqlens` (B, S), `max_seqlen` (B,). An `attention_mask` is removed: the boundaries replace
            it. So is `row_counts`: rows that do not count get a loss mask of zeros.

    Returns:
        `tokens`, `labels`, `loss_mask`, `position_ids`, perhaps `padding_mask` (1, B * T); `cu_seqlens` (segments + 1,) int32,
        strictly increasing from
        0 to B * T; `max_seqlen` () int32.

    Example:
        >>> from sharded_eden import ShardedEdenDataset, flatten_rows
        >>> with ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db", packed=True) as dataset:
        ...     batch = dataset.collate_fn([dataset[0], dataset[1]])
        >>> flatten_rows(batch)["tokens"].shape
        torch.Size([1, 2048])
    """
    import torch

    rows, length = batch["tokens"].shape
    offsets = torch.arange(rows, dtype=torch.int32, device=batch["tokens"].device) * length
    starts = batch["cu_seqlens"]
    begins = (starts + offsets[:, None])[starts < length]
    end = torch.full((1,), rows * length, dtype=torch.int32, device=starts.device)
    flat = {
        name: tensor.reshape(1, rows * length)
        for name, tensor in batch.items()
        if name in {"tokens", "labels", "loss_mask", "position_ids", "padding_mask"}
    }
    if "row_counts" in batch and "loss_mask" in batch:
        flat["loss_mask"] = (batch["loss_mask"] * batch["row_counts"][:, None]).reshape(1, rows * length)
    return {**flat, "cu_seqlens": torch.cat([begins, end]), "max_seqlen": batch["max_seqlen"].max()}
