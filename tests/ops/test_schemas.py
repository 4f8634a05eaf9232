"""The schemas of the ops, word by word: exported programs and C++ registrations depend on them."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from pairs import needs_library
from torch import Tensor

from fastlstm.ops.define import schema

LINES = Path(__file__).with_name("schemas.txt").read_text().splitlines()
# Of the ops that each family has a set of.
OF_FAMILIES = ("forward", "backward", "layer_forward", "layer_backward", "variant_forward")
OF_FAMILIES += ("variant_backward",)


@needs_library
@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("(")[0])
def test_schema_is_as_it_was(line):
    name = line.split("(")[0]
    same = [name]
    if name.removeprefix("lstm_") in OF_FAMILIES:
        same += [name.replace("lstm_", f"{family}_", 1) for family in ("reference", "triton")]
    for other in same:
        registered = str(getattr(torch.ops.fastlstm, other).default._schema)
        assert registered == f"fastlstm::{line.replace(name, other, 1)}"


class Arguments(NamedTuple):
    x: Tensor
    mask: Tensor | None
    weights: list[Tensor]
    needs: list[bool]
    name: str
    steps: int
    share: float
    keep: bool


class Results(NamedTuple):
    y: Tensor
    tape: list[Tensor]


def test_a_schema_is_made_of_the_fields():
    given = "Tensor x, Tensor? mask, Tensor[] weights, bool[] needs, str name, int steps, "
    given += "float share, bool keep"
    made = "(Tensor y, Tensor[] tape)"
    assert schema("an_op", Arguments, Results) == f"an_op({given}) -> {made}"
    assert schema("an_op", Arguments, Results, tf32=bool) == f"an_op({given}, bool tf32) -> {made}"
    assert schema("an_op", None, int) == "an_op() -> int"
    assert schema("an_op", None, list[Tensor]) == "an_op() -> Tensor[]"
