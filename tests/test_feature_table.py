"""The table of features in docs/support.md is the one that the tests declare."""

from types import SimpleNamespace

import feature_table
import pytest

from fastlstm.backends import triton as triton_kernels


def test_the_table_in_the_page_is_what_the_tests_show(tmp_path):
    record = tmp_path / "shows.jsonl"
    record.write_text("")
    inner = triton_kernels.available() is None
    files = [f for f in feature_table.marked_files() if inner or f.name.startswith("test_")]
    run = feature_table.pytest_run(record, "--collect-only", *map(str, files), TRITON_INTERPRET="1")
    assert run.returncode == 0
    shown = feature_table.cells(feature_table.read(record))
    found, expected = feature_table.committed(), feature_table.table(shown)
    if not inner:  # no Triton, no tests of it
        found, expected = ([r.split("|")[:-2] for r in t.splitlines()] for t in (found, expected))
    assert found == expected, "run ./run table"


def test_each_feature_of_the_table_is_shown_somewhere():
    rows = [line.split("|")[1:-1] for line in feature_table.committed().splitlines()[2:]]
    assert len(rows) == len(feature_table.FEATURES)
    for name, *backends in rows:
        assert any(cell.strip() != "–" for cell in backends), name


def item(*marks, **params):
    return SimpleNamespace(nodeid="test", iter_markers=lambda name: marks, callspec=SimpleNamespace(params=params))


def test_marks_are_read():
    mark = pytest.mark.shows("lengths", "hx").mark
    assert feature_table.shown_by(item(mark, family="simt")) == [
        (feature, "cuda", direction) for feature in ("lengths", "hx") for direction in ("forward", "backward")
    ]
    forward = pytest.mark.shows("lengths", backend="cpu", direction="forward").mark
    assert feature_table.shown_by(item(forward, backend="reference")) == [("lengths", "cpu", "forward")]
    for wrong in (pytest.mark.shows("length", backend="cpu"), pytest.mark.shows("lengths")):
        with pytest.raises(ValueError, match="shows nothing known"):
            feature_table.shown_by(item(wrong.mark))


def test_a_table_has_what_was_shown():
    lines = feature_table.table({("lengths", "cpu", "forward"), ("hx", "cuda", "forward")}).splitlines()
    (lengths,) = [line for line in lines if "`lengths`" in line]
    assert lengths == "| `lengths` | – | forward | – | – |"
