"""Mixtures as configurations: a TOML or YAML file, a dict or a list -> checked sources, phases and ranges to skip -> `Mixture`.

    skip = [[51200, 51711]]

    [sources.genes]
    window_db_path = "genes/train_windows.db"
    sequence_db_dir = "genes/sequences"
    weight = 0.7

    [sources.genomes]
    window_db_path = "genomes/train_windows.db"
    weight = 0.3
    soft_mask_weight = 0.1

    [[phases]]
    position = 1000000
    weights = { genes = 0.2, genomes = 0.8 }

Paths in a file are relative to its folder. Costs nothing until `open_mixture` opens the sources.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from sharded_eden.errors import InputError, MissingExtra, UsageError, shown
from sharded_eden.load.locate.cached import local_window_db
from sharded_eden.load.locate.windows import WindowIndex
from sharded_eden.load.options import ExampleOptions, absolute_path, path_or_url
from sharded_eden.load.tensors import ShardedEdenDataset
from sharded_eden.train.mixture import Mixture

SUFFIXES = (".toml", ".yaml", ".yml")

EXAMPLE_OPTIONS = tuple(option.name for option in fields(ExampleOptions))
_PATHS = ("window_db_path", "sequence_db_dir")
_PATH_OPTIONS = tuple(option.name for option in fields(ExampleOptions) if "PathLike" in str(option.type))
"""Options that take a path, some of them also another value."""
_SOURCE_OPTIONS = ("rc_aug", "stride", "seq_length", *EXAMPLE_OPTIONS)
_MIXTURE_KEYS = ("sources", "phases", "skip")
_PHASE_KEYS = ("position", "weights")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One window database, and how its rows differ from those of the others."""

    window_db_path: str
    sequence_db_dir: str | None = None
    """None takes that of the job."""
    options: Mapping[str, Any]
    """Options of the dataset that replace those of the job."""

    @classmethod
    def of(cls, given: Any, called: str, folder: str = "") -> Source:
        """Check a path, or a dict of `window_db_path`, `sequence_db_dir` and options of a dataset.

        Args:
            given: the path or dict.
            called: what messages call it.
            folder: what paths are relative to; "" for the current folder.

        Raises:
            UsageError: an unknown key, a value that is not a path, or no `window_db_path`.
        """
        parts = dict(given) if isinstance(given, Mapping) else {"window_db_path": given}
        _check_keys(parts, (*_PATHS, *_SOURCE_OPTIONS), called)
        paths = {name: path for name in _PATHS if (path := parts.pop(name, None)) is not None}
        if "window_db_path" not in paths:
            raise UsageError(f"{called} has no window_db_path")
        for name in _PATH_OPTIONS:
            if isinstance(parts.get(name), str | os.PathLike):
                parts[name] = _path(parts[name], f"{name} of {called}", folder)
        return cls(**{name: _path(path, f"{name} of {called}", folder) for name, path in paths.items()}, options=parts)

    def open(self, *, tokenizer: Any, sequence_db_dir: str | None, called: str, **options: Any) -> ShardedEdenDataset:
        """Open the dataset.

        Args:
            tokenizer: see `ShardedEdenDataset`.
            sequence_db_dir: the folder of the job.
            called: what messages call this source.
            options: arguments of `ShardedEdenDataset`, which this source's own replace.

        Raises:
            UsageError: there is no folder of sequence databases.
            EdenError: a database is refused.
        """
        folder = self.sequence_db_dir or sequence_db_dir
        if folder is None:
            raise UsageError(f"{called} has no sequence_db_dir, and the job has none either")
        return ShardedEdenDataset(tokenizer, folder, self.window_db_path, **{**options, **self.options})


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A mixture whose sources are not open yet."""

    sources: Mapping[str, Source]
    weights: Mapping[str, Any]
    phases: Sequence[tuple[Any, Any]]
    skip: Sequence[Any]

    def window_size(self) -> int:
        """Return the window size of the first source, in bases.

        Raises:
            EdenError: its window database cannot be read.
        """
        first = next(iter(self.sources.values()))
        given = {name: first.options[name] for name in ("cache_dir", "request_seconds") if name in first.options}
        path = local_window_db(first.window_db_path, first.sequence_db_dir or "", ExampleOptions(**given))
        index = WindowIndex(path)
        try:
            return index.geometry.window_size
        finally:
            index.close()

    def open(
        self, *, tokenizer: Any, sequence_db_dir: str | None, seed: int, num_samples: int | None = None, **options: Any
    ) -> Mixture:
        """Open all sources; the arguments are those of `Source.open` and `Mixture`."""
        opened = {
            name: source.open(
                tokenizer=tokenizer,
                sequence_db_dir=sequence_db_dir,
                called=f"source {shown(name)} of the mixture",
                seed=seed,
                **options,
            )
            for name, source in self.sources.items()
        }
        pairs = {name: (dataset, self.weights[name]) for name, dataset in opened.items()}
        return Mixture(pairs, num_samples, seed=seed, phases=self.phases, skip=self.skip)


def is_mixture_file(path: Any) -> bool:
    """Return whether a path is named as the file of a mixture is."""
    return isinstance(path, str | os.PathLike) and os.fspath(path).lower().endswith(SUFFIXES)


def mixture_config(given: Any) -> MixtureConfig:
    """Check the configuration of a mixture.

    Args:
        given: the path of a TOML or YAML file, a dict of its contents, or a list of its sources, which are then called
            `source 0`, `source 1` and so on.

    Raises:
        InputError: the file cannot be read, or is not valid TOML or YAML; the message names it.
        UsageError: an unknown or missing key, or a value of another type.
    """
    folder, called = "", "mixture"
    if isinstance(given, str | os.PathLike):
        path = Path(absolute_path(given, "mixture"))
        folder, called, given = str(path.parent), f"mixture {path}", _read(path)
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = {"sources": {f"source {k}": each for k, each in enumerate(given)}}
    if not isinstance(given, Mapping):
        raise UsageError(
            f"mixture must be a path, a dict with sources, phases and skip, or a list of sources, not {shown(given)}"
        )
    _check_keys(given, _MIXTURE_KEYS, called)
    sources = given.get("sources")
    if not isinstance(sources, Mapping) or not sources:
        raise UsageError(
            f"{called} needs sources: a dict of names, each with window_db_path and weight; not {shown(sources)}"
        )
    weights, checked = {}, {}
    for name, source in sources.items():
        of_source = f"{called}: source {shown(name)}"
        if not isinstance(name, str) or not isinstance(source, Mapping):
            raise UsageError(
                f"{of_source} must be a name with a dict of window_db_path and weight, not {shown(source)}"
            )
        parts = dict(source)
        if "weight" not in parts:
            raise UsageError(f"{of_source} has no weight")
        weights[name] = parts.pop("weight")
        checked[name] = Source.of(parts, of_source, folder)
    phases = [_phase(each, called) for each in _list(given.get("phases"), f"phases of {called}")]
    return MixtureConfig(
        sources=checked, weights=weights, phases=phases, skip=_list(given.get("skip"), f"skip of {called}")
    )


def _phase(given: Any, called: str) -> tuple[Any, Any]:
    if isinstance(given, Mapping):
        _check_keys(given, _PHASE_KEYS, f"a phase of {called}")
        if missing := [name for name in _PHASE_KEYS if name not in given]:
            raise UsageError(f"a phase of {called} has no {missing[0]}: {shown(given)}")
        return given["position"], given["weights"]
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        return given[0], given[1]
    raise UsageError(f"a phase of {called} must have position and weights, not {shown(given)}")


def _list(given: Any, called: str) -> Sequence[Any]:
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UsageError(f"{called} must be a list, not {shown(given)}")
    return given


def _check_keys(given: Mapping[Any, Any], known: Sequence[str], called: str) -> None:
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise UsageError(f"{called} has no key {shown(key)}" + (f". Did you mean {near[0]}?" if near else ""))


def _path(given: Any, called: str, folder: str) -> str:
    if not isinstance(given, str | os.PathLike):
        raise UsageError(f"{called} must be a path, not {shown(given)}")
    if "://" in os.fspath(given):
        return path_or_url(given, called)
    return absolute_path(os.path.join(folder, given), called)


def _read(path: Path) -> Any:
    if not is_mixture_file(path):
        raise UsageError(f"mixture {path}: the name of a mixture's file must end in .toml, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"mixture {path} cannot be read: {error}") from error
    return _toml(path, text) if path.suffix.lower() == ".toml" else _yaml(path, text)


def _toml(path: Path, text: str) -> Any:
    try:
        toml = import_module("tomllib")
    except ModuleNotFoundError:  # before Python 3.11
        try:
            toml = import_module("tomli")
        except ModuleNotFoundError as error:
            raise MissingExtra("tomli", "mixture") from error
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise InputError(f"mixture {path} is not valid TOML: {error}") from error


def _yaml(path: Path, text: str) -> Any:
    try:
        yaml = import_module("yaml")
    except ModuleNotFoundError as error:
        raise MissingExtra("PyYAML", "mixture") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Refuses keys that are given twice: PyYAML would take the last one."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if twice := [key for k, key in enumerate(keys) if key in keys[:k]]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{shown(twice[0])} is given twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"mixture {path} is not valid YAML: {error}") from error
