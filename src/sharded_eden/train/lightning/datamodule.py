"""`ShardedEdenDataModule`: the stream under a Lightning Trainer.

Input: paths and sizes. Output: three dataloaders. The training position is counted in whole global batches from the Trainer's
progress: prefetched batches do not count. Only this file, `accumulation.py` and `statistics.py` import Lightning.
"""

from __future__ import annotations

import os
from typing import Any

from sharded_eden.errors import MissingExtra, UsageError

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise MissingExtra("lightning", "train") from error

import torch
from torch.utils.data import DataLoader, DistributedSampler

from sharded_eden.format.geometry import integer
from sharded_eden.jobs import usable_processors
from sharded_eden.load.encode.batch import Example
from sharded_eden.load.encode.tokenizer import NucleotideTokenizer
from sharded_eden.load.options import ExampleOptions, absolute_path, path_or_url, takes_options
from sharded_eden.train.lightning.accumulation import Accumulation, micro_batches_of_an_epoch
from sharded_eden.train.lightning.counters import Position, forget_loader, is_restoring, restate_progress
from sharded_eden.train.lightning.loaders import EvaluationSampler, ResumableLoader, TrainSampler, samples_of_an_epoch
from sharded_eden.train.lightning.splits import EvaluationSets, Splits, absolute_paths
from sharded_eden.train.megatron import DataParallel, data_parallel_of, plan_of_job
from sharded_eden.train.nemo import DataSampler, steps_are_global_batches
from sharded_eden.train.sampler import BatchPlan
from sharded_eden.train.state import AcceptOtherData, check_accept_other_data, position_in
from sharded_eden.train.stream import Stream


class _Default(int):
    """A default value whose type distinguishes it from a value given by the caller."""


DEFAULT_WORKERS = _Default(8)


