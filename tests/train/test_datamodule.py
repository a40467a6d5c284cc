"""The data module under a Lightning Trainer: the data of each optimizer step, epoch and validation, and errors."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars as pl_frames
import pytest
import torch
import worlds
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from resume import assert_same_stream, row_hashes
from worlds import STRIDE, T

from sharded_eden import ShardedEdenDataModule, Stream, precompute_window_database
from sharded_eden.errors import EdenError, EdenWarning, GeometryMismatch, StateError, UsageError
from sharded_eden.train.state import VERSION

HELPERS = Path(__file__).resolve().parent.parent / "helpers"

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (
        ".*does not have many workers",  # where there are more cores
        ".*will create . worker processes in total",  # where there are fewer
        ".*persistent_workers=True",
        "This process .* is multi-threaded:DeprecationWarning",
        ".*`tensorboardX` has been removed",
    )
]

N, GLOBAL = 23, 4
CONTIGS = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(66 + k, k) for k in range(N)}
HELD_OUT = {f"BCR__ECT-S{k % 3}__CT1-{k}": sequence for k, sequence in enumerate(list(CONTIGS.values())[:7])}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose more than they gain by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-three windows to train on, and the first seven of them to validate on."""
    worlds.write(tmp_path, CONTIGS)
    worlds.oracle.write_window_db(tmp_path / "held_out.db", HELD_OUT, T, STRIDE)
    return tmp_path


def module_of(folder: Path, **options: Any) -> ShardedEdenDataModule:
    given: dict[str, Any] = {
        "sequence_db_dir": folder / "seqs", "train_window_db_path": folder / "windows.db", "seq_length": T, "stride": STRIDE,
        "micro_batch_size": 2, "global_batch_size": GLOBAL, "num_workers": 0, "rc_aug": True,
    }  # fmt: skip
    return ShardedEdenDataModule(**{**given, **options})


class Model(pl.LightningModule):
    """A tiny model that records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 256)
        self.rows: list[str] = []
        self.steps: list[list[str]] = []
        self.evaluated: list[list[str]] = [[]]
        self.batches: list[dict[str, torch.Tensor]] = []

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(
            self.embedding(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), reduction="none"
        )
        return (losses * batch["loss_mask"].flatten()).sum() / batch["loss_mask"].sum()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.rows += row_hashes(batch["tokens"])
        self.batches.append(batch)
        return self.loss(batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps.append(self.rows)
        self.rows = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated[-1] += row_hashes(batch["tokens"])
        self.log("val_loss", self.loss(batch), batch_size=len(batch["tokens"]))

    def on_validation_epoch_end(self) -> None:
        self.evaluated.append([])

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.evaluated.append([])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(folder: Path, **options: Any) -> pl.Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 1,
    }  # fmt: skip
    return pl.Trainer(**{**given, **options})


def stream_rows(folder: Path, positions: range, *, rc_aug: bool = True, **options: Any) -> list[str]:
    """The rows of the training stream, from a separate dataset and stream."""
    with worlds.dataset(folder, rc_aug=rc_aug, **options) as dataset:
        return row_hashes(torch.stack([Stream(dataset)[p]["tokens"] for p in positions]))


def forward_rows(folder: Path, contigs: dict[str, str]) -> set[str]:
    """The rows of windows on the forward strand."""
    rows = [[1, 3, *sequence[: T - 3].encode(), 2] for sequence in contigs.values()]
    return set(row_hashes(torch.tensor(rows)))


Fitted = tuple[Model, pl.Trainer, ShardedEdenDataModule]


def fit(folder: Path, model: Model | None = None, *, ckpt_path: Path | None = None, **options: Any) -> Fitted:
    """Train and return the records of the model."""
    ours = {name: options.pop(name) for name in list(options) if name in MODULE_OPTIONS}
    model = model or Model()
    trainer, module = trainer_of(folder, **options), module_of(folder, **ours)
    trainer.fit(model, module, ckpt_path=ckpt_path)
    return model, trainer, module


MODULE_OPTIONS = {
    "micro_batch_size", "global_batch_size", "num_workers", "rc_aug", "seed", "num_epochs", "persistent_workers",
    "accept_other_data", "val_window_db_path", "log_windows", "log_dir", "use_control_tags", "multiprocessing_context",
}  # fmt: skip


# ---- the specification's own example ----

USAGE_EXAMPLE = """
from bionemo.evo2.run.sharded_eden_dataloader import ShardedEdenDataModule

