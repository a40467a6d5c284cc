"""Stands in for `transformer_engine` and `triton`, which Megatron Bridge imports and which run on a GPU alone.

Nothing of either is called by what the tests here do. To be imported before Megatron Bridge.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("transformer_engine", "triton")


class Names(type):
    """Gives every name that a class lacks a class of its own."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = Names(name, (Anything,), {})
        setattr(cls, name, value)
        return value


class Anything(metaclass=Names):
    """A class to inherit from, and a decorator with or without arguments."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        del arguments, options

    def __call__(self, *arguments: Any, **options: Any) -> Anything:
        del arguments, options
        return self


class Stub(ModuleType):
    """A module with every name."""

    __version__ = "2.10.0"
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(Anything, name)


class Finder:
    """Finds the stubs."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(name, self, is_package=True) if name.split(".", maxsplit=1)[0] in PACKAGES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        del module


def stand_in() -> None:
    """Let `import transformer_engine` and `import triton` succeed."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
