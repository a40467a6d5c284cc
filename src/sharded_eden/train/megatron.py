"""What Megatron knows about ranks. The only file that names Megatron's modules; it never loads them.

Tensor-, pipeline- and context-parallel peers must get the same batches, data-parallel ranks different ones. Once a job has
initialized Megatron's `parallel_state`, only that knows which is which.
"""

from __future__ import annotations

import sys
from typing import NamedTuple


class DataParallel(NamedTuple):
    """Where this process stands among those that see different examples."""

    rank: int
    size: int


def data_parallel_position() -> DataParallel | None:
    """Return the data-parallel rank and size from Megatron, None where this process has not initialized it."""
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is None or not parallel_state.model_parallel_is_initialized():
        return None
    return DataParallel(
        rank=parallel_state.get_data_parallel_rank(with_context_parallel=False),
        size=parallel_state.get_data_parallel_world_size(with_context_parallel=False),
    )
