"""From sequence databases to one Parquet file per split: which contig is trained on, validated on, tested on.

Enter: a folder of sequence databases, with `contigs.parquet` or without. Leave: `train_split.parquet`, `val_split.parquet`
and `test_split.parquet`, each with the columns `contig_id` and `length`, sorted by contig_id.

A keyed hash of the sample's ID (or the contig's) gives a number u in [0, 1) that depends on nothing else:

    0 ──── val ──── val + test ─────────────── 1        so samples that are added later move no other sample
    │ validation │     test    │     train     │

Costs about 100 bytes of memory a contig; no sequence is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeAlias

import polars as pl

from sharded_eden.errors import DatabaseError, UsageError
from sharded_eden.format import schema
from sharded_eden.format.lengths import contigs_of_database
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.format.sqlite import publishing

SAMPLE = "sample"

By = Literal["sample", "contig"]
Lists: TypeAlias = Mapping[str, str | os.PathLike[str] | None]
"""The file that names the samples of a split, or None, for val and test."""

_COLUMNS = {CONTIG_ID: pl.String, LENGTH: pl.Int64, SAMPLE: pl.String}


@dataclass(frozen=True, kw_only=True)
class SplitPart:
    """One split as written."""

    path: Path
    samples: int
    contigs: int
    bases: int


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """The splits that were written, in the order train, val, test."""

    parts: Mapping[str, SplitPart]


def write_splits(
    sequence_db_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    by: By = "sample",
    val: float = 0.05,
    test: float = 0.05,
    seed: int = 42,
    val_samples: str | os.PathLike[str] | None = None,
    test_samples: str | os.PathLike[str] | None = None,
) -> SplitResult:
    """Divide all contigs among training, validation and test.

    Args:
        sequence_db_dir: the folder of sequence databases.
        out_dir: where the Parquet files go; those of the same name are replaced.
        by: what is divided: `sample` keeps all contigs of a sample together, so that none leaks into another split;
            `contig` divides each sample.
        val: share of the samples (or contigs) in validation, in [0, 1); 0 for none. Not used where `val_samples` is given.
        test: the same for test.
        seed: another seed gives another division.
        val_samples: a file that names the samples in validation, one a line ('#' begins a comment). No other goes there.
        test_samples: the same for test.

    Raises:
        UsageError: shares or lists that cannot be meant, a split that comes out empty, or a file of an earlier run that
            this one would not replace.
        MissingDatabase: there are no sequence databases.
        DatabaseError: a database or `contigs.parquet` is not what its name promises, or they contradict each other.
    """
    out = Path(out_dir)
    shares = {"val": val, "test": test}
    lists = {"val": val_samples, "test": test_samples}
    _check_request(by, shares, lists)
    contigs = _contigs(Path(sequence_db_dir))
    samples = contigs[SAMPLE].unique().sort().to_list()
    listed = _read_lists(lists, samples)
    shares = {name: share if lists[name] is None else 0.0 for name, share in shares.items()}
    if by == "sample":
        split_of = {name: listed.get(name) or _split_by_share(name, shares, seed) for name in samples}
        split = contigs[SAMPLE].replace_strict(split_of, return_dtype=pl.String)
    else:
        split = pl.Series([_split_by_share(name, shares, seed) for name in contigs[CONTIG_ID]], dtype=pl.String)
    wanted = ["train", *(name for name in shares if shares[name] > 0 or lists[name] is not None)]
    parts = {name: contigs.filter(split == name) for name in wanted}
    for name, part in parts.items():
        if part.is_empty():
            there_are = f"{len(samples)} samples" if by == "sample" else f"{contigs.height} contigs"
            raise UsageError(
                f"the {name} split came out empty: there are {there_are}. {_cures(name, by, shares, lists)}"
            )
    for name in set(schema.SPLITS).difference(wanted):
        if (left := out / schema.split_file_name(name)).exists():
            raise UsageError(
                f"{left} is left from an earlier run, and this one makes no such split. Remove it: rm {left}"
            )
    with ExitStack() as stack:
        for name, part in parts.items():
            unfinished = stack.enter_context(publishing(out / schema.split_file_name(name)))
            part.select(CONTIG_ID, LENGTH).sort(CONTIG_ID).write_parquet(unfinished)
    return SplitResult(
        parts={
            name: SplitPart(
                path=out / schema.split_file_name(name),
                samples=part[SAMPLE].n_unique(),
                contigs=part.height,
                bases=int(part[LENGTH].sum()),
            )
            for name, part in parts.items()
        }
    )


def share_of(name: str, seed: int) -> float:
    """Return the number in [0, 1) that decides where a sample or contig goes: a hash of its name, keyed by the seed."""
    digest = blake2b(name.encode(), digest_size=8, key=repr(seed).encode(), person=b"eden split").digest()
    return int.from_bytes(digest, "big") / 2**64


def _split_by_share(name: str, shares: Mapping[str, float], seed: int) -> str:
    u = share_of(name, seed)
    return "val" if u < shares["val"] else "test" if u < shares["val"] + shares["test"] else "train"


def _check_request(by: str, shares: Mapping[str, float], lists: Lists) -> None:
    if by not in {"sample", "contig"}:
        raise UsageError(f"by must be 'sample' or 'contig', not {by!r}")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UsageError(f"--{name} {share} is no share: it must be at least 0 and below 1")
    if sum(shares.values()) >= 1:
        raise UsageError(
            f"--val {shares['val']} and --test {shares['test']} leave nothing to train on: their sum must be below 1"
        )
    for name, file in lists.items():
        if file is not None and by == "contig":
            raise UsageError(f"--{name}-samples names whole samples; it cannot be combined with --by contig")


def _read_lists(lists: Lists, samples: list[str]) -> dict[str, str]:
    """Return {sample: split} of all samples that a list names."""
    listed: dict[str, str] = {}
    for split, file in lists.items():
        if file is None:
            continue
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--{split}-samples {file}: cannot be read ({error})") from error
        names = [name for line in lines if (name := line.partition("#")[0].strip())]
        if not names:
            raise UsageError(f"--{split}-samples {file}: names no sample")
        if unknown := sorted(set(names).difference(samples)):
            raise UsageError(f"--{split}-samples {file}: there is no sequence database of {_some(unknown)}")
        for name in names:
            if listed.setdefault(name, split) != split:
                raise UsageError(f"sample {name!r} is named in both --{listed[name]}-samples and --{split}-samples")
    return listed


def _cures(name: str, by: str, shares: Mapping[str, float], lists: Lists) -> str:
    """Return what can be done about a split that came out empty."""
    if name == "train":
        cures = ["name fewer samples in the lists" if any(lists.values()) else "give smaller shares (--val, --test)"]
    elif (larger := min(0.4, 4 * shares[name])) > shares[name]:
        cures = [f"give a larger share (--{name} {larger:g}, or 0 for no such split)"]
    else:
        cures = ["take another --seed"]
    if by == "sample":
        cures += [
            "divide contigs instead of samples (--by contig)",
            "name the samples (--val-samples FILE, --test-samples FILE)",
        ]
    return f"You can {', or '.join(cures)}"


def _contigs(folder: Path) -> pl.DataFrame:
    """Return (contig_id, length, sample) of every contig in a folder of sequence databases."""
    databases = schema.discover_sample_databases(folder)
    table = folder / schema.CONTIGS_FILE
    parts = []
    listed: set[str] = set()
    if table.exists():
        parts.append(_read_table(table))
        listed = set(parts[0][SAMPLE].unique())
        if missing := sorted(listed.difference(databases)):
            raise DatabaseError(
                f"{table} lists contigs of {_some(missing)}, which {'have' if len(missing) > 1 else 'has'} no sequence "
                f"database in {folder}. Build them again, or remove {table}: it is not needed"
            )
    parts += [
        contigs_of_database(path).with_columns(pl.lit(sample).alias(SAMPLE))
        for sample, path in databases.items()
        if sample not in listed
    ]
    contigs = pl.concat(parts)
    if len(databases) > 1:
        _check_samples(contigs, folder)
    return contigs


def _read_table(table: Path) -> pl.DataFrame:
    try:
        found = pl.read_parquet_schema(table)
        contigs = pl.read_parquet(table, columns=[column for column in _COLUMNS if column in found])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DatabaseError(f"{table}: cannot be read ({error}). Remove it: it is not needed") from error
    if dict(contigs.schema) != _COLUMNS or contigs.null_count().sum_horizontal().item():
        raise DatabaseError(f"{table}: expected {_COLUMNS} without nulls, found {found}. Remove it: it is not needed")
    return contigs


def _check_samples(contigs: pl.DataFrame, folder: Path) -> None:
    """Refuse contigs that the loader would look for in another database than the one they lie in."""
    parts = pl.col(CONTIG_ID).str.split("__").list.get(1, null_on_oob=True).str.split("-")
    named = parts.list.slice(1).list.join(".")  # as schema.extract_sample_id
    astray = contigs.filter(named.ne_missing(pl.col(SAMPLE)))
    if not astray.is_empty():
        contig_id, _, sample = astray.row(0)
        raise DatabaseError(
            f"{schema.sample_database_path(folder, sample)}: the contig ID {contig_id!r} does not name the sample "
            f"{sample!r} ({astray.height} such contigs in {folder}), so that it could not be found again. IDs have the "
            f"form BCR__ECT-{sample}__CT1-1 wherever there are several databases"
        )


def _some(names: Iterable[str]) -> str:
    """Return the first of some names for a message: `'A', 'B' and 3 more`."""
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
