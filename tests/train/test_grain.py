"""A stream as a source of Grain: the same rows as with torch, resumed exactly, without torch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds

from sharded_eden import (
    ArrayDataset,
    ArrayStream,
    Mixture,
    ShardedEdenDataset,
    Stream,
    StreamBatchSampler,
    pack_window_database,
)
from sharded_eden.errors import StateError, UsageError
from sharded_eden.train.grain import ENDLESS, StreamSource

grain = pytest.importorskip("grain")

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "grain_jax.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contigs = {f"BCR__ECT-S{k % 3}__CT1-{k}": worlds.random_sequence(30 + 31 * k % 250, k) for k in range(12)}
    folder = worlds.write(tmp_path_factory.mktemp("grain"), contigs)
    pack_window_database(folder / "windows.db", sequences=folder / "seqs")
    return folder


def plain(folder: Path, **options: Any) -> ArrayStream:
    num_samples = options.pop("num_samples", None)
    return ArrayStream(ArrayDataset.open(folder / "seqs", folder / "windows.db", rc_aug=True, **options), num_samples)


def torch_rows(folder: Path, count: int, **options: Any) -> dict[str, np.ndarray]:
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", rc_aug=True, **options) as dataset:
        stream = Stream(dataset)
        return {name: part.numpy() for name, part in stream.collate_fn(stream.__getitems__(range(count))).items()}


@pytest.mark.parametrize("options", [{}, {"objective": "mlm"}, {"use_control_tags": True}])
def test_rows_of_grain_are_those_of_the_torch_stream(folder, options):
    source = StreamSource(plain(folder, **options))
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    assert len(source) == ENDLESS
    wanted = torch_rows(folder, 60, **options)
    batches = iter(grain.MapDataset.source(source).batch(6).to_iter_dataset(grain.ReadOptions(num_threads=4)))
    for k in range(10):
        batch = next(batches)
        assert batch.keys() == wanted.keys()
        for name, part in batch.items():
            assert part.dtype == wanted[name].dtype
            assert np.array_equal(part, wanted[name][6 * k : 6 * k + 6]), name
    several = source._getitems([3, 50])
    assert all(np.array_equal(several[1][name], wanted[name][50]) for name in wanted)


def test_batches_of_packs_and_of_a_mixture(folder):
    wanted = torch_rows(folder, 12, packed=True)
    with pytest.raises(UsageError, match="batch_size="):
        StreamSource(plain(folder, packed=True))
    source = StreamSource(plain(folder, packed=True), batch_size=4)
    for k, batch in zip(range(3), grain.MapDataset.source(source).to_iter_dataset(), strict=False):
        assert np.array_equal(batch["tokens"], wanted["tokens"][4 * k : 4 * k + 4])
        assert (np.diff(batch["cu_seqlens"], axis=1) >= 0).all()
    sources = [
        ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", seed=seed, use_control_tags=bool(seed))
        for seed in (0, 1)
    ]
    mixture = Mixture([(sources[0], 3), (sources[1], 1)])
    batch = StreamSource(mixture, batch_size=16)[2]
    rows = mixture.collate_fn(mixture.__getitems__(range(32, 48)))
    assert all(np.array_equal(batch[name], rows[name].numpy()) for name in batch)


def test_a_pipeline_resumes_exactly_and_refuses_other_data(folder):
    def loader(**options: Any) -> Any:
        source = StreamSource(plain(folder, num_samples=40, **options))
        sampler = grain.samplers.SequentialSampler(len(source), shard_options=grain.sharding.NoSharding())
        return iter(grain.DataLoader(data_source=source, sampler=sampler, operations=[grain.transforms.Batch(4)]))

    first = loader()
    batches = [next(first) for _ in range(4)]
    state = first.get_state()
    rest = [batch["tokens"].tolist() for batch in first]
    assert [*[b["tokens"].tolist() for b in batches], *rest] == [
        torch_rows(folder, 40)["tokens"][k : k + 4].tolist() for k in range(0, 40, 4)
    ]
    again = loader()
    again.set_state(state)
    assert [batch["tokens"].tolist() for batch in again] == rest
    for other in ({"seed": 7}, {"objective": "mlm"}, {"use_control_tags": True}):
        with pytest.raises(ValueError, match=r"[Ss]ource"):
            loader(**other).set_state(state)


def test_the_text_of_a_source_tells_the_order_apart(folder):
    dataset = plain(folder).dataset
    texts = [repr(StreamSource(ArrayStream(dataset, shuffle=shuffle))) for shuffle in (True, False)]
    assert texts[0] == repr(StreamSource(ArrayStream(dataset))) != texts[1]


def test_states_are_those_of_the_sampler(folder):
    source = StreamSource(plain(folder), batch_size=4)
    state = json.loads(json.dumps(source.state(5)))
    assert source.first_item(state) == 5
    with ShardedEdenDataset.open(folder / "seqs", folder / "windows.db", rc_aug=True) as dataset:
        sampler = StreamBatchSampler(Stream(dataset), micro_batch_size=2, global_batch_size=2)
        sampler.load_state_dict(state)
        assert sampler.consumed_samples == 20
        with pytest.raises(StateError, match="22 consumed samples"):
            source.first_item(sampler.state_dict(consumed_samples=22))
    with pytest.raises(StateError, match="seed was 42, is 7"):
        StreamSource(plain(folder, seed=7)).first_item(state)
    with pytest.raises(UsageError, match="at least 1"):
        StreamSource(plain(folder), batch_size=0)
    with pytest.raises(IndexError, match="outside a source of 3"):
        StreamSource(plain(folder, num_samples=15), batch_size=4)[3]
    with pytest.raises(IndexError, match="outside"):
        StreamSource(plain(folder))[-1]


def test_a_source_can_be_pickled(folder):
    source = StreamSource(plain(folder), batch_size=3)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    assert np.array_equal(copy[4]["tokens"], source[4]["tokens"])


@pytest.mark.slow
def test_processes_of_grain_read_the_same_rows(folder):
    program = (
        "import sys, grain\nfrom absl import flags\nfrom sharded_eden import ArrayDataset, ArrayStream\n"
        "from sharded_eden.train.grain import StreamSource\n"
        "if __name__ == '__main__':\n"
        "    flags.FLAGS(sys.argv[:1])\n"
        f"    dataset = ArrayDataset.open({str(folder / 'seqs')!r}, {str(folder / 'windows.db')!r}, rc_aug=True)\n"
        "    rows = grain.MapDataset.source(StreamSource(ArrayStream(dataset, 24))).to_iter_dataset()\n"
        "    rows = rows.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=2))\n"
        "    print([row['tokens'].tolist() for row in rows], 'torch' in sys.modules)"
    )
    (folder / "program.py").write_text(program)
    done = subprocess.run([sys.executable, str(folder / "program.py")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{torch_rows(folder, 24)['tokens'].tolist()} False"


@pytest.mark.slow
def test_the_example_stops_and_goes_on_exactly(folder, tmp_path):
    pytest.importorskip("jax")

    def run(checkpoint: str, steps: int) -> str:
        command = [sys.executable, str(EXAMPLE), str(folder / "seqs"), str(folder / "windows.db"), "--steps", str(steps),
                   "--checkpoint", str(tmp_path / checkpoint)]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    whole = run("whole.npz", 5)
    assert whole.count("step") == 5
    assert run("parts.npz", 2) + run("parts.npz", 5) == whole
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "parts.npz") as two:
        assert set(one) == {"data", "one", "two", "out"}
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_new_source_reads_nothing(folder, tmp_path):
    source = StreamSource(plain(folder, log_windows=True, log_dir=tmp_path))
    assert not list(tmp_path.rglob("*.csv"))
    source[0]
    (log,) = tmp_path.rglob("*.csv")
    assert len(log.read_text().splitlines()) == 2
