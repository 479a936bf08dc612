"""Import a package without those of its dependencies that this process does not use.

While a block of `deferred` runs, a module of a deferred package is a stand-in, and what is imported
from it is a `Deferred`, which imports the real module once it is used. NeMo imports what training
and evaluation need, too: without that and torch's compiler, it takes 7.6 s of a core instead of
13.6, and 502 MB instead of 704.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Deferred:
    """A function or class of a module that is imported once this is called, or a base class."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def resolve(self) -> Any:
        """Import the module; return the function or class. Raises `ImportError`."""
        try:
            return getattr(_import(self._module), self._name)
        except AttributeError as error:
            # As `from module import name` does.
            raise ImportError(f"cannot import {self._name!r} from {self._module!r}") from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.resolve()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # `typing` looks for its own special attributes; that is no use of the class.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.resolve(), name)

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self.resolve(),)

    def __instancecheck__(self, instance: object) -> bool:
        # Without the module there are no instances of its classes.
        return _is_imported(self._module) and isinstance(instance, self.resolve())

    def __subclasscheck__(self, subclass: type) -> bool:
        return _is_imported(self._module) and issubclass(subclass, self.resolve())

    def __or__(self, other: object) -> Any:
        # As in annotations, like the next one.
        return Any

    __ror__ = __or__

    def __getitem__(self, parameters: object) -> Any:
        return Any


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # The import system asks every module for such names.
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    """Find stand-ins for the modules of deferred packages that this thread imports."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if threading.get_ident() != self._thread:
            return None
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self._packages):
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""


@contextmanager
def deferred(*packages: str) -> Iterator[None]:
    """Defer packages, or modules of them, that are not imported yet, in this thread's imports.

    Afterwards they can be imported by their names.
    """
    finder = _Finder([name for name in packages if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _remove_stand_ins([finder])


def _import(module: str) -> ModuleType:
    """Import the real module, whether in a block of `deferred` or after it."""
    finders = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
    for finder in finders:
        sys.meta_path.remove(finder)
    try:
        _remove_stand_ins(finders)
        return importlib.import_module(module)
    finally:
        sys.meta_path[:0] = finders


def _is_imported(module: str) -> bool:
    return not isinstance(sys.modules.get(module), _StandIn | None)


def _remove_stand_ins(finders: Sequence[_Finder]) -> None:
    for name, module in [*sys.modules.items()]:
        if isinstance(module, _StandIn) and module.__loader__ in finders:
            del sys.modules[name]
            package, _, last = name.rpartition(".")
            if vars(sys.modules.get(package, module)).get(last) is module:
                delattr(sys.modules[package], last)
