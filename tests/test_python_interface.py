"""`from sodeploy import ...`: every name exists, imports no more than it needs, and stays silent."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sodeploy
from sodeploy import Model, UserError, cutout, load
from sodeploy.runtime.contract import Contract

HEAVY = {"torch", "onnx", "onnxruntime", "numba", "pycuda", "tensorrt", "matplotlib", "openvino"}
MAY_LOAD = {
    "open_session, Contract, predict, open_dataset, UserError, parse_budget": set(),
    "load, cutout, infer, evaluate, write_subset, write_maps, run_experiment, verify_files": set(),
    "bench": {"onnx"},
    "load_plan, save_plan, make_plan, plan, build_engine, emit, calibrate, load_statistics": {"onnx", "numba"},
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


def write_photo(path: Path, seed: int = 0, **options: Any) -> np.ndarray:
    """A picture with a bright square, (40, 60, 3) uint8 RGB."""
    pixels = np.random.default_rng(seed).integers(0, 80, (40, 60, 3)).astype(np.uint8)
    pixels[10:30, 20:40] = 230
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


EXPERIMENT = """
{output: out/mine, model: out/net.onnx, test: {data: "synthetic:eval:4:64", models: [fp32]}, eval: {curves: false}}
"""


def test_the_examples_of_the_documentation_run_and_are_silent(repository: Path, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (repository / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(examples) == 6
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    write_network(tmp_path / "out" / "net.onnx")
    write_photo(tmp_path / "photo.jpg")
    for seed in (1, 2):
        write_photo(tmp_path / "photos" / f"{seed}.png", seed)
    checks = """
assert mask.shape == (40, 60) and picture.shape == (40, 60, 4) and on_white.shape == (40, 60, 3)
assert one.shape == two.shape == (40, 60)
assert len(list(Path("masks").iterdir())) == 2
"""
    done = run("\n".join([*examples, checks]), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "net", "net.int8.cpu", "fp16", "net", "summary.md", "refused:"
    ]  # fmt: skip
    assert (tmp_path / "cutout.png").is_file()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    file = tmp_path_factory.mktemp("model") / "out" / "net.onnx"
    write_network(file)
    with load(file, threads=1) as opened:
        yield opened


def test_every_form_of_an_image_gives_the_same_map(model: Model, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    pixels = write_photo(photo)
    expected = model(photo)
    assert expected.shape == (40, 60)
    assert expected.std() > 1
    forms = [str(photo), photo.read_bytes(), pixels, np.dstack([pixels, pixels[..., 0]]), Image.open(photo)]
    for form in forms:
        np.testing.assert_array_equal(model(form), expected)
    for result in model(forms):
        np.testing.assert_array_equal(result, expected)
    several = model(np.stack([pixels, pixels[::-1]]))
    assert isinstance(several, np.ndarray)
    assert several.shape == (2, 40, 60)
    np.testing.assert_array_equal(several[0], expected)


def test_a_pil_image_is_read_as_its_file_is(model: Model, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    write_photo(tmp_path / "turned.png", exif=turned)
    assert model(tmp_path / "turned.png").shape == (60, 40)
    pixels = write_photo(tmp_path / "photo.png")
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    grey = Image.fromarray(pixels[..., 0])
    grey.save(tmp_path / "grey.png")
    for name in ("turned.png", "palette.png", "grey.png"):
        np.testing.assert_array_equal(model(Image.open(tmp_path / name)), model(tmp_path / name))
        ours, theirs = (cutout(one, model, edges="keep") for one in (Image.open(tmp_path / name), tmp_path / name))
        np.testing.assert_array_equal(ours, theirs)


def test_maps_and_pictures_are_those_of_the_command(model: Model, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    write_photo(photo)
    network = tmp_path / "net" / "net.onnx"
    write_network(network)
    for kind in ("map", "rgba", "blur", "color:#102030"):
        target = tmp_path / f"{kind.partition(':')[0]}.png"
        sodeploy.infer(network, photo, target, style=kind)
        picture = cutout(photo, model, kind)
        np.testing.assert_array_equal(picture, np.asarray(Image.open(target)))
    soft = model(photo)
    hard = cutout(photo, model, "map", threshold=float(np.median(soft)) / 255)
    np.testing.assert_array_equal(hard, np.where(soft >= np.median(soft), 255, 0))
    kept, estimated = cutout(photo, model, edges="keep"), cutout(photo, model)
    assert not np.array_equal(kept, estimated)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.jpg", r"^missing.jpg does not exist; "),
        (b"text", r"^image 1 is broken or no image "),
        (np.zeros((4, 4)), r"^image 1 is an array \(4, 4\) of float64; give \(H, W, 3\) of uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"^image 1 is an array \(0, 4, 3\) of uint8"),
        ([np.zeros((4, 4, 3), np.uint8), 7], r"^image 2 is a int; give a path, bytes, an array"),
        (Image.new("I;16", (4, 4)), r"^image 1 is a PIL image of mode I;16, which is not 8 bits deep"),
    ],
)
def test_what_is_no_image(model: Model, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(image)


def test_maps_come_one_after_the_other(model: Model) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield np.full((8, 8, 3), 200, np.uint8)

    maps = model.maps(endless())
    assert [next(maps).shape for _ in range(20)] == [(8, 8)] * 20
    maps.close()


def test_a_closed_model_and_unknown_choices(tmp_path: Path) -> None:
    write_network(tmp_path / "out" / "net.onnx")
    model = load(tmp_path / "out" / "net.onnx")
    assert (model.precision, model.contract.height) == ("fp32", 64)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="the model is closed"):
        model(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="choose estimate or keep"):
        cutout(np.zeros((4, 4, 3), np.uint8), model, edges="none")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such type"):
        cutout(np.zeros((4, 4, 3), np.uint8), model, "rgb")
    with pytest.raises(UserError, match=r"missing.onnx does not exist"):
        load("missing.onnx")
    with pytest.raises(UserError, match="there is no such device"):
        load(tmp_path / "out" / "net.onnx", device="tpu")


TYPED = """
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import assert_type

