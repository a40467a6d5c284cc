"""A Lightning job that is stopped and resumed, on ranks in separate processes, over gloo.

    python lightning_ranks.py '{"sequences": ..., "windows": ..., "folder": ..., "attempts": [{"strategy": "ddp", ...}, ...]}'

An attempt resumes from the checkpoint that the previous one saved after its optimizer step `saved`, trains one step past its
own checkpoint, and is then killed. Prints one line: for each attempt and rank, its data-parallel rank and size and the rows
of each step. The modules are imported once, and the ranks are forked.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from test_lightning_resume import GLOBAL_BATCH, Recorder
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from two_processes import on_ranks

from sharded_eden import ShardedEdenDataModule


class Watched(Recorder):
    """A model that also validates, and is divided over tensor-parallel and sharded over data-parallel ranks."""

    def validation_step(self, batch, batch_idx):
        self.log("rows", float(batch["row_counts"].sum()), sync_dist=True)

    def configure_model(self):
        if not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        tensor, data = self.device_mesh["tensor_parallel"], self.device_mesh["data_parallel"]
        if tensor.size() > 1:
            parallelize_module(self, tensor, {"embedding": ColwiseParallel(output_layouts=Replicate())})
        if data.size() > 1:
            fully_shard(self.embedding, mesh=data)


def strategy_of(attempt: dict) -> Any:
    if attempt["strategy"] != "model_parallel":
        return attempt["strategy"]
    tensor = attempt["tensor_parallel"]
    return ModelParallelStrategy(data_parallel_size=attempt["ranks"] // tensor, tensor_parallel_size=tensor)


def rank_of(job: dict, attempt: dict, checkpoint: str | None) -> dict[str, Any]:
    model = Watched()
    module = ShardedEdenDataModule(
        job["sequences"], job["windows"], job["windows"], seq_length=64, stride=50, micro_batch_size=attempt["micro"],
        global_batch_size=GLOBAL_BATCH, num_workers=attempt["workers"], rc_aug=True,
    )  # fmt: skip
    saving = ModelCheckpoint(job["folder"], "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        strategy=strategy_of(attempt), devices=attempt["ranks"], max_steps=attempt["saved"] + 1, max_epochs=-1,
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[saving],
        plugins=[TorchElasticEnvironment()] if attempt["ranks"] > 1 else None, **attempt.get("trainer", {}),
    )  # fmt: skip
    trainer.fit(model, module, ckpt_path=checkpoint)
    assert trainer.world_size == attempt["ranks"]
    assert module.consumed_samples == trainer.global_step * GLOBAL_BATCH
    ranks = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return {"rank": ranks["rank"], "ranks": ranks["num_replicas"], "steps": model.global_batches}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    answers, checkpoint = [], None
    for attempt in job["attempts"]:
        answers.append(on_ranks(attempt["ranks"], lambda rank, a=attempt, c=checkpoint: rank_of(job, a, c)))
        checkpoint = str(Path(job["folder"]) / f"step={attempt['saved']}.ckpt")
        assert os.path.exists(checkpoint)
    print(json.dumps(answers))
