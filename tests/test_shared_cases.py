"""Tests that stand in tests/support for more than one device: whoever runs them leaves none out."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def cases_and_fixtures(path: Path) -> set[str]:
    functions = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
    fixtures = [f for f in functions if any("fixture" in ast.unparse(d) for d in f.decorator_list)]
    tests = [f for f in functions if f.name.startswith("test_")]
    return {f.name for f in fixtures + tests} if tests else set()


def imports_of(path: Path, module: str) -> set[str]:
    found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    return {alias.name for n in found if n.module == module for alias in n.names}


SHARED = {p.stem: names for p in TESTS.glob("support/*.py") if (names := cases_and_fixtures(p))}


@pytest.mark.parametrize("module", SHARED)
def test_who_runs_one_of_them_runs_all(module):
    imports = {p: imports_of(p, module) for p in sorted(TESTS.rglob("test_*.py"))}
    missing = {
        str(p.relative_to(TESTS)): SHARED[module] - names
        for p, names in imports.items()
        if any(name.startswith("test_") for name in names)
    }
    assert len(missing) == 2, "once on the CPU, once on a GPU"
    assert not any(missing.values()), missing
