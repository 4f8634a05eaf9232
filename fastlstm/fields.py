"""NamedTuples made of others, so that fields which several ops have in common are listed once."""

import typing
from collections.abc import Callable


def joined(*parts: type | dict[str, typing.Any]) -> Callable[[type], typing.Any]:
    """Decorates a class: makes it a NamedTuple of the fields of `parts`, in their order, and then
    of its own, with its methods.

    Args:
        parts: NamedTuple types, or dicts from a field's name to its type.
    """

    def make(cls: type):
        kinds: dict[str, typing.Any] = {}
        for part in (*parts, cls):
            kinds |= part if isinstance(part, dict) else typing.get_type_hints(part)
        made = typing.NamedTuple(cls.__name__, kinds.items())
        made.__doc__, made.__module__ = cls.__doc__, cls.__module__
        for name, value in vars(cls).items():
            if not name.startswith("__"):
                setattr(made, name, value)
        return made

    return make
