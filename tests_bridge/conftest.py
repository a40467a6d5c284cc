"""Bridge's own environment: stand-ins for what runs on a GPU alone, and small data that the tests of the package share."""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.append(str(Path(__file__).parent.parent / "tests"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import gpu_only

    gpu_only.stand_in()
    import megatron.bridge.data.loaders
    import megatron.bridge.training.tokenizers.tokenizer  # noqa: F401

import oracle


class Splits(NamedTuple):
    sequences: str
    train: str
    val: str
    test: str


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """Sequence databases, and 64-base windows at a stride of 50 for three splits."""
    folder = tmp_path_factory.mktemp("splits")
    choose = random.Random(1)
    contigs = {
        f"BCR__ECT-S{sample}__CT1-{contig}": "".join(choose.choices("ACGT", k=choose.randrange(100, 300)))
        for sample in range(3)
        for contig in range(15)
    }
    oracle.write_sequence_dbs(folder / "sequences", contigs)
    names = sorted(contigs)
    for split, part in (("train", names[:20]), ("val", names[20:35]), ("test", names[35:])):
        oracle.write_window_db(folder / f"{split}.db", {name: contigs[name] for name in part}, 64, 50)
    return Splits(str(folder / "sequences"), *(str(folder / f"{split}.db") for split in ("train", "val", "test")))
