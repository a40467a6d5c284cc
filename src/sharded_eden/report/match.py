"""Which window database each access log belongs to: its rows name the windows that the database has.

Input: access logs and window databases. Output: the logs of each database and split. Costs 64 seeks for each log. Names do not
tell: all sources of a mixture write logs of the split `train`, and a data module calls its `val_windows.db` `validation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import polars as pl

from sharded_eden.describe.access_logs import scan_access_log, split_of
from sharded_eden.errors import InputError, UsageError, printable, shown
from sharded_eden.format.commands import report_command
from sharded_eden.format.sqlite import READ_ERRORS, open_read_only, unreadable
from sharded_eden.report.data_figures import last_of

COMPARED = 64
"""Rows of a log that are compared with a window database."""
HEAD_ROWS = 4096
NAMES = {"validation": "val"}
EVALUATION = frozenset({"val", "validation", "test"})
"""Splits in which windows may be read any number of times."""


def matched(files: list[Path], databases: Mapping[str, Path]) -> dict[tuple[str, str], list[Path]]:
    """Return {(name of the window database, split in the log's name): access logs}.

    The split is the name of the database where that is what its logs are called: `val` for `val` and `validation`.

    Args:
        files: access logs.
        databases: {name: window database}.

    Raises:
        UsageError: there is no window database.
        InputError: a log is none, or names windows that no database has.
    """
    if not databases:
        raise UsageError(f"--logs needs the window databases that were read: {report_command(logs=True)}")
    found: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        split = split_of(path)
        rows = _some_rows(path)
        if not rows:
            continue
        names = sorted(databases, key=lambda name: (not _is_called(name, split), name))
        home = next((name for name in names if _has(databases[name], rows)), None)
        if home is None:
            window, sequence_id, number = rows[0]
            raise InputError(
                f"{printable(path)}: belongs to another window database: its window {window} is window {number} of "
                f"{shown(sequence_id)}. Name the window database that was read; found "
                f"{', '.join(map(printable, databases.values()))}"
            )
        found.setdefault((home, home if _is_called(home, split) else split), []).append(path)
    return found


def _is_called(name: str, split: str) -> bool:
    """Return whether logs of a window database with this name, such as `human/val`, are usually of this split."""
    return not {name, last_of(name)}.isdisjoint({split, NAMES.get(split, split)})


def _some_rows(path: Path) -> list[tuple[int, str, int]]:
    """Return some rows of an access log: window_idx, sequence_id, window_in_seq_idx."""
    columns = ("window_idx", "sequence_id", "window_in_seq_idx")
    try:
        head = scan_access_log(path).select(columns).head(HEAD_ROWS).collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{printable(path)}: is damaged, or no access log ({shown(str(error), 200)})") from error
    return head.gather_every(max(1, len(head) // COMPARED)).rows()


def _has(database: Path, rows: list[tuple[int, str, int]]) -> bool:
    query = "SELECT sequence_id, window_in_seq_idx FROM window_mappings WHERE window_idx = ?"
    with closing(open_read_only(database)) as connection:
        try:
            return all(connection.execute(query, (window,)).get == (name, number) for window, name, number in rows)
        except READ_ERRORS as error:
            raise unreadable(database, error) from error
