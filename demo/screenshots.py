"""`make screenshots`: the pictures of the documentation, from the genomes of the demo, in headless Chromium.

Builds and splits the genomes, reads two passes of the training split with access logs, and once more with a wrong sampler,
which shuffles blocks of 500 windows and the windows of each block, but not all windows. Builds the site last, so that its
pages show the other pictures. Writes `docs/screenshots/*.png`.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "helpers"))

from browser import browser, open_page  # noqa: E402

from sharded_eden import ShardedEdenDataset, Stream, cli  # noqa: E402

OUT = HERE.parent / "docs" / "screenshots"
SPLITS = ("train", "val", "test")
BLOCK = 500
SITE = (("start", "index.html"), ("tutorial", "tutorial.html"), ("packing", "packing.html"))
SCREENS = (("light", 1280, 800), ("dark", 1280, 800), ("phone", 390, 800))
TERMINAL = """<!DOCTYPE html><html lang="en" data-drawn="yes"><head><meta charset="utf-8"><title>terminal</title><style>
body {{ margin: 0; background: #12161d; color: #e6eaf1; }}
pre {{ display: inline-block; margin: 0; padding: 20px 24px; font: 13px/1.45 "DejaVu Sans Mono", monospace;
  max-width: 120ch; white-space: pre-wrap; }}
</style></head><body><pre>{text}</pre></body></html>"""


def main() -> None:
    """Write all pictures."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        databases = [f"{split}_windows.db" for split in SPLITS]
        log(folder, "logs")
        log(folder, "wrong", block_wise=True)
        for out, logs in (("report.html", "logs"), ("wrong.html", "wrong")):
            run(folder, "report", out, "seqdb", *databases, "--logs", logs)
        with browser() as started:
            for picture, page, width, scheme, height in (
                ("report-light", "report.html", 1200, "light", 2000),
                ("report-dark", "report.html", 1200, "dark", 2000),
                ("report-phone", "report.html", 390, "light", 1900),
                ("report-wrong-sampler", "wrong.html", 1200, "light", 1580),
            ):
                opened = open_page(started, folder / page, width=width, scheme=scheme)
                clip = {"x": 0, "y": 0, "width": width, "height": height}
                opened.page.screenshot(path=OUT / f"{picture}.png", full_page=True, clip=clip)
            for picture, *words in (
                ("stats", "stats", "seqdb", *databases),
                ("show", "show", "seqdb", "train_windows.db", "--step", "10", "--global-batch-size", "8", "--rc-aug"),
                ("verify", "verify", "seqdb", *databases, "--by", "contig", "--near-duplicates"),
            ):
                text = run(folder, *words)
                if text is None:
                    continue
                command = f"$ sharded-eden {' '.join(words)}\n"
                (folder / "terminal.html").write_text(TERMINAL.format(text=escape(command + text)))
                opened = open_page(started, folder / "terminal.html")
                opened.page.locator("pre").screenshot(path=OUT / f"{picture}.png")
            site(started, folder / "site")
    for picture in sorted(OUT.iterdir()):
        Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
        print(f"{picture}  {picture.stat().st_size / 1000:,.0f} kB")


def site(started: Any, folder: Path) -> None:
    """Build the site and take pictures of three of its pages."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run([*command, "--no-directory-urls"], cwd=HERE.parent, check=True)
    for name, page in SITE:
        for screen, width, height in SCREENS:
            scheme = "dark" if screen == "dark" else "light"
            opened = open_page(
                started,
                folder / page,
                width=width,
                height=height,
                scheme=scheme,
                ready="document.readyState === 'complete'",
            )
            opened.page.wait_for_timeout(1000)  # colours change slowly when the page becomes dark
            opened.page.screenshot(path=OUT / f"site-{name}-{screen}.png")


def prepare(folder: Path) -> None:
    """Build, split and precompute."""
    shutil.copytree(HERE / "genomes", folder / "genomes")
    run(folder, "build", "genomes", "--out", "seqdb")
    run(folder, "split", "seqdb", "--out", "splits", "--by", "contig", "--val", "0.1", "--test", "0.1", "--seed", "2")
    for split in SPLITS:
        options = ["--window-size", "1024", "--stride", "800", "--pack"]
        run(folder, "precompute", f"splits/{split}_split.parquet", f"{split}_windows.db", *options)


def block_wise_order(count: int) -> np.ndarray:
    """Return (count,) int64: blocks of windows in a random order, each shuffled by itself."""
    rng = np.random.default_rng(0)
    blocks = np.array_split(np.arange(count), count // BLOCK)
    return np.concatenate([rng.permutation(blocks[k]) for k in rng.permutation(len(blocks))])


def log(folder: Path, logs: str, *, block_wise: bool = False) -> None:
    """Read the training split with access logs: two passes of the stream, or one of a block-wise shuffle."""
    windows = folder / "train_windows.db"
    with ShardedEdenDataset.open(folder / "seqdb", windows, log_windows=True, log_dir=folder / logs) as dataset:
        stream = Stream(dataset)
        count = len(stream)
        for first in range(0, count if block_wise else 2 * count, 32):
            if block_wise:
                dataset.__getitems__(block_wise_order(count)[first : first + 32].tolist())
            else:
                stream.__getitems__(range(first, min(first + 32, 2 * count)))


def run(folder: Path, *words: str) -> str | None:
    """Run a command in the folder and return what it prints; None where there is no such command."""
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    if words[0] not in names:
        return None
    out = io.StringIO()
    with chdir(folder), redirect_stdout(out):
        status = cli.main(list(words))
    if status and words[0] != "verify":
        sys.exit(f"{' '.join(words)}: exit status {status}")
    return out.getvalue()


if __name__ == "__main__":
    main()
