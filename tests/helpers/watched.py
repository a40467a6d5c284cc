"""Runs a program and records the input of its model from outside: PyTorch hooks on every embedding and optimizer.

    python watched.py FOLDER program.py [argument ...]

Writes `FOLDER/<rank>.txt`: the hash of each row that an embedding received in training, one per line, and a line `step`
after each optimizer step; `FOLDER/positions.txt`: the positions requested from the stream, by any process.
"""

from __future__ import annotations

import os
import runpy
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch  # noqa: E402
from resume import row_hashes  # noqa: E402
from torch.nn.modules.module import register_module_forward_pre_hook  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

from sharded_eden import Stream  # noqa: E402


def main(folder: Path, program: str, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    fed = open(folder / f"{os.environ.get('RANK', '0')}.txt", "w", buffering=1)  # noqa: SIM115

    def on_forward(module, inputs):
        if isinstance(module, torch.nn.Embedding) and module.training:
            fed.writelines(f"{row}\n" for row in row_hashes(inputs[0]))

    register_module_forward_pre_hook(on_forward)
    register_optimizer_step_post_hook(lambda *_: fed.write("step\n"))
    positions = os.open(folder / "positions.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    get_items = Stream.__getitems__

    def watched_get_items(self, asked):
        os.write(positions, " ".join(map(str, asked)).encode() + b"\n")
        return get_items(self, asked)

    Stream.__getitems__ = watched_get_items
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).parent)
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
