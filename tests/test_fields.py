"""NamedTuples that are made of the fields of others."""

import pickle
import typing
from typing import NamedTuple

from fastlstm.fields import joined


class Point(NamedTuple):
    x: int
    y: float | None


@joined({"name": str}, Point)
class Weighted:
    """A point with a weight."""

    weight: float

    @property
    def doubled(self) -> float:
        return 2 * self.weight


def test_fields_come_in_order_with_their_types():
    assert Weighted._fields == ("name", "x", "y", "weight")
    kinds = {"name": str, "x": int, "y": float | None, "weight": float}
    assert typing.get_type_hints(Weighted) == kinds


def test_it_is_a_tuple_of_its_own_class():
    made = Weighted("a", 1, None, weight=1.5)
    assert made == ("a", 1, None, 1.5) and type(made).__bases__ == (tuple,)
    assert made._replace(y=2.0).y == 2.0
    assert pickle.loads(pickle.dumps(made)) == made


def test_methods_and_documentation_are_kept():
    assert Weighted("a", 1, None, 1.5).doubled == 3.0
    assert Weighted.__doc__ == "A point with a weight."
    assert (Weighted.__name__, Weighted.__module__) == ("Weighted", __name__)
