"""`from sodeploy import ...`: every name exists, imports no more than it needs, and stays silent."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sodeploy
from sodeploy.runtime.contract import Contract

HEAVY = {"torch", "onnx", "onnxruntime", "numba", "pycuda", "tensorrt", "matplotlib", "openvino"}
MAY_LOAD = {
    "open_session, Contract, predict, open_dataset, UserError, parse_budget": set(),
    "infer, evaluate, write_subset": set(),
    "bench": {"onnx"},
    "load_plan, save_plan, make_plan, build, calibrate, load_statistics": {"onnx", "numba"},
}
USERS_FILES = ("runtime.py", "training.py", "export.py", "quant.py", "calib_data.py", "tests.py")


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", sodeploy.__all__)
def test_every_name_exists(name: str) -> None:
    assert getattr(sodeploy, name) is not None
    assert name in dir(sodeploy)


def test_type_checkers_see_the_same_names(repository: Path) -> None:
    tree = ast.parse((repository / "sodeploy" / "__init__.py").read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.asname: (node.module, alias.name)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {
        name: (f"sodeploy.{module}", sodeploy._NAMED_THERE.get(name, name))
        for name, module in sodeploy._MODULES.items()
    }
    assert seen == found


@pytest.mark.parametrize("names", MAY_LOAD)
def test_a_name_loads_no_more_than_it_needs(names: str, tmp_path: Path) -> None:
    code = f"import sys; from sodeploy import {names}; print(*sorted(sys.modules.keys() & {HEAVY!r}))"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= MAY_LOAD[names]
    assert done.stderr == ""


def test_a_session_loads_nothing_of_the_gpu(tmp_path: Path) -> None:
    code = "import sys, sodeploy.runtime.session; print(*sys.modules)"
    loaded = run(code, tmp_path).stdout.split()
    ours = {name for name in loaded if name.startswith("sodeploy.runtime.")}
    assert not [name for name in ours if name.startswith(("sodeploy.runtime.gpu", "sodeploy.runtime.measure"))]
    assert not {"cv2", "typer", "pycuda", "cuda", "tensorrt"} & set(loaded)


@pytest.mark.parametrize("stage", ["bench", "infer"])
def test_a_cpu_needs_no_library_of_the_gpu(stage: str, tmp_path: Path) -> None:
    code = f"import sys, sodeploy.runtime.{stage}; print(*sys.modules)"
    loaded = set(run(code, tmp_path).stdout.split())
    assert f"sodeploy.runtime.{stage}" in loaded
    assert not loaded & {"pycuda", "cuda", "tensorrt", "tensorrt_rtx", "onnxruntime"}


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    done = run("import sys; sys.modules['torch'] = None; from sodeploy import train", tmp_path)
    assert "ModuleNotFoundError: sodeploy.train needs torch: pip install 'sodeploy[train]'" in done.stderr


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'benhc'"):
        sodeploy.benhc  # noqa: B018


def test_files_of_the_user_with_names_of_our_rooms(tmp_path: Path) -> None:
    for name in USERS_FILES:
        (tmp_path / name).write_text("raise SystemExit('a file of the user was imported')\n")
    command = [sys.executable, "-m", "sodeploy", "bench", "missing.onnx", "--data", "synthetic:eval:2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: missing.onnx does not exist; give the path of a model\n")
    imported = run(f"from sodeploy import {', '.join(sodeploy.__all__)}", tmp_path)
    assert imported.returncode == 0, imported.stderr


def write_network(path: Path) -> None:
    """A network that calls bright pixels salient."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from sodeploy.runtime.contract import embed

    weights = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    mixed = np.full((1, 8, 1, 1), 0.2, np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["features"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"], "relu"),
        helper.make_node("Conv", ["active", "mixed"], ["logit"], "head"),
        helper.make_node("Sigmoid", ["logit"], ["saliency"], "sigmoid"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 64, 64])
        for name, channels in (("image", 3), ("saliency", 1))
    ]
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(mixed, "mixed")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(
        network="net", input_name="image", output_name="saliency", batch=1, height=64, width=64,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), output="probability",
    )  # fmt: skip
    embed(model, contract)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


def test_the_example_of_the_documentation_runs_and_is_silent(repository: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "docs" / "python.md").read_text(), re.DOTALL)
    write_network(tmp_path / "out" / "net.onnx")
    done = run(f"{example}\nassert saliency.shape == photo.shape[:2]", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["net", "net.int8.cpu"]
