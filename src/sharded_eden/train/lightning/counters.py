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
    # While callbacks run at the end of a micro batch, it is processed but not completed.
    in_callback = 0 if inside else batches.total.processed - batches.total.completed
    for span in ("current", "total"):
        steps = getattr(optimizer.step, span).completed
        counted = getattr(batches, span)
        counted.ready = counted.started = counted.processed = steps * num_microbatches
        counted.completed = counted.processed - in_callback
        zeroed = getattr(optimizer.zero_grad, span)
        zeroed.ready = zeroed.started = zeroed.completed = steps
    if batches.current.completed >= epoch_micro_batches:
        # A micro batch that was saved in a callback is completed here; otherwise Lightning counts it in the next epoch.
        batches.total.completed = batches.total.processed
        batches.reset_on_run()
        optimizer.reset_on_run()
        for epochs in (fit_loop.epoch_progress.current, fit_loop.epoch_progress.total):
            epochs.started = epochs.processed = epochs.completed = epochs.ready


class Position:
    """Counts consumed samples along with a trainer's progress, in whole global batches."""

    def __init__(self, consumed_samples: int = 0) -> None:
        self._base = consumed_samples
        self._progress: Any = None
        self._processed_before = 0
        self._plan: BatchPlan | None = None
        self._per_step = 1

    def follow(self, progress: Any, plan: BatchPlan, *, whole_steps: bool = False) -> None:
        """Continue counting from here, by the micro batches in `progress.processed`.

        `processed` is counted before the callbacks that save checkpoints run, `completed` after them.

        Args:
            progress: of the trainer.
            plan: the sizes of a step.
            whole_steps: it counts global batches, not micro batches.
        """
        self._base = self.consumed_samples
        self._progress = progress
        self._processed_before = progress.processed
        self._plan = plan
        self._per_step = 1 if whole_steps else plan.num_microbatches

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
        batches = max(int(self._progress.processed) - self._processed_before, 0)
        return self._plan.after(self._base, batches // self._per_step)
