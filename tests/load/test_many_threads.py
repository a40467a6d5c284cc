"""More sequence databases than file descriptors, read by addresses from several threads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import worlds

from sharded_eden.windows.index import index_window_database

SAMPLES = 60
CONTIGS = {f"BCR__ECT-S{k}__CT1-1": worlds.random_sequence(60 + k, k) for k in range(SAMPLES)}

READ = """
import json, random, resource, sys, threading
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
import worlds
folder, errors, digests = Path(sys.argv[1]), [], []
with worlds.dataset(folder) as dataset:
    assert dataset._addresses is not None
    expected = [dataset[k]["tokens"].tolist() for k in range(len(dataset))]
    start = threading.Barrier(8)
    def read(seed):
        choose = random.Random(seed)
        start.wait()
        try:
            for _ in range(40):
                batch = choose.choices(range(len(dataset)), k=24)
                rows = [item["tokens"].tolist() for item in dataset.__getitems__(batch)]
                assert rows == [expected[k] for k in batch]
        except BaseException as error:
            errors.append(f"{type(error).__name__}: {error}"[:300])
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(json.dumps(errors))
"""


def test_more_databases_than_descriptors_in_each_of_several_threads(tmp_path: Path) -> None:
    folder = worlds.write(tmp_path, CONTIGS)
    index_window_database(folder / "seqs", folder / "windows.db")
    helpers = Path(worlds.__file__).parent
    command = [sys.executable, "-c", READ, folder]
    path = {"PYTHONPATH": f"{helpers}:{helpers.parent}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []


ANNOUNCE = """
import resource, sys, time
from pathlib import Path
import os, worlds
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
with worlds.dataset(Path(sys.argv[1])) as dataset:
    dataset[0]
    kept = []
    try:
        while len(kept) < 200:
            kept.append(os.open(sys.argv[1], os.O_RDONLY))
    except OSError:
        pass
    started = time.process_time(), time.monotonic()
    dataset._fetcher.announce(range(len(dataset)))  # no error, and no pause for each of 60 files
    print(time.monotonic() - started[1])
    for descriptor in kept[:2]:
        os.close(descriptor)
    assert len(dataset.__getitems__(list(range(len(dataset))))) == len(dataset)
"""


def test_announcing_does_not_wait_for_descriptors_and_a_batch_is_read_with_few(tmp_path: Path) -> None:
    folder = worlds.write(tmp_path, CONTIGS)
    index_window_database(folder / "seqs", folder / "windows.db")
    helpers = Path(worlds.__file__).parent
    path = {"PYTHONPATH": f"{helpers}:{helpers.parent}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", ANNOUNCE, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 10  # 60 files with pauses of 0.31 s would take 18 s
