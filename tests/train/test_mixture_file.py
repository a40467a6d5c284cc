"""Mixtures from TOML, YAML, dicts and lists: equal streams, and errors that name file, key and value."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import worlds
from mixtures import WEIGHTS, mixture_of, write_sources

from sharded_eden.errors import InputError, MissingExtra, UsageError
from sharded_eden.train.mixture_file import Source, mixture_config

TOML = """
skip = [[10, 12]]

[sources."source 0"]
window_db_path = "source0/windows.db"
sequence_db_dir = "source0/seqs"
weight = 5

[sources."source 1"]
window_db_path = "source1/windows.db"
sequence_db_dir = "source1/seqs"
weight = 1
soft_mask_weight = 0.1

[sources."source 2"]
window_db_path = "source2/windows.db"
sequence_db_dir = "source2/seqs"
weight = 3

[[phases]]
position = 70
weights = { "source 0" = 1, "source 1" = 0.5 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_sources(folder)
    return folder


def contents(folder: Path | str = ".") -> dict[str, Any]:
    sources = {
        f"source {k}": {
            "window_db_path": f"{folder}/source{k}/windows.db",
            "sequence_db_dir": f"{folder}/source{k}/seqs",
            "weight": weight,
        }
        for k, weight in enumerate(WEIGHTS)
    }
    sources["source 1"]["soft_mask_weight"] = 0.1
    phases = [{"position": 70, "weights": {"source 0": 1, "source 1": 0.5}}]
    return {"sources": sources, "phases": phases, "skip": [[10, 12]]}


def opened(given: Any, **options: Any):
    options = {"seq_length": worlds.T, "stride": worlds.STRIDE, "seed": 42, "sequence_db_dir": None, **options}
    return mixture_config(given).open(tokenizer=None, **options)


def given_as(form: str, folder: Path) -> Any:
    if form == "dict":
        return contents(folder)
    path = folder / f"mixture.{form}"
    path.write_text(TOML if form == "toml" else json.dumps(contents()))  # JSON is YAML
    return path


@pytest.mark.parametrize("form", ["dict", "toml", "yaml", "yml"])
def test_every_form_gives_the_mixture_of_the_class(folder, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths in a file are relative to it
    mixture = opened(given_as(form, folder), rc_aug=True)
    wanted = mixture_of([folder / f"source{k}" for k in range(3)], skip=[(10, 12)], rc_aug=True)
    assert mixture.windows_at(range(300)) == wanted.windows_at(range(300))
    identities = mixture.identity, wanted.identity
    assert identities[0]["phases"] == identities[1]["phases"]
    assert [dataset.soft_mask_weight for dataset in mixture.dataset.datasets] == [1.0, 0.1, 1.0]
    assert all(dataset.rc_aug for dataset in mixture.dataset.datasets)


def test_a_list_of_sources_and_the_folder_of_the_job(folder):
    mixture = opened(
        [{"window_db_path": folder / "source0" / "windows.db", "weight": 2}],
        sequence_db_dir=folder / "source0" / "seqs",
    )
    assert mixture.names == ["source 0"]
    assert len(mixture) == 11


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": {}}, "mixture has no key 'source'. Did you mean sources"),
        ({"sources": {}}, "mixture needs sources"),
        ({"sources": None}, "mixture needs sources"),
        ({"sources": {"a": 1}}, r"source 'a' must be a name with a dict"),
        ({"sources": {1: {}}}, r"source 1 must be a name with a dict"),
        ({"sources": {"a": {"weight": 1}}}, "source 'a' has no window_db_path"),
        ({"sources": {"a": {"window_db_path": "x"}}}, "source 'a' has no weight"),
        (
            {"sources": {"a": {"window_db_path": 3, "weight": 1}}},
            "window_db_path of mixture: source 'a' must be a path, not 3",
        ),
        ({"sources": {"a": {"window_db_path": "x", "weight": 1, "rc_augment": True}}}, "Did you mean rc_aug"),
        ({"sources": {"a": {"window_db_path": "x", "weight": 1}}}, "source 'a' of the mixture has no sequence_db_dir"),
        ({"phases": 5}, "phases of mixture must be a list, not 5"),
        ({"phases": [5]}, "a phase of mixture must have position and weights, not 5"),
        ({"phases": [{"position": 5}]}, "a phase of mixture has no weights"),
        ({"phases": [{"position": 5, "weights": {}, "weight": 1}]}, "Did you mean weights"),
        ({"phases": [{"position": 5, "weights": {"b": 1}}]}, "there is no source 'b'"),
        ({"skip": "5-6"}, "skip of mixture must be a list"),
    ],
)
def test_invalid_configurations_are_refused(folder, change, words):
    with pytest.raises(UsageError, match=words):
        opened({**contents(folder), **change})


