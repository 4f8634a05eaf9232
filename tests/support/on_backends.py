"""A GPU backend's row in the table for a while, served on the CPU by a family of ops that is."""

import contextlib

from fastlstm import backends


@contextlib.contextmanager
def served_here(name: str, family: str):
    """`backend=name` runs `family` on CPU tensors."""
    before = backends.TABLE
    row = backends.Backend(name, family, lambda call: None)
    backends.TABLE = tuple(row if r.name == name else r for r in before)
    try:
        yield
    finally:
        backends.TABLE = before