from sodeploy import Model, Stopped, bench, build_engine, calibrate, cutout, emit, load, plan, train

model = load("net.onnx", threads=1)
assert_type(model, Model)
assert_type(model("photo.jpg"), np.ndarray)
assert_type(model(["photo.jpg", b""]), list[np.ndarray])
assert_type(cutout(Path("photo.jpg"), model, "rgba", edges="keep"), np.ndarray)
assert_type(train("u2netp", steps=3), Path)
assert_type(build_engine("net.onnx", "out", "DATA").graphs, dict[str, Path])
assert_type(emit("net.onnx", plan("net.onnx", calibrate("net.onnx", "DATA")), "out"), dict[str, Path])
assert_type(bench(["net.onnx"], "DATA").rows[0].name, str)
assert_type(Stopped("", 130).status, int)
model(3)  # type: ignore[call-overload]
cutout("photo.jpg", model, edges="other")  # type: ignore[call-overload]
load("net.onnx", engine="tflite")  # type: ignore[arg-type]
"""


def test_mypy_sees_the_names(repository: Path, tmp_path: Path) -> None:
    """In a tree as an installed package has it."""
    package = tmp_path / "sodeploy"
    package.mkdir()
    rooms = ("calib_data", "export", "quant", "runtime", "training")
    for path in [*(repository / "sodeploy").iterdir(), *(repository / room for room in rooms)]:
        (package / path.name).symlink_to(path)
    assert (package / "py.typed").exists()
    (tmp_path / "typed.py").write_text(TYPED)
    skipped = ["torch", "onnx", "cv2", "numba", "onnxruntime", "scipy", "yaml", "rich", "py_sod_metrics", "matplotlib"]
    sections = [f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = true\n" for name in skipped]
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nwarn_unused_ignores = true\n[mypy-sodeploy.*]\nignore_errors = true\n" + "".join(sections)
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "typed.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
