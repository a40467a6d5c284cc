"""The window database that a dataset opens: the given one, or with `derive_windows` one of the dataset's geometry.

Input: paths and the geometry that a dataset asks for. Output: a path. Costs one read of metadata after the first use.
"""

from __future__ import annotations

from sharded_eden.errors import UsageError
from sharded_eden.load.options import ExampleOptions, absolute_path


def window_db_to_open(
    options: ExampleOptions, window_db_path: str, sequence_db_dir: str, window_size: int, stride: int | None
) -> str:
    """Return the path of the window database to open; see `sharded_eden.derive` for the errors."""
    if options.derive_windows is False:
        return window_db_path
    if options.packed and options.window_size is not None:
        raise UsageError(
            "derive_windows cannot pack by token counts, which needs the tokenizer. Open the split once with packed=False, and "
            "pack the derived window database: sharded_eden.pack_by_tokens"
        )
    from sharded_eden.derive import derived_window_database  # it imports Polars, which reading does not need

    folder = options.derive_windows
    path = derived_window_database(
        window_db_path,
        sequence_db_dir,
        window_size=window_size,
        stride=stride,
        min_length=options.window_min_length_threshold,
        folder=None if isinstance(folder, bool) else absolute_path(folder, "derive_windows"),
        pack=options.packed,
    )
    return str(path)