@pytest.mark.parametrize("given", [5, None, True])
def test_other_types_are_refused(given):
    with pytest.raises(UsageError, match="mixture must be a path, a dict"):
        mixture_config(given)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("m.toml", "sources = ", "m.toml is not valid TOML: Invalid value"),
        ("m.toml", "[sources.a]\nweight=1\n[sources.a]\nweight=2\n", "m.toml is not valid TOML"),
        ("m.yaml", "sources: [", "m.yaml is not valid YAML"),
        ("m.yaml", "sources:\n  a: {weight: 1}\n  a: {weight: 2}\n", "not valid YAML: 'a' is given twice"),
        ("m.yaml", "!!python/object/apply:os.getcwd []", "m.yaml is not valid YAML"),
        ("m.yaml", "\xff", "cannot be read"),
        ("missing.toml", None, "missing.toml cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=words):
        mixture_config(tmp_path / name)


def test_files_with_other_names_and_contents_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.toml, \.yaml or \.yml"):
        mixture_config(tmp_path / "mixture.json")
    (tmp_path / "m.yaml").write_text("5")
    with pytest.raises(UsageError, match="mixture must be a path, a dict"):
        mixture_config(tmp_path / "m.yaml")
    with pytest.raises(UsageError, match="URL"):
        mixture_config("ftp://example.org/mixture.toml")


@pytest.mark.parametrize(("missing", "name"), [("yaml", "m.yaml"), ("tomllib tomli", "m.toml")])
def test_missing_extras_name_the_command(tmp_path, monkeypatch, missing, name):
    (tmp_path / name).write_text("")
    for module in missing.split():
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[mixture\]'"):
        mixture_config(tmp_path / name)


def test_paths_of_options_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    file = tmp_path / "here" / "m.toml"
    file.write_text(
        '[sources.a]\nwindow_db_path = "w.db"\nweight = 1\ntags = "tags.csv"\nderive_windows = "derived"\n'
        'log_dir = "logs"\ncache_dir = "cache"\n[sources.b]\nwindow_db_path = "w.db"\nweight = 1\nderive_windows = true\n'
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tags.csv").write_text("another table, in the current folder")
    sources = mixture_config("here/m.toml").sources
    names = {"tags": "tags.csv", "derive_windows": "derived", "log_dir": "logs", "cache_dir": "cache"}
    assert sources["a"].options == {name: str(tmp_path / "here" / path) for name, path in names.items()}
    assert sources["b"].options == {"derive_windows": True}


def test_none_is_as_if_left_out(folder):
    source = {"window_db_path": folder / "source0" / "windows.db", "weight": 2, "sequence_db_dir": None}
    assert len(opened([source], sequence_db_dir=folder / "source0" / "seqs")) == 11
    with pytest.raises(UsageError, match="source 'source 0' has no window_db_path"):
        mixture_config([{**source, "window_db_path": None}])
    with pytest.raises(UsageError, match="val has no window_db_path"):
        Source.of(None, "val")
