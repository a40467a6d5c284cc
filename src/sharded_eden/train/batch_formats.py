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
from sharded_eden.load.locate.packs import flatten_rows
from sharded_eden.train.megatron import packed_seq_params

IGNORED_LABEL = -100
"""The label of a token that earns no loss: what `torch.nn.functional.cross_entropy` leaves out unless told otherwise."""

PARTS = ("tokens", "labels", "loss_mask", "position_ids")


def to_hugging_face(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch for a causal language model of `transformers`: `model(**batch).loss` is the mean over the loss mask.

    `input_ids` (B, T) int64; `labels` (B, T) int64, not shifted, -100 where a token earns no loss, the first token always;
    `attention_mask` (B, T) int64, 1 for tokens and 0 for the padding that ends a row, in the place of a causal mask of ours;
    `position_ids` (B, T) int64.

    Packed rows (`cu_seqlens`) get `use_cache=False` in the place of `attention_mask`: with neither a mask nor a cache, models
    keep windows apart where `position_ids` begin again. For flash attention see `to_flash_attention`.

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
    rest.pop("max_seqlen", None)
    attention = {"use_cache": False} if is_packed else {"attention_mask": _is_token(parts).long()}
    return {"input_ids": tokens, "labels": labels, **attention, "position_ids": parts["position_ids"], **rest}


def to_flash_attention(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a packed batch as one row, as models of `transformers` with `attn_implementation="flash_attention_2"` take it.

    `input_ids`, `labels`, `position_ids` (1, B * T) int64, labels as in `to_hugging_face`: -100 on the first token of each
    window; `cu_seq_lens_q` and `cu_seq_lens_k` (segments + 1,) int32, `max_length_q` and `max_length_k` int, `use_cache` False.

    Args:
        batch: a batch of packed rows, see `sharded_eden.load.locate.packs`.

    Raises:
        UsageError: it is no such batch, a compact one, or one with other weights.
    """
    boundaries = _flat_boundaries(batch)
    theirs = to_hugging_face(batch)
    rows = {name: theirs.pop(name).reshape(1, -1) for name in ("input_ids", "labels", "position_ids")}
    cu_seqlens, max_seqlen = boundaries["cu_seqlens"], int(boundaries["max_seqlen"])
    return {
        **theirs,
        **rows,
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max_seqlen,
        "max_length_k": max_seqlen,
    }


def to_megatron(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch as the GPT training loops of Megatron read it.

    `tokens`, `labels`, `position_ids` (B, T) int64, `loss_mask` (B, T) float32, `attention_mask` (B, 1, T, T) bool, true where
    attention is forbidden, or None where the model masks by itself. Rows that do not count (`row_counts`) have a loss mask of
    zeros: every tensor then has rows of T, which context parallelism cuts.

    Packed rows become one row, (1, B * T), with `packed_seq_params` (Megatron's `PackedSeqParams`, format `thd`) in the
    place of a mask: what `GPTModel.forward(..., packed_seq_params=...)` takes.

    Args:
        batch: see `to_hugging_face`.

    Raises:
        UsageError: it is no such batch, or a compact one.
        MissingExtra: the batch is packed and Megatron is not installed.
    """
    parts, rest = _take_apart(batch)
    if "cu_seqlens" not in rest:
        return {**parts, "attention_mask": None, **rest}
    boundaries = _flat_boundaries(batch)
    for name in ("cu_seqlens", "max_seqlen", "attention_mask"):
        rest.pop(name, None)
    return {
        **{name: part.reshape(1, -1) for name, part in parts.items()},
        "attention_mask": None,
        "packed_seq_params": packed_seq_params(boundaries["cu_seqlens"], int(boundaries["max_seqlen"])),
        **rest,
    }


def _flat_boundaries(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if "cu_seqlens" not in batch:
        raise UsageError("this batch is not packed: it has no cu_seqlens. Use packed=True, or to_hugging_face")
    return flatten_rows({name: batch[name] for name in ("tokens", "cu_seqlens", "max_seqlen") if name in batch})


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

    The last label of a row is always padding: nothing comes after the last token.
    """
    tokens, padding = parts["tokens"], parts["labels"][..., -1:]
    number = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
    return number <= (number * (tokens != padding)).amax(-1, keepdim=True)
