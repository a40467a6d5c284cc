"""The data set that cases change: how it is made, copied, changed, and compared with what it was before."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
from case import Case
from database_mutations import mutate_database
from inputs import built
from mutations import BINARY_MUTATIONS, change_table, mutate

import oracle
from sharded_eden import build_sequence_dbs, precompute_window_database, write_splits

T, STRIDE = 64, 50
SAMPLES = ("S0", "S1", "S2.X")


def world(case: Case) -> Path:
    """Return a copy of the prepared data set, in the folder of the case."""
    folder = case.folder / "world"
    shutil.copytree(case.folder.parent / "template", folder)
    return folder


def contigs_of(sample: int) -> dict[str, str]:
    """Return the contigs of a sample: around window boundaries, and one that needs overflow pages."""
    choose = random.Random(sample)
    lengths = (200, 20, 164, 63, 5000 + 777 * sample) if sample < 2 else (165, 64)
    letters = ("ACGT", "ACGTacgtNn", "ACGTRYKMSWBDHVN")[sample]
    return {f"c{i}": "".join(choose.choices(letters, k=length)) for i, length in enumerate(lengths)}


def prepare(folder: Path) -> None:
    """Write the data set that every case of a process changes a copy of."""
    (folder / "in").mkdir(parents=True)
    for number, sample in enumerate(SAMPLES):
        text = "".join(f">{name} made up\n{sequence}\n" for name, sequence in contigs_of(number).items())
        (folder / "in" / f"{sample}.fa").write_text(text)
    build_sequence_dbs([folder / "in"], folder / "seqs")
    write_splits(folder / "seqs", folder / "splits", by="contig", val=0.2, test=0, seed=1)
    for name in ("train", "val"):
        split = folder / "splits" / f"{name}_split.parquet"
        precompute_window_database(split, folder / f"{name}.db", T, STRIDE, pack=name == "train")
    contigs = {contig: bases for rows in built(folder / "seqs").values() for contig, bases in rows}
    oracle.write_window_db(folder / "foreign.db", contigs, T, STRIDE)
    killed = folder / "killed"
    program = (
        "import os, sys; from sharded_eden import build_sequence_dbs\n"
        "build_sequence_dbs([sys.argv[1]], sys.argv[2], note=lambda text: os.path.exists(sys.argv[3]) and os._exit(9))"
    )
    mark = killed / "S1" / "glm_dataset_S1.sqlite"
    subprocess.run([sys.executable, "-c", program, str(folder / "in"), str(killed), str(mark)], check=False)


def receipts(folder: Path) -> list[Path]:
    """Return the receipts that a killed build left in its output folder."""
    return sorted((folder / ".partial-build" / "receipts").glob("*"))


def change_file(case: Case, path: Path) -> None:
    """Change a file of the data set by what it is."""
    what = "bytes"
    if path.suffix in {".db", ".sqlite"}:
        what = mutate_database(case.choose, path)
    elif path.suffix == ".parquet" and case.choose.random() < 0.7:
        data = path.read_bytes()
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):
            data = change_table(case.choose, data, "parquet")
        path.write_bytes(data)
        what = "table"
    else:
        path.write_bytes(mutate(case.choose, path.read_bytes(), BINARY_MUTATIONS))
    case.done.append(f"{path.relative_to(case.folder)} ({what})")


def contents(folder: Path) -> dict[str, str]:
    """Return {path: digest} of all files but `-shm`: SQLite makes and changes those whenever it opens a `-wal`, to read too."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def changed_in(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in after.keys() | before.keys() if after.get(name) != before.get(name))


def rows_of(sequences: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(sequences.glob("*/glm_dataset_*.sqlite")):
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as database:
                found[path.parent.name] = database.execute(
                    "SELECT contig_id, nt_sequence FROM sequences ORDER BY rowid"
                ).fetchall()
        except sqlite3.Error as error:
            found[path.parent.name] = str(error)
            continue
        # A BLOB of the same bytes is read as the same bases.
        found[path.parent.name] = [
            (name, bases.decode("latin-1") if isinstance(bases, bytes) else bases)
            for name, bases in found[path.parent.name]
        ]
    return found
