"""`split`: the assignment of samples, existing splits, and errors."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from sharded_eden import build_sequence_dbs, create_sample_database, write_splits
from sharded_eden.assign import assign, share_of
from sharded_eden.errors import DatabaseError, EdenWarning, MissingDatabase, UsageError
from sharded_eden.windows.split_files import sequence_db_dir_of


def contigs_of(samples: list[str], each: int = 3) -> dict[str, str]:
    return {f"BCR__ECT-{s}__CT1-{i}": "ACGT" * (i + 1) for s in samples for i in range(each)}


def make(folder: Path, samples: list[str], each: int = 3) -> Path:
    oracle.write_sequence_dbs(folder, contigs_of(samples, each))
    return folder


def read(folder: Path) -> dict[str, dict[str, int]]:
    """{split: {contig ID: length}} of the files in a folder."""
    found = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pl.read_parquet(path)
        assert dict(table.schema) == {"contig_id": pl.String, "length": pl.Int64}
        ids = table["contig_id"].to_list()
        assert ids == sorted(ids, key=str.encode)
        found[path.name.removesuffix("_split.parquet")] = dict(table.iter_rows())
    return found


def samples_in(split: dict[str, int]) -> set[str]:
    return {oracle.sample_of(contig_id) for contig_id in split}


SAMPLES = [f"S{i}" for i in range(40)]


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("forty") / "db", SAMPLES)


def test_every_contig_goes_to_one_split_and_no_sample_to_two(tmp_path: Path, forty: Path) -> None:
    result = write_splits(forty, tmp_path / "out", val=0.2, test=0.2)
    splits = read(tmp_path / "out")
    assert list(result.parts) == ["train", "val", "test"]
    assert sorted(splits) == ["test", "train", "val"]
    lengths = {contig_id: len(sequence) for contig_id, sequence in contigs_of(SAMPLES).items()}
    assert splits["train"] | splits["val"] | splits["test"] == lengths
    samples = {name: samples_in(split) for name, split in splits.items()}
    assert sum(map(len, samples.values())) == len(SAMPLES)
    for name, part in result.parts.items():
        assert part.path == tmp_path / "out" / f"{name}_split.parquet"
        assert (part.samples, part.contigs) == (len(samples[name]), len(splits[name]))
        assert part.bases == sum(splits[name].values())
    # The rule must not change: models depend on these files. All samples have the same number of bases.
    order = sorted(SAMPLES, key=lambda s: share_of(s, 42))
    assert (samples["val"], samples["test"]) == (set(order[:8]), set(order[8:16]))
    assert share_of("S0", 42) == pytest.approx(0.4239691064105563, abs=1e-15)


def test_shares_are_met_and_depend_on_the_seed() -> None:
    names = [f"sample{i}" for i in range(20_000)]
    for seed in (0, -1, 42, 2**70):
        assert sum(share_of(name, seed) < 0.05 for name in names) / len(names) == pytest.approx(0.05, abs=0.005)
    assert [share_of(n, 1) < 0.5 for n in names[:99]] != [share_of(n, 2) < 0.5 for n in names[:99]]


def described(folder: Path, sizes: dict[str, int]) -> Path:
    """A folder of one contig a sample, described by its table alone, which is newer than the (empty) databases."""
    table = {"contig_id": [f"B__X-{s}__1" for s in sizes], "length": list(sizes.values()), "sample": list(sizes)}
    for name in sizes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"glm_dataset_{name}.sqlite").touch()
    path = folder / "contigs.parquet"
    pl.DataFrame(table, schema_overrides={"length": pl.Int64}).write_parquet(path)
    later = time.time_ns() + 10**9
    os.utime(path, ns=(later, later))
    return folder


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 10**6), min_size=3, max_size=60), st.data())
def test_added_samples_move_no_other(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[int], data: st.DataObject
) -> None:
    names = sorted(f"S{n}" for n in numbers)
    fewer = data.draw(st.sets(st.sampled_from(names), min_size=3))
    folder = tmp_path_factory.mktemp("stable")
    by = data.draw(st.sampled_from(["sample", "contig"]))
    homes = []
    for part in (sorted(fewer), names):
        described(folder, dict.fromkeys(part, 4))
        write_splits(folder, folder / "out", by=by, val=0.3, test=0.3, seed=len(part))
        homes.append({contig: name for name, split in read(folder / "out").items() for contig in split})
    assert homes[0].items() <= homes[1].items()


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(0, 99).map(lambda n: f"S{n}"), st.integers(0, 5_000), min_size=3, max_size=20),
    st.floats(0.001, 0.45),
    st.floats(0.001, 0.45),
    st.integers(),
)
def test_three_samples_or_more_always_succeed_and_shares_of_bases_are_met(
    bases: dict[str, int], val: float, test: float, seed: int
) -> None:
    split_of = assign(bases, {"val": val, "test": test}, seed, {})
    assert set(split_of) == set(bases)
    assert set(split_of.values()) == {"train", "val", "test"}
    total = sum(bases.values())
    for split, share in (("val", val), ("test", test)):
        sizes = [bases[name] for name, found in split_of.items() if found == split]
        ran_out = sum(found == "train" for found in split_of.values()) == 1 or (split == "val" and len(bases) < 4)
        assert sum(sizes) >= share * total or ran_out
        # More than 1.5 times its share only if one sample causes it because all remaining samples are large.
        assert sum(sizes) <= 1.5 * share * total or sum(sizes) - max(sizes) <= share * total


def test_a_numpy_seed_divides_like_pythons() -> None:
    assert [share_of("S0", seed) for seed in (np.int64(42), np.uint8(42))] == [share_of("S0", 42)] * 2


def test_thirteen_samples_with_default_shares_succeed_for_every_seed(tmp_path: Path) -> None:
    db = described(tmp_path / "db", {f"S{i}": 1_000 * (i + 1) for i in range(13)})
    for seed in range(20):
        result = write_splits(db, tmp_path / f"{seed}", seed=seed)
        assert all(part.samples >= 1 for part in result.parts.values())
        assert write_splits(db, tmp_path / f"{seed}-20", seed=seed, val=0.2).parts["val"].bases < 0.3 * 91_000


def test_one_very_large_sample_is_for_training(tmp_path: Path) -> None:
    db = described(tmp_path / "db", {"HUGE": 10**9} | {f"S{i}": 10**7 for i in range(20)})
    for seed in range(10):
        write_splits(db, tmp_path / f"{seed}", seed=seed, val=0.05, test=0.05)
        assert "HUGE" in samples_in(read(tmp_path / f"{seed}")["train"])


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_samples_propose_to_divide_contigs(tmp_path: Path, count: int) -> None:
    db = make(tmp_path / "db", SAMPLES[:count], each=30)
    with pytest.raises(UsageError, match=rf"came out empty: there (is|are) {count} sample.*--by contig"):
        write_splits(db, tmp_path / "out")
    assert set(write_splits(db, tmp_path / "out", by="contig").parts) == {"train", "val", "test"}


def test_samples_keep_the_splits_of_the_output_folder(tmp_path: Path) -> None:
    db, out = make(tmp_path / "db", SAMPLES[:20]), tmp_path / "out"
    write_splits(db, out, val=0.2, test=0.2)
    before = read(out)
    make(db, SAMPLES[20:])
    make(tmp_path / "more", SAMPLES[:1], each=9)  # S0 has gained contigs
    (tmp_path / "more/S0/glm_dataset_S0.sqlite").rename(db / "S0/glm_dataset_S0.sqlite")
    result = write_splits(db, out, val=0.1, test=0.3, seed=7)  # other shares and another seed
    after = read(out)
    assert result.kept == 20
    for name in before:
        assert samples_in(before[name]) <= samples_in(after[name])
    assert sum(len(samples_in(split)) for split in after.values()) == 40
    assert sum(len(split) for split in after.values()) == 40 * 3 + 6


def test_a_sample_that_was_built_with_other_ids_keeps_its_split(tmp_path: Path) -> None:
    db, out = make(tmp_path / "db", SAMPLES[:10]), tmp_path / "out"
    write_splits(db, out, val=0.2, test=0.2)
    held_out = sorted(samples_in(read(out)["val"]))
    for name in held_out:
        with sqlite3.connect(db / name / f"glm_dataset_{name}.sqlite") as connection:
            connection.execute("UPDATE sequences SET contig_id = replace(contig_id, '__CT1-', '__CT2-')")
        connection.close()
    with pytest.warns(EdenWarning, match=r"have 6 contigs that are no longer in the sequence databases"):
        write_splits(db, out, val=0.2, test=0.2, seed=1)
    assert sorted(samples_in(read(out)["val"])) == held_out


def test_contigs_whose_ids_mean_others_now_are_an_error(tmp_path: Path) -> None:
    """An added input before the old ones gives each contig the ID of another one, which may be in another split."""
    old, new = tmp_path / "in/b.fa", tmp_path / "in/a.fa"
    old.parent.mkdir()
    old.write_text("".join(f">b{i}\n{'ACGT' * (i + 1)}\n" for i in range(20)))
    build_sequence_dbs([tmp_path / "in"], tmp_path / "db", sample="S")
    write_splits(tmp_path / "db", tmp_path / "out", by="contig", val=0.2, test=0.2)
    before = read(tmp_path / "out")
    new.write_text(">a0\nACG\n")
    build_sequence_dbs([tmp_path / "in"], tmp_path / "db", sample="S", force=True)
    words = r"contig 'BCR__ECT-S__CT1-1.* with 4 bases.* one of 3 bases.*built again.*Write to another folder"
    with pytest.raises(UsageError, match=words):
        write_splits(tmp_path / "db", tmp_path / "out", by="contig", val=0.2, test=0.2)
    assert read(tmp_path / "out") == before
    build_sequence_dbs([old, new], tmp_path / "db", sample="S", force=True)
    write_splits(tmp_path / "db", tmp_path / "out", by="contig", val=0.2, test=0.2)
    assert all(before[name].items() <= split.items() for name, split in read(tmp_path / "out").items())


def test_requests_that_contradict_the_splits_of_the_output_folder(tmp_path: Path) -> None:
    db, out = make(tmp_path / "db", SAMPLES[:10]), tmp_path / "out"
    write_splits(db, out, val=0.2, test=0.2)
    splits = read(out)
    trained, held_out = sorted(samples_in(splits["train"]))[0], sorted(samples_in(splits["val"]))
    names = tmp_path / "val.txt"
    for listed, wrong in (([*held_out, trained], trained), (held_out[:1], held_out[1])):
        names.write_text("\n".join(listed))
        with pytest.raises(UsageError, match=f"sample '{wrong}', which would move to .*another folder"):
            write_splits(db, out, val_samples=names)
    names.write_text("\n".join(held_out))
    write_splits(db, out, val_samples=names)
    assert read(out) == splits
    write_splits(db, tmp_path / "contigs", by="contig", val=0.2, test=0.2)
    with pytest.raises(UsageError, match=r"is in the splits .* and .*made with --by contig"):
        write_splits(db, tmp_path / "contigs")
    (out / "test_split.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatabaseError, match=r"test_split\.parquet: cannot be read as Parquet"):
        write_splits(db, out)
    assert read(tmp_path / "contigs")


def test_a_folder_of_training_alone_takes_no_validation_without_new_samples(tmp_path: Path) -> None:
    db, out = make(tmp_path / "db", SAMPLES[:4]), tmp_path / "out"
    write_splits(db, out, val=0, test=0)
    with pytest.raises(UsageError, match=r"the val split came out empty.*keep their splits.*write to another folder"):
        write_splits(db, out, test=0)
    make(db, ["NEW"])
    write_splits(db, out, test=0)
    assert samples_in(read(out)["val"]) == {"NEW"}


def test_a_contig_twice_in_a_database_without_a_key(tmp_path: Path) -> None:
    path = tmp_path / "db/ONE/glm_dataset_ONE.sqlite"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE sequences (contig_id TEXT, nt_sequence TEXT)")
        connection.executemany("INSERT INTO sequences VALUES (?, ?)", [("a", "ACGT"), ("b", "A"), ("a", "AC")])
    connection.close()
    for by in ("sample", "contig"):
        with pytest.raises(DatabaseError, match="contig 'a' is in it 2 times"):
            write_splits(tmp_path / "db", tmp_path / "out", by=by, val=0, test=0)


def test_a_split_names_its_sequence_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "db", ["A"])
    monkeypatch.chdir(tmp_path)
    write_splits("db", "out", val=0, test=0)
    assert sequence_db_dir_of("out/train_split.parquet") == tmp_path / "db"
    pl.DataFrame({"contig_id": ["a"], "length": [1]}).write_parquet("plain.parquet")
    assert sequence_db_dir_of("plain.parquet") is None


def test_by_contig_divides_a_single_sample(tmp_path: Path) -> None:
    db = make(tmp_path / "db", ["ONE"], each=200)
    result = write_splits(db, tmp_path / "out", by="contig", val=0.1, test=0.1)
    splits = read(tmp_path / "out")
    assert sum(map(len, splits.values())) == 200
    assert {name: part.contigs for name, part in result.parts.items()} == {n: len(splits[n]) for n in result.parts}
    assert 5 < len(splits["val"]) < 40


def test_lists_name_who_goes_there_and_nobody_else_does(tmp_path: Path, forty: Path) -> None:
    (tmp_path / "val.txt").write_text("# held out\nS3\n\n  S5  # the odd one\n")
    (tmp_path / "test.txt").write_text("S7\r\n")
    write_splits(forty, tmp_path / "both", val_samples=tmp_path / "val.txt", test_samples=str(tmp_path / "test.txt"))
    splits = read(tmp_path / "both")
    assert samples_in(splits["val"]) == {"S3", "S5"}
    assert samples_in(splits["test"]) == {"S7"}
    assert samples_in(splits["train"]) == set(SAMPLES) - {"S3", "S5", "S7"}
    write_splits(forty, tmp_path / "one", val_samples=tmp_path / "val.txt", test=0.2)
    splits = read(tmp_path / "one")
    assert samples_in(splits["val"]) == {"S3", "S5"}
    order = [s for s in sorted(SAMPLES, key=lambda s: share_of(s, 42)) if s not in {"S3", "S5"}]
    assert samples_in(splits["test"]) == set(order[:8])


def test_share_of_zero_writes_no_such_split(tmp_path: Path) -> None:
    db = make(tmp_path / "db", ["A", "B"])
    result = write_splits(db, tmp_path / "out", val=0, test=0)
    assert list(result.parts) == ["train"]
    assert list(read(tmp_path / "out")) == ["train"]
    left = tmp_path / "out/val_split.parquet"
    left.write_bytes(b"older")
    with pytest.raises(UsageError, match=rf"{left} is left from an earlier run.*rm {left}"):
        write_splits(db, tmp_path / "out", val=0, test=0)
    assert left.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val": -0.1}, ["--val -0.1"]),
        ({"test": 1.0}, ["--test 1.0"]),
        ({"val": float("nan")}, ["--val nan"]),
        ({"val": 0.5, "test": 0.5}, ["leave nothing to train on"]),
        ({"by": "genus"}, ["'sample' or 'contig'", "'genus'"]),
        ({"val_samples": ["S1", "X9", "X8"]}, ["no sequence database of 'X8', 'X9'"]),
        ({"val_samples": ["S1"], "test_samples": ["S2", "S1"]}, ["'S1'", "both --val-samples and --test-samples"]),
        ({"val_samples": ["# nobody"]}, ["--val-samples", "names no sample"]),
        ({"val_samples": ["S1"], "by": "contig"}, ["--val-samples", "--by contig"]),
        ({"val_samples": None, "test_samples": Path("nowhere.txt")}, ["--test-samples nowhere.txt", "cannot be read"]),
        (
            {"val_samples": SAMPLES[1:], "test_samples": SAMPLES[:1]},
            ["train split came out empty", "name fewer samples"],
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, forty: Path, options: dict, words: list[str]) -> None:
    for name, value in options.items():
        if isinstance(value, list):
            (tmp_path / name).write_text("\n".join(value))
            options = options | {name: tmp_path / name}
    with pytest.raises(UsageError) as caught:
        write_splits(forty, tmp_path / "out", **options)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_databases_without_a_table_and_with_one_give_the_same(tmp_path: Path) -> None:
    for sample in SAMPLES:
        text = "".join(f">c{i} x\n{'ACGT' * (i + 1)}\n" for i in range(3))
        (tmp_path / f"{sample}.fa").write_text(text)
    build_sequence_dbs([f"{tmp_path}/*.fa"], tmp_path / "db")
    write_splits(tmp_path / "db", tmp_path / "with", val=0.2, test=0.2)
    (tmp_path / "db/contigs.parquet").unlink()
    write_splits(tmp_path / "db", tmp_path / "without", val=0.2, test=0.2)
    assert read(tmp_path / "with") == read(tmp_path / "without")


def test_samples_that_the_table_does_not_list_are_read_from_their_databases(tmp_path: Path) -> None:
    (tmp_path / "A.fa").write_text(">c\nACGT\n")
    build_sequence_dbs([tmp_path / "A.fa"], tmp_path / "db")
    make(tmp_path / "db", ["OLD"])
    write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)
    expected = {"BCR__ECT-A__CT1-1": 4} | {name: len(s) for name, s in contigs_of(["OLD"]).items()}
    assert read(tmp_path / "out")["train"] == expected


def test_table_that_lists_a_sample_without_a_database(tmp_path: Path) -> None:
    for sample in "ABC":
        (tmp_path / f"{sample}.fa").write_text(">c\nACGT\n")
    build_sequence_dbs([f"{tmp_path}/*.fa"], tmp_path / "db")
    (tmp_path / "db/B/glm_dataset_B.sqlite").unlink()
    with pytest.raises(DatabaseError, match=r"contigs\.parquet lists contigs of 'B', which has no sequence database"):
        write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)


def test_databases_that_were_changed_after_the_table_was_written(tmp_path: Path) -> None:
    for sample in "AB":
        (tmp_path / f"{sample}.fa").write_text(f">c\n{'ACGT' if sample == 'A' else 'ACGTAC'}\n")
    build_sequence_dbs([f"{tmp_path}/*.fa"], tmp_path / "db")
    table, path = tmp_path / "db/contigs.parquet", tmp_path / "db/A/glm_dataset_A.sqlite"
    before = path.read_bytes()

    def lengths(out: str) -> list[int]:
        write_splits(tmp_path / "db", tmp_path / out, val=0, test=0)
        return list(read(tmp_path / out)["train"].values())

    os.utime(path)  # newer, with the same contigs, as a copy may be
    assert lengths("same") == [4, 6]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE sequences SET nt_sequence = 'ACGTA'")
    with pytest.raises(DatabaseError, match=r"A\.sqlite: was changed after .* of 4 bases then, .* of 5 now") as caught:
        lengths("out")
    assert f"rm {table}" in str(caught.value)
    assert not (tmp_path / "out").exists()

    path.write_bytes(before)
    state = path.stat()
    shutil.copyfile(tmp_path / "db/B/glm_dataset_B.sqlite", tmp_path / "other")
    with closing(sqlite3.connect(tmp_path / "other")) as database, database:
        database.execute("UPDATE sequences SET contig_id = 'BCR__ECT-A__CT1-1'")
    os.utime(tmp_path / "other", ns=(state.st_atime_ns, table.stat().st_mtime_ns - 10**9))
    os.replace(tmp_path / "other", path)  # an older file in the place of the database
    with pytest.raises(DatabaseError, match=r"of 4 bases then, .* of 6 now"):
        lengths("out")
    table.unlink()
    assert lengths("out") == [6, 6]


@pytest.mark.parametrize(
    "table",
    [
        b"not Parquet",
        pl.DataFrame({"contig_id": ["x"]}),
        pl.DataFrame({"contig_id": ["x"], "length": ["4"], "sample": ["A"]}),
        pl.DataFrame({"contig_id": ["x"], "length": [None], "sample": ["A"]}, schema_overrides={"length": pl.Int64}),
    ],
)
def test_table_that_is_not_what_its_name_promises(tmp_path: Path, table: bytes | pl.DataFrame) -> None:
    path = make(tmp_path / "db", ["A"]) / "contigs.parquet"
    path.write_bytes(table) if isinstance(table, bytes) else table.write_parquet(path)
    with pytest.raises(DatabaseError, match=r"contigs\.parquet: .*Remove it: it is not needed"):
        write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)


def test_contig_in_the_wrong_database(tmp_path: Path) -> None:
    db = make(tmp_path / "db", ["A", "B"])
    with sqlite3.connect(db / "A/glm_dataset_A.sqlite") as connection:
        connection.execute("INSERT INTO sequences VALUES ('BCR__ECT-B__CT1-9', 'ACGT')")
    connection.close()
    with pytest.raises(DatabaseError, match=r"glm_dataset_A\.sqlite: the contig ID 'BCR__ECT-B__CT1-9'"):
        write_splits(db, tmp_path / "out", val=0, test=0)


@pytest.mark.parametrize("contig_id", ["chr1", "B__", "B__X", "B__X-S-2__1", "B__X-S.2__1"])
def test_extraction_in_columns_agrees_with_the_specification(tmp_path: Path, contig_id: str) -> None:
    """`S.2` is a sample of the folder, so the last two IDs are in the right database and the others are not."""
    for sample, ids in (("S.2", [contig_id]), ("T", ["B__X-T__1"])):
        (tmp_path / "db" / sample).mkdir(parents=True)
        with sqlite3.connect(tmp_path / "db" / sample / f"glm_dataset_{sample}.sqlite") as connection:
            connection.execute("CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)")
            connection.executemany("INSERT INTO sequences VALUES (?, 'ACGT')", [(i,) for i in ids])
        connection.close()
    if "__" in contig_id and oracle.sample_of(contig_id) == "S.2":
        write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)
        assert contig_id in read(tmp_path / "out")["train"]
    else:
        with pytest.raises(DatabaseError, match=f"the contig ID '{contig_id}' does not name the sample 'S.2'"):
            write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)


def test_single_database_may_have_any_ids(tmp_path: Path) -> None:
    create_sample_database("ONE", [("chr1", "ACGT"), ("chr2", "AC")], tmp_path / "db")
    write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)
    assert read(tmp_path / "out") == {"train": {"chr1": 4, "chr2": 2}}


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
def test_lengths_are_bases_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "db/ONE").mkdir(parents=True)
    with sqlite3.connect(tmp_path / "db/ONE/glm_dataset_ONE.sqlite") as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute("CREATE TABLE sequences (contig_id TEXT PRIMARY KEY, nt_sequence TEXT NOT NULL)")
        connection.execute("INSERT INTO sequences VALUES ('chr1', ?)", ("ACGTN" * 4_000,))
    connection.close()
    write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)
    assert read(tmp_path / "out") == {"train": {"chr1": 20_000}}


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        ("CREATE TABLE other (x)", ["expected a table sequences(contig_id, nt_sequence)", "found none"]),
        ("CREATE TABLE sequences (id TEXT, seq TEXT)", ["found sequences(id, seq)"]),
        ("CREATE TABLE sequences (contig_id TEXT, nt_sequence TEXT)", ["its table sequences is empty"]),
        (
            "CREATE TABLE sequences (contig_id TEXT, nt_sequence TEXT); INSERT INTO sequences VALUES (NULL, 'A')",
            ["no text as contig_id"],
        ),
        (
            "CREATE TABLE sequences (contig_id, nt_sequence); INSERT INTO sequences VALUES ('a', 'A'), (x'FF', 'A')",
            ["no text as contig_id"],
        ),
    ],
)
def test_database_that_is_not_what_its_name_promises(tmp_path: Path, statements: str, words: list[str]) -> None:
    path = tmp_path / "db/ONE/glm_dataset_ONE.sqlite"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()
    with pytest.raises(DatabaseError) as caught:
        write_splits(tmp_path / "db", tmp_path / "out", val=0, test=0)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_no_databases(tmp_path: Path) -> None:
    with pytest.raises(MissingDatabase, match="sharded-eden build"):
        write_splits(tmp_path / "none", tmp_path / "out")
