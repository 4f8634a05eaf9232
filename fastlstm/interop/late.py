"""Hooks into other packages, run when (and only if) these are imported."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

_waiting: dict[str, Callable[[ModuleType], None]] = {}


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Calls `action` with the module of this name: now if it is imported, otherwise after its
    import. If the action fails, since the package may have changed, there is a warning."""
    if name in sys.modules:
        _act(sys.modules[name], action)
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _waiting[name] = action


def tell_when_imported(file: str, function: str, *names: str) -> None:
    """Call this function of a file of this folder, which is imported for it, once one of these
    modules is."""

    def tell(module: ModuleType) -> None:
        getattr(importlib.import_module(f"{__package__}.{file}"), function)()

    for name in names:
        when_imported(name, tell)


def _act(module: ModuleType, action) -> None:
    try:
        action(module)
    except Exception as error:
        warnings.warn(f"fastlstm could not make itself known to {module.__name__}: {error!r}", stacklevel=3)


class _Finder(importlib.abc.MetaPathFinder):
    """Has the other finders find a module that is waited for, and acts after its execution."""

    def find_spec(self, name, path=None, target=None):
        action = _waiting.pop(name, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            _waiting[name] = action
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _act(module, action)

        spec.loader.exec_module = exec_module
        return spec
