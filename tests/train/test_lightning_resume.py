"""A Lightning job that is stopped and resumed, in any history, trains on the uninterrupted stream."""

from __future__ import annotations

import random

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from resume import assert_same_stream, row_hashes

from sharded_eden import ShardedEdenDataModule, Stream

GLOBAL_BATCH = 8


class Recorder(pl.LightningModule):
    """A tiny model that records the batches of each optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 256)
        self.rows: list[str] = []
        self.global_batches: list[list[str]] = []

    def training_step(self, batch, batch_idx):
        self.rows += row_hashes(batch["tokens"])
        logits = self.embedding(batch["tokens"])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def on_before_optimizer_step(self, optimizer):
        self.global_batches.append(self.rows)
        self.rows = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validating(Recorder):
    def validation_step(self, batch, batch_idx):
        self.log("rows", float(batch["row_counts"].sum()))


def trainer(folder, steps: int, **options) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.mark.parametrize("model", [Recorder, Validating])
@pytest.mark.parametrize("seed", range(4))
def test_random_histories(small, tmp_path, model, seed):
    choose = random.Random(seed)
    steps, done, checkpoint, seen = 24, 0, None, []
    while done < steps:
        done = min(steps, done + choose.randrange(1, 9))
        micro = choose.choice([1, 2, 4, 8])
        options = {"val_check_interval": GLOBAL_BATCH // micro} if choose.random() < 0.5 else {}
        recorder, module = model(), data_module(small, micro)
        fit = trainer(tmp_path, done, **options)
        fit.fit(recorder, module, ckpt_path=checkpoint)
        assert module.consumed_samples == done * GLOBAL_BATCH
        assert fit.global_step == done
        seen += recorder.global_batches
        checkpoint = tmp_path / f"{done}.ckpt"
        fit.save_checkpoint(checkpoint)
    assert_same_stream(seen, expected_rows(small, steps))


class CrashInside(Recorder):
    """Saves inside a global batch, then exits."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.global_step == 4 and self.rows:
            self.trainer.save_checkpoint(self.trainer.default_root_dir + "/inside.ckpt")
            raise KeyboardInterrupt


def test_a_half_accumulated_global_batch_is_fed_again(small, tmp_path):
    crashing = CrashInside()
    with pytest.raises(SystemExit):
        trainer(tmp_path, 20).fit(crashing, data_module(small, 2))
    state = torch.load(tmp_path / "inside.ckpt", weights_only=False)["ShardedEdenDataModule"]
    assert state["consumed_samples"] == 4 * GLOBAL_BATCH
    resumed, module = Recorder(), data_module(small, 4)
    trainer(tmp_path, 9).fit(resumed, module, ckpt_path=tmp_path / "inside.ckpt")
    assert_same_stream(crashing.global_batches[:4] + resumed.global_batches, expected_rows(small, 9))


@pytest.mark.parametrize("limit", [4, 8, 10])
def test_an_epoch_that_becomes_shorter_than_what_was_trained_of_it_is_over(small, tmp_path, limit):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, 6, callbacks=[saving]).fit(Recorder(), data_module(small, 8))
    resumed = Recorder()
    trainer(tmp_path, 12, limit_train_batches=limit).fit(
        resumed, data_module(small, 4), ckpt_path=tmp_path / "step=5.ckpt"
    )
    assert_same_stream(resumed.global_batches, expected_rows(small, 12)[5 * GLOBAL_BATCH :])


class SavesEverywhere(Callback):
    """Saves a checkpoint in every hook that a user's callback may save in."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.saved: list[tuple[str, int]] = []

    def save(self, trainer, *_) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved)}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, trainer.global_step))

    on_train_start = on_train_epoch_start = on_train_batch_start = on_train_batch_end = on_train_epoch_end = save
    on_validation_start = on_validation_batch_end = on_validation_end = on_train_end = save


@pytest.mark.slow
@pytest.mark.parametrize(("micro", "options"), [(8, {"val_check_interval": 2}), (4, {"val_check_interval": 3})])
def test_whatever_hook_saved_it_a_checkpoint_goes_on_with_the_stream(small, tmp_path, micro, options):
    choose, saver, steps = random.Random(micro), SavesEverywhere(tmp_path), 10
    trainer(tmp_path, steps, callbacks=[saver], limit_val_batches=2, **options).fit(
        Validating(), data_module(small, micro)
    )
    expected = expected_rows(small, steps + 3)
    assert len(saver.saved) > 4 * steps
    for path, step in saver.saved:
        options = choose.choice([{}, {"val_check_interval": 2}, {"limit_train_batches": 8}])
        resumed, module = Validating(), data_module(small, choose.choice([1, 2, 4, 8]))
        trainer(tmp_path, step + 3, limit_val_batches=1, **options).fit(resumed, module, ckpt_path=path)
        assert module.consumed_samples == (step + 3) * GLOBAL_BATCH
        assert_same_stream(resumed.global_batches, expected[step * GLOBAL_BATCH : (step + 3) * GLOBAL_BATCH])


def expected_rows(small, steps: int) -> list[str]:
    with small.dataset(rc_aug=True) as dataset:
        stream = Stream(dataset)
        return [row_hashes(stream[p]["tokens"][None])[0] for p in range(steps * GLOBAL_BATCH)]


def data_module(small, micro: int) -> ShardedEdenDataModule:
    return ShardedEdenDataModule(
        small.sequence_db_dir, small.window_db, small.window_db, seq_length=64, stride=50,
        micro_batch_size=micro, global_batch_size=GLOBAL_BATCH, num_workers=0, rc_aug=True,
    )  # fmt: skip
