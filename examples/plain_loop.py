"""A plain PyTorch loop over the stream that saves as it goes and, started again, goes on where it was.

python examples/plain_loop.py SEQDB WINDOWS.db [--steps 20] [--checkpoint plain_loop.pt]
"""

import os
from argparse import ArgumentParser

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from sharded_eden import ShardedEdenDataset, Stream, StreamBatchSampler


def train(sequences: str, windows: str, steps: int, checkpoint: str) -> None:
    """Train to a number of optimizer steps, those before the last checkpoint included."""
    model = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    # <docs>
    dataset = ShardedEdenDataset.open(sequences, windows, rc_aug=True)
    stream = Stream(dataset)
    sampler = StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=8, rank=0, data_parallel_size=1)
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        sampler.load_state_dict(saved["data"])  # before the loader's first batch; on any number of ranks
    batches = iter(DataLoader(stream, batch_sampler=sampler, num_workers=2, collate_fn=stream.collate_fn))
    for step in range(sampler.consumed_samples // 8 + 1, steps + 1):
        for _ in range(sampler.plan.num_microbatches):
            batch = next(batches)
            losses = cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), reduction="none")
            loss = (losses * batch["loss_mask"].flatten()).sum() / batch["loss_mask"].sum()
            (loss / sampler.plan.num_microbatches).backward()
        optimizer.step()
        optimizer.zero_grad()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"data": sampler.state_dict(consumed_samples=step * 8)}, f"{checkpoint}.new")
        os.replace(f"{checkpoint}.new", checkpoint)
        print(f"step {step}   loss {loss.item():.4f}")
    # </docs>


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", metavar="SEQDB", help="the folder of sequence databases")
    parser.add_argument("windows", metavar="WINDOWS.db", help="the window database of the training split")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps, earlier runs included")
    parser.add_argument("--checkpoint", default="plain_loop.pt", help="where to save, and to go on from")
    train(**vars(parser.parse_args()))
