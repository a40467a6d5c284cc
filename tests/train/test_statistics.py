"""`LoaderCounter` and `LoaderStatistics` against the rows that were read, and under a real Lightning Trainer."""

from __future__ import annotations

import csv
import os
import re
import time
import warnings
from itertools import islice

import lightning.pytorch as pl
import pytest
import torch
import worlds
from faults import World
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from worlds import execute

from sharded_eden import (
    DatabaseError,
    EdenWarning,
    LoaderStatistics,
    Mixture,
    ShardedEdenDataModule,
    ShardedEdenDataset,
    Stream,
    StreamBatchSampler,
    UsageError,
)
from sharded_eden.train import statistics, totals
from sharded_eden.train.statistics import LoaderCounter
from sharded_eden.train.totals import Totals
from sharded_eden.windows import runs
from sharded_eden.windows.index import index_window_database

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (".*does not have many workers", ".*`tensorboardX` has been removed", ".*persistent_workers=True")
]


def expected(stream, positions):
    """Rows, windows, bases and useful tokens, counted in the rows themselves."""
    rows = windows = bases = tokens = 0
    for position in positions:
        item = stream.windows_at([position])[0]
        dataset = stream.dataset if len(item) == 2 else stream.dataset.datasets[item[0]]
        read = list(dataset.fetch_many([item[-2:]]))
        rows, windows = rows + 1, windows + len(read)
        bases += sum(len(window.bases) for window in read)
        tokens += int((stream[position]["tokens"] != dataset.pad_id).sum())
    return rows, windows, bases, tokens


@pytest.fixture(params=["no index", "index", "a changed database", "no tags in the index"])
def located(world: World, request, monkeypatch) -> World:
    """A world whose windows are located by the window database, by its index, or by both."""
    if request.param == "no tags in the index":
        monkeypatch.setattr(runs, "MAX_TAGS", 1)
    if request.param != "no index":
        for path in (world.train, world.val):
            index_window_database(world.seqs, path)
    if request.param == "a changed database":
        changed = sorted(world.seqs.rglob("*.sqlite"))[0]
        os.utime(changed, (1, 1))
    return world


@pytest.mark.parametrize(
    "options",
    [{}, {"use_control_tags": True}, {"packed": True}, {"include_eos": False, "include_bos": False}, "table"],
    ids=["plain", "tags", "packed", "no eos", "table"],
)
def test_counts_are_those_of_the_rows(located: World, options, monkeypatch, tmp_path):
    monkeypatch.setattr(totals, "POSITIONS_AT_ONCE", 7)
    if options == "table":
        table = tmp_path / "tags.csv"
        samples = sorted(path.name for path in located.seqs.iterdir())
        table.write_text("sample,tag\n" + "".join(f"{name},{'x' * k}\n" for k, name in enumerate(samples, start=1)))
        options = {"tags": table, "tag_dropout": 0.5}
    with ShardedEdenDataset.open(located.seqs, located.train, **options) as dataset:
        stream = Stream(dataset)
        counted = Totals(stream)
        for first, end in ((5, 60), (60, 62), (62, 101)):
            counted.add(first, end)
        assert (counted.rows, counted.windows, counted.bases, counted.tokens) == expected(stream, range(5, 101))


