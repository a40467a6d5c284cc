"""The splits of a data module: what is trained on, and named sets for validation and test. Opened on first use."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from sharded_eden.errors import UsageError, shown
from sharded_eden.load.encode.compact import Expander
from sharded_eden.load.options import path_or_url
from sharded_eden.train.mixture_file import MixtureConfig, Source, mixture_config
from sharded_eden.train.stream import EvaluationStream, Stream

logger = logging.getLogger(__name__)

EvaluationSets = str | os.PathLike[str] | Mapping[str, Any] | None
"""One window database, or {name: window database, or a dict of it and options}."""


class Splits:
    """The streams of a data module.

    Args:
        train: the window database of the training split; None with a mixture.
        mixture: see `sharded_eden.train.mixture_file.mixture_config`.
        val: the validation set, or several by name.
        test: the test set, or several by name.

    Raises:
        UsageError: neither a training split nor a mixture, or both; names that are not strings, or a set that is invalid.
        InputError: the file of the mixture cannot be read.
    """

    def __init__(self, train: Any, mixture: Any, val: EvaluationSets, test: EvaluationSets) -> None:
        if (mixture is None) == (train is None):
            raise UsageError(
                f"give either train_window_db_path or mixture: they are {shown(train)} and {shown(mixture)}"
            )
        self.mixture: MixtureConfig | None = None if mixture is None else mixture_config(mixture)
        self.sets: dict[str, dict[str, Source]] = {
            "train": {} if train is None else {"": Source.of(train, "train_window_db_path")},
            "val": _sets(val, "val_window_db_path"),
            "test": _sets(test, "test_window_db_path"),
        }
        self.is_named = {"val": isinstance(val, Mapping), "test": isinstance(test, Mapping)}
        """Whether a split has a list of dataloaders."""
        self.streams: dict[str, list[Stream]] = {}
        """Those that are open."""
        self._expanders: dict[tuple[str, int], Expander] = {}
        sources = [each for sets in self.sets.values() for each in sets.values()]
        for source in [*sources, *(self.mixture.sources.values() if self.mixture is not None else ())]:
            for name in ("compact", "packed"):
                if name in source.options:
                    raise UsageError(f"{name} is an option of the whole data module, not of {source.window_db_path}")

    def open(self, split: str, **options: Any) -> list[Stream]:
        """Return the streams of a split; those that are not open are opened with the arguments of `Source.open`."""
        if split in self.streams:
            return self.streams[split]
        options["split"] = {"val": "validation"}.get(split, split)
        streams: list[Stream]
        if split == "train" and self.mixture is not None:
            streams = [self.mixture.open(**options)]
        else:
            if split != "train":
                options["rc_aug"] = False
            opened = [
                source.open(called=f"{split} set {shown(name)}", **options) for name, source in self.sets[split].items()
            ]
            streams = [Stream(each) if split == "train" else EvaluationStream(each) for each in opened]
        for stream in streams:
            logger.info("%s", stream.dataset)
        self.streams[split] = streams
        return streams

    def expander(self, trainer: Any, dataloader_idx: int) -> Expander:
        """Return what expands compact batches of the loop that a Trainer runs: sets may weigh letters differently.

        Raises:
            UsageError: without a running Trainer, where sets have options of their own.
        """
        split = next(split for split, streams in self.streams.items() if streams)
        if trainer is not None and (trainer.validating or trainer.sanity_checking or trainer.testing):
            split = "test" if trainer.testing else "val"
        elif trainer is not None and trainer.training:
            split = "train"
        elif any(source.options for sets in self.sets.values() for source in sets.values()):
            raise UsageError(
                "sets have different options, and without a running Trainer the set of a compact batch is unknown: expand it "
                "by dataset.expander() of its set"
            )
        number = 0 if split == "train" else dataloader_idx
        if (split, number) not in self._expanders:
            self._expanders[split, number] = self.streams[split][number].dataset.expander()
        return self._expanders[split, number]


def absolute_paths(given: EvaluationSets, name: str) -> Any:
    """Return a path as an absolute one; named sets as they are."""
    return given if given is None or isinstance(given, Mapping) else path_or_url(given, name)


def _sets(given: EvaluationSets, name: str) -> dict[str, Source]:
    """Return the sets of a split by name; that of a path has an empty name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {"": Source.of(given, name)}
    if not given or not all(type(each) is str and each for each in given):
        raise UsageError(
            f"{name} must be a path, or a dict {{name: path}} with a name for each set, not {shown(given)}"
        )
    return {each: Source.of(value, f"{name}[{shown(each)}]") for each, value in given.items()}
