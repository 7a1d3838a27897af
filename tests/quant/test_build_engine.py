"""The command as a user types it: files, reuse of statistics, and every way to get it wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from sodeploy.artifacts import read_manifest
from sodeploy.calib_data import Dataset, open_dataset, subset
from sodeploy.errors import UserError
from sodeploy.quant import build_engine, build_plan, equalize, write_graphs
from sodeploy.quant import calibrate as calibrate_stage
from sodeploy.quant.calibration import observer as observer_module
from sodeploy.quant.calibration.observer import calibrate, gather
from sodeploy.quant.calibration.statistics import load_statistics
from sodeploy.quant.graph import load_network
from sodeploy.quant.planning.plan import load_plan, read_plan
from sodeploy.quant.sources import Counted, Edited, Images
from sodeploy.runtime.contract import METADATA_KEY


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, pictures: list) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for picture in pictures:
        cv2.imwrite(str(folder / f"{picture.name}.png"), picture.image())
    return folder


def command(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = repository / "quant" / "build_engine.py"
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_everything_is_written(repository: Path, unet_file: Path, images: Path, tmp_path: Path) -> None:
    done = command(
        repository, unet_file, "--int8", "--calib", images, "--limit", 4, "--output-dir", tmp_path, "--no-engines"
    )
    assert done.returncode == 0, done.stderr
    graphs = [f"unet.{kind}.onnx" for kind in ("fp16", "fp16.sim", "int8.cpu", "int8.openvino", "int8.sim", "int8.trt")]
    written = {path.name for path in tmp_path.iterdir()}
    made = {*graphs, "unet.rounding.npz", "unet.plan.json", "unet.statistics.npz"}
    assert written == {*made, *(f"{name}.json" for name in made)}
    plan = load_plan(tmp_path / "unet.plan.json", load_network(unet_file))
    assert plan.calibration is not None
    assert len(plan.calibration.images) == 4
    manifest = json.loads((tmp_path / "unet.int8.cpu.onnx.json").read_text())
    assert set(manifest["inputs"]) == {"model", "plan"}
    assert manifest["method"] == "kl"
    assert read_manifest(tmp_path / "unet.plan.json")["method"] == "kl"
    assert "method" not in read_manifest(tmp_path / "unet.fp16.onnx")
    assert "4 images" in done.stderr
    assert done.stdout == ""
    next_step = done.stderr.splitlines()[-1].removeprefix("measure its accuracy and speed on this machine: ")
    measured = ("fp16.sim", "int8.cpu", "int8.openvino", "int8.sim")
    models = [unet_file, *(tmp_path / f"unet.{kind}.onnx" for kind in measured)]
    bench = f"python {repository / 'runtime' / 'bench.py'}"
    engines = "--engine onnxruntime,openvino"
    assert next_step == f"{bench} {' '.join(map(str, models))} --data DATA --max-drop s=0.002,mae=0.001 {engines}"


def test_old_option_names_still_work(repository: Path, unet_file: Path, images: Path, tmp_path: Path) -> None:
    old = ["--images", 2, "--profile", "a:b:c"]
    done = command(repository, unet_file, "--int8", "--calib", images, *old, "--output-dir", tmp_path)
    assert done.returncode == 1
    assert "profile 'a:b:c' is not min:opt:max" in done.stderr


def test_on_a_gpu_the_next_step_is_to_measure_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sodeploy", "build"])
    monkeypatch.setattr(build_engine, "driver_problem", lambda: None)
    engines = {"fp16": Path("out/net.fp16.engine"), "int8": Path("out/net.int8.engine")}
    built = build_engine.Built(Path("net.onnx"), graphs={"fp16": Path("out/net.fp16.onnx")}, engines=engines)
    assert build_engine.bench_command(Path("net.onnx"), built, ["my set"], "s=0.01") == (
        "sodeploy bench net.onnx out/net.fp16.engine out/net.int8.engine --data 'my set' --max-drop s=0.01 "
        "--device cuda"
    )


def test_fp16_needs_no_images(unet_file: Path, tmp_path: Path) -> None:
    made = build_engine.build(unet_file, tmp_path, engines=False)
    assert {name: path.name for name, path in made.graphs.items()} == {
        "fp16": "unet.fp16.onnx",
        "fp16.sim": "unet.fp16.sim.onnx",
    }
    assert made.plan is None


def test_another_method_reads_the_saved_statistics(
    unet_file: Path, pictures: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = Images(Dataset("pictures", pictures))
    build_engine.build(unet_file, tmp_path, calibration, method="kl", engines=False)
    kl = (tmp_path / "unet.plan.json").read_text()
    monkeypatch.setattr(observer_module, "calibrate", None)  # running the network again would fail
    build_engine.build(unet_file, tmp_path, calibration, method="max", engines=False)
    assert (tmp_path / "unet.plan.json").read_text() != kl
    build_engine.build(unet_file, tmp_path, calibration, method="kl", engines=False)
    assert (tmp_path / "unet.plan.json").read_text() == kl


def test_other_images_are_calibrated_anew(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    build_engine.build(unet_file, tmp_path, Images(Dataset("some", pictures[:4])), engines=False)
    build_engine.build(unet_file, tmp_path, Images(Dataset("others", pictures[3:])), engines=False)
    found = load_statistics(tmp_path / "unet.statistics.npz")
    assert sorted(found.images.values()) == ["picture 3", "picture 4", "picture 5"]


def test_counted_images_get_the_names_of_the_data_set(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    network, file = load_network(unet_file), tmp_path / "unet.statistics.npz"
    calibrate(network, [replace(picture, name=f"/home/me/{picture.name}") for picture in pictures]).save(file)
    assert gather(network, Dataset("pictures", pictures), file).images == {p.digest(): p.name for p in pictures}
    assert load_statistics(file).images == {p.digest(): p.name for p in pictures}


def test_an_interrupted_calibration_goes_on(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    network = load_network(unet_file)
    calibrate(network, pictures[:2]).save(tmp_path / "unet.statistics.npz")
    resumed = gather(network, Dataset("pictures", pictures), tmp_path / "unet.statistics.npz")
    whole = calibrate(network, pictures)
    assert resumed.images == whole.images
    assert all(np.array_equal(resumed.histograms[t].counts, h.counts) for t, h in whole.histograms.items())


def test_statistics_counted_elsewhere(
    unet_file: Path, pictures: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [calibrate(load_network(unet_file), half) for half in (pictures[:3], pictures[3:])]
    parts[0].merge(parts[1])
    parts[0].save(tmp_path / "all.npz")
    capsys.readouterr()
    build_engine.build(unet_file, tmp_path / "a", Counted(tmp_path / "all.npz"), engines=False)
    assert "from 3 to all 6 images ranges moved by" in capsys.readouterr().err
    images = Dataset("pictures", pictures)
    build_engine.build(unet_file, tmp_path / "b", Images(images), engines=False)
    whole = (tmp_path / "b" / "unet.plan.json").read_bytes()
    assert (
        tmp_path / "a" / "unet.plan.json"
    ).read_bytes() != whole  # without images, each weight is at the nearest step
    build_engine.build(unet_file, tmp_path / "c", Counted(tmp_path / "all.npz", images), engines=False)
    assert (tmp_path / "c" / "unet.plan.json").read_bytes() == whole
    parts[0].images = {}
    parts[0].save(tmp_path / "none.npz")
    with pytest.raises(UserError, match="--calib has 6 images that --statistics has not"):
        build_engine.build(unet_file, tmp_path / "d", Counted(tmp_path / "none.npz", images), engines=False)
    some = Dataset("some", pictures[:3])
    within = build_plan.Within({"mae": 0.01}, some)
    with pytest.raises(UserError, match=r"3 of the calibration images .*all\.npz are also in some"):
        build_engine.build(unet_file, tmp_path, Counted(tmp_path / "all.npz"), within=within)


def test_the_same_inputs_give_the_same_bytes(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    for folder, order in (("one", pictures), ("two", pictures[::-1])):
        build_engine.build(unet_file, tmp_path / folder, Images(Dataset("pictures", order)), engines=False)
    for name in ("unet.plan.json", "unet.int8.trt.onnx", "unet.int8.cpu.onnx", "unet.fp16.onnx"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_same_build_elsewhere_gives_the_same_bytes(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    """A list of absolute paths does not put a machine's folders into plans and statistics."""
    names = ("unet.plan.json", "unet.statistics.npz", "unet.rounding.npz", "unet.int8.cpu.onnx")
    made = []
    for machine in (tmp_path / "one", tmp_path / "two" / "mnt"):
        paths = [machine / "ECSSD" / "images" / f"{picture.seed}.png" for picture in pictures]
        for picture, path in zip(pictures, paths, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture.image())
        (machine / "calib.txt").write_text("\n".join(map(str, paths)))
        images = Images(open_dataset(machine / "calib.txt", masks=False))
        build_engine.build(unet_file, machine / "out", images, engines=False)
        made.append([(machine / "out" / name).read_bytes() for name in names])
    assert made[0] == made[1]
    assert set(read_plan(tmp_path / "one" / "out" / "unet.plan.json").calibration.images.values()) == {
        f"ECSSD/{picture.seed}" for picture in pictures
    }


