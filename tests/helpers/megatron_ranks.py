"""Four ranks on one machine, for tests/train/test_megatron.py: Megatron core's loop, in every layout, with a restart.

Prints one line: {layout: [((data-parallel rank, size), rows of each micro step) of each process]}.

    python megatron_ranks.py SEQUENCES WINDOWS
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
import torch  # noqa: E402
from megatron.core import num_microbatches_calculator as calculators  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from resume import row_hashes  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from sharded_eden import ShardedEdenDataModule, ShardedEdenDataset, Stream  # noqa: E402
from sharded_eden.train.megatron import MegatronBatchSampler  # noqa: E402

RANKS, STEPS = 4, 16
LAYOUTS = {
    "dp=4": {}, "tp=2": {"tp": 2}, "pp=2": {"pp": 2}, "cp=2": {"cp": 2}, "tp=2 pp=2": {"tp": 2, "pp": 2},
    "pp=2 cp=2": {"pp": 2, "cp": 2}, "pp=4": {"pp": 4},
}  # fmt: skip


def train(rank: int, folder: str, sequences: str, windows: str, layout: dict[str, int]) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.get("tp", 1),
        pipeline_model_parallel_size=layout.get("pp", 1),
        context_parallel_size=layout.get("cp", 1),
    )
    ranks = parallel_state.get_data_parallel_world_size()
    calculators.init_num_microbatches_calculator(rank, [4, 4, 50], 16, 1, ranks)
    stream = Stream(ShardedEdenDataset(None, sequences, windows, 64, stride=50, rc_aug=True))
    consumed, rows, sampler = 0, [], None
    for step in range(STEPS):
        if step % 5 == 0:  # a restart: only the state remains
            state = None if sampler is None else sampler.state_dict(consumed_samples=consumed)
            sampler = MegatronBatchSampler(stream)
            if state is not None:
                sampler.load_state_dict(state)
            batches = iter(DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn))
        calculators.update_num_microbatches(consumed, consistency_check=True)
        for _ in range(calculators.get_num_microbatches()):
            rows.append(row_hashes(next(batches)["tokens"]))
        consumed += calculators.get_current_global_batch_size()

    module = ShardedEdenDataModule(
        sequences, windows, seq_length=64, stride=50, micro_batch_size=1, global_batch_size=16, num_workers=0,
        rc_aug=True, num_epochs=3,
    )  # fmt: skip
    module.setup("fit")
    through_module = [row_hashes(batch["tokens"]) for batch in module.train_dataloader()]
    assert through_module[: len(rows)] == rows[: len(through_module)], "the data module feeds something else"
    torch.distributed.barrier()
    return tuple(module.data_parallel()), rows


def on_all_ranks(*arguments: Any) -> list[Any]:
    """Fork the ranks; return what each one's function returned."""
    children = {}
    for rank in range(RANKS):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(reading)
                torch.set_num_threads(1)
                with os.fdopen(writing, "w") as answer:
                    answer.write(repr(train(rank, *arguments)))
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(writing)
        children[child] = reading
    answers = []
    for reading in children.values():
        with os.fdopen(reading) as answer:
            answers.append(answer.read())
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise SystemExit("a rank failed")
    return [eval(answer) for answer in answers]


if __name__ == "__main__":
    report = {}
    for name, layout in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            report[name] = on_all_ranks(Path(folder), *sys.argv[1:3], layout)
    print(report)
