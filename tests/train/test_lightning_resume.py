"""A Lightning job that is stopped and resumed, in any history, trains on the uninterrupted stream."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from resume import assert_same_stream, row_hashes

from sharded_eden import ShardedEdenDataModule, Stream
from sharded_eden.errors import EdenWarning, UsageError
from sharded_eden.train.lightning.accumulation import LoaderCheck

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
    given = {"accelerator": "cpu", "max_epochs": -1, **options}
    return pl.Trainer(
        max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **given,
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


def data_module(small, micro: int, num_workers: int = 0) -> ShardedEdenDataModule:
    return ShardedEdenDataModule(
        small.sequence_db_dir, small.window_db, small.window_db, seq_length=64, stride=50,
        micro_batch_size=micro, global_batch_size=GLOBAL_BATCH, num_workers=num_workers, rc_aug=True,
    )  # fmt: skip


# ---- hooks that ask for the training loader before the Trainer's counters are restored ----


class AsksEarly(Recorder):
    """Asks for the number of steps, or for the loader, in a hook."""

    def __init__(self, hook: str, ask: Callable[[pl.Trainer], object]) -> None:
        super().__init__()
        self.hook, self.ask = hook, ask

    def asked(self, hook: str) -> None:
        if hook == self.hook:
            self.ask(self.trainer)

    def setup(self, stage):
        self.asked("setup")

    def configure_optimizers(self):
        self.asked("configure_optimizers")
        return super().configure_optimizers()

    def on_fit_start(self):
        self.asked("on_fit_start")


class RestoresLate(SingleDeviceStrategy):
    """Restores after the optimizers are made, as FSDP, ModelParallelStrategy and DeepSpeed."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


class Manual(AsksEarly):
    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if (batch_idx + 1) % 2 == 0:
            self.on_before_optimizer_step(None)
            self.optimizers().step()
            self.optimizers().zero_grad()


def setup_data_and_len(trainer: pl.Trainer) -> int:
    trainer.fit_loop.setup_data()
    return len(trainer.train_dataloader)


ASKS = {
    "estimated_stepping_batches": lambda trainer: trainer.estimated_stepping_batches,
    "len": lambda trainer: len(trainer.datamodule.train_dataloader()),
    "len and estimated_stepping_batches": lambda trainer: [
        len(trainer.datamodule.train_dataloader()),
        trainer.estimated_stepping_batches,
    ],
    "setup_data and len": setup_data_and_len,
    "batch": lambda trainer: next(iter(trainer.datamodule.train_dataloader())),
}


def assert_resumes(small, folder, model, *, micros, restores_late=False, workers=0) -> None:
    """Train 3 epochs of 5 steps, again and again from a checkpoint of the last run, inside an epoch or at its end."""
    epochs, steps = 3, 5
    expected, path = expected_rows(small, epochs * steps), None
    for run, (begin, micro) in enumerate(zip([0, 3, 10, 13], micros, strict=False)):
        recorder, module = model(), data_module(small, micro, workers)
        saving = ModelCheckpoint(folder / str(run), "{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(
            folder, -1, max_epochs=epochs, limit_train_batches=steps * GLOBAL_BATCH // micro, callbacks=[saving],
            **({"strategy": RestoresLate("cpu")} if restores_late else {}),
        )  # fmt: skip
        fit.fit(recorder, module, ckpt_path=path and path / f"step={begin}.ckpt")
        assert_same_stream(recorder.global_batches, expected[begin * GLOBAL_BATCH :])
        assert module.is_counted
        path = folder / str(run)
        for step in range(begin + 1, epochs * steps + 1):
            state = torch.load(path / f"step={step}.ckpt", weights_only=False)["ShardedEdenDataModule"]
            assert state["consumed_samples"] == step * GLOBAL_BATCH


CASES = [
    ("estimated_stepping_batches", "configure_optimizers", False),
    ("estimated_stepping_batches", "configure_optimizers", True),
    ("estimated_stepping_batches", "setup", False),
    ("estimated_stepping_batches", "on_fit_start", True),
    ("len", "configure_optimizers", False),
    ("len and estimated_stepping_batches", "setup", True),
    ("setup_data and len", "configure_optimizers", False),
    ("batch", "configure_optimizers", False),
]


@pytest.mark.parametrize(("ask", "hook", "restores_late"), CASES)
def test_a_hook_that_asks_for_the_loader_does_not_move_the_position(small, tmp_path, ask, hook, restores_late):
    assert_resumes(
        small, tmp_path, lambda: AsksEarly(hook, ASKS[ask]), micros=(4, 4, 2, 8), restores_late=restores_late
    )


@pytest.mark.parametrize("restores_late", [False, True])
def test_a_hook_that_asks_for_a_loader_with_workers(small, tmp_path, restores_late):
    def model() -> AsksEarly:
        return AsksEarly("configure_optimizers", ASKS["estimated_stepping_batches"])

    assert_resumes(small, tmp_path, model, micros=(4, 2), restores_late=restores_late, workers=2)


def test_a_hook_that_asks_for_the_loader_under_manual_optimization(small, tmp_path):
    def model() -> Manual:
        return Manual("configure_optimizers", ASKS["estimated_stepping_batches"])

    assert_resumes(small, tmp_path, model, micros=(4, 4, 4))


