"""What many tests share: a small data set (three samples, 64-base windows at a stride of 50), and a server of objects."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import World, write_world
from object_storage import Proxy, proxy_to, s3_server

import oracle
from sharded_eden import ShardedEdenDataset

HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(
        None, [*(str(HERE / name) for name in ("", "helpers", "train", "load", "build")), os.environ.get("PYTHONPATH")]
    )
)
"""Subprocesses of tests import the same helpers."""


class Small(NamedTuple):
    sequence_db_dir: Path
    window_db: Path
    contigs: dict[str, str]
    seq_length: int = 64
    stride: int = 50

    def dataset(self, **options) -> ShardedEdenDataset:
        return ShardedEdenDataset(
            None, self.sequence_db_dir, self.window_db, self.seq_length, stride=self.stride, **options
        )


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    choose = random.Random(1)
    contigs = {
        f"BCR__ECT-S{sample}__CT1-{contig}": "".join(choose.choices("ACGT", k=choose.randrange(20, 200)))
        for sample in range(3)
        for contig in range(9)
    }
    oracle.write_sequence_dbs(folder / "sequences", contigs)
    oracle.write_window_db(folder / "windows.db", contigs, 64, 50)
    return Small(folder / "sequences", folder / "windows.db", contigs)


@pytest.fixture(scope="session")
def clean_world(tmp_path_factory) -> World:
    return write_world(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def world(clean_world, tmp_path) -> World:
    shutil.copytree(clean_world.folder, tmp_path / "world")
    return World(tmp_path / "world")


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """A proxy to an S3 server with an empty bucket."""
    pytest.importorskip("moto")
    with s3_server() as endpoint, proxy_to(endpoint) as proxy:
        yield proxy