class ShardedEdenDataModule(pl.LightningDataModule):
    """Feeds a Lightning Trainer from sequence databases and one window database for each split.

    Every optimizer step sees exactly `global_batch_size` examples: gradient accumulation is set while fitting. An epoch is
    `windows * num_epochs // global_batch_size` optimizer steps, at least one, from the current position of an endless shuffled
    stream.
    Validation and test pass over their whole split in one fixed random order, without augmentation.

    Args:
        sequence_db_dir: the folder of per-sample sequence databases; None where every source names its own.
        train_window_db_path: the window database of the training split; None with a mixture.
        val_window_db_path: the window database of the validation split, None for no validation. A dict {name: path} gives
            several dataloaders in its order; a value may be a dict of `window_db_path`, `sequence_db_dir` and options that
            replace those of the module. See `val_names`.
        test_window_db_path: the same for the test split.
        seq_length: tokens of a row.
        tokenizer: None for the built-in `NucleotideTokenizer`.
        micro_batch_size: examples of one forward pass on one rank.
        global_batch_size: examples of one optimizer step on all ranks together.
        rampup_batch_size: Megatron's [start, increment, samples]; a Trainer without Megatron cannot ramp up.
        num_workers: worker processes of each dataloader; the default is 8, or the processors of this process if fewer.
        pin_memory: pin batches where there is a GPU to copy them to.
        persistent_workers: keep the workers between epochs.
        vocab_file, merges_file: not supported; pass `tokenizer`.
        rc_aug: use the reverse complement of half of the training windows.
        stride: bases between windows; None takes that of each window database.
        seed: decides order and strands.
        num_epochs: passes over the data in one Lightning epoch.
        mixture: train on several weighted datasets: the path of a TOML or YAML file, or what it holds as a dict; see
            `sharded_eden.train.mixture_file`.
        multiprocessing_context: how workers start: "fork", "spawn" or "forkserver"; None is Python's default.
        accept_other_data: True takes the position of a checkpoint that was saved for another stream or by the original loader;
            "restart" begins at 0 instead. A checkpoint of this stream is always resumed.
        options: all others, see `sharded_eden.load.options.ExampleOptions`. With `compact`, the tensors are made on the device.

    Raises:
        UsageError: sizes that do not fit, or `vocab_file` or `merges_file`.

    Example:
        >>> from sharded_eden import ShardedEdenDataModule
        >>> data = ShardedEdenDataModule(
        ...     "sequence_db_dir",
        ...     "windows/train_windows.db",
        ...     "windows/val_windows.db",
        ...     seq_length=1024,
        ...     micro_batch_size=2,
        ...     global_batch_size=8,
        ... )  # trainer.fit(model, data)
    """

    @takes_options
    def __init__(
        self,
        sequence_db_dir: str | os.PathLike[str] | None,
        train_window_db_path: str | os.PathLike[str] | None = None,
        val_window_db_path: EvaluationSets = None,
        test_window_db_path: EvaluationSets = None,
        seq_length: int = 8192,
        tokenizer: Any = None,
        micro_batch_size: int = 1,
        global_batch_size: int = 4,
        rampup_batch_size: list[int] | None = None,
        num_workers: int = DEFAULT_WORKERS,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        create_attention_mask: bool = False,
        vocab_file: str | None = None,
        merges_file: str | None = None,
        rc_aug: bool = False,
        stride: int | None = None,
        window_min_length_threshold: int | None = None,
        use_control_tags: bool = False,
        seed: int = 42,
        num_epochs: int = 1,
        log_windows: bool = False,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        mixture: Any = None,
        multiprocessing_context: str | None = None,
        accept_other_data: AcceptOtherData = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if vocab_file is not None or merges_file is not None:
            raise UsageError("vocab_file and merges_file are not read: pass the tokenizer itself as tokenizer=")
        if (num_epochs := integer(num_epochs, "num_epochs")) < 1:
            raise UsageError(f"num_epochs must be at least 1, not {num_epochs}")
        BatchPlan(micro_batch_size=micro_batch_size, global_batch_size=global_batch_size)
        self.sequence_db_dir: str | None = None
        if sequence_db_dir is not None or mixture is None:
            self.sequence_db_dir = path_or_url(sequence_db_dir, "sequence_db_dir")  # type: ignore[arg-type] # refuses None
        self.train_window_db_path = (
            None if train_window_db_path is None else path_or_url(train_window_db_path, "train_window_db_path")
        )
        self.mixture = mixture
        self.val_window_db_path = absolute_paths(val_window_db_path, "val_window_db_path")
        self.test_window_db_path = absolute_paths(test_window_db_path, "test_window_db_path")
        self._splits = Splits(self.train_window_db_path, mixture, self.val_window_db_path, self.test_window_db_path)
        self.seq_length = seq_length
        self.tokenizer = NucleotideTokenizer() if tokenizer is None else tokenizer
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.rampup_batch_size = rampup_batch_size
        self.num_workers = min(8, usable_processors()) if num_workers is DEFAULT_WORKERS else num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.rc_aug = rc_aug
        self.stride = stride
        self.seed = seed
        self.num_epochs = num_epochs
        self.multiprocessing_context = multiprocessing_context
        self.accept_other_data = check_accept_other_data(accept_other_data)
        # Every option is an attribute, read when a split is opened.
        opts = ExampleOptions(
            create_attention_mask=create_attention_mask,
            window_min_length_threshold=window_min_length_threshold,
            use_control_tags=use_control_tags,
            log_windows=log_windows,
            log_dir=None if log_dir is None else absolute_path(log_dir, "log_dir"),
            **options,
        )
        vars(self).update(vars(opts))
        self.data_sampler = DataSampler(self, seq_length, micro_batch_size, global_batch_size, rampup_batch_size)

        self._leave_undefined()
        self._pending_state: dict[str, Any] | None = None
        self._position = Position()
        self._accumulation: Accumulation | None = None

    def _leave_undefined(self) -> None:
        """Remove hooks that this module does not need: Lightning then skips them, or calls those of the user's module.

        These are the loops of splits without a database, and the hook for compact batches.
        """
        if self.val_window_db_path is None:
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        if self.test_window_db_path is None:
            self.test_dataloader = super().test_dataloader  # type: ignore[method-assign]
        if not self._options.compact:
            self.on_after_batch_transfer = super().on_after_batch_transfer  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        undefined = {"val_dataloader", "test_dataloader", "on_after_batch_transfer"}
        return {name: value for name, value in self.__dict__.items() if name not in undefined}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._leave_undefined()

    # ---- Lightning's hooks, in the order in which it calls them ----

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that a stage needs: `fit`, `validate`, `test`, or None for all."""
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(
            stage or "", ("train", "val", "test")
        )
        for split in wanted:
            self._open(split)
        if stage == "fit" and self.trainer is not None and not steps_are_global_batches(self.trainer):
            plan = self.batch_plan()
            if plan.global_batch_size_at(0) != plan.global_batch_size:
                raise UsageError(
                    "rampup_batch_size changes the number of micro batches as training goes on, which a Lightning Trainer "
                    "cannot: leave it None here, or train with Megatron"
                )
            self._accumulation = Accumulation.set_on(self.trainer, plan, self._was_asked_early)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved position, in the pass that `set_epoch` had chosen.

        Raises:
            StateError: it is no state, or was saved for other data, another seed or another geometry.
        """
        position_in(state_dict, "consumed_samples")
        if "train" not in self._splits.streams:
            self._pending_state = dict(state_dict)
            return
        (stream,) = self._splits.streams["train"]
        consumed, epoch = stream.position_of(state_dict, self.accept_other_data)
        stream.set_epoch(epoch)
        self._position = Position(consumed)
        if self.trainer is not None:
            forget_loader(self.trainer)

    def train_dataloader(self) -> DataLoader[Example]:
        """Return the training batches of this rank."""
        (stream,) = self._open("train")
        plan = self.batch_plan()
        samples = samples_of_an_epoch(stream, self.num_epochs, self.global_batch_size)
        if self.trainer is not None:
            if (
                self._accumulation is not None and self._accumulation.plan != plan
            ):  # the Tuner tries another micro batch size
                self._accumulation.take_off()
                self._accumulation = Accumulation.set_on(self.trainer, plan, self._was_asked_early)
            self._follow(self.trainer, plan, samples // self.global_batch_size)
        sampler = TrainSampler(
            stream,
            plan,
            self.data_parallel(),
            samples=samples,
            job=self,
        )
        return self._dataloader(stream, sampler)

    def val_dataloader(self) -> DataLoader[Example] | list[DataLoader[Example]]:
        """Return the validation batches of this rank; a list for a dict of validation sets, in its order."""
        return self._evaluation_dataloaders("val")

    def test_dataloader(self) -> DataLoader[Example] | list[DataLoader[Example]]:
        """Return the test batches of this rank; a list for a dict of test sets, in its order."""
        return self._evaluation_dataloaders("test")

    @property
    def val_names(self) -> list[str]:
        """The name of each validation set, by the `dataloader_idx` that Lightning passes to `validation_step`.

        Example:
            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                name = self.trainer.datamodule.val_names[dataloader_idx]
                self.log(f"val_loss/{name}", self.loss(batch), add_dataloader_idx=False)
        """
        return list(self._splits.sets["val"])

    @property
    def test_names(self) -> list[str]:
        """The name of each test set, by the `dataloader_idx` that Lightning passes to `test_step`."""
        return list(self._splits.sets["test"])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the tensors of a compact batch on the device, then call the hook of the user's module, if it has one."""
        if isinstance(batch, dict) and "codes" in batch:
            batch = self._splits.expander(self.trainer, dataloader_idx)(batch)
        module = None if self.trainer is None else self.trainer.lightning_module
        return batch if module is None else module.on_after_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the position to save with a checkpoint: the same on every rank."""
        if "train" not in self._splits.streams:
            return dict(self._pending_state or {})
        return self._splits.streams["train"][0].state(self.consumed_samples)

    def teardown(self, stage: str | None = None) -> None:
        """Restore the Trainer's settings."""
        if stage == "fit" and self._accumulation is not None:
            self._accumulation.take_off()
            self._accumulation = None

    # ---- used by the hooks ----

    def _was_asked_early(self) -> bool:
        return self._position.asked_early

    @property
    def consumed_samples(self) -> int:
        """Examples that the whole job has trained on, in whole global batches."""
        return self._position.consumed_samples

    @property
    def is_counted(self) -> bool:
        """Whether a Trainer moves `consumed_samples`."""
        return self._position.is_counted

    def batch_plan(self) -> BatchPlan:
        """Return the sizes of a step on the ranks of this job: from Megatron's calculator, where one is initialized."""
        return plan_of_job(
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            data_parallel_size=self.data_parallel().size,
            rampup_batch_size=self.rampup_batch_size,
        )

    def data_parallel(self) -> DataParallel:
        """Return the data-parallel rank and size: from Megatron, else the Trainer, else torch.distributed."""
        return data_parallel_of(self.trainer)

    @property
    def _options(self) -> ExampleOptions:
        return ExampleOptions.of(self)

    def _open(self, split: str) -> list[Stream]:
        """Return the streams of a split, open."""
        was_open = split in self._splits.streams
        streams = self._splits.open(
            split,
            tokenizer=self.tokenizer,
            sequence_db_dir=self.sequence_db_dir,
            seq_length=self.seq_length,
            rc_aug=self.rc_aug,
            stride=self.stride,
            seed=self.seed,
            rank=None if self.trainer is None else self.trainer.global_rank,
            **(vars(self._options) if split == "train" else {**vars(self._options), "tag_dropout": 0.0}),
        )
        if split == "train" and not was_open and self._pending_state is not None:
            state, self._pending_state = self._pending_state, None
            self.load_state_dict(state)
        return streams

    def _follow(self, trainer: pl.Trainer, plan: BatchPlan, steps_per_epoch: int) -> None:
        """Prepare counting for a Trainer that is about to train.

        Raises:
            UsageError: its `limit_train_batches` would end an epoch inside of a global batch.
        """
        epoch_loop = trainer.fit_loop.epoch_loop
        is_nemo = steps_are_global_batches(trainer)
        is_automatic = not is_nemo and trainer.lightning_module.automatic_optimization
        if is_automatic:
            epoch = micro_batches_of_an_epoch(trainer, plan.num_microbatches, steps_per_epoch)
        if is_restoring(trainer):
            # The counters are not restored yet. The loader is made again when they are.
            self._position.asked_early = True
            return
        if is_automatic:
            if trainer.fit_loop.restarting:
                restate_progress(trainer.fit_loop, plan.num_microbatches, epoch)
            # Micro batches that a hook skips are processed too, but in no step.
            steps = epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
            self._position.follow(steps, "completed", plan, each=1)
        else:
            # `completed` is counted after the callbacks that save checkpoints.
            each = 1 if is_nemo else plan.num_microbatches
            self._position.follow(epoch_loop.batch_progress.total, "processed", plan, each=each)

    def _evaluation_dataloaders(self, split: str) -> DataLoader[Example] | list[DataLoader[Example]]:
        loaders = []
        for stream in self._open(split):
            rows = len(stream)
            if self.trainer is not None and steps_are_global_batches(self.trainer):
                rows = -(-rows // self.global_batch_size) * self.global_batch_size
            sampler = EvaluationSampler(stream, rows, self.micro_batch_size, self.data_parallel())
            loaders.append(self._dataloader(stream, sampler))
        return loaders if self._splits.is_named[split] else loaders[0]

    def _dataloader(self, stream: Stream, sampler: DistributedSampler[Any]) -> DataLoader[Example]:
        workers: dict[str, Any] = {}
        if self.num_workers > 0:
            workers = {
                "persistent_workers": self.persistent_workers,
                "multiprocessing_context": self.multiprocessing_context,
            }
        # Without the data module, Lightning does not save the position, and warns where it resumes inside an epoch.
        loader: type[DataLoader[Example]] = DataLoader if self.trainer is None else ResumableLoader
        return loader(
            stream,
            batch_size=self.micro_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory and torch.cuda.is_available(),
            collate_fn=stream.collate_fn,
            **workers,
        )
