"""The position of a job under Lightning, read from the Trainer's counters, which are corrected after a resume.

Lightning counts micro batches. A checkpoint may be resumed with another micro batch size or on other ranks, where a global
batch has another number of them; and the rows of an incomplete global batch before the checkpoint are repeated.
"""

from __future__ import annotations

from typing import Any

from sharded_eden.train.sampler import BatchPlan


def restate_progress(fit_loop: Any, num_microbatches: int, epoch_micro_batches: int) -> None:
    """Rewrite a restored progress as whole global batches of `num_microbatches` micro batches.

    A finished epoch is closed: with `max_steps`, Lightning 2.6 would otherwise train one more batch in it, or treat the first
    batch of the next epoch as its last.

    Args:
        fit_loop: Lightning's fit loop, its state just loaded, automatic optimization (one optimizer).
        num_microbatches: micro batches of one global batch from now on.
        epoch_micro_batches: micro batches of one epoch from now on.
    """
    optimizer = fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    batches = fit_loop.epoch_loop.batch_progress
    # Gradients are zeroed at the first micro batch of a global batch: one more zeroing than steps means inside a global batch.
    inside = optimizer.zero_grad.current.completed > optimizer.step.current.completed
    # A micro batch at which a hook skips the rest of the epoch is processed, but never started or completed.
    is_skipped = batches.current.processed > batches.current.started
    # While callbacks run at the end of a micro batch, it is processed but not completed.
    in_callback = 0 if inside else min(batches.total.started, batches.total.processed) - batches.total.completed
    for span in ("current", "total"):
        steps = getattr(optimizer.step, span).completed
        counted = getattr(batches, span)
        counted.ready = counted.started = counted.processed = steps * num_microbatches
        counted.completed = counted.processed - in_callback
        zeroed = getattr(optimizer.zero_grad, span)
        zeroed.ready = zeroed.started = zeroed.completed = steps
    if is_skipped or batches.current.processed >= epoch_micro_batches:
        # A micro batch that was saved in a callback is completed here; otherwise Lightning counts it in the next epoch.
        batches.total.completed = batches.total.processed
        # The number that Lightning logs as the step; it is saved before the last step is counted.
        fit_loop.epoch_loop._batches_that_stepped = optimizer.step.total.completed
        batches.reset_on_run()
        optimizer.reset_on_run()
        for epochs in (fit_loop.epoch_progress.current, fit_loop.epoch_progress.total):
            epochs.started = epochs.processed = epochs.completed = epochs.ready


def is_restoring(trainer: Any) -> bool:
    """Return whether a Trainer has read a checkpoint and not yet restored all of it: its counters are old."""
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def forget_loader(trainer: Any) -> None:
    """Let a Trainer make its training loader again when it begins to train.

    Lightning makes the loader once, and restores its counters late. A hook that asks for the number of steps, such as
    `configure_optimizers` by `trainer.estimated_stepping_batches`, makes the loader before: the position cannot be counted
    from there.
    """
    trainer.fit_loop._combined_loader = None


class Position:
    """Counts consumed samples along with a trainer's progress, in whole global batches."""

    def __init__(self, consumed_samples: int = 0) -> None:
        self._base = consumed_samples
        self.asked_early = False
        """The loader was made before the checkpoint was restored, and has not been made again since."""
        self._progress: Any = None
        self._counter = ""
        self._counted_before = 0
        self._plan: BatchPlan | None = None
        self._per_step = 1

    def follow(self, progress: Any, counter: str, plan: BatchPlan, *, each: int) -> None:
        """Continue counting from here, by one of a trainer's counters.

        Args:
            progress: of the trainer.
            counter: the name of a counter in it that changes before the callbacks that save checkpoints run.
            plan: the sizes of a step.
            each: what it counts in each global batch.
        """
        self._base, self.asked_early = self.consumed_samples, False
        self._progress, self._counter = progress, counter
        self._counted_before = getattr(progress, counter)
        self._plan = plan
        self._per_step = each

    @property
    def is_counted(self) -> bool:
        """Whether a Trainer moves the position."""
        return self._plan is not None

    @property
    def consumed_samples(self) -> int:
        """Examples that the whole job has trained on."""
        if self._plan is None:
            return self._base
        # Lightning's Tuner resets the counters between its trials.
        counted = max(int(getattr(self._progress, self._counter)) - self._counted_before, 0)
        return self._plan.after(self._base, counted // self._per_step)
