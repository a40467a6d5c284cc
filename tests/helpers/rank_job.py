"""One rank of a training job without a model, as a separate process: reads its micro batches and records them.

    python rank_job.py '{"folder": ..., "rank": 0, "ranks": 2, ...}'

Writes `FOLDER/out/<attempt>_<rank>.txt`, one line per micro batch: step, micro step, the hashes of its rows. Rank 0 saves
the state of the job after each global batch that all ranks have written, as a trainer does after its optimizer step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from resume import row_hashes
from torch.utils.data import DataLoader

from sharded_eden import ShardedEdenDataset, Stream
from sharded_eden.train.megatron import DataParallel, data_parallel_position
from sharded_eden.train.mixture_file import mixture_config
from sharded_eden.train.sampler import StreamBatchSampler


def main(job: dict) -> None:
    place = start_megatron(job) if job.get("tensor_parallel") else DataParallel(job["rank"], job["ranks"])
    folder = Path(job["folder"])
    stream = open_stream(job)
    sampler = StreamBatchSampler(
        stream, micro_batch_size=job["micro"], global_batch_size=job["global"], rank=place.rank,
        data_parallel_size=place.size,
    )  # fmt: skip
    state_file = folder / "state.json"
    if state_file.exists():
        sampler.load_state_dict(json.loads(state_file.read_text()))
    loader = DataLoader(
        stream, batch_sampler=sampler, num_workers=job["workers"], collate_fn=stream.collate_fn,
        multiprocessing_context=job["method"] if job["workers"] else None,
    )  # fmt: skip
    expand = stream.dataset.expander() if job["compact"] else None
    step, micro_step = sampler.consumed_samples // job["global"], 0
    with open(folder / "out" / f"{job['attempt']}_{job['rank']}.txt", "a", buffering=1) as out:
        for batch in loader:
            rows = row_hashes((batch if expand is None else expand(batch))["tokens"])
            out.write(f"{step} {micro_step} {' '.join(rows)}\n")
            micro_step += 1
            if micro_step == sampler.plan.num_microbatches:
                finish_step(folder, job, place, sampler, step + 1)
                step, micro_step = step + 1, 0
                if step == job["steps"]:
                    break


def open_stream(job: dict) -> Stream:
    options = {"seq_length": job["seq_length"], "rc_aug": job["rc_aug"], "compact": job["compact"]}
    if mixture := job.get("mixture"):
        return mixture_config(mixture).open(tokenizer=None, sequence_db_dir=None, seed=42, packed=True, **options)
    options |= job.get("options", {})
    return Stream(ShardedEdenDataset(None, job["sequences"], job["windows"], stride=job["stride"], **options))


def finish_step(folder: Path, job: dict, place: DataParallel, sampler: StreamBatchSampler, done: int) -> None:
    """Wait for the other ranks, as an all-reduce would, then let rank 0 save the state."""
    (folder / "out" / f"{job['attempt']}_{job['rank']}.done").write_text(str(done))
    files = [folder / "out" / f"{job['attempt']}_{rank}.done" for rank in range(job["ranks"])]
    while any(not file.exists() or int(file.read_text() or 0) < done for file in files):
        time.sleep(0.001)
    if job["rank"] == 0:
        partial = folder / "state.partial"
        partial.write_text(json.dumps(sampler.state_dict(consumed_samples=done * job["global"])))
        os.replace(partial, folder / "state.json")
        (folder / "out" / f"{job['attempt']}.saved").write_text(str(done))
    time.sleep(job.get("pause", 0.0))


def start_megatron(job: dict) -> DataParallel:
    import torch
    from megatron.core import parallel_state

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{job['folder']}/rendezvous", rank=job["rank"], world_size=job["ranks"]
    )
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=job["tensor_parallel"])
    place = data_parallel_position()
    assert place is not None
    return place


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
