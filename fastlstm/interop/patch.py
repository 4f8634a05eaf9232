"""patch: FastLSTM under the names torch.nn.LSTM and torch.nn.LSTMCell, for libraries that one does
not own; unpatch puts torch's own classes back.

What stands under these names meanwhile is neither torch's class nor ours but a subclass of torch's
without instances: a call of it makes a FastLSTM, a class derived from it derives from FastLSTM, and
isinstance asks for torch's class, so that modules made before the patch pass too.
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
# Of torch, the names that programs use. Its other modules tell LSTMs from other modules by these
# classes, and torch.nn.modules.rnn is where pickle looks for the class of an nn.LSTM.
_OF_TORCH = ("torch.nn", "torch.nn.modules")


class _DerivedLSTM(FastLSTM):
    """The base of classes that are derived from torch.nn.LSTM under the patch."""

    __module__ = "fastlstm"

    def __getstate__(self):
        """With what nn.LSTM itself keeps: where there is no patch, the class that a pickle names
        derives from nn.LSTM. Computed weights are left out, as they cannot be pickled."""
        state = super().__getstate__()
        names, parameters = self._flat_weights_names, self._parameters
        if all(name in parameters for name in names):
            state = {**state, "_flat_weights": [parameters[name] for name in names]}
        return state


class _DerivedLSTMCell(FastLSTMCell):
    """The base of classes that are derived from torch.nn.LSTMCell under the patch."""

    __module__ = "fastlstm"


class _Name(abc.ABCMeta):
    """The class of the two stand-ins; an ABCMeta, so that an ABC can be a base beside them."""

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

    # Torch's class in all tables by type, and equal to ours too, for `type(module) == nn.LSTM`.
    def __eq__(cls, other):
        return other is cls or other is cls.__base__ or other is cls._fast

    def __hash__(cls):
        return hash(cls.__base__)


def _stand_in(base: type[nn.Module], fast: type[nn.Module], derived: type[nn.Module]) -> type:
    def forward(self, *args, **options):
        """That of torch's class or of ours, for classes that call `nn.LSTM.forward(self, ...)`."""
        return (fast if isinstance(self, fast) else base).forward(self, *args, **options)

    body = {"_fast": fast, "_derived": derived, "forward": forward, "__doc__": fast.__doc__}
    # The name under which it stands: a pickle of the class itself is one of torch's.
    return _Name(base.__name__, (base,), {**body, "__module__": "torch.nn"})


_STAND_INS = {
    LSTM: _stand_in(LSTM, FastLSTM, _DerivedLSTM),
    LSTMCell: _stand_in(LSTMCell, FastLSTMCell, _DerivedLSTMCell),
}
_lock = threading.RLock()
_holding: set["Patch"] = set()


class Patch:
    """What `patch` gives: `replaced` has the names that it replaced, such as "torch.nn.LSTM". As a
    context manager it ends at the end of its block."""

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
    """Have torch.nn.LSTM and torch.nn.LSTMCell make a FastLSTM and a FastLSTMCell, for all
    libraries.

    Libraries that are imported later find them there. In modules that are imported already, every
    global variable that is one of the two classes, and every such value in a dict that is a global
    variable, is replaced. A class attribute, a default argument or a variable of a function that
    holds the class itself is not, nor what a library takes from torch.nn.modules.rnn later: call
    `patch` again after that import.

    Instances and subclasses that exist stay as they are (`convert` changes models); isinstance and
    issubclass against the names take them and the fast ones. A class derived from torch.nn.LSTM
    under the patch derives from FastLSTM. Pickles made under the patch load without it.

    To call it again changes only what has come since, and `unpatch` ends all calls at once. Used as
    a context manager, it ends with the block, unless another call still holds; threads share it.

    Returns:
        A `Patch`, whose `replaced` are the names found, such as "torch.nn.LSTM".

    Example::

        >>> fastlstm.patch().replaced
        ('torch.nn.modules.LSTM', 'torch.nn.modules.LSTMCell', 'torch.nn.LSTM', 'torch.nn.LSTMCell')
    """
    return Patch()


def unpatch() -> tuple[str, ...]:
    """End `patch`: torch's own classes are put back wherever a stand-in is, also in modules that
    were imported in between. What was made meanwhile stays as it is.

    Returns:
        The names put back, none where nothing was patched.
    """
    with _lock:
        _holding.clear()
        return tuple(_exchange({stand_in: own for own, stand_in in _STAND_INS.items()}))


def _exchange(classes: dict[type, type]) -> list[str]:
    """Put `classes`' values in the place of their keys; the names of these places."""
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
        # Not by vars or getattr, which a lazy module may answer by importing.
        if isinstance(module, types.ModuleType):
            yield name, object.__getattribute__(module, "__dict__")