def test_a_hook_that_asks_for_the_loader_too_late_is_an_error(small, tmp_path):
    fit = trainer(tmp_path, 3, max_epochs=2)
    fit.fit(AsksEarly("on_fit_start", ASKS["estimated_stepping_batches"]), data_module(small, 4))
    fit.save_checkpoint(tmp_path / "3.ckpt")
    model, resumed = AsksEarly("on_fit_start", ASKS["estimated_stepping_batches"]), trainer(tmp_path, 6, max_epochs=2)
    with pytest.raises(UsageError, match="ask in configure_optimizers or setup instead of on_fit_start"):
        resumed.fit(model, data_module(small, 4), ckpt_path=tmp_path / "3.ckpt")
    assert not [each for each in resumed.callbacks if isinstance(each, LoaderCheck)]
    assert model.global_batches == []


def test_an_epoch_that_was_over_when_it_was_saved_is_counted_once(small, tmp_path):
    """The third run resumes inside the epoch that follows, and ends with it."""
    assert_resumes(small, tmp_path, Recorder, micros=(4, 4, 4, 4))


class LogsEachStep(Recorder):
    """Remembers the number under which Lightning logs each optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, int]] = []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.logged.append((self.trainer.global_step, self.trainer.fit_loop.epoch_loop._batches_that_stepped + 1))


def test_steps_are_logged_under_the_same_numbers_after_the_end_of_an_epoch(small, tmp_path):
    """Without validation, a checkpoint of the last step is saved before Lightning counts that step for the log."""
    options = {"max_epochs": 3, "limit_train_batches": 5, "limit_val_batches": 0}
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = LogsEachStep()
    trainer(tmp_path, -1, callbacks=[saving], **options).fit(whole, data_module(small, GLOBAL_BATCH))
    assert [step for step, _ in whole.logged] == list(range(1, 16))
    for step in (4, 5, 10, 12):
        resumed = LogsEachStep()
        trainer(tmp_path, -1, **options).fit(
            resumed, data_module(small, GLOBAL_BATCH), ckpt_path=tmp_path / f"step={step}.ckpt"
        )
        assert resumed.logged == whole.logged[step:]


def test_a_loader_of_the_user_is_trained_on_after_the_data_module_was_used(small, tmp_path):
    """Lightning keeps the data module of the last call; its loader is not asked for."""
    fit, model = trainer(tmp_path, 2, limit_val_batches=1), Validating()
    module = data_module(small, GLOBAL_BATCH)
    fit.validate(model, module, verbose=False)
    with small.dataset() as dataset:
        stream = Stream(dataset)
        loader = torch.utils.data.DataLoader(stream, GLOBAL_BATCH, collate_fn=stream.collate_fn)
        fit.fit(model, train_dataloaders=loader)
    assert fit.global_step == 2


class SkipsAlways(Validating):
    def on_train_batch_start(self, batch, batch_idx):
        return -1


def test_epochs_that_end_before_their_first_step_are_a_warning(small, tmp_path):
    module = data_module(small, GLOBAL_BATCH)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, -1, max_epochs=2, limit_val_batches=0).fit(SkipsAlways(), module)
    (message,) = (str(each.message) for each in caught if each.category is EdenWarning)
    assert message.startswith(
        "an epoch ended before its first optimizer step, 0, because a hook skipped the rest of it"
    )
    assert module.consumed_samples == 0


class SkipsTheRest(Recorder):
    """Ends each epoch in the third step, before or after its first micro batch."""

    def __init__(self, micro_batches: int, inside: bool) -> None:
        super().__init__()
        self.last = 2 * micro_batches + inside

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == self.last else None

    def on_train_epoch_start(self):
        self.rows = []  # of an incomplete global batch


@pytest.mark.parametrize(("micro", "inside"), [(8, False), (4, False), (4, True), (2, True)])
def test_a_hook_that_skips_the_rest_of_an_epoch(small, tmp_path, micro, inside):
    """What is not trained on comes next, in this run and in one that resumes at the end of an epoch or inside it."""
    expected, path, begin = expected_rows(small, 8), None, 0
    for run in range(3):
        saving = ModelCheckpoint(tmp_path / str(run), "{step}", every_n_train_steps=1, save_top_k=-1)
        ends = ModelCheckpoint(tmp_path / f"{run}_ends", "{step}", save_on_train_epoch_end=True, save_top_k=-1)
        model, module = SkipsTheRest(GLOBAL_BATCH // micro, inside), data_module(small, micro)
        fit = trainer(tmp_path, -1, max_epochs=4, callbacks=[saving, ends])
        fit.fit(model, module, ckpt_path=path)
        assert (fit.global_step, module.consumed_samples) == (8, 8 * GLOBAL_BATCH)
        assert_same_stream(model.global_batches, expected[begin * GLOBAL_BATCH :])
        for step in range(begin + 1, 9):
            state = torch.load(tmp_path / str(run) / f"step={step}.ckpt", weights_only=False)
            assert state["ShardedEdenDataModule"]["consumed_samples"] == step * GLOBAL_BATCH
        begin, path = [(2, tmp_path / "0_ends/step=2.ckpt"), (5, tmp_path / "1/step=5.ckpt"), (0, None)][run]
