"""What other trainers call the parts of a batch, and where they expect a label to stand. Pure: batch in, batch out.

    ours           tokens     BOS  A   C   G  EOS PAD      labels say what comes next, loss_mask weighs labels[t]:
                   labels      A   C   G  EOS PAD PAD      the token at t + 1
                   loss_mask   1   1   1   0   0   0
    Hugging Face   input_ids  BOS  A   C   G  EOS PAD      the model moves labels itself, so they stand on their own token;
                   labels       .  A   C   G   .   .       "." is -100, which earns no loss
    Megatron       as ours, with every key that its training loops ask for

What enters is a batch of `ShardedEdenDataset.collate_fn`, or a compact one after `expander()`. Nothing of it is written to;
tensors that need no change are handed on, not copied. Keys that are not spoken of here are handed on too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sharded_eden.errors import UsageError

IGNORED_LABEL = -100
"""The label of a token that earns no loss: what `torch.nn.functional.cross_entropy` leaves out unless told otherwise."""

PARTS = ("tokens", "labels", "loss_mask", "position_ids")


def to_hugging_face(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch for a causal language model of `transformers`: `model(**batch).loss` is the mean over the loss mask.

    `input_ids` (B, T) int64; `labels` (B, T) int64, not shifted, -100 where a token earns no loss, the first token always;
    `attention_mask` (B, T) int64, 1 for tokens and 0 for the padding that ends a row, in the place of a causal mask of ours;
    `position_ids` (B, T) int64.

    Packed rows (`cu_seqlens`) get `use_cache=False` in the place of `attention_mask`: with neither a mask nor a cache, models
    keep windows apart where `position_ids` begin again.

    Rows that do not count (`row_counts`, of validation and test) have no label. A batch with no label at all has the mean
    loss nan: where that can be, ask for sums (`num_items_in_batch`).

    Where a tokenizer's padding is also its EOS, the EOS that ends a row counts as padding.

    Args:
        batch: `tokens`, `labels`, `position_ids` (B, T) int64, `loss_mask` (B, T) float32, zeros and ones.

    Raises:
        UsageError: it is no such batch, a compact one, or one with other weights.
    """
    parts, rest = _take_apart(batch)
    tokens = parts["tokens"]
    earning = parts["loss_mask"] != 0
    if (earning & (parts["loss_mask"] != 1)).any():
        raise UsageError(
            "a label of transformers earns its loss or none: weights between, as of soft_mask_weight, cannot be said. Leave "
            "them out, or compute the loss from the model's logits and this batch's labels and loss_mask"
        )
    labels = torch.full_like(tokens, IGNORED_LABEL)
    labels[..., 1:] = torch.where(earning[..., :-1], parts["labels"][..., :-1], IGNORED_LABEL)
    rest.pop("attention_mask", None)
    is_packed = rest.pop("cu_seqlens", None) is not None
    attention = {"use_cache": False} if is_packed else {"attention_mask": _is_token(parts).long()}
    return {"input_ids": tokens, "labels": labels, **attention, "position_ids": parts["position_ids"], **rest}


def to_megatron(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch as the GPT training loops of Megatron read it.

    `tokens`, `labels`, `position_ids` (B, T) int64, `loss_mask` (B, T) float32, `attention_mask` (B, 1, T, T) bool, true where
    attention is forbidden, or None where the model masks by itself. Rows that do not count (`row_counts`) have a loss mask of
    zeros: every tensor then has rows of T, which context parallelism cuts.

    Args:
        batch: see `to_hugging_face`.

    Raises:
        UsageError: it is no such batch, or a compact one.
    """
    parts, rest = _take_apart(batch)
    return {**parts, "attention_mask": None, **rest}


def _take_apart(batch: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the parts that every convention has, rows that do not count weighing nothing, and whatever else there is."""
    if "codes" in batch:
        raise UsageError("this batch is compact: make its tensors first, by dataset.expander()(batch)")
    if missing := [name for name in PARTS if name not in batch]:
        raise UsageError(
            f"a batch has {', '.join(PARTS)}; this one lacks {', '.join(missing)}: it has {', '.join(batch)}"
        )
    parts = {name: batch[name] for name in PARTS}
    rest = {name: part for name, part in batch.items() if name not in PARTS}
    row_counts = rest.pop("row_counts", None)
    parts["loss_mask"] = parts["loss_mask"].float()
    if row_counts is not None:
        parts["loss_mask"] = parts["loss_mask"] * row_counts.unsqueeze(-1)
    return parts, rest


def _is_token(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return (B, T) bool, false in the run of padding that ends a row.

    The last label of a row is always padding: nothing comes behind the last token.
    """
    tokens, padding = parts["tokens"], parts["labels"][..., -1:]
    number = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
    return number <= (number * (tokens != padding)).amax(-1, keepdim=True)
