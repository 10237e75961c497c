"""Defers the import of rarely used libraries until first use, to save memory and time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

DRAWING = ("matplotlib", "mpl_toolkits", "setuptools")
"""Pulser and QuTiP import these to draw and to compile, which a lane never does: 35 MB and half a second."""

_deferred: set[str] = set()


class _Deferred(ModuleType):
    """Replaces a module, class or function until it is used. A class that inherits from it lacks this base."""

    def __getattr__(self, name: str) -> Any:
        library = _find_library(self.__name__)
        if name == "__version__":  # QuTiP compares it
            from importlib.metadata import version

            return version(library)
        if name.startswith("__"):
            raise AttributeError(name)
        if library in _deferred:
            return _Deferred(f"{self.__name__}.{name}")
        return getattr(resolve_name(self.__name__), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _resolve(self)(*arguments, **options)

    def __getitem__(self, key: Any) -> Any:
        return _resolve(self)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        _resolve(self)[key] = value

    def __or__(self, other: object) -> Any:  # only in the annotation of a type
        return Any

    __ror__ = __or__

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, resolve_name(self.__name__))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[()]:
        return ()


class _Finder(MetaPathFinder, Loader):
    """Finds deferred libraries and all their modules, before Python's own finders do."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        # The finder of distutils needs the file of this module. If the module is not found, neither is distutils.
        is_deferred = _find_library(name) in _deferred and name != "setuptools._distutils"
        return ModuleSpec(name, self, is_package=True) if is_deferred else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


@contextmanager
def defer_imports(*libraries: str) -> Iterator[None]:
    """Import these libraries only when something in them is used, for modules that import them within this block.

    Imports after the block are not deferred. A library that is already imported stays.
    """
    absent, finder = set(libraries) - sys.modules.keys(), _Finder()
    _deferred.update(absent)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for library in absent:
            _stop(library)


def _resolve(deferred: _Deferred) -> Any:
    """Return what this replaces, from its library, which is imported from now on."""
    _stop(_find_library(deferred.__name__))
    return resolve_name(deferred.__name__)


def _stop(library: str) -> None:
    """Let the library be imported from now on."""
    _deferred.discard(library)
    for name, module in list(sys.modules.items()):
        if isinstance(module, _Deferred) and _find_library(name) == library:
            del sys.modules[name]


def _find_library(name: str) -> str:
    return name.partition(".")[0]
