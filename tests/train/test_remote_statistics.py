"""What a Lightning job and a plain loop report of the time that they wait for object storage."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
import worlds
from object_storage import environment, proxy_to, s3_server, upload

from sharded_eden import LoaderStatistics, ShardedEdenDataModule, ShardedEdenDataset, Stream
from sharded_eden.train.traffic import TrafficCounter
from sharded_eden.windows.index import index_window_database
from sharded_eden.windows.remote_index import add_remote

pytest.importorskip("obstore")
pytest.importorskip("moto")


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 4)

    def training_step(self, batch, _):
        return self.embedding(batch["tokens"]).sum() * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A bucket whose answers take 0.1 s, and a window database with its index."""
    worlds.write(tmp_path)
    index_window_database(tmp_path / "seqs", tmp_path / "windows.db")
    with s3_server() as endpoint, proxy_to(endpoint) as proxy:
        for name, value in environment(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        url = upload(endpoint, tmp_path / "seqs", "seqs")
        add_remote(tmp_path / "windows.db", url)
        proxy.delay_seconds = 0.1
        yield url, tmp_path / "windows.db", proxy


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*`tensorboardX` has been removed")
@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_reports_the_share_of_time(storage, tmp_path, workers):
    url, window_db, _ = storage
    callback = LoaderStatistics(every_n_steps=10)
    module = ShardedEdenDataModule(
        url, window_db, seq_length=worlds.T, micro_batch_size=1, global_batch_size=1, num_workers=workers,
        requests_in_flight=1, multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=10, accelerator="cpu", devices=1, callbacks=[callback], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Model(), datamodule=module)
    assert callback.latest["loader/samples"] == 10
    assert 0.1 < callback.latest["loader/waiting_share"] <= 1  # the first row takes 0.1 s, a step some milliseconds


def test_a_loop_counts_requests_bytes_and_waiting(storage):
    url, window_db, proxy = storage
    with ShardedEdenDataset.open(url, window_db) as dataset:
        total = len(dataset)
        stream = Stream(dataset, num_samples=total)  # nothing is requested for another pass
        counter = TrafficCounter(stream)
        assert len(list(counter.watch(stream.__getitems__([k]) for k in range(total)))) == total
        rate = counter.rate(1)
    assert rate is not None
    assert rate.requests_per_window == len(proxy.requests) / total
    assert rate.bytes_per_window == proxy.body_bytes / total
    assert 0.1 < rate.waiting_share <= 1


def test_local_files_have_no_traffic(tmp_path):
    worlds.write(tmp_path)
    with ShardedEdenDataset.open(tmp_path / "seqs", tmp_path / "windows.db") as dataset:
        assert TrafficCounter(Stream(dataset)).rate(1) is None
