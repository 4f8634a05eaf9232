"""patch: FastLSTM under the names torch.nn.LSTM and torch.nn.LSTMCell, for the code of other
libraries; unpatch restores torch's own classes.

The names are bound to stand-ins: subclasses of torch's classes without instances. Calling one makes
a FastLSTM, a class derived from one derives from FastLSTM, and isinstance checks for torch's class,
so that modules made before the patch pass too.
"""

import abc
import itertools
import operator
import sys
import threading
import types
from collections.abc import Iterator

from torch import nn

from ..nn.cell import FastLSTMCell
from ..nn.lstm import FastLSTM
from ..torch_classes import LSTM, LSTMCell

_PACKAGE = __package__.partition(".")[0]
# Modules of torch whose names programs use. Other modules of torch compare types with these
# classes, and pickle looks for the class of an nn.LSTM in torch.nn.modules.rnn.
_OF_TORCH = ("torch.nn", "torch.nn.modules")


class _DerivedLSTM(FastLSTM):
    """The base of classes that derive from torch.nn.LSTM under the patch."""

    __module__ = "fastlstm"

    def __getstate__(self):
        """Adds nn.LSTM's own `_flat_weights`: where a pickle is loaded without the patch, its class
        derives from nn.LSTM. Not if weights are computed, which cannot be pickled."""
        state = super().__getstate__()
        names, parameters = self._flat_weights_names, self._parameters
        if all(name in parameters for name in names):
            state = {**state, "_flat_weights": [parameters[name] for name in names]}
        return state


class _DerivedLSTMCell(FastLSTMCell):
    """The base of classes that derive from torch.nn.LSTMCell under the patch."""

    __module__ = "fastlstm"


class _Name(abc.ABCMeta):
    """The metaclass of the stand-ins; an ABCMeta, so that a class can also derive from an ABC."""

    def __new__(mcls, name, bases, namespace, **options):
        if any(isinstance(base, _Name) for base in bases):
            bases = tuple(base._derived if isinstance(base, _Name) else base for base in bases)
            return types.new_class(name, bases, options, lambda body: body.update(namespace))
        return super().__new__(mcls, name, bases, namespace, **options)

    def __call__(cls, *args, **options):
        return cls._fast(*args, **options)

    def __instancecheck__(cls, instance):
        return isinstance(instance, cls.__base__)

    def __subclasscheck__(cls, other):
        return issubclass(other, cls.__base__)

    # Equal to torch's class, and found as it in tables by type; also equal to the fast class, for
    # `type(module) == nn.LSTM`.
    def __eq__(cls, other):
        return other is cls or other is cls.__base__ or other is cls._fast

    def __hash__(cls):
        return hash(cls.__base__)


def _stand_in(base: type[nn.Module], fast: type[nn.Module], derived: type[nn.Module]) -> type:
    def forward(self, *args, **options):
        """For classes that call `nn.LSTM.forward(self, ...)`: that of the fast or torch's class."""
        return (fast if isinstance(self, fast) else base).forward(self, *args, **options)

    body = {"_fast": fast, "_derived": derived, "forward": forward, "__doc__": fast.__doc__}
    # In torch.nn, so that a pickle of the class itself refers to torch's.
    return _Name(base.__name__, (base,), {**body, "__module__": "torch.nn"})


_STAND_INS = {
    LSTM: _stand_in(LSTM, FastLSTM, _DerivedLSTM),
    LSTMCell: _stand_in(LSTMCell, FastLSTMCell, _DerivedLSTMCell),
}
_lock = threading.RLock()
_holding: set["Patch"] = set()


class Patch:
    """The result of `patch`: `replaced` has the replaced names, such as "torch.nn.LSTM". As a
    context manager, the patch ends with the block."""

    def __init__(self) -> None:
        self.replaced: tuple[str, ...] = ()
        self._hold()

    def _hold(self) -> None:
        with _lock:
            _holding.add(self)
            self.replaced += tuple(_exchange(_STAND_INS))

    def __enter__(self) -> "Patch":
        with _lock:
            if self not in _holding:
                self._hold()
        return self

    def __exit__(self, *raised) -> None:
        with _lock:
            if self in _holding:
                _holding.remove(self)
                if not _holding:
                    unpatch()

    def __repr__(self) -> str:
        return f"<fastlstm.patch of {', '.join(self.replaced) or 'nothing new'}>"


def patch() -> Patch:
    """Makes torch.nn.LSTM and torch.nn.LSTMCell create a FastLSTM and a FastLSTMCell, for all
    libraries.

    Libraries that are imported later use the patched names. In modules that are imported already,
    every global variable that is one of the two classes, and every such value in a dict that is a
    global variable, is replaced. Class attributes, default arguments and variables of functions
    that hold the class are not, nor what a library imports from torch.nn.modules.rnn later: call
    `patch` again after that import.

    Existing instances and subclasses do not change (`convert` changes models); isinstance and
    issubclass with the patched names are true for them and for the fast classes. A class that
    derives from torch.nn.LSTM under the patch derives from FastLSTM. Pickles made under the patch
    load without it.

    Another call replaces only names that have come since; `unpatch` ends all calls at once. As a
    context manager, the patch ends with the block, unless another call is active; threads share it.

    Returns:
        A `Patch`, whose `replaced` has the names found, such as "torch.nn.LSTM".

    Example::

        >>> fastlstm.patch().replaced
        ('torch.nn.modules.LSTM', 'torch.nn.modules.LSTMCell', 'torch.nn.LSTM', 'torch.nn.LSTMCell')
    """
    return Patch()


def unpatch() -> tuple[str, ...]:
    """Ends `patch`: restores torch's own classes wherever a stand-in is, also in modules that were
    imported in between. Modules and classes made under the patch do not change.

    Returns:
        The restored names; empty if nothing was patched.
    """
    with _lock:
        _holding.clear()
        return tuple(_exchange({stand_in: own for own, stand_in in _STAND_INS.items()}))


def _exchange(classes: dict[type, type]) -> list[str]:
    """Replaces each key of `classes` by its value; returns the names that were replaced."""
    by_identity = {id(old): new for old, new in classes.items()}
    absent = by_identity.keys().isdisjoint
    found, seen = [], set()

    def exchange(variables: dict, copied: dict) -> list:
        """The names whose values were exchanged."""
        if absent(map(id, copied.values())):
            return []
        names = [name for name, value in copied.items() if id(value) in by_identity]
        variables.update((name, by_identity[id(copied[name])]) for name in names)
        return names

    # A program of many libraries has some 100,000 variables. Maps go through them in C, and only
    # what is a class or a dict is touched; a dict once, as all modules have the same __builtins__.
    for module, variables in _modules():
        copied = variables.copy()  # since other threads may import meanwhile
        found += (f"{module}.{name}" for name in exchange(variables, copied))
        dicts = map(operator.is_, map(type, copied.values()), itertools.repeat(dict))
        for name, value in itertools.compress(copied.items(), dicts):
            if id(value) not in seen:
                seen.add(id(value))
                found += (f"{module}.{name}[{key!r}]" for key in exchange(value, value.copy()))
    return found


def _modules() -> Iterator[tuple[str, dict]]:
    """The modules in which the names are exchanged, with their variables."""
    for name, module in sys.modules.copy().items():
        if name.partition(".")[0] == _PACKAGE:
            continue
        if name.partition(".")[0] == "torch" and name not in _OF_TORCH:
            continue
        # Not by vars or getattr, on which a lazy module may import others.
        if isinstance(module, types.ModuleType):
            yield name, object.__getattribute__(module, "__dict__")
