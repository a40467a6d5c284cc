"""Names that users import from the package, and the old module paths that still work."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

import sharded_eden
from sharded_eden import Position, Stream, StreamBatchSampler, collate_for_hugging_face, errors, to_hugging_face
from sharded_eden.errors import StateError


def test_errors_are_public():
    names = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert names <= set(sharded_eden.__all__)
    assert "EdenWarning" in names


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("sampler", ["StreamBatchSampler", "BatchPlan", "MicroBatches"]),
        ("conventions", ["to_hugging_face", "to_megatron", "to_flash_attention"]),
        (
            "megatron",
            ["MegatronBatchSampler", "DataSampler", "steps_are_global_batches", "data_parallel_of", "plan_of_job"],
        ),
        ("nemo", ["DataSampler", "steps_are_global_batches"]),
        ("datamodule", ["ShardedEdenDataModule"]),
    ],
)
def test_module_paths_go_on_working(module, names):
    for name in names:
        assert getattr(import_module(f"sharded_eden.train.{module}"), name) is not None
    with pytest.raises(AttributeError):
        _ = import_module(f"sharded_eden.train.{module}").nothing


def test_transformers_is_loaded_for_the_callback_alone():
    program = (
        "import sys, sharded_eden\n"
        "sharded_eden.collate_for_hugging_face, sharded_eden.StreamBatchSampler\n"
        "print('transformers' in sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "try:\n    sharded_eden.Position\nexcept sharded_eden.MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    missing = "transformers is not installed. Install it, in the clone of this package: pip install '.[transformers]'"
    assert done.stdout.splitlines() == ["False", missing]


def test_the_callback_saves_the_position_and_refuses_other_states(small):
    with small.dataset() as dataset:
        sampler = StreamBatchSampler(Stream(dataset, num_samples=80), micro_batch_size=2, global_batch_size=8)
        position = Position(sampler)
        state = SimpleNamespace(global_step=3, stateful_callbacks={})
        position.on_step_end(None, state, None)
        saved = position.state()
        assert saved["attributes"]["consumed_samples"] == 24
        state.stateful_callbacks["Position"] = saved
        position.on_train_begin(None, state, None)
        state.global_step = 6
        with pytest.raises(StateError, match="24 samples were trained on, not 48"):
            position.on_train_begin(None, state, None)
        for hostile in (None, [], {}, {"attributes": None}, {"attributes": "x"}):
            state.stateful_callbacks["Position"] = hostile
            with pytest.raises(StateError):
                position.on_train_begin(None, state, None)


def test_the_collate_function_uses_the_names_of_transformers(small):
    with small.dataset() as dataset:
        rows = dataset.__getitems__([0, 1])
        batch = collate_for_hugging_face(rows)
        assert batch.keys() == to_hugging_face(dataset.collate_fn(dataset.__getitems__([0, 1]))).keys()


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["build", "-h"]])
def test_the_package_runs_as_a_program(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "sharded_eden", *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: python -m sharded_eden")


def test_a_dataset_at_interpreter_exit_raises_nothing(small):
    """Objects that are still alive are deleted after the modules that they use."""
    program = (
        "import sys, torch, sharded_eden\n"
        f"d = sharded_eden.ShardedEdenDataset.open({str(small.sequence_db_dir)!r}, {str(small.window_db)!r},\n"
        "    log_windows=True, log_dir=sys.argv[1])\n"
        "d[0]\n"
        "sys.kept = d\n"
        "s = sharded_eden.Stream(d)\n"
    )
    for extra in ("", "cycle = [d]; cycle.append(cycle); del d\n"):
        done = subprocess.run(
            [sys.executable, "-c", program + extra, str(small.window_db.parent)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
