"""The items of a dataset, its methods for callers of the original loader, opening and closing."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import worlds
from torch.utils.data import DataLoader, Subset, default_collate
from worlds import STRIDE, T, as_lists, expected

import oracle
from sharded_eden import Mixture, ShardedEdenDataset
from sharded_eden.errors import DatabaseError, EdenError, EdenWarning, GeometryMismatch, MissingSequence, UsageError
from sharded_eden.load.encode.batch import Rows
from sharded_eden.load.encode.example import is_reversed
from sharded_eden.shuffle import derive_keys
from sharded_eden.windows.index import index_window_database

KEYS = {"tokens", "labels", "position_ids", "loss_mask"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return worlds.write(tmp_path)


def open_files_below(folder: Path) -> list[str]:
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return [link for link in links if link.startswith(str(folder))]


# ---- items ----


def test_an_item_has_the_documented_tensors(folder):
    with worlds.dataset(folder) as dataset:
        for i in range(len(dataset)):
            item = dataset[i]
            assert item.keys() == KEYS
            for name, tensor in item.items():
                assert tensor.shape == (T,)
                assert tensor.dtype == (torch.float32 if name == "loss_mask" else torch.int64)
                assert tensor.is_contiguous()
            assert as_lists(item) == expected(folder, i)


def test_labels_share_no_memory_with_tokens_nor_rows_with_one_another(folder):
    with worlds.dataset(folder) as dataset:
        item = dataset[0]
        before = item["labels"].clone()
        item["tokens"].fill_(-1)
        assert torch.equal(item["labels"], before)
        rows = dataset.__getitems__([0, 1])
        second = {name: tensor.clone() for name, tensor in rows[1].items()}
        for name in ("tokens", "labels", "loss_mask"):
            rows[0][name].fill_(-1)
        assert all(torch.equal(rows[1][name], second[name]) for name in KEYS)
        assert as_lists(dataset[0]) == expected(folder, 0)


def test_position_ids_are_one_tensor_over_items_and_instances(folder):
    with worlds.dataset(folder) as first, worlds.dataset(folder, seed=1) as second:
        assert first[0]["position_ids"] is first[5]["position_ids"] is second[1]["position_ids"] is first.position_ids
        assert first.position_ids.tolist() == list(range(T))


@pytest.mark.parametrize("indices", [[0], [0, 1]])
def test_a_batch_is_its_own_to_write_to(folder, indices):
    """With a micro batch of one, too: what a model does to its position_ids must not reach the next batch."""
    with worlds.dataset(folder, create_attention_mask=True) as dataset:
        batch = dataset.collate_fn(dataset.__getitems__(indices))
        for tensor in batch.values():
            assert tensor.is_contiguous()
            tensor.fill_(1)
        assert dataset.position_ids.tolist() == list(range(T))
        assert dataset[0]["attention_mask"].sum() == T * (T - 1) // 2


def test_attention_mask_forbids_what_lies_ahead(folder):
    with worlds.dataset(folder, create_attention_mask=True) as dataset:
        mask = dataset[3]["attention_mask"]
        assert mask is dataset.attention_mask
        assert mask.shape == (1, T, T)
        assert mask.dtype == torch.bool
        assert all(mask[0, row, column] == (column > row) for row in (0, 1, 31, 63) for column in range(T))
        assert dataset.collate_fn([dataset[0], dataset[1]])["attention_mask"].shape == (2, 1, T, T)
        assert dataset.collate_fn(dataset.__getitems__([0, 1]))["attention_mask"].shape == (2, 1, T, T)
    with worlds.dataset(folder) as dataset:
        assert dataset.attention_mask is None


def test_indices_may_be_any_integers(folder):
    with worlds.dataset(folder, rc_aug=True) as dataset:
        n = len(dataset)
        wanted = as_lists(dataset[4])
        same = [
            np.int64(4),
            np.uint8(4),
            np.int32(4 - n),
            4 - n,
            (0, 4),
            [0, 4],
            (np.int64(0), np.int16(4)),
            torch.tensor(4),
        ]
        for index in same:
            assert as_lists(dataset[index]) == wanted, index
        assert as_lists(dataset[-1]) == as_lists(dataset[n - 1])
        assert as_lists(dataset[-n]) == as_lists(dataset[0])
        assert as_lists(dataset[3, -2]) == as_lists(dataset[3, n - 2])
        assert [as_lists(item) for item in dataset] == [as_lists(dataset[i]) for i in range(n)]


BAD_INDICES = [
    11, -12, 10**30, (10**30, 11), 4.0,
    np.float64(1), "1", "ab", b"1", None, slice(0, 2), (0, 1, 2), (1,), (), (0.0, 1), (0, "1"),
    (-1, 0), (2**63, 0), (0, 11), (0, -12), np.array([0, 1]), {0, 1}, Ellipsis,
]  # fmt: skip


@pytest.mark.parametrize("index", BAD_INDICES, ids=repr)
def test_other_indices_raise_index_error(folder, index):
    with worlds.dataset(folder) as dataset:
        assert len(dataset) == 11
        with pytest.raises(IndexError):
            dataset[index]
        with pytest.raises(IndexError):
            dataset.__getitems__([0, index])


@pytest.mark.parametrize("index", [10**5000, (0, -(10**5000))], ids=["window", "pair"])
def test_integers_of_more_digits_than_python_prints(folder, index):
    with worlds.dataset(folder) as dataset, pytest.raises(IndexError, match="out of range"):
        dataset[index]


# ---- methods of the original loader ----


def test_attributes_of_the_original(folder):
    with worlds.dataset(folder, split="validation") as dataset:
        assert len(dataset) == dataset.length == 11
        assert dataset.distinct_sequences == 5
        assert (dataset.seq_length, dataset.stride, dataset.split) == (T, STRIDE, "validation")
        assert dataset.sample_db_mapping == {s: str(worlds.sample_db(folder, s)) for s in ("S0", "S1", "S2.X")}
        assert dataset.ctrl_ids_map == {}
        assert dataset.window_min_length_threshold == 0
        assert dataset.reverse_complement("AACGTRyn") == "nrYACGTT"
        cursor = dataset.window_db_conn.cursor()
        cursor.execute("SELECT value FROM metadata WHERE key = ?", ("stride",))
        assert cursor.fetchone() == (STRIDE,)
        assert dataset.window_db_conn.execute("SELECT count(*) FROM window_mappings").fetchall() == [(11,)]


def test_db_connections_join_sequences_to_windows_in_every_sample(folder):
    with worlds.dataset(folder) as dataset:
        assert set(dataset.db_connections) == set(dataset.sample_db_mapping)
        assert len(dataset.db_connections) == 3
        assert "S1" in dataset.db_connections
        assert "nobody" not in dataset.db_connections
        with pytest.raises(KeyError):
            dataset.db_connections["nobody"]
        seen = {}
        for _ in range(2):  # a second visit attaches nothing twice
            for connection in dataset.db_connections.values():
                rows = connection.execute(
                    "SELECT w.window_idx, s.contig_id, substr(s.nt_sequence, w.window_in_seq_idx * ? + 1, ?) "
                    "FROM sequences AS s JOIN windows.window_mappings AS w ON s.contig_id = w.sequence_id",
                    (STRIDE, T),
                )
                seen.update({window_idx: (contig_id, bases) for window_idx, contig_id, bases in rows})
        for window_idx, (sequence_id, k) in enumerate(worlds.rows_of(folder)):
            assert seen[window_idx] == (sequence_id, worlds.CONTIGS[sequence_id][k * STRIDE : k * STRIDE + T])
        assert as_lists(dataset[3]) == expected(folder, 3)


def test_connections_are_open_before_the_first_item(folder):
    with worlds.dataset(folder) as dataset:
        opened = open_files_below(folder)
        assert {Path(name).name for name in opened} == {
            "windows.db", "glm_dataset_S0.sqlite", "glm_dataset_S1.sqlite", "glm_dataset_S2.X.sqlite",
        }  # fmt: skip
        dataset[0]
        assert sorted(open_files_below(folder)) == sorted(opened)
    assert open_files_below(folder) == []


def test_positional_arguments_stand_in_the_order_of_the_original(folder):
    arguments = (None, folder / "seqs", folder / "windows.db", T, True, True, STRIDE, 0, True, "val")
    with ShardedEdenDataset(*arguments, False, None, True, True, False, True, 7) as dataset:
        assert dataset.seed == 7
        assert dataset.split == "val"
        assert dataset.attention_mask is not None
        reverse = is_reversed(7, 0, 2)
        item = as_lists(dataset[2])
        item.pop("attention_mask")
        assert item == expected(folder, 2, reverse=reverse, control_tags=True, sep=False)


# ---- batches ----


def test_collate_fn_takes_lists_of_items_and_rows(folder):
    indices = [(0, 3), (1, 0), (0, -1)]
    with worlds.dataset(folder, rc_aug=True) as dataset:
        items = [dataset[index] for index in indices]
        rows = dataset.__getitems__(indices)
        assert isinstance(rows, Rows)
        assert len(rows) == 3
        assert (
            [as_lists(row) for row in rows]
            == [as_lists(item) for item in items]
            == [as_lists(rows[k]) for k in range(3)]
        )
        assert [as_lists(row) for row in rows[1:]] == [as_lists(item) for item in items[1:]]
        assert as_lists(rows[-1]) == as_lists(items[-1])
        with pytest.raises(IndexError):
            rows[3]
        batches = [dataset.collate_fn(items), dataset.collate_fn(rows), default_collate(rows), default_collate(items)]
        for batch in batches:
            assert as_lists(batch) == as_lists(batches[0])
            assert all(tensor.is_contiguous() and tensor.shape == (3, T) for tensor in batch.values())


def test_data_loader_subset_and_default_collate_agree(folder):
    with worlds.dataset(folder) as dataset:
        wanted = [expected(folder, i)["tokens"] for i in (5, 1, 3)]
        for options in ({}, {"collate_fn": dataset.collate_fn}):
            loader = DataLoader(Subset(dataset, [5, 1, 3]), batch_size=2, **options)
            assert [row for batch in loader for row in batch["tokens"].tolist()] == wanted
        assert dataset.__getitems__([]).collate()["tokens"].shape == (0, T)


# ---- opening and closing ----


def test_closing_again_is_harmless(folder):
    dataset = worlds.dataset(folder, log_windows=True, log_dir=folder / "log")
    dataset[0]
    dataset.close()
    dataset.close()
    assert open_files_below(folder) == []
    with dataset as entered:
        assert entered is dataset
        assert as_lists(dataset[1]) == expected(folder, 1)  # opened again where it is used again
    assert open_files_below(folder) == []


@pytest.mark.parametrize("batch", [False, True])
def test_a_window_that_fails_is_in_the_access_log(folder, batch):
    worlds.execute(worlds.sample_db(folder, "S1"), "DELETE FROM sequences")
    lost = next(k for k, (name, _) in enumerate(worlds.rows_of(folder)) if "ECT-S1" in name)
    with worlds.dataset(folder, log_windows=True, log_dir=folder / "log") as dataset:
        for _ in range(2):
            with pytest.raises(MissingSequence):
                dataset.__getitems__([0, lost]) if batch else dataset[lost]
    (log,) = (folder / "log").iterdir()
    visited = [int(line.split(",")[0]) for line in log.read_text().splitlines()[1:]]
    assert visited == ([0, lost] if batch else [lost]) * 2


def test_dropping_a_dataset_closes_its_databases(folder):
    dataset = worlds.dataset(folder)
    dataset[0]
    assert open_files_below(folder)
    del dataset
    gc.collect()
    assert open_files_below(folder) == []


FAILURES = {
    "folder": {"sequence_db_dir": "nowhere"},
    "windows": {"window_db_path": "nowhere.db"},
    "geometry": {"seq_length": 65},
    "tokenizer": {"tokenizer": object()},
    "io": {"io": "sideways"},
    "read_with": {"read_with": "eyes"},
    "room": {"use_control_tags": True, "tokenizer": "wordy"},
    "seed": {"seed": 1.5},
    "no arguments": None,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_init_leaves_nothing_open_and_dies_quietly(folder, failure):
    """An exception in `__del__` would be a warning, and warnings are errors here."""
    options = FAILURES[failure]
    arguments = {
        "tokenizer": None, "sequence_db_dir": folder / "seqs", "window_db_path": folder / "windows.db",
        "seq_length": T, "stride": STRIDE,
    }  # fmt: skip
    if options is not None and options.get("tokenizer") == "wordy":
        options = {**options, "tokenizer": _Wordy()}
    with pytest.raises((ValueError, TypeError, OSError)):
        ShardedEdenDataset() if options is None else ShardedEdenDataset(**{**arguments, **options})
    assert open_files_below(folder) == []
    bare = ShardedEdenDataset.__new__(ShardedEdenDataset)
    bare.close()
    del bare
    gc.collect()


class _Wordy:
    """A tag fills the row."""

    bos_id = eos_id = sep_id = pad_id = 200

    def text_to_ids(self, text):
        return [100] * T if text.startswith("<") else list(text.encode())


def test_leaving_a_dataset_open_at_exit_is_quiet(folder):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import worlds; from pathlib import Path;"
        "kept = worlds.dataset(Path(sys.argv[2]), log_windows=True, log_dir=sys.argv[2]); kept[0]"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(Path(worlds.__file__).parent), str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == done.stderr == ""


def test_stats_are_logged_when_asked_for(folder, caplog):
    caplog.set_level("INFO", logger="sharded_eden")
    worlds.dataset(folder).close()
    assert [record.name for record in caplog.records] == ["sharded_eden.load.locate.addresses"]
    assert f"has no index: windows are located and read by SQLite. Write it: sharded-eden index {folder}" in caplog.text
    worlds.dataset(folder, skip_stats=False, split="test").close()
    assert "test: 11 windows of 5 contigs in 3 samples" in caplog.text


# ---- what is on disk ----


def one_database(folder: Path, contigs: dict[str, str]) -> Path:
    """One sequence database whose contigs have IDs of any form."""
    folder.mkdir(exist_ok=True)
    stand_ins = {f"BCR__ECT-ONE__{k}": sequence for k, sequence in enumerate(contigs.values())}
    oracle.write_sequence_dbs(folder / "seqs", stand_ins)
    oracle.write_window_db(folder / "windows.db", contigs, T, STRIDE)
    rename = "UPDATE sequences SET contig_id = ? WHERE contig_id = ?"
    worlds.execute(worlds.sample_db(folder, "ONE"), *((rename, pair) for pair in zip(contigs, stand_ins, strict=True)))
    return folder


@pytest.mark.parametrize("tags", [False, True])
def test_one_sequence_database_serves_ids_of_any_form(tmp_path, tags):
    contigs = {"NC.3": worlds.random_sequence(150), "chr1": "ACGT" * 20, "a__b": "ACGT", "A__S-other__1": "GGCC"}
    one_database(tmp_path, contigs)
    with worlds.dataset(tmp_path, use_control_tags=tags) as dataset:
        if tags:
            assert set(dataset.ctrl_ids_map) == {"nc.3", "chr1", "a"}
        for i, (sequence_id, k) in enumerate(worlds.rows_of(tmp_path)):
            tag = f"<ctrl_{sequence_id.split('__')[0].lower()}>" if tags else ""
            wanted = [1, *tag.encode(), 3]
            wanted += [*contigs[sequence_id][k * STRIDE :][: T - len(wanted) - 1].encode(), 2]
            assert dataset[i]["tokens"].tolist() == wanted + [0] * (T - len(wanted))


def test_a_tag_that_the_tokenizer_cannot_encode_is_an_error(tmp_path):
    one_database(tmp_path, {"größe__1": "ACGT"})
    with pytest.raises(UsageError, match=r"the tokenizer cannot encode the control tag <ctrl_größe>"):
        worlds.dataset(tmp_path, use_control_tags=True)


@pytest.mark.parametrize("totals", [False, True])
def test_missing_totals_are_counted(tmp_path, totals):
    worlds.write(tmp_path, totals=totals)
    present = {key for (key,) in worlds.query(tmp_path / "windows.db", "SELECT key FROM metadata")}
    assert ("total_windows" in present) == ("distinct_sequences" in present) == totals
    with worlds.dataset(tmp_path) as dataset:
        assert (dataset.length, dataset.distinct_sequences) == (11, 5)


def test_a_database_opens_with_what_another_tool_noted_in_its_metadata(folder):
    worlds.execute(
        folder / "windows.db",
        "INSERT INTO metadata VALUES ('created_by', 'someone'), ('took_seconds', 1.5)",
        "UPDATE metadata SET value = '50' WHERE key = 'stride'",
    )
    with worlds.dataset(folder) as dataset:
        assert as_lists(dataset[3]) == expected(folder, 3)


def test_a_column_named_rowid_does_not_lead_astray(folder):
    rows = worlds.query(worlds.sample_db(folder, "S0"), "SELECT contig_id, nt_sequence FROM sequences")
    worlds.sample_db(folder, "S0").unlink()
    worlds.execute(
        worlds.sample_db(folder, "S0"),
        'CREATE TABLE sequences ("RowID" INTEGER, contig_id TEXT, nt_sequence TEXT)',
        *(("INSERT INTO sequences VALUES (?, ?, ?)", (len(rows) - k, *row)) for k, row in enumerate(rows)),
    )
    with worlds.dataset(folder) as dataset:
        for i in range(len(dataset)):
            assert as_lists(dataset[i]) == expected(folder, i)


def with_lengths(folder: Path, **changed: int) -> None:
    lengths = {s: len(sequence) for s, sequence in worlds.CONTIGS.items()} | changed
    first = [(i, lengths[s]) for i, (s, k) in enumerate(worlds.rows_of(folder)) if k == 0]
    worlds.execute(
        folder / "windows.db",
        "CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length INTEGER NOT NULL)",
        *(("INSERT INTO contig_lengths VALUES (?, ?)", row) for row in first),
    )


def test_contig_lengths_change_nothing_but_what_is_checked(folder):
    with_lengths(folder)
    with worlds.dataset(folder) as dataset:
        for i in range(len(dataset)):
            assert as_lists(dataset[i]) == expected(folder, i)


def test_a_contig_cut_short_is_found_out_where_lengths_are_recorded(folder):
    """A short contig has one window, whatever its length: only the recorded length shows that bases are missing."""
    worlds.execute(
        worlds.sample_db(folder, "S0"),
        "UPDATE sequences SET nt_sequence = substr(nt_sequence, 1, 19) WHERE contig_id = 'BCR__ECT-S0__CT1-2'",
    )
    window = worlds.rows_of(folder).index(("BCR__ECT-S0__CT1-2", 0))
    with worlds.dataset(folder) as dataset:
        assert as_lists(dataset[window]) == expected(folder, window)
    with_lengths(folder)
    with worlds.dataset(folder) as dataset, pytest.raises(MissingSequence, match=r"at least 20 bases; .* has 19 bases"):
        dataset[window]


@pytest.mark.parametrize("recorded", [False, True])
def test_kept_tails_are_shown_to_the_last_base(tmp_path, recorded):
    contigs = {
        f"BCR__ECT-S0__CT1-{n:03}": worlds.random_sequence(n, n)
        for n in (1, 49, 50, 51, 61, 62, 64, 111, 112, 164, 165)
    }
    worlds.write(tmp_path, contigs)
    rows = [(s, k) for s in sorted(contigs) for k in oracle.windows_of(len(contigs[s]), T, STRIDE, keep_tail=True)]
    statements = [
        "DELETE FROM window_mappings",
        "INSERT INTO metadata VALUES ('keep_tail', 1), ('special_tokens', 3)",
        *(("INSERT INTO window_mappings VALUES (?, ?, ?)", (i, *row)) for i, row in enumerate(rows)),
    ]
    if recorded:
        statements.append("CREATE TABLE contig_lengths (first_window_idx INTEGER PRIMARY KEY, length INTEGER NOT NULL)")
        first = [(i, len(contigs[s])) for i, (s, k) in enumerate(rows) if k == 0]
        statements += [("INSERT INTO contig_lengths VALUES (?, ?)", row) for row in first]
    worlds.execute(tmp_path / "windows.db", *statements)
    shown: dict[str, set[int]] = {s: set() for s in contigs}
    with worlds.dataset(tmp_path) as dataset:
        assert dataset.geometry["keep_tail"] == 1
        for i, (sequence_id, k) in enumerate(rows):
            assert as_lists(dataset[i]) == expected(tmp_path, i)
            bases = int((dataset[i]["tokens"] > 3).sum())
            assert bases > 0
            shown[sequence_id] |= set(range(k * STRIDE, k * STRIDE + bases))
    assert {s: len(places) for s, places in shown.items()} == {s: len(sequence) for s, sequence in contigs.items()}


# ---- control tags ----


def test_control_tags_by_the_lower_cased_name(folder):
    with worlds.dataset(folder, use_control_tags=True) as dataset:
        assert set(dataset.ctrl_ids_map) == {"bcr", "meta", "tcr"}
        assert len(dataset.ctrl_ids_map) == 3
        assert dataset.ctrl_ids_map["bcr"] == dataset.ctrl_ids_map["BCR__ECT-S0__CT1-1"] == list(b"<ctrl_bcr>")
        assert dict(dataset.ctrl_ids_map.items())["meta"] == list(b"<ctrl_meta>")
        for i in range(len(dataset)):
            assert as_lists(dataset[i]) == expected(folder, i, control_tags=True)
        copy = pickle.loads(pickle.dumps(dataset))
        assert as_lists(copy[0]) == expected(folder, 0, control_tags=True)
        copy.close()


class _UpperCase:
    """Encodes the letters of a tag as it encodes bases."""

    pad_id, bos_id, eos_id, sep_id = 0, 1, 2, 3

    def text_to_ids(self, text):
        return list(text.upper().encode())


def test_a_tag_made_of_the_ids_of_bases_earns_no_loss_by_its_position_and_warns(folder):
    with pytest.warns(EdenWarning, match=r"<ctrl_\w+> is encoded with ids that also stand for bases") as caught:
        dataset = worlds.dataset(folder, _UpperCase(), use_control_tags=True)
    assert len([w for w in caught if w.category is EdenWarning]) == 1
    assert Path(caught[0].filename) == Path(worlds.__file__)  # the first line that is not this package's
    with dataset:
        for i, (sequence_id, _) in enumerate(worlds.rows_of(folder)):
            wanted = expected(folder, i, control_tags=True)
            item = as_lists(dataset[i])
            tag = f"<ctrl_{sequence_id.split('__')[0].lower()}>"
            assert item["loss_mask"] == wanted["loss_mask"]
            assert item["tokens"][1 : 1 + len(tag)] == list(tag.upper().encode())
            assert item["tokens"][1 + len(tag) :] == wanted["tokens"][1 + len(tag) :]


def test_no_warning_where_a_tag_has_ids_of_its_own(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worlds.dataset(folder, use_control_tags=True).close()


def test_a_tag_that_leaves_no_room_is_an_error(folder):
    with pytest.raises(UsageError, match=r"seq_length=64 leaves no room for a base beside 66 header tokens and EOS"):
        worlds.dataset(folder, _Wordy(), use_control_tags=True)


def test_a_header_that_hides_bases_between_windows_warns(tmp_path):
    worlds.write(tmp_path, stride=61)
    worlds.dataset(tmp_path, stride=61).close()  # BOS, SEP and EOS leave 61
    with pytest.warns(EdenWarning, match=r"show 50 bases, but windows start every 61: 11 bases .* --stride 50 or less"):
        worlds.dataset(tmp_path, stride=61, use_control_tags=True).close()  # and <ctrl_meta> leaves 50


# ---- reverse complement ----


def test_the_strand_is_a_function_of_seed_epoch_and_index(folder):
    with worlds.dataset(folder, rc_aug=True, seed=5) as dataset, worlds.dataset(folder, rc_aug=True, seed=6) as other:
        strands = {}
        for epoch in (2, 0, 1):
            for i in (10, 0, 3, 7, 1, 2, 4, 5, 6, 8, 9):
                reverse = is_reversed(5, epoch, i)
                strands[epoch, i] = reverse
                assert as_lists(dataset[epoch, i]) == expected(folder, i, reverse=reverse)
                assert as_lists(other[epoch, i]) == expected(folder, i, reverse=is_reversed(6, epoch, i))
        assert len({tuple(strands[e, i] for i in range(11)) for e in range(3)}) == 3
        assert len({is_reversed(seed, 0, 0) for seed in range(20)}) == 2
    with worlds.dataset(folder, seed=5) as dataset:
        for epoch, i in strands:
            assert as_lists(dataset[epoch, i]) == expected(folder, i)


def test_half_of_the_windows_are_reversed():
    for seed, epoch in ((0, 0), (0, 1), (42, 0), (2**62, 10**6)):
        drawn = np.array([is_reversed(seed, epoch, i) for i in range(10_000)])
        assert abs(drawn.mean() - 0.5) < 0.02  # 4 standard deviations
        assert abs((drawn[1:] == drawn[:-1]).mean() - 0.5) < 0.02
        assert abs((drawn[2:] == drawn[:-2]).mean() - 0.5) < 0.02
    first = np.array([is_reversed(1, 0, i) for i in range(10_000)])
    assert abs((first == np.array([is_reversed(1, 1, i) for i in range(10_000)])).mean() - 0.5) < 0.02
    assert abs((first == np.array([is_reversed(2, 0, i) for i in range(10_000)])).mean() - 0.5) < 0.02


def test_the_strands_of_seed_42_stay_what_they_are():
    """A change here changes the stream of every running job."""
    assert "".join("RF"[not is_reversed(42, 0, i)] for i in range(32)) == "RRFFFRRFRRFFFFRFFFRRRRFFFRFFFFFF"


def test_a_numpy_seed_is_the_seed_that_it_equals(folder):
    derive_keys.cache_clear()
    first = derive_keys(2, "order", np.int64(7), np.int32(0))
    derive_keys.cache_clear()
    assert derive_keys(2, "order", 7, 0) == first
    assert derive_keys(2, "order", 8, 0) != first
    with worlds.dataset(folder, seed=np.int64(7)) as dataset:
        assert type(dataset.seed) is int


def test_reverse_complement_knows_iupac_and_keeps_case(folder):
    reverse = ShardedEdenDataset.reverse_complement
    assert reverse("") == ""
    assert reverse("ACGTN") == "NACGT"
    assert reverse("RYSWKMBDHVN") == "NBDHVKMWSRY"
    assert reverse("acgtu-x") == "x-aacgt"
    for letters in ("ACGT", "ACGTacgt", "ACGTRYSWKMBDHVNacgtryswkmbdhvn-*"):
        sequence = worlds.random_sequence(500, 9, letters)
        assert reverse(reverse(sequence)) == sequence
    upper = worlds.random_sequence(500, 9, "ACGTURYSWKMBDHVN")
    assert reverse(upper) == oracle.reverse_complement(upper)
    assert reverse(upper.lower()) == oracle.reverse_complement(upper).lower()


def test_errors_are_what_callers_of_the_original_catch(folder):
    assert issubclass(GeometryMismatch, ValueError)
    assert issubclass(DatabaseError, ValueError)
    with pytest.raises(FileNotFoundError):
        ShardedEdenDataset(None, folder / "no", folder / "windows.db", T)


@pytest.mark.parametrize("in_mixture", [False, True])
def test_files_of_an_index_are_closed_with_their_thread_and_their_mixture(tmp_path, in_mixture):
    folder = worlds.write(tmp_path)
    index_window_database(folder / "seqs", folder / "windows.db")

    def read_all() -> None:
        rows = Mixture([(one, 1), (two, 1)]) if in_mixture else one
        rows.__getitems__(range(8))
        assert open_files_below(folder / "seqs")

    with worlds.dataset(folder) as one, worlds.dataset(folder) as two:
        for _ in range(3):
            thread = threading.Thread(target=read_all)
            thread.start()
            thread.join()
            gc.collect()
            assert open_files_below(folder / "seqs") == []


def test_close_closes_the_rest_after_an_error(tmp_path):
    folder = worlds.write(tmp_path)
    index_window_database(folder / "seqs", folder / "windows.db")
    log = {"log_windows": True, "log_dir": tmp_path / "log", "log_format": "parquet"}
    one, two = worlds.dataset(folder, **log), worlds.dataset(folder)
    rows = Mixture([(two, 1), (one, 1)]).dataset
    rows.__getitems__([(0, 0, 0), (1, 0, 0)])
    assert open_files_below(folder / "seqs")
    shutil.rmtree(tmp_path / "log")
    with pytest.raises(EdenError, match="log"):
        rows.close()
    assert open_files_below(folder / "seqs") == []


def test_locate_many_takes_what_items_take(tmp_path):
    with worlds.dataset(worlds.write(tmp_path)) as dataset:
        every = dataset.locate_many(range(len(dataset)))
        assert dataset.locate_many(np.arange(len(dataset))) == every
        assert dataset.locate_many([-1, (3, 0)]) == [every[-1], every[0]]
        for wrong in (len(dataset), 2**63, "0", 1.0):
            with pytest.raises(IndexError, match=r"out of range|neither a window index"):
                dataset.locate_many([wrong])


def test_writing_to_the_header_of_a_window_changes_no_other(tmp_path):
    with worlds.dataset(worlds.write(tmp_path), use_control_tags=True) as dataset:
        expected = dataset[0]["tokens"]
        dataset.fetch(0).header[:] = 9
        assert dataset[0]["tokens"].equal(expected)


def test_an_empty_dataset_announces_nothing(tmp_path):
    folder = worlds.write(tmp_path)
    worlds.execute(folder / "windows.db", "DELETE FROM window_mappings")
    with worlds.dataset(folder) as dataset:
        assert (len(dataset), dataset.items_ahead) == (0, 0)


@pytest.mark.parametrize(("rank", "expected"), [("", 0), ("3", 3), ("three", "RANK must be an integer, not 'three'")])
def test_the_rank_of_the_environment(tmp_path, monkeypatch, rank, expected):
    monkeypatch.setenv("RANK", rank)
    folder = worlds.write(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            worlds.dataset(folder, log_windows=True, log_dir=tmp_path / "log")
    else:
        with worlds.dataset(folder, log_windows=True, log_dir=tmp_path / "log") as dataset:
            dataset[0]
        assert [f"_rank{expected}_" in path.name for path in (tmp_path / "log").iterdir()] == [True]


def test_copies_make_their_own_attention_mask(folder):
    with worlds.dataset(folder, create_attention_mask=True) as dataset:
        expected = dataset[0]["attention_mask"].clone()
        dataset[0]["attention_mask"].fill_(True)
        for other in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset), copy.copy(dataset), dataset):
            assert other[0]["attention_mask"].equal(expected)
