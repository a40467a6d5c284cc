"""The former name of `sharded_eden.train.batch_formats`, kept for code that imports it."""

from sharded_eden.train.batch_formats import to_flash_attention, to_hugging_face, to_megatron

__all__ = ["to_flash_attention", "to_hugging_face", "to_megatron"]
