"""For `transformers.Trainer`: the callback that saves the position, and a collate function.

    from sharded_eden import Position, collate_for_hugging_face

The names are made on first use, so importing this module does not load `transformers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharded_eden.errors import MissingExtra, StateError
from sharded_eden.load.encode.batch import collate
from sharded_eden.train.batch_formats import to_hugging_face

if TYPE_CHECKING:
    from sharded_eden.train.sampler import StreamBatchSampler


def collate_for_hugging_face(rows: Any) -> dict[str, Any]:
    """Collate examples as the dataset does, under the names of `transformers`: a `data_collator` for its Trainer.

    See `sharded_eden.train.batch_formats.to_hugging_face` for the parts of the batch.

    Raises:
        UsageError: the examples are compact, or have fractional weights.

    Example:
        >>> from sharded_eden import ShardedEdenDataset, collate_for_hugging_face
        >>> with ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db") as dataset:
        ...     batch = collate_for_hugging_face([dataset[0], dataset[1]])
        >>> batch["input_ids"].shape
        torch.Size([2, 1024])
    """
    return to_hugging_face(collate(rows))


def _position_class() -> type:
    try:
        from transformers import TrainerCallback
        from transformers.trainer_callback import ExportableState
    except ImportError as error:
        raise MissingExtra("transformers", "transformers") from error

    class Position(TrainerCallback, ExportableState):
        """A callback that writes the position to each checkpoint's `trainer_state.json`, and checks it on resuming.

        Args:
            sampler: holds the stream and the sizes of a step; it is not iterated.

        Raises:
            StateError: training resumes from a checkpoint of another stream or another global batch size.

        Example:
            >>> from sharded_eden import Position, ShardedEdenDataset, Stream, StreamBatchSampler
            >>> stream = Stream(ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db"))
            >>> sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=4)
            >>> callback = Position(sampler)  # transformers.Trainer(callbacks=[callback], ...)
        """

        def __init__(self, sampler: StreamBatchSampler) -> None:
            self.sampler = sampler
            self.consumed_samples = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Count the samples that were trained on."""
            self.consumed_samples = state.global_step * self.sampler.plan.global_batch_size

        def state(self) -> dict[str, Any]:
            """Return the state for the checkpoint."""
            return {"args": {}, "attributes": self.sampler.state_dict(consumed_samples=self.consumed_samples)}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Compare the checkpoint with this stream and this global batch size."""
            saved = state.stateful_callbacks.get("Position", {})
            self.sampler.load_state_dict(saved.get("attributes", {}) if isinstance(saved, dict) else saved)
            self.on_step_end(args, state, control)
            if self.sampler.consumed_samples != self.consumed_samples:
                raise StateError(
                    f"{self.sampler.consumed_samples} samples were trained on, not {self.consumed_samples}: the checkpoint has "
                    f"{state.global_step} steps of another global batch size. Set global_batch_size to that of the checkpoint"
                )

    Position.__qualname__ = "Position"
    return Position


def __getattr__(name: str) -> Any:
    if name != "Position":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = _position_class()
    return globals()[name]
