"""Batches on their way from a worker to the main process: small tensors as bytes through the pipe.

PyTorch passes on a descriptor of shared memory for each tensor, however small, which takes several hundred microseconds. Up to
half a megabyte the bytes themselves are through the pipe sooner: two to four times as many batches a second where one holds a
row or two of 8,192 tokens, or 32 rows of codes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

MOST_BYTES = 1 << 19
"""Larger tensors go PyTorch's way."""

DTYPES = frozenset({torch.int64, torch.int32, torch.uint8, torch.float32, torch.bool})
"""Of the tensors that go as bytes: those of our batches."""


class _Bytes(NamedTuple):
    """A tensor on its way."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]


class SentBatch(dict[str, Any]):
    """A batch that another process receives as a plain dict, and that is one here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, ({name: _packed(value) for name, value in self.items()},)


def _packed(value: Any) -> Any:
    if type(value) is not torch.Tensor or value.nbytes > MOST_BYTES or value.dtype not in DTYPES:
        return value
    if value.device.type != "cpu" or value.requires_grad or value.layout != torch.strided:
        return value
    array = value.numpy()
    return _Bytes(array.tobytes(), array.dtype.str, array.shape)


def _received(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: _unpacked(value) if isinstance(value, _Bytes) else value for name, value in parts.items()}


def _unpacked(sent: _Bytes) -> torch.Tensor:
    # A bytearray, since a tensor is its user's to write to.
    return torch.from_numpy(np.ndarray(sent.shape, dtype=sent.dtype, buffer=bytearray(sent.data)))
