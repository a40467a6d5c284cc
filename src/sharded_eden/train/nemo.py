"""`data_sampler`, which NeMo's strategies require of a data module. Never imports NeMo unless the job has imported it."""

from __future__ import annotations

import dataclasses
import sys
from importlib import import_module
from typing import Any, Protocol

from sharded_eden.errors import UsageError
from sharded_eden.train.megatron import CALCULATOR, MegatronPlan
from sharded_eden.train.sampler import BatchPlan

_NEMO_STRATEGY = "nemo.lightning.pytorch.strategies.megatron_strategy"


def steps_are_global_batches(trainer: Any) -> bool:
    """Return whether one batch of a Lightning Trainer is a whole global batch, as under NeMo.

    Raises:
        UsageError: NeMo's strategy has its own `data_sampler`, which would sample the stream again.
    """
    strategies = sys.modules.get(_NEMO_STRATEGY)
    if strategies is None or not isinstance(trainer.strategy, strategies.MegatronStrategy):
        return False
    given = trainer.strategy.data_sampler
    if not isinstance(given, DataSampler | None):
        raise UsageError(
            f"MegatronStrategy(data_sampler={type(given).__name__}(...)) would sample the stream again, and from its start "
            "after each restart: leave data_sampler out, the data module has one"
        )
    return True


class Job(Protocol):
    """The part of the data module that a data sampler uses."""

    @property
    def consumed_samples(self) -> int:
        """Examples that the whole job has trained on."""

    def batch_plan(self) -> BatchPlan:
        """Return the sizes of a step on the ranks of this job."""


class DataSampler:
    """The `data_sampler` for NeMo's strategies, with the sizes of a step under NeMo's names.

    The loaders of this package are already sharded by data-parallel rank, so they are not changed.

    Args:
        job: the data module.
        seq_len: tokens of a row.
        micro_batch_size: examples of one forward pass on one rank.
        global_batch_size: examples of one optimizer step on all ranks together.
        rampup_batch_size: [first size, increment, samples], or None.
    """

    dataloader_type = "single"

    def __init__(
        self,
        job: Job,
        seq_len: int,
        micro_batch_size: int,
        global_batch_size: int,
        rampup_batch_size: list[int] | None = None,
    ) -> None:
        self._job = job
        self.seq_len = seq_len
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.rampup_batch_size = rampup_batch_size
        self._connected_to: Any = None

    def connect(self, trainer: Any) -> None:
        """Convert the limits of a Trainer, once, from global batches to the micro batches that NeMo pulls.

        Raises:
            UsageError: a limit is a fraction, which could end inside a global batch.
        """
        if trainer is self._connected_to or not steps_are_global_batches(trainer):
            return
        self._connected_to = trainer
        micro_batches = self._job.batch_plan().num_microbatches
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "num_sanity_val_steps"):
            limit = getattr(trainer, name)
            if isinstance(limit, int):
                setattr(trainer, name, limit * micro_batches)
            elif limit not in {0.0, 1.0, float("inf")}:
                raise UsageError(f"{name}={limit} may end inside of a global batch: give a number of global batches")

    def setup(self, global_rank: int) -> None:
        """Initialize Megatron's calculator, unless it is initialized.

        Raises:
            UsageError: the sizes do not fit, or it was initialized with other sizes.
        """
        calculators = import_module(CALCULATOR)
        plan = self._job.batch_plan()
        if not isinstance(plan, MegatronPlan):
            calculators.init_num_microbatches_calculator(
                rank=global_rank,
                rampup_batch_size=self.rampup_batch_size,
                global_batch_size=plan.global_batch_size,
                micro_batch_size=plan.micro_batch_size,
                data_parallel_size=plan.data_parallel_size,
            )

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        """Return the loader unchanged."""
        del consumed_samples
        return dataloader

    def on_megatron_step_start(self, step: Any) -> Any:
        """Return NeMo's step with its sizes; Megatron's calculator gets the position of a training job.

        Evaluation always takes global batches of the full size.
        """
        if step.forward_only:
            micro_batches = self._job.batch_plan().num_microbatches
        else:
            calculators = import_module(CALCULATOR)
            calculators.update_num_microbatches(self._job.consumed_samples, consistency_check=False)
            micro_batches = calculators.get_num_microbatches()
        return dataclasses.replace(
            step, seq_length=self.seq_len, micro_batch_size=self.micro_batch_size, num_microbatches=micro_batches
        )
