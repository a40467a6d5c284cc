"""Ranks and sizes from Megatron: the data-parallel rank, and the micro batches of a step.

Tensor-, pipeline- and context-parallel peers must get the same batches, data-parallel ranks different ones. If a job has
initialized Megatron's `parallel_state`, ranks come from it; if it has initialized the `num_microbatches_calculator`, the number
of micro batches of a step does. Megatron is never imported here unless the job has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch

from sharded_eden.errors import MissingExtra, UsageError
from sharded_eden.train.sampler import BatchPlan, StreamBatchSampler
from sharded_eden.train.state import AcceptOtherData
from sharded_eden.train.stream import Stream

CALCULATOR = "megatron.core.num_microbatches_calculator"
_ALL_SAMPLES = 1 << 62


class DataParallel(NamedTuple):
    """The rank of this process among those that see different examples, and their number."""

    rank: int
    size: int


def data_parallel_position() -> DataParallel | None:
    """Return the data-parallel rank and size from Megatron, None where this process has not initialized it."""
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is None or not parallel_state.model_parallel_is_initialized():
        return None
    return DataParallel(
        rank=parallel_state.get_data_parallel_rank(with_context_parallel=False),
        size=parallel_state.get_data_parallel_world_size(with_context_parallel=False),
    )


def data_parallel_of(trainer: Any) -> DataParallel:
    """Return the data-parallel rank and size: from Megatron, else a Lightning Trainer (or None), else torch.distributed."""
    if (from_megatron := data_parallel_position()) is not None:
        return from_megatron
    if trainer is not None:
        ranks = trainer.distributed_sampler_kwargs
        return DataParallel(0, 1) if ranks is None else DataParallel(int(ranks["rank"]), int(ranks["num_replicas"]))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return DataParallel(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return DataParallel(0, 1)


@dataclass(frozen=True, kw_only=True)
class MegatronPlan(BatchPlan):
    """The sizes of a step according to Megatron's calculator, including its ramp-up.

    It uses a copy of the calculator; the original is not changed.
    """

    calculator: Any

    def global_batch_size_at(self, consumed_samples: int) -> int:
        """Return the size of the global batch that begins at a position.

        Raises:
            UsageError: that size is not a multiple of micro batch size times ranks; the message lists sizes that fit.
        """
        at = _at(self.calculator, consumed_samples)
        self._check_fits(at.running)
        return at.running


def plan_of_job(
    *,
    micro_batch_size: int,
    global_batch_size: int,
    data_parallel_size: int,
    rampup_batch_size: Sequence[int] | None = None,
) -> BatchPlan:
    """Return the sizes of a step: from Megatron's calculator where this process has initialized it, else those given.

    A ramp-up and `decrease_batch_size_if_needed` of the calculator are followed.

    Raises:
        UsageError: the sizes do not fit, or differ from the calculator's; the message names both.
    """
    calculator = getattr(sys.modules.get(CALCULATOR), "_GLOBAL_NUM_MICROBATCHES_CALCULATOR", None)
    if calculator is None:
        return BatchPlan(
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            data_parallel_size=data_parallel_size,
            rampup_batch_size=rampup_batch_size,
        )
    full = _at(calculator, _ALL_SAMPLES)
    _check_same("micro_batch_size", micro_batch_size, calculator.get_micro_batch_size())
    _check_same("global_batch_size", global_batch_size, full.nominal)
    plan = MegatronPlan(
        micro_batch_size=micro_batch_size,
        global_batch_size=full.running,
        data_parallel_size=data_parallel_size,
        calculator=calculator,
    )
    _check_same("the data-parallel size", data_parallel_size, full.running // (full.micro_batches * micro_batch_size))
    if rampup_batch_size is not None:
        own = BatchPlan(micro_batch_size=1, global_batch_size=global_batch_size, rampup_batch_size=rampup_batch_size)
        first, increment, samples = rampup_batch_size
        steps = (global_batch_size - first) // increment
        # Both only grow: where they agree on either side of each of our increases, they agree everywhere.
        turns = {-(-k * samples // steps) for k in range(steps + 1)} if steps else {0}
        for position in sorted(p for turn in turns for p in (turn - 1, turn, turn + 1) if p >= 0):
            _check_same(
                f"rampup_batch_size={list(rampup_batch_size)}: the global batch at consumed_samples={position}",
                own.global_batch_size_at(position),
                _at(calculator, position).nominal,
            )
    return plan


class _Sizes(NamedTuple):
    nominal: int
    running: int
    micro_batches: int


def _at(calculator: Any, consumed_samples: int) -> _Sizes:
    asked = copy(calculator)
    asked.update(consumed_samples, consistency_check=False)
    return _Sizes(asked.get_current_global_batch_size(), asked.get_current_running_global_batch_size(), asked.get())


def _check_same(what: str, here: int, calculators: int) -> None:
    if here != calculators:
        raise UsageError(
            f"{what} is {here} here, but {calculators} in Megatron's num_microbatches_calculator: give both the same"
        )


class MegatronBatchSampler(StreamBatchSampler):
    """The micro batches of this process, with all sizes and ranks from Megatron, for a training loop on Megatron core.

    Args:
        stream: what is sampled.
        consumed_samples: the position to begin at.
        drop_last: see `StreamBatchSampler`.
        accept_other_data: see `StreamBatchSampler`.

    Raises:
        UsageError: `parallel_state` or `num_microbatches_calculator` is not initialized.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        consumed_samples: int = 0,
        drop_last: bool = True,
        accept_other_data: AcceptOtherData = False,
    ) -> None:
        place = data_parallel_position()
        calculator = getattr(sys.modules.get(CALCULATOR), "_GLOBAL_NUM_MICROBATCHES_CALCULATOR", None)
        if place is None or calculator is None:
            raise UsageError(
                "Megatron is not initialized: call parallel_state.initialize_model_parallel and "
                "init_num_microbatches_calculator first, or use StreamBatchSampler, which takes ranks and sizes as arguments"
            )
        plan = plan_of_job(
            micro_batch_size=calculator.get_micro_batch_size(),
            global_batch_size=_at(calculator, _ALL_SAMPLES).nominal,
            data_parallel_size=place.size,
        )
        super().__init__(
            stream,
            micro_batch_size=plan.micro_batch_size,
            global_batch_size=plan.global_batch_size,
            rank=place.rank,
            data_parallel_size=place.size,
            consumed_samples=consumed_samples,
            drop_last=drop_last,
            accept_other_data=accept_other_data,
        )
        self.plan = plan


def packed_seq_params(cu_seqlens: torch.Tensor, max_seqlen: int) -> Any:
    """Return Megatron's `PackedSeqParams` of one flat row.

    Args:
        cu_seqlens: (segments + 1,) int32, where each window begins, and the end.
        max_seqlen: the longest segment, in tokens.

    Raises:
        MissingExtra: Megatron is not installed.
    """
    try:
        module = import_module("megatron.core.packed_seq_params")
    except ModuleNotFoundError as error:
        raise MissingExtra("megatron-core", "megatron") from error
    return module.PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )


def __getattr__(name: str) -> Any:
    if name in {"DataSampler", "steps_are_global_batches"}:  # their former module
        return getattr(import_module("sharded_eden.train.nemo"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
