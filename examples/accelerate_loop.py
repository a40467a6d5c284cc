"""A loop under `accelerate`, on any number of processes: the sampler shards, accelerate does not.

torchrun --nproc-per-node 2 examples/accelerate_loop.py SEQDB WINDOWS.db [--steps 20] [--checkpoint accelerate_loop]
"""

from argparse import ArgumentParser
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.optim import AdamW
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler, to_hugging_face

MODEL = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def train(sequences: str, windows: str, steps: int, checkpoint: str) -> None:
    """Train to a number of optimizer steps, those before the last checkpoint included."""
    dataset = ShardedEdenDataset.open(sequences, windows, rc_aug=True)
    stream = Stream(dataset)

    # <docs>
    accelerator = Accelerator()
    sampler = StreamBatchSampler(
        stream, micro_batch_size=2, global_batch_size=8,
        rank=accelerator.process_index, data_parallel_size=accelerator.num_processes,
    )  # fmt: skip
    accelerator.gradient_accumulation_steps = sampler.plan.num_microbatches
    model = LlamaForCausalLM(MODEL)
    model, optimizer = accelerator.prepare(model, AdamW(model.parameters(), lr=1e-3))  # not the loader: it is sharded
    accelerator.register_for_checkpointing(sampler)
    complete = Path(checkpoint).glob("*/custom_checkpoint_0.pkl")  # the position, which is saved last
    if saved := sorted((path.parent for path in complete), key=lambda folder: int(folder.name)):
        accelerator.load_state(saved[-1])
        accelerator.step = 0  # it counts micro batches, of other ranks perhaps: here a global batch begins
    batches = iter(DataLoader(stream, batch_sampler=sampler, num_workers=2, collate_fn=stream.collate_fn))
    while sampler.consumed_samples < steps * 8:
        batch = send_to_device(next(batches), accelerator.device)
        with accelerator.accumulate(model):
            loss = model(**to_hugging_face(batch)).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            sampler.consumed_samples += 8  # for the next save
            step = sampler.consumed_samples // 8
            accelerator.save_state(f"{checkpoint}/{step}")
            accelerator.print(f"step {step}   loss {loss.item():.4f}")
    # </docs>
    accelerator.end_training()


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", metavar="SEQDB", help="the folder of sequence databases")
    parser.add_argument("windows", metavar="WINDOWS.db", help="the window database of the training split")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps, earlier runs included")
    parser.add_argument("--checkpoint", default="accelerate_loop", help="a folder to save to, and to go on from")
    train(**vars(parser.parse_args()))
