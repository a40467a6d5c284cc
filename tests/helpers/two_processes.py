"""Two ranks on one machine, for tests/train/test_datamodule.py: Lightning's DDP, then Megatron's tensor and data parallelism.

Prints one line: a dict of the rows of each rank. The modules are imported once, and the ranks are forked.

    python two_processes.py FOLDER
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
import megatron.core.parallel_state as parallel_state  # noqa: E402
import torch  # noqa: E402
from lightning.fabric.plugins.environments import TorchElasticEnvironment  # noqa: E402
from resume import row_hashes  # noqa: E402
from test_datamodule import Model, module_of, trainer_of  # noqa: E402


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_two_ranks(function: Callable[[int], Any]) -> list[Any]:
    """Fork two processes; return what each one's function returned."""
    return on_ranks(2, function)


def on_ranks(ranks: int, function: Callable[[int], Any]) -> list[Any]:
    """Fork a process for each rank; return what each one's function returned."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    pipes, children = [], []
    for rank in range(ranks):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.write(writing, repr(function(rank)).encode())
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(writing)
        pipes.append(reading)
        children.append(child)
    answers = []
    for reading in pipes:
        with os.fdopen(reading) as answer:
            answers.append(answer.read())
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise SystemExit("a rank failed")
    return [eval(answer) for answer in answers]


def ddp(rank: int, folder: Path) -> dict[str, Any]:
    model = Model()
    module = module_of(folder, micro_batch_size=1, val_window_db_path=folder / "held_out.db")
    trainer = trainer_of(
        folder, strategy="ddp", devices=2, num_nodes=1, num_sanity_val_steps=0,
        plugins=[TorchElasticEnvironment()],
    )  # fmt: skip
    trainer.fit(model, module)
    assert trainer.global_rank == rank
    assert trainer.world_size == 2
    return {"steps": model.steps, "consumed": module.consumed_samples, "evaluated": model.evaluated[0]}


def megatron(rank: int, folder: Path, tensor_parallel: int) -> tuple[tuple[int, int], list[str]]:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel)
    module = module_of(folder, micro_batch_size=1)
    module.setup("fit")
    rows = [row for batch in module.train_dataloader() for row in row_hashes(batch["tokens"])]
    found = tuple(module.data_parallel())
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
    return found, rows  # type: ignore[return-value]


if __name__ == "__main__":
    world = Path(sys.argv[1])
    report: dict[str, Any] = {"ddp": on_two_ranks(lambda rank: ddp(rank, world))}
    for size in (2, 1):
        answers = on_two_ranks(lambda rank, size=size: megatron(rank, world, size))
        report[f"tp={size}"] = [position for position, _ in answers]
        report[f"tp={size} rows"] = [rows for _, rows in answers]
    print(report)
