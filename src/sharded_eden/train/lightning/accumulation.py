"""Sets gradient accumulation on a Lightning Trainer, and checks that every optimizer step sees exactly one global batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler

from sharded_eden.errors import EdenError, UsageError, warn
from sharded_eden.train.lightning.counters import forget_loader, is_restoring
from sharded_eden.train.sampler import BatchPlan


@dataclass(frozen=True)
class Accumulation:
    """The changes made to a Trainer, so that they can be undone."""

    trainer: pl.Trainer
    plan: BatchPlan
    was_set: bool
    check: LoaderCheck

    @classmethod
    def set_on(cls, trainer: pl.Trainer, plan: BatchPlan, asked_early: Callable[[], bool]) -> Accumulation:
        """Make each optimizer step of a Trainer see one global batch, or refuse.

        With manual optimization the user's `training_step` decides when to step: no accumulation is set or checked.

        Args:
            trainer: that is about to train.
            plan: the sizes of a step.
            asked_early: see `LoaderCheck`.

        Raises:
            UsageError: the Trainer accumulates otherwise.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if not trainer.lightning_module.automatic_optimization:
            return cls._with(LoaderCheck(asked_early), trainer, plan, was_set=False)
        needed = plan.num_microbatches
        sizes = (
            f"global_batch_size={plan.global_batch_size} = micro_batch_size={plan.micro_batch_size} x "
            f"{plan.data_parallel_size} ranks x {needed} micro batches"
        )
        schedulers = [callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)]
        for scheduler in schedulers:
            if set(scheduler.scheduling.values()) != {needed}:
                raise UsageError(
                    f"{sizes}, but the GradientAccumulationScheduler accumulates {scheduler.scheduling}: remove it, or let it "
                    f"say {{0: {needed}}}"
                )
        given = trainer.accumulate_grad_batches
        if not schedulers and given not in {1, needed}:
            raise UsageError(
                f"{sizes}, but the Trainer has accumulate_grad_batches={given}: set it to {needed}, or leave it at 1 and it is "
                "set for you"
            )
        if not schedulers:
            trainer.accumulate_grad_batches = needed
        return cls._with(GlobalBatchCheck(asked_early, plan), trainer, plan, was_set=not schedulers and given != needed)

    @classmethod
    def _with(cls, check: LoaderCheck, trainer: pl.Trainer, plan: BatchPlan, *, was_set: bool) -> Accumulation:
        trainer.callbacks.append(check)  # type: ignore[attr-defined]
        accumulation = cls(trainer, plan, was_set=was_set, check=check)
        check.take_off = accumulation.take_off
        return accumulation

    def take_off(self) -> None:
        """Restore the Trainer."""
        if self.was_set:
            self.trainer.accumulate_grad_batches = 1
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if self.check in callbacks:
            callbacks.remove(self.check)


class LoaderCheck(Callback):
    """Forgets a loader that was made too early, and checks that the position is counted when training begins.

    Args:
        asked_early: returns whether the training loader was made before the checkpoint was restored, and not since.
    """

    def __init__(self, asked_early: Callable[[], bool]) -> None:
        self._asked_early = asked_early
        self.take_off: Callable[[], None] | None = None
        """What to do after training ends with an error, because Lightning then calls no teardown."""

    def on_exception(self, *_: object) -> None:
        """Restore the Trainer."""
        if self.take_off is not None:
            self.take_off()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget a loader that `configure_optimizers` asked for; strategies that restore later load the position later."""
        if is_restoring(trainer):
            forget_loader(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, *_: object) -> None:
        """Forget a loader that was made before a strategy restored late, also where the data module has no state to load."""
        forget_loader(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise an error where no loader was made after the checkpoint was restored."""
        if self._asked_early():
            raise UsageError(
                "a hook asked for the training batches or for their number (trainer.estimated_stepping_batches) after "
                "on_fit_start of the callbacks and before the checkpoint was restored, so the position cannot be counted: "
                "ask in configure_optimizers or setup instead of on_fit_start or on_load_checkpoint"
            )


class GlobalBatchCheck(LoaderCheck):
    """Checks that every optimizer step uses exactly one global batch."""

    def __init__(self, asked_early: Callable[[], bool], plan: BatchPlan) -> None:
        super().__init__(asked_early)
        self._plan = plan
        self._examples = 0
        self._stepped = False
        self._epoch_began_at = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        super().on_train_start(trainer, pl_module)
        self._examples, self._epoch_began_at = 0, -1

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Begin to count: a hook that ends an epoch may leave an incomplete global batch, which is trained on again."""
        self._examples, self._stepped = 0, False
        if self._epoch_began_at == trainer.global_step:
            warn(
                f"an epoch ended before its first optimizer step, {trainer.global_step}, because a hook skipped the rest of "
                "it: the next one begins with the same windows. A hook that returns -1 for certain windows never passes them"
            )
        self._epoch_began_at = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count a micro batch of all ranks."""
        del trainer, pl_module, batch_idx
        if self._stepped:
            self._examples, self._stepped = 0, False
        is_ours = isinstance(batch, dict) and isinstance(batch.get("tokens"), torch.Tensor)
        rows = len(batch["tokens"]) if is_ours else self._plan.micro_batch_size
        self._examples += rows * self._plan.data_parallel_size

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        """Raise an error for a step on anything but a global batch."""
        self._stepped = True
        if self._examples != self._plan.global_batch_size:
            raise EdenError(
                f"optimizer step {trainer.global_step} sees {self._examples} examples instead of "
                f"global_batch_size={self._plan.global_batch_size}: something changed the Trainer's gradient accumulation "
                f"({trainer.accumulate_grad_batches}) or its batches while it ran"
            )


def micro_batches_of_an_epoch(trainer: pl.Trainer, num_microbatches: int, steps_per_epoch: int) -> int:
    """Return how many micro batches an epoch of this Trainer has, its `limit_train_batches` included.

    `fast_dev_run=n` runs n optimizer steps on whole global batches.

    Args:
        trainer: about to train.
        num_microbatches: micro batches of one global batch.
        steps_per_epoch: optimizer steps of one epoch without a limit.

    Raises:
        UsageError: the limit would end an epoch inside of a global batch; names one that fits.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        # Lightning counts fast_dev_run in optimizer steps: it sets max_steps to the same number.
        trainer.limit_train_batches = trainer.max_steps * num_microbatches
    whole = steps_per_epoch * num_microbatches
    limit = trainer.limit_train_batches
    batches = min(whole, limit if isinstance(limit, int) else int(whole * limit))
    if batches % num_microbatches:
        below = batches // num_microbatches * num_microbatches
        raise UsageError(
            f"limit_train_batches={limit} would end an epoch inside of a global batch, which takes {num_microbatches} micro "
            f"batches: use a multiple, such as {max(below, num_microbatches)}"
        )
    return batches
