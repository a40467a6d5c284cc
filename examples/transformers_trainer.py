"""`transformers.Trainer` on any number of processes: accelerate shards, the sampler only counts and remembers.

torchrun --nproc-per-node 2 examples/transformers_trainer.py SEQDB WINDOWS.db [--steps 20] [--checkpoint transformers_trainer]
"""

import os
import sqlite3
from argparse import ArgumentParser

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from sharded_eden import ShardedEdenDataset, Stream
from sharded_eden.errors import StateError
from sharded_eden.train.batch_formats import to_hugging_face
from sharded_eden.train.sampler import StreamBatchSampler

MODEL = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


class Position(TrainerCallback, ExportableState):
    """Writes the position into each checkpoint's trainer_state.json, and refuses to go on in another stream."""

    def __init__(self, sampler: StreamBatchSampler) -> None:
        self.sampler = sampler
        self.consumed_samples = 0

    def on_step_end(self, args, state, control, **_):
        """Count what was trained on."""
        """Count what was trained on."""
        self.consumed_samples = state.global_step * self.sampler.plan.global_batch_size

    def state(self):
        """Return what a checkpoint is to hold."""
        """Return what a checkpoint is to hold."""
        return {"args": {}, "attributes": self.sampler.state_dict(consumed_samples=self.consumed_samples)}

    def on_train_begin(self, args, state, control, **_):
        """Compare what a checkpoint holds with this stream and this global batch size."""
        """Compare what a checkpoint holds with this stream and this global batch size."""
        self.sampler.load_state_dict(state.stateful_callbacks.get("Position", {}).get("attributes", {}))
        self.on_step_end(args, state, control)
        if self.sampler.consumed_samples != self.consumed_samples:
            raise StateError(f"{self.sampler.consumed_samples} samples were trained on, not {self.consumed_samples}")


def collate(rows):
    """Collate as the dataset does, under the names of `transformers`."""
    return to_hugging_face(ShardedEdenDataset.collate_fn(rows))


def train(sequences: str, windows: str, steps: int, checkpoint: str) -> None:
    """Train until so many optimizer steps are done, whatever of them a checkpoint says was done before."""
    geometry = dict(sqlite3.connect(windows).execute("SELECT key, value FROM metadata"))
    dataset = ShardedEdenDataset(
        None, sequences, windows, geometry["window_size"], stride=geometry["stride"], rc_aug=True
    )

    # <docs>
    stream = Stream(dataset, num_samples=steps * 8)  # the whole run is one epoch of the Trainer's
    args = TrainingArguments(
        output_dir=checkpoint, max_steps=steps, per_device_train_batch_size=2, save_steps=1, save_total_limit=2,
        train_sampling_strategy="sequential",  # the stream is shuffled already
        remove_unused_columns=False,  # of examples, which have other names until they are collated
        dataloader_num_workers=2, learning_rate=1e-3, logging_steps=1, report_to="none",
    )  # fmt: skip
    sampler = StreamBatchSampler(
        stream, micro_batch_size=args.train_batch_size, global_batch_size=8, data_parallel_size=args.world_size
    )
    args.gradient_accumulation_steps = sampler.plan.num_microbatches
    trainer = Trainer(
        LlamaForCausalLM(MODEL),
        args,
        train_dataset=stream,
        data_collator=collate,
        callbacks=[Position(sampler)],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoint) if os.path.isdir(checkpoint) else None)
    # </docs>


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", metavar="SEQDB", help="the folder of sequence databases")
    parser.add_argument("windows", metavar="WINDOWS.db", help="the window database of the training split")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps, earlier runs included")
    parser.add_argument("--checkpoint", default="transformers_trainer", help="a folder to save to, and to go on from")
    train(**vars(parser.parse_args()))
