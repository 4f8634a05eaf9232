"""NamedTuples made of others, so that fields which several ops have in common are listed once; and
of some of their fields."""

import itertools
import types
import typing
from collections.abc import Callable


def joined(*parts: type | dict[str, typing.Any]) -> Callable[[type], typing.Any]:
    """Decorates a class: makes it a NamedTuple of the fields of `parts`, in their order, and then
    of its own, with its methods. A default stays where all fields after it have one.

    Args:
        parts: NamedTuple types, or dicts from a field's name to its type.
    """

    def make(cls: type):
        kinds: dict[str, typing.Any] = {}
        body = {name: value for name, value in vars(cls).items() if not name.startswith("__")}
        defaults = dict(body)
        for part in (*parts, cls):
            kinds |= part if isinstance(part, dict) else typing.get_type_hints(part)
            defaults |= getattr(part, "_field_defaults", {})
        for name in itertools.takewhile(defaults.__contains__, reversed(kinds)):
            body[name] = defaults[name]
        body |= {"__annotations__": kinds, "__doc__": cls.__doc__, "__module__": cls.__module__}
        return types.new_class(cls.__name__, (typing.NamedTuple,), exec_body=lambda made: made.update(body))

    return make


def only(cls, **given):
    """An instance of a NamedTuple type with these fields, and None for all others."""
    return cls._make(map(given.get, cls._fields))
