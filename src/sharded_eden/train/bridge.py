"""`ShardedEdenDatasetProvider`: the stream as the dataset of a Megatron Bridge job. Needs Bridge, so no module imports it.

    from sharded_eden.train.bridge import ShardedEdenDatasetProvider

Bridge requests datasets of exact lengths and counts through them with its own sampler, in the order of docs/one-stream.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharded_eden.errors import MissingExtra, UsageError
from sharded_eden.load.encode.tokenizer import NucleotideTokenizer
from sharded_eden.load.options import (
    ExampleOptions,
    Include,
    absolute_path,
    path_or_url,
    refuses_unknown,
    with_option_fields,
)
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.train.mixture_file import mixture_config
from sharded_eden.train.stream import RepeatedEvaluation, Stream

try:
    from megatron.bridge.data.base import DatasetProvider
except ModuleNotFoundError as error:
    if error.name in {"megatron", "megatron.bridge"}:
        raise MissingExtra("megatron-bridge", "bridge") from error
    if error.name != "megatron.bridge.data.base":
        raise
    from megatron.bridge.training.config import DatasetProvider  # before Megatron Bridge 0.6

if TYPE_CHECKING:
    from megatron.bridge.training.config import DatasetBuildContext


@refuses_unknown
@dataclass(kw_only=True)
@with_option_fields
class ShardedEdenDatasetProvider(DatasetProvider):  # type: ignore[misc]
    """The `dataset` of Megatron Bridge's `ConfigContainer`; fields as those of `ShardedEdenDataModule` where they share a name.

    The training data are the stream of `random_seed`, for as many passes as the job requests. Validation and test are
    a fixed random order of their split, without augmentation. `num_workers` and the other fields of Bridge's `DataloaderConfig`
    keep their meaning; `dataloader_type` must stay "single": Bridge's sampler then counts positions, and resumes by its own
    `consumed_train_samples`.
    """

    sequence_db_dir: str | None
    """The folder of per-sample sequence databases; None where every source of a mixture names its own."""
    train_window_db_path: str | None = None
    """The window database of the training split."""
    mixture: Any = None
    """Several weighted datasets instead: the path of a TOML or YAML file, or its contents; see
    `sharded_eden.train.mixture_file`."""
    val_window_db_path: str | None = None
    """The window database of the validation split, None for no validation."""
    test_window_db_path: str | None = None
    """The window database of the test split, None for no test."""
    seq_length: int = 8192
    """Tokens of a row; Bridge compares it with the model's."""
    stride: int | None = None
    """Bases between windows; None takes that of each window database."""
    rc_aug: bool = False
    """Use the reverse complement of half of the training windows."""
    random_seed: int = 42
    """Decides order and strands."""
    nucleotide_tokenizer: bool = False
    """Encode with `NucleotideTokenizer`; Bridge's tokenizer then only sets the size of the vocabulary, at least 256."""
    evaluation_samples: int | None = None
    """Rows of one evaluation, `eval_iters * global_batch_size`; each evaluation begins with the same rows. None is
    `context.test_samples`, which Bridge counts as one evaluation."""
    dataloader_type: str = "single"
    """How Bridge samples: only "single" keeps the order."""
    include_sep: Include = "with_tags"
    """Put SEP before the bases; by default only where there are control tags, as the provider of the original loader does."""
    skip_getting_attention_mask_from_dataset: bool | None = None
    """Whether Bridge's training step makes the mask itself. None becomes `not create_attention_mask`."""

    def __post_init__(self) -> None:
        for name in ("val_window_db_path", "test_window_db_path"):
            if isinstance(getattr(self, name), Mapping):
                raise UsageError(
                    f"{name} must be a path: a provider gives Megatron Bridge one dataset for each split. Several named sets "
                    "need one provider each, or ShardedEdenDataModule"
                )
        if isinstance(self.mixture, str | os.PathLike):
            self.mixture = absolute_path(self.mixture, "mixture")
        if self.mixture is not None and self.train_window_db_path is not None:
            raise UsageError("give either train_window_db_path or mixture, not both")
        for name in ("sequence_db_dir", "train_window_db_path", "val_window_db_path", "test_window_db_path", "log_dir"):
            if (path := getattr(self, name)) is not None:
                setattr(self, name, (absolute_path if name == "log_dir" else path_or_url)(path, name))
        if self.skip_getting_attention_mask_from_dataset is None:
            self.skip_getting_attention_mask_from_dataset = not ExampleOptions.of(self).create_attention_mask
        if hasattr(super(), "__post_init__"):
            super().__post_init__()

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any | None, Any | None, Any | None]:
        """Return the training, validation and test streams with exactly the requested numbers of samples.

        Args:
            context: `train_samples`, `valid_samples`, `test_samples`, and the `tokenizer`, None for `NucleotideTokenizer`.

        Returns:
            A stream of each split, None where its count is 0. Validation and test are None without a window database, too.

        Raises:
            UsageError: another `dataloader_type`, an option that Bridge's training step does not support, training samples
                without a window database, or a requested mask that batches do not have.
            EdenError: a database is refused, see `ShardedEdenDataset`.
        """
        if self.dataloader_type != "single":
            raise UsageError(
                f'dataloader_type={self.dataloader_type!r} would sample the stream in another order: set "single", with which '
                "Megatron Bridge counts positions"
            )
        options = ExampleOptions.of(self)
        for name in ("compact", "packed"):
            if getattr(options, name):
                raise UsageError(
                    f"{name}=True: the training step of Megatron Bridge cannot read such batches. Leave it False"
                )
        if options.objective != "causal":
            raise UsageError(
                f"objective={options.objective!r}: the training step of Megatron Bridge is that of a causal model. Leave it "
                '"causal"'
            )
        if not self.skip_getting_attention_mask_from_dataset and not options.create_attention_mask:
            raise UsageError(
                "skip_getting_attention_mask_from_dataset=False: the training step then asks for a mask that batches do not "
                "have. Set create_attention_mask=True, or leave it out"
            )
        train = validation = test = None
        if context.train_samples > 0:
            train = self._train(context)
        if context.valid_samples > 0 and self.val_window_db_path is not None:
            dataset = self._dataset(context, self.val_window_db_path, "validation")
            each = self.evaluation_samples or context.test_samples or len(dataset)
            validation = RepeatedEvaluation(dataset, context.valid_samples, rows_each=each)
        if context.test_samples > 0 and self.test_window_db_path is not None:
            dataset = self._dataset(context, self.test_window_db_path, "test")
            test = RepeatedEvaluation(dataset, context.test_samples, rows_each=context.test_samples)
        return train, validation, test

    def _train(self, context: DatasetBuildContext) -> Stream:
        if self.mixture is not None:
            return mixture_config(self.mixture).open(
                tokenizer=self._tokenizer(context),
                sequence_db_dir=self.sequence_db_dir,
                seed=self.random_seed,
                num_samples=context.train_samples,
                seq_length=self.seq_length,
                stride=self.stride,
                rc_aug=self.rc_aug,
                split="train",
                **vars(ExampleOptions.of(self)),
            )
        if self.train_window_db_path is None:
            raise UsageError(
                f"{context.train_samples} training samples are requested: set train_window_db_path or mixture"
            )
        dataset = self._dataset(context, self.train_window_db_path, "train", rc_aug=self.rc_aug)
        return Stream(dataset, num_samples=context.train_samples)

    def _tokenizer(self, context: DatasetBuildContext) -> Any:
        return NucleotideTokenizer() if self.nucleotide_tokenizer or context.tokenizer is None else context.tokenizer

    def _dataset(
        self, context: DatasetBuildContext, window_db_path: str, split: str, rc_aug: bool = False
    ) -> ShardedEdenDataset:
        if self.sequence_db_dir is None:
            raise UsageError(f"the {split} split needs sequence_db_dir")
        return ShardedEdenDataset(
            self._tokenizer(context),
            self.sequence_db_dir,
            window_db_path,
            self.seq_length,
            rc_aug=rc_aug,
            stride=self.stride,
            split=split,
            seed=self.random_seed,
            **{**vars(ExampleOptions.of(self)), **({} if split == "train" else {"tag_dropout": 0.0})},
        )
