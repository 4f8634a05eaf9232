"""A GPU backend's row in the table for a while, served on the CPU by a family of ops that is."""

import contextlib

from fastlstm.backends import table


@contextlib.contextmanager
def served_here(name: str, family: str):
    """`backend=name` runs `family` on CPU tensors."""
    before = table.TABLE
    row = table.Backend(name, family, lambda call: None)
    table.TABLE = tuple(row if r.name == name else r for r in before)
    try:
        yield
    finally:
        table.TABLE = before
