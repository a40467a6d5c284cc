"""`LoaderStatistics`: what a Lightning job reads, how fast, and how long it waits for data, to the loggers of the Trainer.

Input: a Trainer with a `ShardedEdenDataModule`. Output: metrics for its loggers, and a dict. See `train/statistics.py` for the
numbers and their cost; only the first rank counts.
"""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from sharded_eden.errors import UsageError, shown
from sharded_eden.train.lightning.datamodule import ShardedEdenDataModule
from sharded_eden.train.lightning.loaders import ResumableLoader
from sharded_eden.train.statistics import LoaderCounter


class LoaderStatistics(Callback):
    """Logs what is read, how fast, and the share of time spent waiting for data.

    Every `every_n_steps` optimizer steps, the values go to all loggers of the Trainer (TensorBoard, CSV, W&B), under the step
    of the loss that Lightning logs with them. Warns once where waiting takes more than 10% of the time, and says what
    to change.

    Args:
        every_n_steps: optimizer steps between two logged rows; None is the Trainer's `log_every_n_steps`.
        prefix: of the names, see `LoaderCounter.values`.

    Raises:
        UsageError: `every_n_steps` is below 1; when training begins, the data module is not a `ShardedEdenDataModule`.

    Example:
        >>> from sharded_eden import LoaderStatistics
        >>> callback = LoaderStatistics(every_n_steps=50)  # Trainer(callbacks=[callback])
    """

    def __init__(self, every_n_steps: int | None = None, *, prefix: str = "loader/") -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UsageError(f"every_n_steps must be at least 1, not {shown(every_n_steps)}")
        self._every, self._prefix = every_n_steps, prefix
        self._counter: LoaderCounter | None = None
        self._module: ShardedEdenDataModule | None = None
        self._logged_step = -1
        self._waited_before = self._pause_begin = 0.0
        self.latest: dict[str, float] = {}
        """The values that were logged last; empty before, and on other ranks than the first."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count at the position of the job."""
        module = getattr(trainer, "datamodule", None)
        if not isinstance(module, ShardedEdenDataModule):
            raise UsageError(
                f"LoaderStatistics needs a ShardedEdenDataModule, not {shown(type(module).__name__)}. For other loaders, use "
                "sharded_eden.train.statistics.LoaderCounter in the training loop"
            )
        self._module = module
        self._logged_step = trainer.global_step
        self._counter = (
            LoaderCounter(
                module._splits.streams["train"][0], consumed_samples=module.consumed_samples, prefix=self._prefix
            )
            if trainer.is_global_zero
            else None
        )
        self._waited_before = self._waited(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the values where it is time."""
        step = trainer.global_step
        every = self._every or max(1, getattr(trainer, "log_every_n_steps", 0) or 1)
        if self._counter is not None and step != self._logged_step and step % every == 0:
            self._logged_step = step
            self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the values of the last steps."""
        if self._counter is not None and trainer.global_step != self._logged_step:
            self._log(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._pause_begin = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        if self._counter is not None and self._pause_begin:
            self._counter.paused(time.perf_counter() - self._pause_begin)
        self._pause_begin = 0.0

    def _log(self, trainer: pl.Trainer) -> None:
        counter, module = self._counter, self._module
        if counter is None or module is None:
            return
        waited = self._waited(trainer)
        counter.waited(waited - self._waited_before if waited >= self._waited_before else waited)  # of a new loader
        self._waited_before = waited
        counter.reach(module.consumed_samples)
        self.latest = counter.values()
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step - 1)  # as Lightning logs the loss of this step

    def _waited(self, trainer: pl.Trainer) -> float:
        """Return the seconds that the training loader has made the Trainer wait."""
        loader = trainer.train_dataloader
        return loader.waited_seconds if isinstance(loader, ResumableLoader) else 0.0