def test_a_pass_that_set_epoch_chose_is_counted(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        stream = Stream(dataset, num_samples=10)
        for first, end in ((0, 3), (3, 7), (0, 10)):
            stream.set_epoch(first + end)
            counted = Totals(stream)
            counted.add(first, end)
            stream.set_epoch(2)
            counted.add(first, end)
            bases = counted.bases - expected(stream, range(first, end))[2]
            stream.set_epoch(first + end)
            assert bases == expected(stream, range(first, end))[2]
        with pytest.raises(IndexError, match="position 10 is outside"):
            counted.add(8, 11)


def test_counting_is_by_columns_of_the_stream(clean_world: World):
    with (
        ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as train,
        ShardedEdenDataset.open(clean_world.seqs, clean_world.val) as other,
    ):
        mixture = Mixture([(train, 3), (other, 1)], phases=[(70, [1, 4])], skip=[(20, 30)])
        for stream in (Stream(train), Stream(train, shuffle=False), mixture):
            columns = stream.columns(3, 200)
            found = list(zip(*(column.tolist() for column in columns), strict=True))
            items = stream.windows_at(range(3, 200))
            assert found == [item if len(item) == 3 else (0, *item) for item in items]
            assert not len(stream.columns(5, 5).item)
            with pytest.raises(IndexError):
                stream.columns(-1, 5)


def test_a_length_that_is_missing_is_an_error(world: World):
    execute(world.train, "UPDATE contig_lengths SET first_window_idx = first_window_idx + 1000")
    message = r"contig_lengths holds None as the length.*sharded-eden precompute"
    with (
        ShardedEdenDataset.open(world.seqs, world.train) as dataset,
        pytest.raises(DatabaseError, match=message),
    ):
        Totals(Stream(dataset)).add(0, 5)


def test_sources_of_a_mixture_are_counted(clean_world: World):
    with (
        ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as train,
        ShardedEdenDataset.open(clean_world.seqs, clean_world.val) as other,
    ):
        stream = Mixture({"genes": (train, 3), "genomes": (other, 1)})
        counter = LoaderCounter(stream, consumed_samples=8)
        counter.reach(88)
        values = counter.values()
        sources = [item[0] for item in stream.windows_at(range(8, 88))]
        assert values["loader/samples/genes"] == sources.count(0)
        assert values["loader/samples/genomes"] == sources.count(1) > 0
        assert values["loader/bases"] == expected(stream, range(8, 88))[2]


def test_a_plain_loop(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        stream = Stream(dataset, num_samples=160)
        sampler = StreamBatchSampler(stream, micro_batch_size=4, global_batch_size=8, data_parallel_size=2)
        loader = DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)
        counter = LoaderCounter(stream, samples_per_batch=8)
        seen = []
        for number, _ in enumerate(counter.watch(loader), start=1):
            if number % 5 == 0:
                seen.append(counter.values())
        assert [values["loader/samples"] for values in seen] == [40, 80, 120, 160]
        assert [(v["loader/pass"], round(v["loader/position_in_pass"] * 42)) for v in seen] == [
            divmod(position, 42) for position in (40, 80, 120, 160)
        ]
        rows, windows, bases, tokens = expected(Stream(dataset), range(160))
        assert (seen[-1]["loader/windows"], seen[-1]["loader/bases"]) == (windows, bases)
        shares = [values["loader/useful_token_share"] for values in seen]
        assert sum(shares) / 4 == pytest.approx(tokens / (rows * dataset.seq_length))
        assert all(0 < values["loader/waiting_share"] <= 1 for values in seen)
        first = seen[0]
        assert first["loader/tokens_per_second"] == pytest.approx(64 * first["loader/windows_per_second"])


def test_a_slow_loader_is_reported_once(clean_world: World, monkeypatch):
    monkeypatch.setattr(statistics, "LEAST_SECONDS", 0.01)

    def slow():
        for k in range(6):
            time.sleep(0.02)
            yield k

    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        counter = LoaderCounter(Stream(dataset))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shares = [counter.values()["loader/waiting_share"] for _ in counter.watch(slow())]
        assert min(shares) > 0.5
        (warning,) = [each for each in caught if each.category is EdenWarning]
        assert re.search(r"waits for data for .*num_workers.*compact.*packed.*sharded-eden index", str(warning.message))


def test_time_outside_of_steps_is_left_out(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        counter = LoaderCounter(Stream(dataset))
        counter.waited(0.05)
        time.sleep(0.2)
        counter.paused(0.1)
        counter.reach(10)
        values = counter.values()
        assert 0.05 / 0.2 < values["loader/waiting_share"] <= 0.5
        assert 10 / 0.4 < values["loader/windows_per_second"] <= 10 / 0.1


def test_databases_without_lengths_have_no_counts_of_bases(tmp_path):
    folder = worlds.write(tmp_path)
    with worlds.dataset(folder) as dataset:
        counter = LoaderCounter(Stream(dataset))
        counter.reach(20)
        values = counter.values()
    assert values["loader/windows"] == 20
    assert not {"loader/bases", "loader/useful_token_share"} & set(values)


def test_wrong_arguments(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        for options in ({"samples_per_batch": 0}, {"consumed_samples": -1}):
            with pytest.raises(UsageError, match="samples_per_batch must be at least 1"):
                LoaderCounter(Stream(dataset), **options)
    with pytest.raises(UsageError, match="every_n_steps must be"):
        LoaderStatistics(every_n_steps=0)


# ---- Lightning ----


class Model(pl.LightningModule):
    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 4)
        self.seconds = seconds

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        loss = self.embedding(batch["tokens"]).sum() * 0
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(world, tmp_path, *, workers=0, seconds=0.0, every=2, **options):
    callback = LoaderStatistics(every_n_steps=every)
    module = ShardedEdenDataModule(
        world.seqs, world.train, seq_length=64, micro_batch_size=2, global_batch_size=4, num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, callbacks=[callback], logger=CSVLogger(tmp_path, version="v"),
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(Model(seconds), datamodule=module)
    with (tmp_path / "lightning_logs" / "v" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("loader/samples")]
    return callback, rows, trainer


def test_a_lightning_run_logs_its_loading(clean_world: World, tmp_path):
    callback, rows, trainer = fit(clean_world, tmp_path)
    assert trainer.global_step == 20
    assert [int(row["step"]) for row in rows] == list(range(1, 20, 2))
    assert [float(row["loader/samples"]) for row in rows] == [8.0 * k for k in range(1, 11)]
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        _, windows, bases, _ = expected(Stream(dataset), range(80))
    assert (callback.latest["loader/windows"], callback.latest["loader/bases"]) == (windows, bases)
    assert float(rows[-1]["loader/bases"]) == bases
    assert all(0 <= float(row["loader/waiting_share"]) <= 1 for row in rows)


def test_the_steps_after_the_last_full_interval_are_logged(clean_world: World, tmp_path):
    callback, rows, _ = fit(clean_world, tmp_path, every=7)
    assert [float(row["loader/samples"]) for row in rows] == [28.0, 56.0, 80.0]
    assert callback.latest["loader/samples"] == 80


def test_waiting_is_measured_under_lightning(clean_world: World, tmp_path, monkeypatch):
    read = ShardedEdenDataset.__getitems__

    def slow(self, indices):
        time.sleep(0.03)
        return read(self, indices)

    callback, _, _ = fit(clean_world, tmp_path / "fast", seconds=0.03)
    assert callback.latest["loader/waiting_share"] < 0.3
    monkeypatch.setattr(statistics, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(ShardedEdenDataset, "__getitems__", slow)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback, _, _ = fit(clean_world, tmp_path / "slow")
    assert callback.latest["loader/waiting_share"] > 0.5
    assert len([each for each in caught if "training waits for data" in str(each.message)]) == 1


def test_other_data_modules_are_told_what_to_use(clean_world: World, tmp_path):
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[LoaderStatistics()],
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="needs a ShardedEdenDataModule"):
            trainer.fit(Model(), DataLoader(Stream(dataset), batch_size=2))


def test_an_incomplete_last_batch_ends_at_the_end_of_the_stream(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        stream = Stream(dataset, num_samples=10)
        sampler = StreamBatchSampler(stream, micro_batch_size=4, global_batch_size=4, drop_last=False)
        loader = DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)
        counter = LoaderCounter(stream, samples_per_batch=4)
        assert [counter.values()["loader/samples"] for _ in counter.watch(loader)] == [4, 8, 10]
        assert counter.values()["loader/bases"] == expected(stream, range(10))[2]


@pytest.mark.parametrize("samples", [8, None])
@pytest.mark.parametrize("is_asked_often", [True, False])
def test_passes_of_set_epoch_begin_at_their_start(clean_world: World, samples, is_asked_often):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        stream = Stream(dataset, num_samples=samples)
        n = len(stream)
        sampler = StreamBatchSampler(stream, micro_batch_size=4, global_batch_size=4)
        loader = DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)
        counter = LoaderCounter(stream, samples_per_batch=4)
        seen = []
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            for _ in counter.watch(islice(loader, 2)):
                if is_asked_often or epoch == 2:
                    seen.append(counter.values())
        assert [values["loader/samples"] for values in seen] == [4, 8] * (3 if is_asked_often else 1)
        reached = [(epoch * n + k) for epoch in ((0, 1, 2) if is_asked_often else (2,)) for k in (4, 8)]
        assert [values["loader/pass"] for values in seen] == [position // len(dataset) for position in reached]
        read = [epoch * n + k for epoch in (0, 1, 2) for k in range(8)]
        assert counter.values()["loader/bases"] == expected(Stream(dataset), read)[2]


def test_the_pass_of_a_resumed_job_is_no_new_one(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        stream = Stream(dataset)
        counter = LoaderCounter(stream, consumed_samples=8)
        stream.set_epoch(2)  # as loading a state does
        counter.reach(12)
        assert counter.values()["loader/samples"] == 12
        assert counter.values()["loader/windows"] == 4


def test_a_job_resumed_at_the_end_of_a_pass_counts_the_next_one(clean_world: World):
    with ShardedEdenDataset.open(clean_world.seqs, clean_world.train) as dataset:
        stream = Stream(dataset, num_samples=8)
        sampler = StreamBatchSampler(stream, micro_batch_size=4, global_batch_size=4, consumed_samples=8)
        counter = LoaderCounter(stream, samples_per_batch=4, consumed_samples=8)
        loader = DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)
        assert list(counter.watch(loader)) == []
        sampler.set_epoch(1)
        assert len(list(counter.watch(loader))) == 2
        assert counter.values()["loader/windows"] == 8
