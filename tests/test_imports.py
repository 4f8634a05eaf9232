"""The package in a fresh interpreter, with and without its parts; and its layers, one way only."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import needs_library

import fastlstm

PACKAGE = Path(fastlstm.__file__).parent

# What each file may import from the package: nothing above itself, and no circle.
LAYERS = {
    "_version": set(),
    "native": set(),
    "reference": set(),
    "torch_classes": set(),
    "weight_storage": {"torch_classes"},
    "checks": {"weight_storage"},
    "packing": set(),
    "nested": set(),
    "late": set(),
    "dynamo": {"late", "module"},
    "opacus": {"late", "module", "torch_classes"},
    "quantization": {"cell", "late", "module", "torch_classes"},
    "flops": {"cell", "late", "module", "ops", "torch_classes"},
    "init": {"torch_classes"},
    "exchange": {"torch_classes", "variant_settings", "weight_storage"},
    "testing": set(),
    "variant_masks": set(),
    "variant_reference": {"reference", "variant_masks"},
    "variant_backward": {"reference", "variant_reference"},
    "variant_ops": {"ops", "reference", "variant_backward", "variant_reference"},
    "variant_layers": {"reference", "transforms", "variant_reference"},
    "ops": {"reference"},
    "precision": set(),
    "backends": {"native", "triton_kernels"},
    "tangents": {"reference"},
    "transforms": {"ops", "reference", "tangents"},
    "layer_ops": {"ops", "reference", "transforms"},
    "pieces": {"reference"},
    "piece_layers": {"layer_ops", "pieces", "reference", "variant_ops", "variant_reference"},
    "checkpoint_passes": {"piece_layers", "pieces", "reference"},
    "checkpoint_ops": {
        "checkpoint_passes",
        "ops",
        "piece_layers",
        "reference",
        "variant_layers",
    },
    "checkpointing": {"checkpoint_ops", "transforms", "variant_layers"},
    "cpu_ops": {"ops", "precision"},
    "gpu_ops": {"layer_ops", "native", "ops", "precision", "triton_kernels", "variant_ops"},
    "step_op": {"layer_ops", "native", "ops", "transforms"},
    "sharded": set(),
    "lanes": set(),
    "lists": set(),
    "wavefront": {"precision"},
    "stack": {"lanes", "layer_ops", "reference"},
    "stack_backward": {"layer_ops", "reference", "stack"},
    "stack_ops": {
        "layer_ops",
        "lists",
        "ops",
        "reference",
        "stack",
        "stack_backward",
        "transforms",
        "wavefront",
    },
    "variant_kernels": {
        "gpu_ops",
        "native",
        "ops",
        "precision",
        "triton_kernels",
        "variant_backward",
        "variant_ops",
    },
    "functional": {
        "backends",
        "checkpointing",
        "checks",
        "cpu_ops",
        "gpu_ops",
        "layer_ops",
        "ops",
        "sharded",
        "stack_ops",
        "transforms",
        "variant_kernels",
        "variant_layers",
        "weight_storage",
    },
    "arguments": {"checks", "functional", "weight_storage"},
    "variant_settings": {"checks", "functional", "variant_layers"},
    "forms": {
        "inference_op",
        "arguments",
        "checks",
        "exchange",
        "functional",
        "nested",
        "packing",
        "torch_classes",
        "variant_settings",
    },
    "streaming": {"arguments", "step_op", "variant_settings", "weight_storage"},
    "training_op": {"functional", "layer_ops", "ops", "reference", "transforms"},
    "inference_op": {
        "functional",
        "ops",
        "step_op",
        "training_op",
        "variant_settings",
        "weight_storage",
    },
    "module": {
        "arguments",
        "backends",
        "checkpointing",
        "checks",
        "exchange",
        "forms",
        "streaming",
        "torch_classes",
        "variant_settings",
        "weight_storage",
    },
    "cell": {
        "arguments",
        "backends",
        "checks",
        "exchange",
        "functional",
        "step_op",
        "torch_classes",
        "weight_storage",
    },
    "convert": {
        "backends",
        "cell",
        "module",
        "torch_classes",
        "variant_settings",
        "weight_storage",
    },
    "keras": {"module"},
    "onnx": {"late", "ops"},
    "report": {"_version", "backends", "native"},
    "__main__": {"report"},
    "__init__": {
        "_version",
        "cell",
        "convert",
        "dynamo",
        "flops",
        "functional",
        "init",
        "keras",
        "module",
        "onnx",
        "opacus",
        "quantization",
    },
    "triton_kernels.configs": set(),
    "triton_kernels.rounding": set(),
    "triton_kernels.cell": set(),
    "triton_kernels.masks": set(),
    "triton_kernels.products": {"triton_kernels.rounding"},
    "triton_kernels.forward_kernels": {
        "triton_kernels.cell",
        "triton_kernels.masks",
        "triton_kernels.products",
        "triton_kernels.rounding",
    },
    "triton_kernels.backward_kernels": {
        "triton_kernels.cell",
        "triton_kernels.forward_kernels",
        "triton_kernels.masks",
        "triton_kernels.products",
        "triton_kernels.rounding",
    },
    "triton_kernels.resident_kernels": {
        "triton_kernels.cell",
        "triton_kernels.forward_kernels",
        "triton_kernels.masks",
        "triton_kernels.products",
        "triton_kernels.rounding",
    },
    "triton_kernels.launch": {
        "reference",
        "triton_kernels.backward_kernels",
        "triton_kernels.configs",
        "triton_kernels.forward_kernels",
        "triton_kernels.resident_kernels",
    },
    "triton_kernels.variant_rows": {"triton_kernels.products"},
    "triton_kernels.variant_forward_kernels": {
        "triton_kernels.cell",
        "triton_kernels.rounding",
        "triton_kernels.variant_rows",
    },
    "triton_kernels.variant_backward_kernels": {
        "triton_kernels.cell",
        "triton_kernels.rounding",
        "triton_kernels.variant_rows",
    },
    "triton_kernels.variant_launch": {
        "reference",
        "triton_kernels.configs",
        "triton_kernels.launch",
        "triton_kernels.variant_backward_kernels",
        "triton_kernels.variant_forward_kernels",
        "triton_kernels.variant_rows",
        "variant_masks",
        "variant_reference",
    },
    "triton_kernels": {"triton_kernels.launch", "triton_kernels.variant_launch"},
    "triton_kernels.tune": {"triton_kernels", "triton_kernels.configs", "triton_kernels.launch"},
}

# Packages beyond torch, rich and Python's own; all but numpy are imported late.
OTHERS = {"triton_kernels": {"triton"}, "onnx": {"onnxscript"}, "keras": {"numpy"}}


def module_name(path):
    """A file's key in LAYERS; of a folder's __init__.py, the folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imported(path):
    """Names of the package's modules that a file imports, and its other imports."""
    own, others = set(), set()
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            names = node.module.split(".")[:1] if node.module else [a.name for a in node.names]
            own |= {".".join((*base, name)) for name in names}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {a.name.split(".")[0] for a in node.names}
    return own, others


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_layers_import_downwards_only(path):
    own, others = imported(path)
    name = module_name(path)
    assert name in LAYERS, f"say in LAYERS what {path.name} may import"
    assert own <= LAYERS[name]
    allowed = {"torch", "rich", *sys.stdlib_module_names}
    assert others <= allowed | OTHERS.get(name.split(".")[0], set())


