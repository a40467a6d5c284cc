"""A disk that fails to read a database is reported as that, not as damage of the database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from faults import World, write_windows
from worlds import random_sequence, sample_db

import oracle

FAILING_DISK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

ssize_t pread64(int fd, void *buffer, size_t n, off_t at) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    char link[64], path[4096];
    off_t bad = atoll(getenv("BAD_BYTE"));
    if (!real) real = dlsym(RTLD_NEXT, "pread64");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    if (strstr(path, getenv("BAD_FILE")) && at <= bad && bad < at + (off_t)n) { errno = EIO; return -1; }
    return real(fd, buffer, n, at);
}
ssize_t pread(int fd, void *buffer, size_t n, off_t at) { return pread64(fd, buffer, n, at); }
"""


@pytest.fixture(scope="module")
def failing_disk(tmp_path_factory):
    """A library that makes reads of one byte of a file fail, to be loaded before the others."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("disk")
    (folder / "disk.c").write_text(FAILING_DISK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "disk.so", folder / "disk.c", "-ldl"], check=True)
    return folder / "disk.so"


@pytest.mark.parametrize("which", ["windows", "sequences"])
@pytest.mark.parametrize("options", [[], ["--full"]])
def test_a_disk_that_fails_is_not_called_damage(tmp_path, failing_disk, which, options):
    contigs = {f"BCR__ECT-S1__CT1-{i}": random_sequence(3000, i) for i in range(40)}
    world = World(tmp_path)
    oracle.write_sequence_dbs(world.seqs, contigs)
    write_windows(world.train, contigs)
    path = world.train if which == "windows" else sample_db(tmp_path, "S1")
    bad = 4096 * (path.stat().st_size // 4096 // 2)  # a page in the middle of a b-tree
    environment = os.environ | {"LD_PRELOAD": str(failing_disk), "BAD_FILE": path.name, "BAD_BYTE": str(bad)}
    words = [str(world.seqs), str(world.train), "--windows-read", "2000", "--json", *options]
    command = [sys.executable, "-m", "sharded_eden", "verify", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)["findings"]
    if not options and which == "windows":
        assert all("disk" in finding["what"] for finding in findings)  # a quick check may miss the page
        return
    assert {(finding["check"], finding["file"]) for finding in findings} == {("file", str(path))}
    assert all(f"the disk fails to read it after byte {bad // 65536 * 65536:,}" in f["what"] for f in findings)
    assert all(f["fix"].startswith("check the disk") for f in findings)


READ_ALL = """
import sys
from collections import Counter
from sharded_eden import ShardedEdenDataset
dataset = ShardedEdenDataset.open(*sys.argv[1:])
found = Counter()
for i in range(len(dataset)):
    try:
        dataset[i]
        found["read"] += 1
    except Exception as error:
        found[type(error).__name__] += 1
print(*sorted(found))
"""


def test_other_windows_are_read_after_a_disk_error(tmp_path, failing_disk):
    """A handle that an error has closed is not used for the next contig."""
    contigs = {f"BCR__ECT-S1__CT1-{i}": random_sequence(3000, i) for i in range(40)}
    world = World(tmp_path)
    oracle.write_sequence_dbs(world.seqs, contigs)
    write_windows(world.train, contigs)
    path = sample_db(tmp_path, "S1")
    bad = 4096 * (path.stat().st_size // 4096 // 2)
    environment = os.environ | {"LD_PRELOAD": str(failing_disk), "BAD_FILE": path.name, "BAD_BYTE": str(bad)}
    command = [sys.executable, "-c", READ_ALL, str(world.seqs), str(world.train)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "DatabaseError read\n"
