"""The commands that messages recommend, written in one place. A test parses each with the command line itself.

Input: paths and settings. Output: a command that can be pasted into a shell; the user replaces the words in capitals.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path

from sharded_eden.format.geometry import WindowGeometry

PathLike = str | os.PathLike[str]


def quoted(path: PathLike) -> str:
    """Return a path for a shell: quoted where needed, and never mistaken for an option.

    Names with control characters or bytes that are not UTF-8 are quoted as `$'...'`, which Bash and Zsh read.
    """
    text = os.fspath(path)
    text = f"./{text}" if text.startswith("-") else text
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(_escaped(each) for each in text)}'"


def _escaped(character: str) -> str:
    """Return a character as it is written inside `$'...'`."""
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return "".join(f"\\x{each:02x}" for each in os.fsencode(character))


def build_command(out: PathLike, *, given: str = "INPUT", force: bool = False) -> str:
    """Return the command that builds sequence databases into a folder; `given` is what it reads."""
    return f"sharded-eden build {given} --out {quoted(out)}" + (" --force" if force else "")


def split_command(
    sequence_db_dir: PathLike = "SEQDB", out: PathLike = "DIR", *, by_contig: bool = False, group_similar: bool = False
) -> str:
    """Return the command that divides a folder of sequence databases into splits."""
    words = [f"sharded-eden split {quoted(sequence_db_dir)} --out {quoted(out)}"]
    return " ".join([*words, *["--by contig"] * by_contig, *["--group-similar"] * group_similar])


def precompute_command(
    window_db: PathLike,
    *,
    split: PathLike = "SPLIT.parquet",
    geometry: WindowGeometry | None = None,
    max_ambiguous: float | None = None,
    sequences: PathLike = "SEQDB",
    metadata: Mapping[str, object] | None = None,
    pack: bool = False,
    force: bool = False,
) -> str:
    """Return the command that makes a window database.

    Args:
        window_db: the window database to write.
        split: the Parquet file of the split.
        geometry: how its windows are cut; None leaves the options out.
        max_ambiguous: the share of ambiguous letters from which windows are left out.
        sequences: the folder of sequence databases, needed for `max_ambiguous`.
        metadata: the metadata of a window database whose packs are to be made again.
        pack: make packs where `metadata` does not say so.
        force: replace a window database of another geometry, of other contigs or with other packs.
    """
    words = ["sharded-eden precompute", quoted(split), quoted(window_db)]
    if geometry is not None:
        words.append(f"--window-size {geometry.window_size} --stride {geometry.stride}")
        if geometry.min_length:
            words.append(f"--window-min-length-threshold {geometry.min_length}")
        if geometry.keep_tail:
            words.append("--keep-tail")
        if geometry.special_tokens != WindowGeometry.special_tokens:
            words.append(f"--special-tokens {geometry.special_tokens}")
    if max_ambiguous is not None:
        words.append(f"--max-ambiguous {max_ambiguous:g} --sequences {quoted(sequences)}")
    if metadata is not None and "total_packs" in metadata:
        words.append("--pack")
        if metadata.get("pack_seed", 42) != 42:
            words.append(f"--pack-seed {metadata['pack_seed']}")
    elif pack:
        words.append("--pack")
    if force:
        words.append("--force")
    return " ".join(words)


def pack_command(
    window_db: PathLike, *, seed: object = 42, sequences: PathLike | None = None, force: bool = False
) -> str:
    """Return the command that packs the windows of a window database.

    Args:
        window_db: the window database.
        seed: the seed of the packs; ignored unless it is an integer.
        sequences: the folder of sequence databases, needed where the window database has no table `contig_lengths`.
        force: replace packs that are not the same.
    """
    words = ["sharded-eden pack", quoted(window_db)]
    if isinstance(seed, int) and seed != 42:
        words.append(f"--seed {seed}")
    if sequences is not None:
        words.append(f"--sequences {quoted(sequences)}")
    if force:
        words.append("--force")
    return " ".join(words)


def pack_by_tokens_command(window_db: PathLike, seq_length: int, *, force: bool = False) -> str:
    """Return the command that packs the windows of a window database by the tokens that a tokenizer makes of them."""
    return (
        f"sharded-eden pack {quoted(window_db)} --tokenizer tokenizer.json --seq-length {seq_length} --sequences SEQDB"
        + (" --force" if force else "")
    )


def verify_command(sequence_db_dir: PathLike = "SEQDB", *window_dbs: PathLike, full: bool = False) -> str:
    """Return the command that checks sequence databases and window databases."""
    return " ".join(["sharded-eden verify", quoted(sequence_db_dir), *map(quoted, window_dbs)]) + (
        " --full" if full else ""
    )


def stats_command(*paths: PathLike) -> str:
    """Return the command that counts what is in sequence databases, window databases or splits."""
    return " ".join(["sharded-eden stats", *(map(quoted, paths) if paths else ["SEQDB", "WINDOWS.db"])])


def bench_command(sequence_db_dir: PathLike = "SEQDB", window_db: PathLike = "WINDOWS.db") -> str:
    """Return the command that measures how fast a split loads."""
    return f"sharded-eden bench {quoted(sequence_db_dir)} {quoted(window_db)}"


def report_command(*, logs: bool = False) -> str:
    """Return the command that writes a report, with access logs or without."""
    return "sharded-eden report OUT.html SEQDB WINDOWS.db" + (" --logs FOLDER" if logs else "")


def index_command(sequence_db_dir: PathLike = "SEQDB", window_db: PathLike = "WINDOWS.db") -> str:
    """Return the command that writes the index of a window database."""
    return f"sharded-eden index {quoted(sequence_db_dir)} {quoted(window_db)}"


def index_at_command(url: str, window_db: PathLike = "WINDOWS.db") -> str:
    """Return the command that adds the objects at a URL to the index of a window database."""
    return f"sharded-eden index --at {quoted(url)} {quoted(window_db)}"


def fetch_command(url: str, folder: PathLike = "DIR", window_db: PathLike | None = None) -> str:
    """Return the command that copies sequence databases from object storage."""
    windows = "" if window_db is None else f" --windows {quoted(window_db)}"
    return f"sharded-eden fetch {quoted(url)} {quoted(folder)}{windows}"


def sibling(path: PathLike, suffix: str) -> Path:
    """Return a new name beside a file: `train_windows.db` -> `train_windows.8192.db` for the suffix `8192`.

    Where that exists, `train_windows.8192-2.db` is next.
    """
    path = Path(path)
    suffixes = chain([suffix], (f"{suffix}-{k}" for k in count(2)))
    names = (path.with_name(f"{path.stem}.{each}{path.suffix}") for each in suffixes)
    return next(name for name in names if not name.exists())