def test_an_edited_plan_is_followed(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    build_engine.build(unet_file, tmp_path, Images(Dataset("pictures", pictures)), engines=False)
    text = (tmp_path / "unet.plan.json").read_text()
    edited = tmp_path / "edited.json"
    edited.write_text(text.replace('"op": "Conv", "precision": "int8"', '"op": "Conv", "precision": "fp16"', 1))
    build_engine.build(unet_file, tmp_path, Edited(edited), engines=False)
    graph = onnx.load(tmp_path / "unet.int8.trt.onnx").graph
    assert sum(node.op_type == "Conv" and "dequantized" in node.input[0] for node in graph.node) == 3
    (tmp_path / "unet.rounding.npz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"unet\.rounding\.npz is not the file that the plan was made with"):
        build_engine.build(unet_file, tmp_path, Edited(edited), engines=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx", "--fp16"], "missing.onnx does not exist"),
        (["{model}", "--int8", "--calib", "{empty}"], "{empty}"),
        (["{model}", "--int8", "--calib", "{images}", "--plan", "x.json"], "--plan and --calib each say"),
        (["{model}", "--int8", "--statistics", "missing.npz"], "missing.npz does not exist"),
        (["{model}", "--int8", "--calib-cache", "{model}"], "is no calib.cache"),
        (["{model}", "--int8", "--calib", "nowhere"], "nowhere"),
        (["{model}", "--int8", "--calib", "{images}", "--method", "best"], "--method best is not one of kl"),
        (["{model}", "--int8", "--plan", "missing.json"], "missing.json does not exist"),
        (["{images}/picture 0.png", "--fp16"], "is not an ONNX file that can be read"),
    ],
)
def test_bad_input_is_one_line(
    repository: Path, unet_file: Path, images: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"model": unet_file, "images": images, "empty": tmp_path / "empty"}
    done = command(repository, *(a.format(**names) for a in arguments), "--output-dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert message.format(**names) in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_onnx_without_contract_is_told_how_to_get_one(unet_file: Path, tmp_path: Path) -> None:
    model = onnx.load(unet_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"has no sodeploy contract.*sodeploy adopt"):
        build_engine.build(tmp_path / "bare.onnx", tmp_path)


def test_a_quantized_model_is_not_quantized_again(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    build_engine.build(unet_file, tmp_path, Images(Dataset("pictures", pictures)), engines=False)
    with pytest.raises(UserError, match="quantized already"):
        build_engine.build(tmp_path / "unet.int8.sim.onnx", tmp_path)
    with pytest.raises(UserError, match="fp16"):
        build_engine.build(tmp_path / "unet.fp16.onnx", tmp_path)


def test_a_full_disk_leaves_nothing_half_written(
    unet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    build_engine.build(unet_file, tmp_path, engines=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(write_graphs, "save_model", no_space)
    with pytest.raises(OSError, match="No space"):
        build_engine.build(unet_file, tmp_path, engines=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_of_images_is_no_place_for_a_build(unet_file: Path, images: Path) -> None:
    before = sorted(images.iterdir())
    with pytest.raises(UserError, match="looks like a data set; choose another --output-dir"):
        build_engine.build(unet_file, images)
    assert sorted(images.iterdir()) == before


@pytest.mark.parametrize(
    "stage",
    [
        lambda model, masks, out: build_engine.main(model, out, int8=True, calib=masks),
        lambda model, masks, out: build_engine.build(model, out, masks[0]),
        lambda model, masks, out: calibrate_stage.main([model], out, calib=masks),
        lambda model, masks, out: equalize.main(model, masks, out),
        lambda model, masks, out: subset.main(masks, out.with_suffix(".txt"), count=2),
    ],
    ids=["build", "build()", "calibrate", "equalize", "subset"],
)
def test_masks_are_not_calibrated_on(unet_file: Path, tmp_path: Path, stage: Callable[..., None]) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(3):
        mask = np.zeros((40, 40), np.uint8)
        mask[8:30, 10 : 20 + index] = 255
        cv2.imwrite(str(masks / f"{index}.png"), mask)
    with pytest.raises(UserError, match="masks: its images are black and white alone, as masks are"):
        stage(unet_file, [str(masks)], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_a_dynamic_graph_without_shapes_is_refused_before_anything_is_written(
    unet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(unet_file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    contract = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    contract.value = json.dumps(json.loads(contract.value) | {"batch": None})
    onnx.save(model, tmp_path / "dynamic.onnx")
    monkeypatch.setattr(build_engine.engine, "choose_builder", lambda: "tensorrt_rtx")
    with pytest.raises(UserError, match="say what to build for, such as --shapes"):
        build_engine.build(tmp_path / "dynamic.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
