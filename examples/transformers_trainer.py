"""`transformers.Trainer` on any number of processes: accelerate shards, the sampler only counts and remembers.

torchrun --nproc-per-node 2 examples/transformers_trainer.py SEQDB WINDOWS.db [--steps 20] [--checkpoint transformers_trainer]
"""

import os
from argparse import ArgumentParser

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from sharded_eden import Position, ShardedEdenDataset, Stream, StreamBatchSampler, collate_for_hugging_face

MODEL = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def train(sequences: str, windows: str, steps: int, checkpoint: str) -> None:
    """Train to a number of optimizer steps, those before the last checkpoint included."""
    dataset = ShardedEdenDataset.open(sequences, windows, rc_aug=True)

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
        data_collator=collate_for_hugging_face,
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
