"""The example in the docstring of each public name runs, in a folder with small data, and gives what it says."""

from __future__ import annotations

import doctest
import inspect
import warnings
from pathlib import Path

import documented_folder
import pytest

import sharded_eden

NAMES = [name for name in sharded_eden.__all__ if name != "__version__"]
EXTRAS = {"Position": "transformers", "collate_for_hugging_face": "transformers", "write_report": "plotly"}
"""{name: the optional package that its example needs}."""

SLOW = {"LoaderStatistics", "ShardedEdenDataModule"}
"""Examples that import Lightning, which takes seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented")
    documented_folder.write(folder)
    return folder


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
def test_the_example_gives_what_it_says(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    monkeypatch.chdir(folder)
    text = inspect.getdoc(getattr(sharded_eden, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    written: list[str] = []
    with warnings.catch_warnings():  # an example may change the filters
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=written.append)
    assert written == [], "".join(written)
