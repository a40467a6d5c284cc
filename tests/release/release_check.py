"""`make release-check`: builds sdist and wheel, installs the wheel alone in an empty environment, and uses it there.

The wheel is built from the sdist, so that the sdist is complete. All commands run outside the repository, without PYTHONPATH.
First without torch: build, split, precompute, stats, and rows as NumPy arrays. Then with the extra `train`: verify, and one
batch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = re.findall(r'^__version__ = "(.+)"$', (ROOT / "src/sharded_eden/__init__.py").read_text(), re.MULTILINE)[0]
CONSTRAINTS = ROOT / "constraints.txt"

ROWS = """
import sys
from pathlib import Path
import sharded_eden
assert Path(sharded_eden.__file__).is_relative_to(sys.prefix), sharded_eden.__file__
dataset = sharded_eden.ArrayDataset.open("sequences", "windows/train_windows.db")
texts = [line.upper() for path in Path("in").iterdir() for line in path.read_text().split() if line[0] != ">"]
for index in range(len(dataset)):
    row = bytes(dataset.arrays([index])["tokens"][0].astype("uint8")).strip(b"\\0\\1\\2\\3").decode()
    assert any(row in text for text in texts), row
assert index > 10
"""

WITHOUT_TORCH = (
    ROWS
    + """
assert "torch" not in sys.modules
try:
    sharded_eden.ShardedEdenDataset
except sharded_eden.MissingExtra as error:
    assert "[train]'" in str(error), error
else:
    raise AssertionError("torch is installed")
"""
)

ONE_BATCH = (
    ROWS
    + """
import torch
from torch.utils.data import DataLoader
trained = sharded_eden.ShardedEdenDataset.open("sequences", "windows/train_windows.db")
for index in range(len(dataset)):
    assert (trained[index]["tokens"].numpy() == dataset.arrays([index])["tokens"][0]).all()
stream = sharded_eden.Stream(trained)
sampler = sharded_eden.StreamBatchSampler(stream, micro_batch_size=4, global_batch_size=4)
batch = next(iter(DataLoader(stream, batch_sampler=sampler, num_workers=1, collate_fn=stream.collate_fn)))
assert batch["tokens"].shape == (4, 512), batch["tokens"].shape
assert batch["tokens"].dtype == torch.int64
assert torch.equal(batch["tokens"], torch.stack([stream[position]["tokens"] for position in range(4)]))
sharded_eden.ShardedEdenDataModule  # imports Lightning
"""
)


def run(*command: object, cwd: Path) -> str:
    """Run a command outside the repository and return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path, work: Path) -> Path:
    """Build the sdist, and the wheel from it, in `out`; return the wheel."""
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=work)
    sdist, wheel = out / f"sharded_eden-{VERSION}.tar.gz", out / f"sharded_eden-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    assert packed == source, f"differ between src/ and the wheel: {sorted(packed ^ source)}"
    missing = {f"src/{name}" for name in source} | {"LICENSE", "README.md", "CHANGELOG.md"}
    assert missing <= in_sdist, f"not in the sdist: {sorted(missing - in_sdist)}"
    return wheel


def install(bin_folder: Path, *packages: str) -> None:
    """Install packages in an environment, at the pinned versions."""
    pip = (bin_folder / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    run(*pip, "-c", CONSTRAINTS, *packages, cwd=bin_folder.parent)


def write_inputs(folder: Path) -> int:
    """Write three FASTA files and return their number of bases."""
    folder.mkdir()
    chance = random.Random(1)
    for name in "abc":
        contigs = ["".join(chance.choices("ACGT", k=bases)) for bases in (6_000, 2_500)]
        (folder / f"{name}.fa").write_text("".join(f">c{i}\n{text}\n" for i, text in enumerate(contigs)))
    return 3 * 8_500


def prepare(bin_folder: Path, work: Path) -> None:
    """Check the version, then build, split, precompute and stats on small data."""
    tool = bin_folder / "sharded-eden"
    bases = write_inputs(work / "in")
    printed = run(tool, "--version", cwd=work)
    assert printed == f"sharded-eden {VERSION}\n", printed
    run(tool, "build", "in", "--out", "sequences", cwd=work)
    run(tool, "split", "sequences", "--out", "splits", "--val", "0.3", "--test", "0.3", cwd=work)
    run(tool, "precompute", "splits", "windows", "--window-size", "512", cwd=work)
    counted = json.loads(run(tool, "stats", "sequences", "--json", cwd=work))["parts"][0]
    assert (counted["samples"], counted["contigs"], counted["bases"]) == (3, 6, bases), counted


def problems(version: str, changelog: str, tags: str, changed: str) -> list[str]:
    """Return why this version cannot be released: its section in the changelog, its tag, or changes without a commit."""
    found = []
    unreleased = re.findall(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not re.search(rf"^## \[{re.escape(version)}\] - 20\d\d-\d\d-\d\d", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section [{version}] with a date")
    if "".join(unreleased).strip():
        found.append(f"CHANGELOG.md has entries under [Unreleased]; move them to [{version}]")
    if f"v{version}" in tags.split():
        found.append(f"tag v{version} exists; set another __version__ in src/sharded_eden/__init__.py")
    if changed.strip():
        found.append(f"changes without a commit:\n{changed}")
    return found


def main() -> None:
    """Run the check."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="keep sdist and wheel in this folder")
    options.add_argument("--without-torch", action="store_true", help="skip the extra train")
    options.add_argument("--release", action="store_true", help="first check changelog, tag and working tree")
    given = options.parse_args()
    if given.release:
        git = [run("git", *words, cwd=ROOT) for words in (("tag",), ("status", "--porcelain"))]
        if found := problems(VERSION, (ROOT / "CHANGELOG.md").read_text(), *git):
            sys.exit("\n".join(found))
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        wheel = build(given.out.resolve() if given.out else work / "dist", work)
        say(f"built {wheel.name} from its sdist")
        run(sys.executable, "-m", "venv", work / "empty", cwd=work)
        bin_folder = work / "empty/bin"
        install(bin_folder, f"sharded-eden @ {wheel.as_uri()}")
        say("installed it alone in an empty environment")
        prepare(bin_folder, work)
        run(bin_folder / "python", "-c", WITHOUT_TORCH, cwd=work)
        say("build, split, precompute, stats and rows work without torch")
        if not given.without_torch:
            install(bin_folder, "torch")  # first: an unpinned torch of another package may bring gigabytes of CUDA
            install(bin_folder, f"sharded-eden[train] @ {wheel.as_uri()}")
            say("installed the extra train")
            run(bin_folder / "python", "-c", ONE_BATCH, cwd=work)
            run(bin_folder / "sharded-eden", "verify", "sequences", "windows", "--full", cwd=work)
            say("a batch equals its rows, and verify finds nothing")
    if given.release:
        print(f"Next: git tag v{VERSION} && git push origin v{VERSION} && twine upload {given.out}/*{VERSION}*")


if __name__ == "__main__":
    main()
