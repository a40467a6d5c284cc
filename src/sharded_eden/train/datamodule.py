"""The former name of `sharded_eden.train.lightning.datamodule`, kept for code that imports it."""

from sharded_eden.train.lightning.datamodule import ShardedEdenDataModule

__all__ = ["ShardedEdenDataModule"]
