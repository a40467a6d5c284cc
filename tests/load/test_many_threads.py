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