# Create the data module
data_module = ShardedEdenDataModule(
    sequence_db_dir="path/to/sequence_db_dir",  # Directory containing sample folders
    train_window_db_path="path/to/train_windows.db",
    val_window_db_path="path/to/val_windows.db",
    test_window_db_path="path/to/test_windows.db",
    seq_length=8192,
    micro_batch_size=1,
    global_batch_size=4,
    num_workers=8,
    rc_aug=True,
    use_control_tags=True,
)

# Use with PyTorch Lightning trainer
trainer = pl.Trainer(...)
trainer.fit(model, data_module)
"""


@pytest.mark.filterwarnings("ignore:rows of this dataset show 8179 bases:UserWarning")
def test_the_usage_example_of_the_specification(tmp_path):
    contigs = {f"BCR__ECT-SAMPLE{k}__CT1-1": worlds.random_sequence(8192 + 7992 * k, k) for k in range(1, 4)}
    worlds.oracle.write_sequence_dbs(tmp_path / "sequence_db_dir", contigs)
    for split, kept in (("train", contigs), ("val", contigs), ("test", dict(list(contigs.items())[:1]))):
        worlds.oracle.write_window_db(tmp_path / f"{split}_windows.db", kept, 8192, 7992)
    filled_in = USAGE_EXAMPLE.replace("path/to", str(tmp_path)).replace(
        "pl.Trainer(...)", "pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator='cpu')"
    )
    model = Model()
    names = {"pl": pl, "model": model}
    exec(filled_in, names)
    trainer: Any = names["trainer"]
    assert trainer.global_step == 2  # 9 windows, 4 for each step
    assert [len(step) for step in model.steps] == [4, 4]
    assert all(batch["tokens"].shape == (1, 8192) for batch in model.batches)
    trainer.test(model, names["data_module"], verbose=False)
    assert len(model.evaluated[-2]) == 2


def test_the_usage_example_on_the_contigs_that_the_specification_prints(tmp_path):
    lengths = {
        "train": {"SAMPLE1__CT1-1": 1500, "SAMPLE1__CT1-2": 2000},
        "val": {"SAMPLE2__CT1-1": 1800},
        "test": {"SAMPLE3__CT1-1": 1600},
    }
    contigs: dict[str, str] = {}
    for split, rows in lengths.items():
        of_split = {f"BCR__ECT-{name}": worlds.random_sequence(length, length) for name, length in rows.items()}
        frame = pl_frames.DataFrame({"contig_id": list(of_split), "length": list(rows.values())})
        frame.write_parquet(tmp_path / f"{split}_split.parquet")
        precompute_window_database(tmp_path / f"{split}_split.parquet", tmp_path / f"{split}_windows.db", 8192, 7992)
        contigs |= of_split
    worlds.oracle.write_sequence_dbs(tmp_path / "sequence_db_dir", contigs)
    filled_in = USAGE_EXAMPLE.replace("path/to", str(tmp_path)).replace(
        "pl.Trainer(...)", "pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, accelerator='cpu')"
    )
    model = Model()
    names = {"pl": pl, "model": model}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(filled_in, names)
    assert (
        sum("2 windows in num_epochs=1 are fewer than one global batch of 4" in str(each.message) for each in caught)
        == 1
    )
    assert [len(step) for step in model.steps] == [4, 4]
    names["trainer"].test(model, names["data_module"], verbose=False)
    assert len(model.evaluated[-2]) == 1


# ---- global batches ----


@pytest.mark.parametrize(("micro", "whole"), [(1, 4), (2, 4), (4, 4), (1, 1), (3, 9), (5, 20)])
def test_every_step_sees_one_global_batch_of_the_stream(folder, micro, whole):
    class Watching(Model):
        def on_train_start(self) -> None:
            assert self.trainer.accumulate_grad_batches == whole // micro

    model, trainer, module = fit(folder, Watching(), micro_batch_size=micro, global_batch_size=whole, max_epochs=3)
    steps = 3 * (N // whole)
    assert trainer.global_step == steps
    assert [len(step) for step in model.steps] == [whole] * steps
    assert_same_stream(model.steps, stream_rows(folder, range(steps * whole)))
    assert module.consumed_samples == steps * whole
    assert all(len(batch["tokens"]) == micro for batch in model.batches)
    assert trainer.accumulate_grad_batches == 1  # as it was given


def test_passes_are_shuffled_differently_and_see_each_window_once(folder):
    model, _, _ = fit(folder, max_epochs=4, rc_aug=False)
    seen = [row for step in model.steps for row in step]
    passes = [seen[k : k + N] for k in range(0, len(seen) - N + 1, N)]
    assert len(passes) == 3
    assert all(set(each) == forward_rows(folder, CONTIGS) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    other, _, _ = fit(folder, max_epochs=2, rc_aug=False, seed=43)
    assert [row for step in other.steps for row in step][:N] != passes[0]


def test_an_epoch_of_several_passes(folder):
    model, trainer, _ = fit(folder, num_epochs=3, max_epochs=1)
    assert trainer.global_step == 3 * N // GLOBAL
    assert trainer.current_epoch == 1
    assert_same_stream(model.steps, stream_rows(folder, range(3 * N // GLOBAL * GLOBAL)))


@pytest.mark.parametrize("options", [
    {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}, {"reload_dataloaders_every_n_epochs": 1},
    {"val_check_interval": 1}, {"max_steps": 10, "max_epochs": -1}, {"limit_train_batches": 4},
])  # fmt: skip
def test_the_stream_is_the_same_however_the_trainer_runs(folder, options):
    options = {"max_epochs": 2, "multiprocessing_context": "fork" if "num_workers" in options else None, **options}
    model, trainer, _ = fit(folder, val_window_db_path=folder / "held_out.db", **options)
    assert trainer.global_step == (4 if "limit_train_batches" in options else 10)
    assert_same_stream(model.steps, stream_rows(folder, range(trainer.global_step * GLOBAL)))


def test_accumulation_that_is_given_right_stays(folder):
    model, trainer, _ = fit(folder, accumulate_grad_batches=2)
    assert trainer.accumulate_grad_batches == 2
    assert [len(step) for step in model.steps] == [GLOBAL] * 5


@pytest.mark.parametrize("given", [3, 4])
def test_accumulation_that_is_given_wrong_is_refused(folder, given):
    with pytest.raises(UsageError) as caught:
        fit(folder, accumulate_grad_batches=given)
    assert str(caught.value) == (
        "global_batch_size=4 = micro_batch_size=2 x 1 ranks x 2 micro batches, but the Trainer has "
        f"accumulate_grad_batches={given}: set it to 2, or leave it at 1 and it is set for you"
    )


def test_a_scheduler_of_accumulation(folder):
    model, _, _ = fit(folder, callbacks=[GradientAccumulationScheduler({0: 2})])
    assert [len(step) for step in model.steps] == [GLOBAL] * 5
    for scheduling in ({0: 1}, {0: 2, 1: 4}, {1: 2}):
        with pytest.raises(
            UsageError, match=r"the GradientAccumulationScheduler accumulates .*: remove it, or let it say \{0: 2\}"
        ):
            fit(folder, callbacks=[GradientAccumulationScheduler(scheduling)])


def test_manual_optimization_steps_when_it_likes(folder):
    class Manual(Model):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    model, trainer, module = fit(folder, Manual())
    assert trainer.accumulate_grad_batches == 1
    assert [len(step) for step in model.steps] == [2] * 10
    assert_same_stream(model.steps, stream_rows(folder, range(20)))
    assert module.consumed_samples == 20


def test_accumulation_that_changes_on_the_way_stops_the_training(folder):
    class Meddles(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.accumulate_grad_batches = 1

    with pytest.raises(EdenError, match=r"optimizer step 2 sees 2 examples instead of global_batch_size=4"):
        fit(folder, callbacks=[Meddles()])


@pytest.mark.parametrize(("limit", "fits"), [(3, 2), (1, 2), (0.5, 4), (0.9, 8), (7, 6)])
def test_a_limit_that_would_end_an_epoch_inside_of_a_global_batch(folder, limit, fits):
    with pytest.raises(UsageError, match=rf"limit_train_batches={limit} would end .* such as {fits}"):
        fit(folder, limit_train_batches=limit)


def test_fast_dev_run_takes_one_whole_step(folder):
    model, _, _ = fit(folder, fast_dev_run=True, val_window_db_path=folder / "held_out.db")
    assert [len(step) for step in model.steps] == [GLOBAL]


def test_sizes_that_do_not_fit_list_those_that_do(folder):
    with pytest.raises(UsageError) as caught:
        module_of(folder, micro_batch_size=4, global_batch_size=6)
    assert str(caught.value) == (
        "global_batch_size=6 is not a multiple of micro_batch_size=4 times data-parallel size 1. Nearest global batch sizes "
        "that fit: 4 and 8; micro batch sizes that fit: 1, 2, 3, 6"
    )
    for name in ("micro_batch_size", "global_batch_size"):
        for value in (0, -1, 2.0, "2"):
            with pytest.raises(UsageError, match=rf"{name} must be an integer of at least 1, not {value!r}"):
                module_of(folder, **{name: value})
    for value in (0, -1):
        with pytest.raises(UsageError, match="num_epochs must be at least 1"):
            module_of(folder, num_epochs=value)


def test_fewer_windows_than_a_global_batch(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, trainer, module = fit(folder, global_batch_size=60, max_epochs=2)
    assert [str(each.message) for each in caught if each.category is EdenWarning] == [
        f"{folder}/windows.db: 23 windows in num_epochs=1 are fewer than one global batch of 60. A Lightning epoch is one "
        "global batch, which also holds windows of the next passes. Lower global_batch_size or raise num_epochs"
    ]
    assert (trainer.global_step, module.consumed_samples) == (2, 120)
    assert [len(step) for step in model.steps] == [60, 60]
    assert_same_stream(model.steps, stream_rows(folder, range(120)))
    model, _, _ = fit(folder, global_batch_size=24, num_epochs=2)
    assert_same_stream(model.steps, stream_rows(folder, range(24)))


def test_an_empty_training_split(folder):
    worlds.execute(folder / "windows.db", "DELETE FROM window_mappings")
    with pytest.raises(UsageError, match="holds no window, so there is nothing to stream"):
        fit(folder)


@pytest.mark.parametrize("option", ["vocab_file", "merges_file"])
def test_vocabulary_files_are_refused(folder, option):
    with pytest.raises(UsageError, match="pass the tokenizer itself as tokenizer="):
        module_of(folder, **{option: "vocab.json"})


def test_ramping_up_is_refused_under_a_trainer(folder):
    module = module_of(folder, rampup_batch_size=[2, 2, 10])
    assert module.data_sampler.rampup_batch_size == [2, 2, 10]
    with pytest.raises(
        UsageError, match="which a Lightning Trainer cannot: leave it None here, or train with Megatron"
    ):
        trainer_of(folder).fit(Model(), module)


def test_sizes_under_the_names_that_megatron_strategies_read(folder):
    sampler = module_of(folder).data_sampler
    assert (sampler.seq_len, sampler.micro_batch_size, sampler.global_batch_size) == (T, 2, GLOBAL)


def test_errors_of_the_dataset_come_through(folder):
    with pytest.raises(GeometryMismatch, match="built with stride=50; the dataset asks for stride=7992"):
        trainer_of(folder).fit(Model(), module_of(folder, stride=7992))


# ---- validation and test ----


def test_validation_is_fixed_whole_and_not_augmented(folder):
    model, _, _ = fit(folder, val_window_db_path=folder / "held_out.db", max_epochs=3, num_sanity_val_steps=0)
    passes = [each for each in model.evaluated if each]
    assert len(passes) == 3
    assert all(len(each) == 7 and set(each) == forward_rows(folder, HELD_OUT) for each in passes)
    assert len({tuple(each) for each in passes}) == 1
    # training uses other strands too
    assert any(row not in forward_rows(folder, CONTIGS) for step in model.steps for row in step)


def test_validation_does_not_move_the_training_stream(folder):
    with_it, _, _ = fit(folder, val_window_db_path=folder / "held_out.db", max_epochs=2, val_check_interval=2)
    without, _, _ = fit(folder, max_epochs=2)
    assert with_it.steps == without.steps


def test_splits_without_a_database_are_left_out(folder):
    model, trainer, module = fit(folder, max_epochs=2)
    assert model.evaluated == [[]]
    for run in (trainer.validate, trainer.test):
        with pytest.raises(MisconfigurationException, match=r"`(val|test)_dataloader` must be implemented"):
            run(model, module)
    trainer.validate(model, module_of(folder, val_window_db_path=folder / "held_out.db"), verbose=False)


def test_validate_and_test_by_themselves(folder):
    module = module_of(
        folder, val_window_db_path=folder / "held_out.db", test_window_db_path=folder / "windows.db", num_workers=1,
        multiprocessing_context="fork",
    )  # fmt: skip
    model, trainer = Model(), trainer_of(folder)
    (validated,) = trainer.validate(model, module, verbose=False)
    (tested,) = trainer.test(model, module, verbose=False)
    assert set(model.evaluated[0]) == forward_rows(folder, HELD_OUT)
    assert set(model.evaluated[1]) == forward_rows(folder, CONTIGS)
    assert (len(model.evaluated[0]), len(model.evaluated[1])) == (7, N)
    assert validated["val_loss"] > 0
    assert tested["val_loss"] > 0
    assert set(module._splits.streams) == {"val", "test"}  # training data were not opened for it
    assert trainer.accumulate_grad_batches == 1


def test_a_missing_window_database_is_an_error_at_once(folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.db: no such window database"):
        fit(folder, val_window_db_path=folder / "nowhere.db")


# ---- resuming ----


@pytest.mark.parametrize("workers", [0, 2])
def test_a_checkpoint_in_the_middle_of_an_epoch_goes_on_with_the_exact_stream(folder, workers):
    options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    saving = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    first, _, _ = fit(folder, max_steps=6, max_epochs=-1, callbacks=[saving], enable_checkpointing=True, **options)
    for step in (3, 5, 6):  # 5 steps are an epoch
        resumed, trainer, module = fit(folder, ckpt_path=folder / f"step={step}.ckpt", max_epochs=2, **options)
        assert trainer.global_step == 10
        assert_same_stream(first.steps[:step] + resumed.steps, stream_rows(folder, range(40)))
        assert module.consumed_samples == 40


def test_the_state_in_a_checkpoint(folder):
    _, trainer, module = fit(folder, max_steps=3, max_epochs=-1)
    trainer.save_checkpoint(folder / "x.ckpt")
    state = torch.load(folder / "x.ckpt", weights_only=True)["ShardedEdenDataModule"]
    assert state == {
        "version": VERSION,
        "consumed_samples": 12,
        "seed": 42,
        "fingerprint": module._splits.streams["train"][0].dataset.fingerprint,
        "geometry": {
            "window_size": T,
            "stride": STRIDE,
            "window_min_length_threshold": 0,
            "special_tokens": 3,
            "keep_tail": 0,
        },
        "rows": {"bos": 1, "sep": 3, "eos": 2, "pad": 0, "control_tags": False, "rc_aug": True},
        "letters": module._splits.streams["train"][0].dataset.letters,
        "shuffle": True,
    }
    waiting = module_of(folder)
    waiting.load_state_dict(state)
    assert waiting.state_dict() == state  # before a dataset is opened
    waiting.setup("fit")
    assert waiting.consumed_samples == 12
    assert waiting.state_dict() == state


def saved(folder: Path, **changes: Any) -> Path:
    """A checkpoint after three steps, its data state changed."""
    _, trainer, _ = fit(folder, max_steps=3, max_epochs=-1)
    trainer.save_checkpoint(folder / "saved.ckpt")
    checkpoint = torch.load(folder / "saved.ckpt", weights_only=False)
    state = checkpoint["ShardedEdenDataModule"]
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(checkpoint, folder / "saved.ckpt")
    return folder / "saved.ckpt"


REFUSED = [
    (
        {"seed": 41},
        r"another stream: seed was 41, is 42\. Continue with .* accept_other_data=True keeps the position, 12 cons",
        True,
    ),
    ({"fingerprint": 7}, r"fingerprint was 7, is \d+\.", True),
    ({"geometry": {"window_size": 64, "stride": 49}}, r"geometry was \{'window_size': 64, 'stride': 49\}, is \{", True),
    ({"seed": 41, "fingerprint": 7}, r"seed was 41, is 42; fingerprint was 7, is", True),
    ({"version": 99}, r"has version 99, this program reads version 1", True),
    (
        {"version": None, "seed": None, "fingerprint": None, "geometry": None},
        r"holds a bare consumed_samples, as the orig",
        True,
    ),
    ({"consumed_samples": None}, r"holds no position: consumed_samples=None", False),
    ({"consumed_samples": -4}, r"holds no position: consumed_samples=-4", False),
    ({"consumed_samples": "12"}, r"holds no position: consumed_samples='12'", False),
]


@pytest.mark.parametrize(("changes", "words", "may_be_accepted"), REFUSED)
def test_states_of_another_stream_are_refused(folder, changes, words, may_be_accepted):
    checkpoint = saved(folder, **changes)
    with pytest.raises(StateError, match=words):
        fit(folder, ckpt_path=checkpoint, max_steps=5, max_epochs=-1)
    if may_be_accepted:
        model, _, _ = fit(folder, ckpt_path=checkpoint, max_steps=5, max_epochs=-1, accept_other_data=True)
        assert_same_stream(model.steps, stream_rows(folder, range(12, 20)))
    else:
        with pytest.raises(StateError, match=words):
            fit(folder, ckpt_path=checkpoint, max_steps=5, max_epochs=-1, accept_other_data=True)


def test_other_data_are_found_out_by_their_fingerprint(folder):
    checkpoint = saved(folder)
    (folder / "windows.db").unlink()
    worlds.oracle.write_window_db(folder / "windows.db", dict(list(CONTIGS.items())[1:]), T, STRIDE)
    with pytest.raises(StateError, match="fingerprint was"):
        fit(folder, ckpt_path=checkpoint, max_steps=5, max_epochs=-1)


def test_a_second_fit_goes_on_where_the_first_one_ended(folder):
    """With the same Trainer or another, a data module does not repeat samples."""
    module, first, second = module_of(folder), Model(), Model()
    trainer = trainer_of(folder, max_steps=3, max_epochs=-1)
    trainer.fit(first, module)
    assert trainer.accumulate_grad_batches == 1
    assert not [callback for callback in trainer.callbacks if type(callback).__module__.startswith("sharded_eden")]
    trainer_of(folder, max_steps=4, max_epochs=-1).fit(second, module)
    assert module.consumed_samples == 28
    assert_same_stream(first.steps + second.steps, stream_rows(folder, range(28)))
    trainer.fit_loop.epoch_loop.max_steps = 5
    third = Model()
    trainer.fit(third, module)
    assert_same_stream(third.steps, stream_rows(folder, range(28, 36)))


def test_two_modules_one_after_the_other_under_one_trainer(folder):
    trainer = trainer_of(folder)
    trainer.fit(Model(), module_of(folder))
    model = Model()
    trainer_again = trainer_of(folder)
    trainer_again.fit(model, module_of(folder, micro_batch_size=1))
    assert [len(step) for step in model.steps] == [GLOBAL] * 5


def test_a_trainer_is_given_back_after_an_error_too(folder):
    class Fails(Model):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise ZeroDivisionError

    trainer, module = trainer_of(folder), module_of(folder)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Fails(), module)
    model = Model()
    trainer.fit(model, module_of(folder, micro_batch_size=1))
    assert [len(step) for step in model.steps] == [GLOBAL] * 5


@pytest.mark.parametrize(
    "duplicate", [lambda module: pickle.loads(pickle.dumps(module)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
@pytest.mark.parametrize("opened", [False, True])
def test_a_copy_of_a_data_module_trains_like_the_original(folder, duplicate, opened):
    """Strategies that spawn their ranks pickle it; a split without a database must stay one."""
    module = module_of(folder)
    if opened:
        module.setup("fit")
    again = duplicate(module)
    model = Model()
    trainer_of(folder).fit(model, again)
    assert_same_stream(model.steps, stream_rows(folder, range(20)))
    assert model.evaluated == [[]]


def test_a_data_module_without_a_trainer(folder):
    module = module_of(folder, val_window_db_path=folder / "held_out.db")
    module.setup()
    rows = [row for batch in module.train_dataloader() for row in row_hashes(batch["tokens"])]
    assert rows == stream_rows(folder, range(20))
    assert {row for batch in module.val_dataloader() for row in row_hashes(batch["tokens"])} == forward_rows(
        folder, HELD_OUT
    )
    assert module.data_parallel() == (0, 1)
    lazily = module_of(folder)
    assert len(lazily.train_dataloader()) == 10  # opens what it needs


def test_every_argument_of_the_issue_is_taken(folder):
    module = ShardedEdenDataModule(
        folder / "seqs", folder / "windows.db", folder / "held_out.db", folder / "held_out.db", T, None, 2, 4, None, 0, True,
        False, True, None, None, True, STRIDE, 0, True, 7, 1, True, folder / "log",
    )  # fmt: skip
    model = Model()
    trainer_of(folder).fit(model, module)
    batch = model.batches[0]
    assert batch["attention_mask"].shape == (2, 1, T, T)
    assert bytes(batch["tokens"][0, 1:11].tolist()) == b"<ctrl_bcr>"
    names = sorted(path.name.rsplit("_", 1)[0] for path in (folder / "log").glob("*.csv"))
    assert names == ["window_access_train_rank0", "window_access_validation_rank0"]


def test_strands_and_order_depend_on_the_seed(folder):
    first, _, _ = fit(folder, seed=1)
    second, _, _ = fit(folder, seed=2)
    assert_same_stream(first.steps, stream_rows(folder, range(20), seed=1))
    assert_same_stream(second.steps, stream_rows(folder, range(20), seed=2))
    assert first.steps != second.steps


def test_a_loss_goes_down(folder):
    class Learns(Model):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.3)

    torch.manual_seed(0)
    model, _, _ = fit(folder, Learns(), max_epochs=4)
    with torch.no_grad():
        assert model.loss(model.batches[-1]) < 2.0  # from ln 256 = 5.5 towards ln 4 = 1.4


def test_on_two_processes(folder):
    """Distributed data parallel under Lightning, and Megatron's own ranks: see two_processes.py."""
    program = HELPERS / "two_processes.py"
    done = subprocess.run(
        [sys.executable, str(program), str(folder)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = eval(done.stdout.strip().splitlines()[-1])
    expected = stream_rows(folder, range(20))
    first, second = report["ddp"]
    assert [len(step) for step in first["steps"]] == [2] * 5  # two micro batches of one on each of two ranks
    together = [
        [row for pair in zip(*steps, strict=True) for row in pair]
        for steps in zip(first["steps"], second["steps"], strict=True)
    ]
    assert_same_stream(together, expected)
    assert (first["consumed"], second["consumed"]) == (20, 20)
    assert len(first["evaluated"]) == len(second["evaluated"]) == 4
    assert set(first["evaluated"] + second["evaluated"]) == forward_rows(folder, HELD_OUT)

    assert report["tp=2"] == [(0, 1), (0, 1)]  # the data-parallel (rank, size)
    assert report["tp=2 rows"] == [expected, expected]
    assert report["tp=1"] == [(0, 2), (1, 2)]
    assert report["tp=1 rows"] == [expected[0::2], expected[1::2]]


def test_random_states_never_repeat_or_skip(folder):
    """Stop and resume with workers, by checkpoints of every kind, until an epoch and a half is done."""
    choose, done, checkpoint, seen = random.Random(3), 0, None, []
    while done < 8:
        done = min(8, done + choose.randrange(1, 4))
        workers = choose.choice([0, 1])
        model, trainer, _ = fit(
            folder, ckpt_path=checkpoint, max_steps=done, max_epochs=-1, num_workers=workers,
            multiprocessing_context="fork" if workers else None, micro_batch_size=choose.choice([1, 2, 4]),
        )  # fmt: skip
        seen += model.steps
        checkpoint = folder / f"{done}.ckpt"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.save_checkpoint(checkpoint)
    assert_same_stream(seen, stream_rows(folder, range(32)))
