"""Modules that are imported at their first use: torch takes seconds, and reading a recipe needs nothing of it."""

from __future__ import annotations

import gc
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """A module that runs when anything of it is used. The ``import`` statement itself asks for its spec, whoever looks for
    classes for its class, and for sources for its file: importlib's own lazy modules would run at any of them, and newer
    ones cannot run one that deletes names of its own, as torch does."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__spec__", "__class__", "__file__", "__name__"):
            return ModuleType.__getattribute__(self, name)
        with _RUNNING:  # whoever else wants something of it waits
            if type(self) is _Lazy and self.__spec__ not in _STARTED:
                _STARTED.append(self.__spec__)
                self.__spec__.loader.exec_module(self)
                self.__class__ = ModuleType
        return ModuleType.__getattribute__(self, name)


OFTEN = gc.get_threshold()
_RUNNING, _STARTED = threading.RLock(), []  # what a module asks of itself meanwhile is plainly looked up


def make_lazy(name: str) -> None:
    """From now on ``import NAME`` runs the module at its first use, unless it was imported already."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        module.__class__ = _Lazy


def collect_rarely() -> None:
    """While libraries are imported: they make a million objects that stay, which Python would look through a thousand times, a
    sixth of what a command costs."""
    gc.set_threshold(100_000, 20, 20)


def collect_as_ever() -> None:
    """Before anything is computed: what was imported is looked at no more, and models that refer to themselves are freed
    again as soon as they used to be."""
    gc.freeze()
    gc.set_threshold(*OFTEN)


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """While nothing of a lazy module was used, those who look whether it was imported find that it was not: matplotlib asks
    torch for its tensors before it draws a number."""
    module = sys.modules.get(name)
    if type(module) is not _Lazy:
        yield
        return
    del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.setdefault(name, module)
