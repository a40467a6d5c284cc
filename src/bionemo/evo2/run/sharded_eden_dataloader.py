"""The import path and the command of the original loader: everything here is imported from `sharded_eden`.

    python -m bionemo.evo2.run.sharded_eden_dataloader precompute SPLIT.parquet WINDOWS.db

There is no `__init__.py` in the folders above: as a namespace package, this module can lie beside the real `bionemo`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharded_eden import (
        ShardedEdenDataModule,
        ShardedEdenDataset,
        compute_num_windows,
        create_sample_database,
        extract_sample_id,
        precompute_window_database,
    )

__all__ = [
    "ShardedEdenDataModule",
    "ShardedEdenDataset",
    "compute_num_windows",
    "create_sample_database",
    "extract_sample_id",
    "precompute_window_database",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import sharded_eden

    return getattr(sharded_eden, name)


def __dir__() -> list[str]:
    return __all__


if __name__ == "__main__":
    from sharded_eden.__main__ import main

    sys.exit(main(prog_name="python -m bionemo.evo2.run.sharded_eden_dataloader"))
