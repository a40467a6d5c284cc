"""The program of a user of every public name. `tests/test_public_types.py` runs it and `mypy --strict` on it."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.utils.data import DataLoader

import sharded_eden as se


def prepare(folder: Path) -> tuple[Path, Path]:
    """Prepare small data; return the folder of sequence databases and a window database."""
    sequences = folder / "sequences"
    genomes = folder / "genomes"
    genomes.mkdir()
    for name in "abc":
        contig = "".join(random.Random(name).choices("ACGT", k=2_000))
        (genomes / f"{name}.fa").write_text(f">c\n{contig}\n")
    contigs: int = se.build_sequence_dbs([genomes], sequences).contigs
    path: Path = se.create_sample_database("D", [("BCR__ECT-D__CT1-1", "ACGT" * 500)], sequences)
    sample: str = se.extract_sample_id("BCR__ECT-D__CT1-1")
    assert (contigs, path.is_file(), sample) == (3, True, "D")
    split = se.write_splits(sequences, folder / "splits", val=0.0, test=0.0).parts["train"].path
    windows = folder / "train_windows.db"
    made = se.precompute_window_database(split, windows, window_size=64, stride=50, sequences=sequences)
    geometry = se.WindowGeometry(window_size=64, stride=50)
    number: int = geometry.count(2_000)
    assert made.windows == 4 * number == 4 * se.compute_num_windows(2_000, 64, 50)
    return sequences, windows


def inspect(folder: Path, sequences: Path, windows: Path) -> None:
    """Check and count."""
    clean: bool = se.verify(sequences, [windows]).is_clean
    counted: dict[str, Any] = se.stats(sequences, windows).as_dict()
    speed: float = se.bench(sequences, windows, max_workers=0, seconds=0.01).warm_windows_per_second
    report: Path = se.write_report(folder / "report.html", sequences, windows).path
    assert clean
    assert counted["parts"]
    assert speed > 0
    assert report.is_file()


def train(folder: Path, sequences: Path, windows: Path) -> None:
    """Load batches in every way."""
    tokenizer = se.NucleotideTokenizer()
    ids: list[int] = tokenizer.text_to_ids("ACGT")
    assert tokenizer.ids_to_text(ids) == "ACGT"
    arrays = se.ArrayDataset.open(sequences, windows)
    assert se.ArrayStream(arrays).arrays([0])["tokens"].shape == (1, 64)
    dataset = se.ShardedEdenDataset.open(sequences, windows, tokenizer=tokenizer)
    tokens: torch.Tensor = dataset[0]["tokens"]
    assert tokens.shape == (64,)
    stream = se.Stream(dataset, seed=1)
    sampler = se.StreamBatchSampler(stream, micro_batch_size=2, global_batch_size=2)
    batch = next(iter(DataLoader(stream, batch_sampler=sampler, collate_fn=stream.collate_fn)))
    inputs: dict[str, Any] = se.to_hugging_face(batch)
    assert inputs["input_ids"].shape == se.to_megatron(batch)["tokens"].shape == (2, 64)
    rows: dict[str, Any] = se.collate_for_hugging_face([stream[0], stream[1]])
    assert rows["input_ids"].shape == (2, 64)
    assert isinstance(se.Position(sampler).state(), dict)
    state: dict[str, Any] = sampler.state_dict(consumed_samples=2)
    sampler.load_state_dict(state)
    mixture = se.Mixture({"a": (dataset, 1.0)}, seed=1)
    assert mixture.state(0)
    module = se.ShardedEdenDataModule(sequences, windows, seq_length=64, num_workers=0)
    callback = se.LoaderStatistics(every_n_steps=10)
    assert (module.seq_length, callback is None) == (64, False)
    logged = se.ShardedEdenDataset.open(sequences, windows, log_windows=True, log_dir=folder / "logs")
    logged[3]
    logged.close()
    table: pl.DataFrame = se.read_access_logs(folder / "logs")
    assert table.height == 1


def pack(sequences: Path, windows: Path) -> None:
    """Fill rows with several windows."""
    packs: int = se.pack_window_database(windows).packs
    with se.ShardedEdenDataset.open(sequences, windows, packed=True) as dataset:
        assert len(dataset) == packs
        batch = dataset.collate_fn([dataset[0], dataset[1]])
        assert se.flatten_rows(batch)["tokens"].shape == (1, 128)
    by_tokens = se.pack_by_tokens(windows, sequences, tokenizer=se.NucleotideTokenizer(), seq_length=64, overwrite=True)
    assert by_tokens.packs > 0


def errors(sequences: Path, windows: Path) -> str:
    """Catch every error; return the name of the one that was raised."""
    try:
        se.ShardedEdenDataset.open(sequences, windows, strid=50)
    except se.UnknownArgument as error:
        name = type(error).__name__
    except (se.WriteError, se.UsageError, se.InputError) as error:
        raise SystemExit(str(error)) from error
    except (se.GeometryMismatch, se.MissingSequence, se.MissingDatabase, se.DatabaseError) as error:
        raise SystemExit(str(error)) from error
    except (se.StateError, se.MissingExtra, se.EdenError) as error:
        raise SystemExit(str(error)) from error
    assert issubclass(se.EdenWarning, UserWarning)
    return name


def main(folder: Path) -> None:
    """Run everything in an empty folder."""
    sequences, windows = prepare(folder)
    inspect(folder, sequences, windows)
    train(folder, sequences, windows)
    assert errors(sequences, windows) == "UnknownArgument"
    pack(sequences, windows)
    assert se.__version__


if __name__ == "__main__":
    main(Path(sys.argv[1]))
