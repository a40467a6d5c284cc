"""From sequence databases to one Parquet file per split: which contigs are for training, validation and test.

Input: a folder of sequence databases, with or without `contigs.parquet`. Output: `train_split.parquet`,
`val_split.parquet` and `test_split.parquet`, each with the columns `contig_id` and `length`, sorted by contig_id.

    samples (or contigs) in the order of a keyed hash of their names
    │ validation │     test    │     train     │
         until the share of bases is met: first validation, then test; training gets the rest

Samples that a split in the output folder already has keep their split; only new ones are assigned.
Costs about 300 bytes of memory a contig; no sequence is read, except to find similar contigs (`group_similar`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import polars as pl

from sharded_eden.assign import assign_groups
from sharded_eden.build.contig_table import changed_samples
from sharded_eden.errors import DatabaseError, UsageError, printable, shown, warn
from sharded_eden.format import schema
from sharded_eden.format.commands import quoted, split_command
from sharded_eden.format.kinds import expect
from sharded_eden.format.lengths import contigs_of_database
from sharded_eden.format.parquet import SEQUENCE_DB_DIR, is_text, parquet_errors, parquet_source, write_parquet
from sharded_eden.format.publish import publishing
from sharded_eden.format.schema import CONTIG_ID, LENGTH
from sharded_eden.jobs import Engine
from sharded_eden.progress import Progress
from sharded_eden.similar.groups import LARGEST_GROUP, THRESHOLD, Grouping
from sharded_eden.similar.groups import group_similar as group

SAMPLE = "sample"
SPLIT = "split"

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
    kept: int = 0
    """Samples (or contigs) that were in a split of the output folder before, and stayed in it."""
    similar: Grouping | None = None
    """What was kept together because it is similar; None unless that was requested."""


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
    group_similar: bool = False,
    threshold: float = THRESHOLD,
    largest_group: float = LARGEST_GROUP,
    jobs: int = 1,
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SplitResult:
    """Divide all contigs among training, validation and test.

    A keyed hash of the names gives the order in which samples are taken into validation, then into test, until the share of
    bases is met; each split gets at least one sample. A sample that would take a split above 1.5 times its share is
    skipped while a smaller one is left. Training gets the rest.

    If `out_dir` has splits already, their samples keep their splits, whatever the seed and the shares; only new samples are
    assigned. So no sample moves from validation into training. Write to another folder for another division.

    Args:
        sequence_db_dir: the folder of sequence databases.
        out_dir: where the Parquet files go.
        by: what is divided: `sample` keeps all contigs of a sample together, so that no contig of a training sample is
            in another split; `contig` divides each sample.
        val: share of the bases in validation, in [0, 1); 0 for none. Not used where `val_samples` is given.
        test: the same for test.
        seed: another seed gives another division.
        val_samples: a file that names the samples in validation, one a line ('#' begins a comment). No other goes there.
        test_samples: the same for test.
        group_similar: keep samples (or contigs) that hold similar contigs in the same split. Contigs of fewer than 1,000 bases
            are not compared. Needs the extra `similar`.
        threshold: contigs are similar if one holds at least this share of the k-mers (k = 21) of the other, in (0, 1].
        largest_group: the largest share of all bases that such a group may have, in (0, 1].
        jobs: databases that are compared at the same time (`group_similar`).
        scratch: a folder for temporary files of `group_similar`, made if it is missing: about 600 MB for a gigabase. None is
            the system's.
        progress: called with the bytes of databases that are compared and their total (`group_similar`).

    Raises:
        UsageError: invalid or contradictory shares or lists, fewer samples than splits, or splits in `out_dir` that
            contradict the request, or whose contigs have other lengths now (`contig`); or a group of similar samples that is
            too large, or is in several splits already.
        MissingExtra: `group_similar` without sourmash.
        MissingDatabase: there are no sequence databases.
        DatabaseError: a database, `contigs.parquet` or a split in `out_dir` cannot be read or is contradictory.
        WriteError: a split or a temporary file cannot be written.

    Warns:
        EdenWarning: a split in `out_dir` has contigs that are no longer in the sequence databases.

    Example:
        >>> from sharded_eden import write_splits
        >>> write_splits("sequence_db_dir", "new_splits", val=0.25, test=0.25).parts["val"].samples
        1
    """
    out, folder = Path(out_dir), Path(sequence_db_dir)
    shares = {"val": val, "test": test}
    lists = {"val": val_samples, "test": test_samples}
    _check_request(by, shares, lists, seed)
    contigs = _contigs(folder)
    wanted = ["train", *(name for name in shares if shares[name] > 0 or lists[name] is not None)]
    for name in set(schema.SPLITS).difference(wanted):
        if (left := out / schema.split_file_name(name)).exists():
            raise UsageError(
                f"{printable(left)} is left from an earlier run, and this run makes no {name} split. Write to another folder "
                f"or remove it: rm {quoted(left)} (its samples are then for training)"
            )
    key = SAMPLE if by == "sample" else CONTIG_ID
    bases = dict(contigs.group_by(key).agg(pl.col(LENGTH).sum()).sort(key).iter_rows())
    kept = _existing_splits(out, contigs, key)
    listed = _read_lists(lists, bases)
    _check_lists(out, lists, listed, kept)
    similar = None
    if group_similar:
        similar = group(
            schema.discover_sample_databases(folder),
            key,
            threshold=threshold,
            largest=largest_group,
            scratch=None if scratch is None else Path(scratch),
            engine=Engine(jobs=jobs),
            progress=progress,
        )
    shares = {name: share if lists[name] is None else 0.0 for name, share in shares.items()}
    split_of = assign_groups(
        bases,
        shares,
        seed,
        kept | listed,
        similar.group_of if similar else {},
        [name for name, file in lists.items() if file is not None],
    )
    split = contigs[key].replace_strict(split_of, return_dtype=pl.String)
    parts = {name: contigs.filter(split == name).sort(CONTIG_ID) for name in wanted}
    for name, part in parts.items():
        _check_part(name, part, folder, by, len(bases), bool(listed), out if kept else None)
    metadata = {SEQUENCE_DB_DIR: str(folder.absolute())} if is_text(str(folder)) else {}
    with ExitStack() as stack:
        for name, part in parts.items():
            unfinished = stack.enter_context(publishing(out / schema.split_file_name(name)))
            write_parquet(part.select(CONTIG_ID, LENGTH), unfinished, metadata)
    return SplitResult(
        parts={
            name: SplitPart(
                path=out / schema.split_file_name(name),
                samples=part[SAMPLE].n_unique(),
                contigs=part.height,
                bases=int(part[LENGTH].sum()),
            )
            for name, part in parts.items()
        },
        kept=len(kept),
        similar=similar,
    )


def _check_request(by: str, shares: Mapping[str, float], lists: Lists, seed: int) -> None:
    if by not in {"sample", "contig"}:
        raise UsageError(f"by must be 'sample' or 'contig', not {shown(by)}")
    if not hasattr(seed, "__index__"):
        raise UsageError(f"seed must be an integer, not {shown(seed)}")
    if abs(seed) >= 2**128:
        raise UsageError(f"--seed {shown(seed)} is invalid: it must have at most 38 digits")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UsageError(f"--{name} {share} is invalid: a share must be at least 0 and below 1")
    if sum(shares.values()) >= 1:
        raise UsageError(
            f"--val {shares['val']} and --test {shares['test']} leave nothing to train on: their sum must be below 1"
        )
    for name, file in lists.items():
        if file is not None and by == "contig":
            raise UsageError(f"--{name}-samples names whole samples; it cannot be combined with --by contig")


def _read_lists(lists: Lists, samples: Mapping[str, int]) -> dict[str, str]:
    """Return {sample: split} of all samples that a list names."""
    listed: dict[str, str] = {}
    for split, file in lists.items():
        if file is None:
            continue
        option = f"--{split}-samples {printable(file)}"
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").split("\n")  # read_text turns CR and CR LF into LF
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{option}: cannot be read ({error})") from error
        names = [name for line in lines if (name := line.partition("#")[0].strip())]
        if not names:
            raise UsageError(f"{option}: names no sample")
        if unknown := sorted(set(names).difference(samples)):
            raise UsageError(f"{option}: there is no sequence database of {_some(unknown)}")
        for name in names:
            if listed.setdefault(name, split) != split:
                raise UsageError(
                    f"sample {shown(name)} is named in both --{listed[name]}-samples and --{split}-samples"
                )
    return listed


def _check_lists(out: Path, lists: Lists, listed: Mapping[str, str], kept: Mapping[str, str]) -> None:
    """Refuse lists that would move a sample out of the split that it has in the output folder."""
    for name, split in kept.items():
        wanted = listed.get(name, "train" if lists.get(split) is not None else split)
        if wanted != split:
            raise UsageError(
                f"{printable(out / schema.split_file_name(split))} has the sample {shown(name)}, which would move to "
                f"{wanted}. Samples keep their splits; write to another folder"
            )


def _check_part(
    name: str, part: pl.DataFrame, folder: Path, by: str, count: int, has_lists: bool, kept_in: Path | None
) -> None:
    """Refuse a split that is empty, or that has a contig twice."""
    twice = part[CONTIG_ID].filter(part[CONTIG_ID] == part[CONTIG_ID].shift(1))
    if not twice.is_empty():
        raise DatabaseError(
            f"{printable(folder)}: its sequence databases hold the contig {shown(twice[0])} more than once. "
            "A contig ID must be unique"
        )
    if not part.is_empty():
        return
    cures = [f"make no such split (--{name} 0)"] if name != "train" else ["name fewer samples in the lists"] * has_lists
    if by == "sample":
        cures.append(f"divide contigs instead of samples: {split_command(folder, by_contig=True)}")
    if kept_in is not None:
        cures.append("write to another folder")
    raise UsageError(
        f"the {name} split came out empty: there {'are' if count != 1 else 'is'} {count:,} {by}{'s' * (count != 1)}"
        + (f", and those in {printable(kept_in)} keep their splits" if kept_in else "")
        + f". You can {', or '.join(cures or ['give more contigs'])}"
    )


def _existing_splits(out: Path, contigs: pl.DataFrame, key: str) -> dict[str, str]:
    """Return {sample or contig: split} for the splits in the output folder.

    Raises:
        DatabaseError: a split cannot be read, or a contig is in two of them.
        UsageError: samples are to be kept together, and these splits divide one; or contigs are divided, and one of these
            IDs is that of another contig now.
    """
    parts = []
    hint = "Remove it, or write to another folder"
    for split in schema.SPLITS:
        path = out / schema.split_file_name(split)
        if path.exists():
            with parquet_source(path, hint, DatabaseError) as source, parquet_errors(path, hint, DatabaseError):
                part = pl.read_parquet(source, columns=[CONTIG_ID, LENGTH], glob=False)
                part = part.select(pl.col(CONTIG_ID).cast(pl.String), pl.col(LENGTH).cast(pl.Int64))
            parts.append(part.with_columns(pl.lit(split).alias(SPLIT)))
    if not parts:
        return {}
    old = pl.concat(parts).join(contigs, on=CONTIG_ID, how="left", suffix="_now")
    if key == CONTIG_ID:
        _check_same_contigs(out, old)
    gone = old.filter(pl.col(SAMPLE).is_null())
    if not gone.is_empty():
        warn(
            f"{printable(out)}: its splits have {gone.height:,} contigs that are no longer in the sequence databases, "
            f"{shown(gone[CONTIG_ID][0])} the first. They are left out"
        )
    # Contigs of a sample that was built again may have other IDs now, which still name the sample.
    old = old.with_columns(pl.col(SAMPLE).fill_null(_sample_of_id()))
    units = contigs.select(key).unique()
    splits = old.join(units, on=key, how="semi").group_by(key).agg(pl.col(SPLIT).unique().sort())
    divided = splits.filter(pl.col(SPLIT).list.len() > 1).sort(key)
    if not divided.is_empty():
        name, found = divided.row(0)
        raise UsageError(
            f"{printable(out)}: the {key} {shown(name)} is in the splits {' and '.join(found)}. "
            + ("They were made with --by contig. " if key == SAMPLE else "")
            + "Write to another folder"
        )
    return dict(splits.with_columns(pl.col(SPLIT).list.first()).iter_rows())


def _check_same_contigs(out: Path, old: pl.DataFrame) -> None:
    """Refuse to keep the splits of IDs that now belong to contigs of other lengths: they could move out of validation."""
    others = old.filter(pl.col(LENGTH) != pl.col(f"{LENGTH}_now")).sort(CONTIG_ID)
    if not others.is_empty():
        contig_id, length, split, length_now, sample = others.row(0)
        raise UsageError(
            f"{printable(out / schema.split_file_name(split))} has the contig {shown(contig_id)} with {length:,} bases, and "
            f"in the sequence databases it is one of {length_now:,} bases (contigs of another length: {others.height:,}): the "
            f"sample {shown(sample)} was built again, and its contigs have other IDs. Write to another folder"
        )


def _contigs(folder: Path) -> pl.DataFrame:
    """Return (contig_id, length, sample) of every contig in a folder of sequence databases."""
    expect(folder, "SEQDB", "a folder of sequence databases")
    databases = schema.discover_sample_databases(folder)
    table = folder / schema.CONTIGS_FILE
    parts = []
    listed: set[str] = set()
    if table.exists():
        parts.append(_read_table(table))
        listed = set(parts[0][SAMPLE].unique())
        if missing := sorted(listed.difference(databases)):
            raise DatabaseError(
                f"{printable(table)} lists contigs of {_some(missing)}, which {'have' if len(missing) > 1 else 'has'} no "
                f"sequence database in {printable(folder)}. Build them again, or remove {quoted(table)}: it is not needed"
            )
        for sample, what in changed_samples(table, parts[0].lazy(), databases):
            raise DatabaseError(
                f"{printable(databases[sample])}: was changed after {printable(table)} was written ({printable(what, 300)}). "
                f"Build the sample again with --force, or let split read the databases: rm {quoted(table)}"
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
    hint = "Remove it: it is not needed"
    with parquet_source(table, hint, DatabaseError) as source, parquet_errors(table, hint, DatabaseError):
        found = pl.read_parquet_schema(source)
        contigs = pl.read_parquet(source, columns=[column for column in _COLUMNS if column in found], glob=False)
    if dict(contigs.schema) != _COLUMNS or contigs.null_count().sum_horizontal().item():
        raise DatabaseError(
            f"{printable(table)}: expected {shown(_COLUMNS, 200)} without nulls, found {shown(dict(found), 200)}. {hint}"
        )
    return contigs


def _sample_of_id() -> pl.Expr:
    """Return the sample that each contig ID names, null where it names none: `schema.extract_sample_id` for a column."""
    parts = pl.col(CONTIG_ID).str.split("__").list.get(1, null_on_oob=True).str.split("-")
    return parts.list.slice(1).list.join(".")


def _check_samples(contigs: pl.DataFrame, folder: Path) -> None:
    """Refuse contigs whose IDs name another sample: the loader would look for them in another database."""
    misplaced = contigs.filter(_sample_of_id().ne_missing(pl.col(SAMPLE)))
    if not misplaced.is_empty():
        contig_id, _, sample = misplaced.row(0)
        raise DatabaseError(
            f"{printable(schema.sample_database_path(folder, sample))}: the contig ID {shown(contig_id)} does not name the "
            f"sample {shown(sample)} ({misplaced.height} such contigs in {printable(folder)}), so the loader could not find "
            f"it. With several databases, IDs have the form BCR__ECT-{printable(sample, 80)}__CT1-1"
        )


def _some(names: Iterable[str]) -> str:
    """Return the first of some names for a message: `'A', 'B' and 3 more`."""
    names = list(names)
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
