"""Windows written for other programs, read back with their own readers and compared by hash; Megatron's datasets as input."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import worlds

import oracle
from sharded_eden import ArrayDataset, ArrayStream, build_sequence_dbs
from sharded_eden.cli import main
from sharded_eden.errors import DatabaseError, InputError, UsageError, WriteError
from sharded_eden.export import export_windows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")

CONTIGS = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(1 + 61 * k % 300, k, "ACGTacgtN") for k in range(15)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.write(tmp_path_factory.mktemp("export"), CONTIGS)


def digest(parts: list[bytes]) -> str:
    made = blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.hexdigest()


def rows_of(folder: Path, order: str, epochs: int, **options: Any) -> list[tuple[int, int]]:
    with ArrayDataset.open(folder / "seqs", folder / "windows.db", **options) as dataset:
        return ArrayStream(dataset, shuffle=order == "stream").windows_at(range(epochs * len(dataset)))


@pytest.mark.parametrize(("order", "epochs", "rc"), [("contig", 1, False), ("stream", 2, True)])
def test_an_indexed_dataset_holds_the_rows(folder, tmp_path, order, epochs, rc):
    done = export_windows(
        folder / "windows.db",
        folder / "seqs",
        tmp_path / "out",
        "indexed",
        order=order,
        epochs=epochs,
        seed=5,
        rc_aug=rc,
    )
    read = indexed_dataset.IndexedDataset(str(tmp_path / "out"), mmap=True)
    assert read.index.dtype == np.uint8
    assert len(read) == done.windows == len(read.document_indices) - 1
    documents = [read[k].tobytes() for k in range(len(read))]
    assert digest(documents) == done.digest
    wanted = []
    with ArrayDataset.open(folder / "seqs", folder / "windows.db", seed=5, rc_aug=rc) as dataset:
        for item in rows_of(folder, order, epochs, seed=5, rc_aug=rc):
            row = dataset.arrays([item])["tokens"][0]
            wanted.append(row[: int(np.flatnonzero(row == oracle.EOS)[0]) + 1].astype(np.uint8).tobytes())
    assert documents == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.bin", "out.idx"]


@pytest.mark.parametrize(("order", "epochs", "rc"), [("contig", 1, False), ("stream", 2, True)])
def test_a_parquet_file_holds_the_bases(folder, tmp_path, order, epochs, rc):
    path = tmp_path / "out.parquet"
    done = export_windows(
        folder / "windows.db", folder / "seqs", path, "parquet", order=order, epochs=epochs, rc_aug=rc
    )
    table = pq.read_table(path).to_pylist()
    assert [(row["epoch"], row["window_idx"]) for row in table] == rows_of(folder, order, epochs, rc_aug=rc)
    assert digest([row["sequence"].encode() for row in table]) == done.digest
    assert {row["reverse"] for row in table} == ({False, True} if rc else {False})
    for row in table:
        sequence = CONTIGS[row["sequence_id"]][row["start"] :][: worlds.T - 3]
        if row["reverse"]:
            pairs = oracle.COMPLEMENT
            sequence = "".join(pairs[c] if c in pairs else pairs[c.upper()].lower() for c in reversed(sequence))
        assert row["sequence"] == sequence


def test_the_command_and_its_errors(folder, tmp_path, capsys):
    paths = [str(folder / "windows.db"), str(tmp_path / "out.parquet"), "--sequences", str(folder / "seqs")]
    assert main(["export", *paths, "--to", "parquet", "--order", "stream"]) == 0
    out = capsys.readouterr().out
    done = export_windows(folder / "windows.db", folder / "seqs", tmp_path / "again", "parquet", order="stream")
    assert f"hash     {done.digest}" in out
    assert main(["export", *paths]) == 2
    for options, text in (({"to": "csv"}, "to must be"), ({"order": "x"}, "order must be"), ({"epochs": 0}, "at least 1"),
                          ({"epochs": 2}, "the same windows again")):  # fmt: skip
        with pytest.raises(UsageError, match=text):
            export_windows(folder / "windows.db", folder / "seqs", tmp_path / "x", **{"to": "parquet", **options})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("odd", ["\x01", "\n", "\u00e9"])
def test_letters_that_training_refuses_are_not_exported(tmp_path, odd):
    folder = worlds.write(tmp_path)
    worlds.execute(
        worlds.sample_db(folder, "S0"),
        ("UPDATE sequences SET nt_sequence = substr(nt_sequence, 1, 20) || ? || substr(nt_sequence, 22)", (odd,)),
    )
    with worlds.dataset(folder) as dataset, pytest.raises(DatabaseError, match="cannot be encoded") as training:
        dataset.__getitems__(range(len(dataset)))
    with pytest.raises(DatabaseError) as export:
        export_windows(folder / "windows.db", folder / "seqs", folder / "out.parquet", "parquet")
    assert str(export.value) == str(training.value)
    assert not (folder / "out.parquet").exists()


def test_epochs_may_be_a_small_integer_of_numpy(folder, tmp_path):
    paths = folder / "windows.db", folder / "seqs", tmp_path / "out.parquet"
    once = export_windows(*paths, "parquet").windows
    epochs = 1 + 127 // once  # their product does not fit into 8 bits
    assert export_windows(*paths, "parquet", order="stream", epochs=np.int8(epochs)).windows == epochs * once > 127


def test_an_export_that_is_cut_short_leaves_no_old_index_beside_new_tokens(folder, tmp_path, monkeypatch):
    paths = folder / "windows.db", folder / "seqs", tmp_path / "out"
    export_windows(*paths, "indexed")
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target.suffix == ".idx":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("sharded_eden.format.publish.os.replace", fail)
        with pytest.raises(WriteError, match=r"out\.idx: cannot be written \(No space left on device\)"):
            export_windows(*paths, "indexed", order="stream", rc_aug=True, epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]
    with pytest.raises(UsageError, match=r"out\.bin exists .*remove it first"):
        export_windows(*paths, "indexed")


def test_an_export_whose_tokens_cannot_be_written_leaves_the_old_pair(folder, tmp_path, monkeypatch):
    paths = folder / "windows.db", folder / "seqs", tmp_path / "out"
    export_windows(*paths, "indexed")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("sharded_eden.export.sync", fail)
        with pytest.raises(WriteError, match=r"cannot be written \(No space left on device\)"):
            export_windows(*paths, "indexed", order="stream", rc_aug=True, epochs=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_package_is_named(folder, tmp_path):
    program = (
        "import sys; sys.modules['megatron'] = None\nfrom sharded_eden.export import export_windows\n"
        f"export_windows({str(folder / 'windows.db')!r}, {str(folder / 'seqs')!r}, {str(tmp_path / 'o')!r}, 'indexed')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install '.[megatron]'" in done.stderr
    assert not list(tmp_path.iterdir())


def write_indexed(prefix: Path, documents: list[list[list[int]]], dtype: Any = np.uint8) -> None:
    torch = pytest.importorskip("torch")
    builder = indexed_dataset.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def contents(seqdb: Path) -> list[str]:
    import apsw

    found = []
    for path in sorted(seqdb.glob("*/*.sqlite")):
        found += [
            row[0] for row in apsw.Connection(str(path)).execute("SELECT nt_sequence FROM sequences ORDER BY rowid")
        ]
    return found


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, np.int64])
def test_build_reads_datasets_of_byte_tokens(tmp_path, dtype):
    texts = [["ACGTNacgt" * 5], ["AC", "GGT"], ["T" * 90]]
    documents = [[[1, 3, *text.encode(), 2, 0] for text in texts_of] for texts_of in texts]
    write_indexed(tmp_path / "data", documents, dtype)
    build_sequence_dbs([tmp_path / "data.bin"], tmp_path / "seqdb")
    assert sorted(contents(tmp_path / "seqdb")) == sorted("".join(each) for each in texts)


def test_what_was_exported_can_be_built_again(folder, tmp_path):
    export_windows(folder / "windows.db", folder / "seqs", tmp_path / "data", "indexed")
    build_sequence_dbs([tmp_path / "data.bin"], tmp_path / "seqdb")
    with ArrayDataset.open(folder / "seqs", folder / "windows.db") as dataset:
        bases = [window.bases.tobytes().decode().upper() for window in dataset.fetch_many(range(len(dataset)))]
    assert sorted(contents(tmp_path / "seqdb")) == sorted(bases)


def test_damaged_datasets_are_refused(tmp_path):
    def refused(name: str, text: str) -> None:
        with pytest.raises(InputError, match=text):
            build_sequence_dbs([tmp_path / f"{name}.bin"], tmp_path / "seqdb")
        assert not list((tmp_path / "seqdb").glob("*/*.sqlite"))

    good = [[list(b"ACGTACGT")], [list(b"GGGTTTAA")]]
    write_indexed(tmp_path / "no_index", good)
    (tmp_path / "no_index.idx").unlink()
    refused("no_index", "its index .* cannot be read")
    write_indexed(tmp_path / "short", good)
    (tmp_path / "short.bin").write_bytes(b"ACGTACGTGGG")
    refused("short", "has 11 bytes, but .* describes 16")
    write_indexed(tmp_path / "cut", good)
    (tmp_path / "cut.idx").write_bytes((tmp_path / "cut.idx").read_bytes()[:-3])
    refused("cut", "truncated, or of a multimodal")
    (tmp_path / "cut.idx").write_bytes(b"MMIDIDX")
    refused("cut", "is not the index of a dataset of Megatron")
    write_indexed(tmp_path / "bpe", [[[300, 400, 65]]], np.int32)
    refused("bpe", "document 1: holds token 300")
    write_indexed(tmp_path / "inside", [[list(b"ACGT")], [[65, 2, 65]]])
    refused("inside", "document 2: holds the special token 2 between letters")


def test_another_index_of_the_same_tokens_is_noticed(tmp_path):
    write_indexed(tmp_path / "data", [[list(b"ACGT"), list(b"GGTT")]])
    options: dict[str, Any] = {"sample": "S", "format": "indexed"}
    build_sequence_dbs([tmp_path / "data.bin"], tmp_path / "out", **options)
    assert contents(tmp_path / "out") == ["ACGTGGTT"]
    again = build_sequence_dbs([tmp_path / "data.bin"], tmp_path / "out", **options)
    assert contents(tmp_path / "out") == ["ACGTGGTT"], again
    tokens = (tmp_path / "data.bin").read_bytes()
    write_indexed(tmp_path / "data", [[list(b"ACGT")], [list(b"GGTT")]])
    assert (tmp_path / "data.bin").read_bytes() == tokens
    with pytest.raises(UsageError, match=r"data\.bin has changed since sample 'S' was built"):
        build_sequence_dbs([tmp_path / "data.bin"], tmp_path / "out", **options)
    build_sequence_dbs([tmp_path / "data.bin"], tmp_path / "out", force=True, **options)
    assert sorted(contents(tmp_path / "out")) == ["ACGT", "GGTT"]


def test_only_an_export_is_replaced(folder, tmp_path):
    def export(out: Path, to: str) -> None:
        export_windows(folder / "windows.db", folder / "seqs", out, to)

    for name in ("windows.db", "other.bin", "split.parquet", "out.bin"):
        (tmp_path / name).write_bytes((folder / "windows.db").read_bytes())
    pl.DataFrame({"contig_id": ["a"]}).write_parquet(tmp_path / "split.parquet")
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, to, there in (
        ("windows.db", "parquet", "a window database"),
        ("split.parquet", "parquet", "a Parquet file"),
        ("out", "indexed", "a window database"),
    ):
        with pytest.raises(UsageError, match=rf"OUT: .* exists and is {there}: give another name"):
            export(tmp_path / name, to)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    for _ in range(2):  # an earlier export is replaced
        export(tmp_path / "new.parquet", "parquet")
        export(tmp_path / "new", "indexed")