def test_layers_have_no_circle():
    rest = dict(LAYERS)
    while rest:
        bottom = [name for name, uses in rest.items() if not uses & rest.keys()]
        assert bottom, f"a circle among {sorted(rest)}"
        for name in bottom:
            del rest[name]


def fresh(code, **environment):
    """Run code in a new interpreter in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
    )


def test_import_without_triton():
    found = fresh(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, fastlstm\n"
        "fastlstm.FastLSTM(3, 5, backend='reference')(torch.zeros(4, 2, 3))\n"
    )
    assert found.returncode == 0, found.stderr


def test_import_is_lean():
    found = fresh(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fastlstm\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert not new & {'rich', 'triton', 'numpy', 'matplotlib', 'IPython'}, new\n"
        "assert 'torch._dynamo' not in set(sys.modules) - before\n"
    )
    assert found.returncode == 0, found.stderr


RUN_TWICE = """
import json, warnings, torch, fastlstm
x, lstm = torch.zeros(4, 2, 3), fastlstm.FastLSTM(3, 5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        y = lstm(x)[0]
    fastlstm.FastLSTM(3, 5)(x)
    fastlstm.FastLSTM(3, 5, backend="reference")(x)
refused = None
try:
    fastlstm.FastLSTM(3, 5, backend="cpu")(x)
except RuntimeError as error:
    refused = str(error)
print(json.dumps([[str(w.message) for w in caught], refused, list(y.shape)]))
"""


def test_without_the_library_the_reference_serves_and_says_so_once():
    found = fresh(RUN_TWICE, FASTLSTM_NATIVE="0")
    assert found.returncode == 0, found.stderr
    warned, refused, shape = json.loads(found.stdout)
    assert shape == [4, 2, 5]
    assert len(warned) == 1
    assert "slow reference backend" in warned[0]
    assert "FASTLSTM_NATIVE=0" in warned[0]
    assert "backend 'cpu' cannot run torch.float32 on 'cpu'" in refused
    assert "python -m fastlstm" in refused


@needs_library
def test_with_the_library_nothing_is_warned_of():
    found = fresh(RUN_TWICE)
    assert json.loads(found.stdout) == [[], None, [4, 2, 5]], found.stderr


def test_public_names():
    assert {"FastLSTM", "FastLSTMCell", "convert", "functional", "__version__"} <= set(
        fastlstm.__all__
    )
    assert all(hasattr(fastlstm, name) for name in fastlstm.__all__)
