"""Converts batches to the names and label positions that Hugging Face and Megatron expect. Pure: batch in, batch out.

    ours           tokens     BOS  A   C   G  EOS PAD      labels[t] is the next token, loss_mask[t] its weight:
                   labels      A   C   G  EOS PAD PAD      the token at t + 1
                   loss_mask   1   1   1   0   0   0
    Hugging Face   input_ids  BOS  A   C   G  EOS PAD      the model shifts the labels itself, so labels[t] is token t;
                   labels       .  A   C   G   .   .       "." is -100, which is ignored
    Megatron       as ours, with every key that its training loops ask for

Batches of masked language models (`objective="mlm"`) have `padding_mask`, which other batches do not have. Their labels are
the tokens before masking, at their own places: Hugging Face gets them where the loss mask is not 0, and -100 everywhere else.

The input is a batch of `ShardedEdenDataset.collate_fn`, or a compact one after `expander()`. It is not changed; tensors that
need no change are passed on without a copy. Other keys are passed on too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sharded_eden.errors import UsageError
from sharded_eden.load.locate.packs import flatten_rows
from sharded_eden.train.megatron import packed_seq_params

IGNORED_LABEL = -100
"""The label that is ignored in the loss: the default `ignore_index` of `torch.nn.functional.cross_entropy`."""

PARTS = ("tokens", "labels", "loss_mask", "position_ids")


def to_hugging_face(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch for a causal language model of `transformers`: `model(**batch).loss` is the mean over the loss mask.

    `input_ids` (B, T) int64; `labels` (B, T) int64, not shifted, -100 where a token is ignored in the loss, and always for the
    first token; `attention_mask` (B, T) int64, 1 for tokens and 0 for the padding at the end of a row; it replaces a causal
    mask; `position_ids` (B, T) int64.

    Packed rows (`cu_seqlens`) get `use_cache=False` instead of `attention_mask`: without a mask and a cache, models keep
    windows apart where `position_ids` restart. For flash attention see `to_flash_attention`.

    Rows that do not count (`row_counts`, of validation and test) have no label. The mean loss of a batch without any label is
    nan: where such batches occur, use sums (`num_items_in_batch`).

    If a tokenizer's padding is also its EOS, the EOS at the end of a row counts as padding, but not in masked rows.

    Masked rows (`padding_mask`) are for masked language models: `labels[t]` is the token at t before masking, -100 where it was
    not masked. Packed masked rows are refused: those models attend across the windows of a row.

    Args:
        batch: `tokens`, `labels`, `position_ids` (B, T) int64, `loss_mask` (B, T) float32, zeros and ones.

    Raises:
        UsageError: the batch lacks a part, is compact, or has fractional weights.

    Example:
        >>> from sharded_eden import ShardedEdenDataset, to_hugging_face
        >>> with ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db") as dataset:
        ...     batch = dataset.collate_fn([dataset[0], dataset[1]])
        >>> sorted(to_hugging_face(batch))
        ['attention_mask', 'input_ids', 'labels', 'position_ids']
    """
    parts, rest = _take_apart(batch)
    tokens = parts["tokens"]
    earning = parts["loss_mask"] != 0
    if (earning & (parts["loss_mask"] != 1)).any():
        raise UsageError(
            "Hugging Face labels either count or are ignored (-100); fractional weights (soft_mask_weight=0.1) cannot be "
            "expressed. Use 0 or 1, or compute the loss from the model's logits and this batch's labels and loss_mask"
        )
    padding = rest.pop("padding_mask", None)
    if padding is not None:
        if "cu_seqlens" in rest:
            raise UsageError(
                "masked language models of transformers attend across the windows of a packed row: use packed=False, or a "
                "model that takes cu_seqlens (sharded_eden.flatten_rows joins the rows for it)"
            )
        labels = torch.where(earning, parts["labels"], IGNORED_LABEL)
        attention_mask = (~padding).long()
        return {
            "input_ids": tokens,
            "labels": labels,
            "attention_mask": attention_mask,
            "position_ids": parts["position_ids"],
            **rest,
        }
    labels = torch.full_like(tokens, IGNORED_LABEL)
    labels[..., 1:] = torch.where(earning[..., :-1], parts["labels"][..., :-1], IGNORED_LABEL)
    rest.pop("attention_mask", None)
    is_packed = rest.pop("cu_seqlens", None) is not None
    rest.pop("max_seqlen", None)
    attention = {"use_cache": False} if is_packed else {"attention_mask": _is_token(parts).long()}
    return {"input_ids": tokens, "labels": labels, **attention, "position_ids": parts["position_ids"], **rest}


def to_flash_attention(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a packed batch as one row, for models of `transformers` with `attn_implementation="flash_attention_2"`.

    `input_ids`, `labels`, `position_ids` (1, B * T) int64, labels as in `to_hugging_face`: -100 on the first token of each
    window; `cu_seq_lens_q` and `cu_seq_lens_k` (segments + 1,) int32, `max_length_q` and `max_length_k` int, `use_cache` False.

    Args:
        batch: a batch of packed rows, see `sharded_eden.load.locate.packs`.

    Raises:
        UsageError: the batch is not packed, lacks a part, is compact, or has fractional weights.
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
    """Return a batch for the GPT training loops of Megatron.

    `tokens`, `labels`, `position_ids` (B, T) int64, `loss_mask` (B, T) float32, `attention_mask` (B, 1, T, T) bool, true where
    attention is forbidden, or None where the model masks by itself. Rows that do not count (`row_counts`) have a loss mask of
    zeros: every tensor then has rows of length T, which context parallelism divides.

    Packed rows become one row, (1, B * T), with `packed_seq_params` (Megatron's `PackedSeqParams`, format `thd`) instead of a
    mask, for `GPTModel.forward(..., packed_seq_params=...)` takes.

    Args:
        batch: see `to_hugging_face`.

    Raises:
        UsageError: the batch lacks a part, is compact, or is masked: those loops train causal models.
        MissingExtra: the batch is packed and Megatron is not installed.

    Example:
        >>> from sharded_eden import ShardedEdenDataset, to_megatron
        >>> with ShardedEdenDataset.open("sequence_db_dir", "windows/train_windows.db") as dataset:
        ...     batch = dataset.collate_fn([dataset[0], dataset[1]])
        >>> sorted(to_megatron(batch))
        ['attention_mask', 'labels', 'loss_mask', 'position_ids', 'tokens']
    """
    parts, rest = _take_apart(batch)
    if "padding_mask" in rest:
        raise UsageError(
            'these rows are masked (objective="mlm"), but the GPT training loops of Megatron train causal models: use '
            'objective="causal", or give the model the batch as it is'
        )
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
    """Return the four parts of a batch, with weight 0 in rows that do not count, and its other keys."""
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
    """Return (B, T) bool, false in the padding at the end of a row.

    The last label of a row is always padding: nothing comes after the last token.
    """
    tokens, padding = parts["tokens"], parts["labels"][..., -1:]
    number = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
    return number <= (number * (tokens != padding)).amax(-1, keepdim=True)
