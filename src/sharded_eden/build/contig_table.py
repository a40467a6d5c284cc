"""The table of all contigs, `contigs.parquet`: sorted by sample, in input order within each.

Input: the existing table, and the rows of newly built samples. Output: the new table, written in one pass that holds a
few blocks of each. It depends on the samples alone, not on the order in which they were built.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import polars as pl

from sharded_eden.build.manifest import Receipt
from sharded_eden.build.sample import CONTIG_COLUMNS, polars_path, scan_rows
from sharded_eden.errors import DatabaseError, printable, shown
from sharded_eden.format import schema
from sharded_eden.format.publish import publishing

FILES_AT_ONCE = 500
"""Receipts read at once."""

_SAMPLE = pl.col("sample")


def check_contig_table(out: Path) -> None:
    """Refuse a `contigs.parquet` that new rows cannot be added to.

    Raises:
        DatabaseError: it cannot be read, or has other columns.
    """
    table = out / schema.CONTIGS_FILE
    if not table.exists():
        return
    try:
        with table.open("rb") as file:  # Polars would treat some names as patterns
            found = dict(pl.read_parquet_schema(file))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatabaseError(
            f"{printable(table)}: cannot be read ({printable(str(error), 300)}). Remove it: split works without it"
        ) from error
    if found != CONTIG_COLUMNS:
        raise DatabaseError(
            f"{printable(table)}: its columns are {shown(found, 300)}, those that build writes {CONTIG_COLUMNS}. Remove it: "
            "split works without it"
        )


def update_contig_table(out: Path, receipts: Sequence[tuple[Path, Receipt]], folder: Path) -> None:
    """Write a table in which the rows of these receipts replace earlier rows of the same samples.

    Args:
        out: the output folder.
        receipts: their files, which hold the rows, and their contents. Of two for the same sample, the later one counts.
        folder: for temporary files.

    Raises:
        DatabaseError: the table or a receipt is damaged.
    """
    try:
        _merge(out / schema.CONTIGS_FILE, receipts, folder)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DatabaseError(
            f"{printable(out / schema.CONTIGS_FILE)}, or a receipt in {printable(folder)}, is damaged "
            f"({printable(str(error), 300)}). Remove both; samples that are there are then built again only with --force"
        ) from error


def _merge(table: Path, receipts: Sequence[tuple[Path, Receipt]], folder: Path) -> None:
    latest = {built.result.sample: number for number, (_, receipt) in enumerate(receipts) for built in receipt.built}
    merged = []
    if table.exists():
        old = scan_rows(table)
        if not old.select(_SAMPLE.is_sorted()).collect().item():
            old = old.sort("sample", maintain_order=True)
        merged.append(_without(old, list(latest)))
    parts: list[Path] = []
    for layer in _layers([receipt for _, receipt in receipts]):
        of_layer = []
        for start in range(0, len(layer), FILES_AT_ONCE):
            rows = []
            for number in layer[start : start + FILES_AT_ONCE]:
                path, receipt = receipts[number]
                wanted = [b.result.sample for b in receipt.built if latest[b.result.sample] == number]
                rows.append(_with(scan_rows(path), wanted).select(list(CONTIG_COLUMNS)))
            of_layer.append(pl.concat(rows))
            if len(layer) > FILES_AT_ONCE:
                parts.append(folder / f"rows{len(parts):08}.parquet")
                of_layer[-1].sink_parquet(polars_path(parts[-1]), maintain_order=True)
                of_layer[-1] = scan_rows(parts[-1])
        merged.append(pl.concat(of_layer))
    with publishing(table) as unfinished:
        rows_of_all = reduce(lambda one, other: one.merge_sorted(other, key="sample", maintain_order=True), merged)
        rows_of_all.sink_parquet(polars_path(unfinished), maintain_order=True)
    for part in parts:
        part.unlink()


def _layers(receipts: Sequence[Receipt]) -> list[list[int]]:
    """Divide receipts, each sorted by sample, into as few sorted sequences as possible: two, as builds write them."""
    layers: list[list[int]] = []
    ends: list[str] = []
    samples = [[built.result.sample for built in receipt.built] for receipt in receipts]
    for number in sorted(range(len(receipts)), key=lambda number: samples[number][0]):
        first, last = samples[number][0], samples[number][-1]
        fitting = next((i for i, end in enumerate(ends) if end < first), None)
        if fitting is None:
            layers.append([number])
            ends.append(last)
        else:
            layers[fitting].append(number)
            ends[fitting] = last
    return layers


def _without(rows: pl.LazyFrame, samples: list[str]) -> pl.LazyFrame:
    """Return the rows without those of some samples."""
    if not samples:
        return rows
    left_out = pl.LazyFrame({"sample": samples}, schema={"sample": pl.String})
    return rows.join(left_out, on="sample", how="anti", maintain_order="left")


def _with(rows: pl.LazyFrame, samples: list[str]) -> pl.LazyFrame:
    """Return only the rows of some samples."""
    wanted = pl.LazyFrame({"sample": samples}, schema={"sample": pl.String})
    return rows.join(wanted, on="sample", how="semi", maintain_order="left")
