"""Folders of images to pictures, on the CPU, and on the GPU as far as emulation goes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_engine_session import imitation, save_engine  # noqa: F401  (fixtures)

from sodeploy import command_line
from sodeploy.errors import UserError
from sodeploy.runtime import infer as script
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.driver import driver_problem
from sodeploy.runtime.gpu.engine_session import open_engine
from sodeploy.runtime.infer import infer
from sodeploy.runtime.large_images import LargeImages, predict_large
from sodeploy.runtime.media import opening
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.pictures import Look, make_picture, parse_look
from sodeploy.runtime.processing import postprocess, preprocess
from sodeploy.runtime.session import open_session

SaveModel = Callable[..., Path]


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)


def picture(number: int, contract: Contract, style: Any) -> np.ndarray:
    """By the CPU path, of saliency = clip(0.3 R + 0.4 G + 0.3 B, 0, 1)."""
    tensor = preprocess(image(number), contract)
    saliency = np.clip(np.einsum("chw,c->hw", tensor, np.float32([0.3, 0.4, 0.3])), 0, 1)
    return make_picture(Frame(image(number)), postprocess(saliency, contract, (20 + number, 30)), kept(style))


def kept(style: str) -> Look:
    """A look that keeps the image's own colors at the object's edge, as the kernels do."""
    return parse_look(style, estimated=False)


def read(path: Path) -> np.ndarray:
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored.ndim == 2:
        return stored
    return cv2.cvtColor(stored, cv2.COLOR_BGRA2RGBA if stored.shape[2] == 4 else cv2.COLOR_BGR2RGB)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), image(number)[..., ::-1])
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("style", ["map", "rgba", "green", "white", "blur", "overlay", "color:#FF8800"])
def test_on_the_cpu(save_model: SaveModel, make_contract: Any, photos: Path, style: Any) -> None:
    output = photos.parent / "out"
    outcome = infer(save_model(), photos, output, style=kept(style))
    assert outcome.written == 5
    assert [path.name for path in outcome.failed] == ["broken.jpg"]
    assert sorted(path.name for path in output.iterdir()) == [f"{number}.png" for number in range(5)]
    difference = read(output / "3.png").astype(int) - picture(3, make_contract(), style)
    assert np.abs(difference).max() <= 1  # onnxruntime adds in another order


@pytest.mark.parametrize("style", ["map", "rgba", "overlay", "white"])
def test_on_cuda(
    device: Any,
    save_engine: Callable[..., Path],  # noqa: F811
    make_contract: Any,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    style: Any,
) -> None:
    monkeypatch.setattr(opening, "open_on_device", lambda path, gpu: open_engine(path, device, gpu))
    output, profile = photos.parent / "out", photos.parent / "trace.json"
    outcome = infer(save_engine(), photos, output, device="cuda", style=kept(style), timeline=profile)
    assert outcome.written == 5
    assert [path.name for path in outcome.failed] == ["broken.jpg"]
    difference = read(output / "3.png").astype(int) - picture(3, make_contract(), style)
    assert np.abs(difference).max() <= 1
    assert json.loads(profile.read_text())["traceEvents"]


def test_sources_that_cannot_be_used(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none does not exist; give one of: - for standard input, "):
        infer(save_model(), tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        infer(save_model(), tmp_path / "empty", tmp_path / "out")


def test_the_second_of_two_names_fails_alone(save_model: SaveModel, tmp_path: Path, photos: Path) -> None:
    cv2.imwrite(str(photos / "3.bmp"), image(3))
    outcome = infer(save_model(), photos, tmp_path / "out")
    assert outcome.written == 5
    assert "3.bmp and" in outcome.failed[photos / "3.png"]
    assert "would both become" in outcome.failed[photos / "3.png"]


def test_what_only_a_gpu_can_do(save_model: SaveModel, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs on a GPU; choose the device cuda"):
        infer("u2netp.engine", photos, tmp_path / "out")
    with pytest.raises(UserError, match="choose the device cuda, or leave it out"):
        infer(save_model(), photos, tmp_path / "out", timeline=tmp_path / "trace.json")


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_gpu_cuda_is_an_error_not_the_cpu(save_model: SaveModel, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a GPU is needed, but no NVIDIA driver is installed"):
        infer(save_model(), photos, tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


def test_the_masks_of_a_data_set_are_never_overwritten(save_model: SaveModel, photos: Path, tmp_path: Path) -> None:
    images, masks = tmp_path / "set" / "images", tmp_path / "set" / "masks"
    images.parent.mkdir()
    photos.rename(images)
    masks.mkdir()
    before = {}
    for path in images.iterdir():
        cv2.imwrite(str(masks / f"{path.stem}.png"), np.full((4, 4), 255, np.uint8))
        before[path.stem] = (masks / f"{path.stem}.png").read_bytes()
    with pytest.raises(UserError, match="masks holds the masks of these images; give another folder"):
        infer(save_model(), images, masks)
    assert {path.stem: path.read_bytes() for path in masks.iterdir()} == before


@pytest.mark.parametrize("lead", ["same", "link", "dots", "linked file", "hard link", "other case"])
def test_a_source_is_never_overwritten(save_model: SaveModel, photos: Path, tmp_path: Path, lead: str) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir()}
    output = tmp_path / "out"
    if lead == "same":
        output = photos
    elif lead == "link":
        output.symlink_to(photos)
    elif lead == "dots":
        output = photos / ".." / photos.name
    else:
        output.mkdir()
        if lead == "linked file":
            (output / "3.png").symlink_to(photos / "3.png")
        elif lead == "hard link":
            (output / "3.png").hardlink_to(photos / "3.png")
        else:
            photos.rename(tmp_path / "OUT")
            photos, output = tmp_path / "OUT", tmp_path / "out"
            before = {path: path.read_bytes() for path in photos.iterdir()}
    with pytest.raises(UserError, match=r"would overwrite the input|is the folder of the images|would both become"):
        infer(save_model(), photos, output)
    assert {path: path.read_bytes() for path in before} == before
    assert (
        not [path for path in output.glob("*.png") if not path.is_symlink()]
        or output.samefile(photos)
        or lead == "hard link"
    )


def test_the_timeline_is_no_input(save_model: SaveModel, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3.png would overwrite the input"):
        infer(save_model(), photos, tmp_path / "out", device="cuda", timeline=photos / "3.png")


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_an_output_that_cannot_be_is_refused_first(
    save_model: SaveModel, photos: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written: .*file is a file, not a folder"):
        infer("absent.onnx", photos, tmp_path / place)


def test_a_failed_image_ends_with_status_1_and_a_summary(save_model: SaveModel, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^1 of 6 images have no picture: .*broken.jpg is broken"):
        script.main(str(photos), save_model(), tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 5


@pytest.mark.parametrize("way", [LargeImages(patches=True), LargeImages(patches=True, two_scales=True)])
def test_patches_of_any_model(
    device: Any,
    save_model: SaveModel,
    save_engine: Callable[..., Path],  # noqa: F811
    way: LargeImages,
) -> None:
    """By an ONNX session and by an engine, the map is the same as with the network written in numpy."""

    def network(batch: np.ndarray) -> np.ndarray:
        return np.clip(np.einsum("nchw,c->nhw", batch, np.float32([0.3, 0.4, 0.3])), 0, 1)[:, None]

    photograph = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    sessions = [open_session(save_model()), open_engine(save_engine(), device)]
    for session in sessions:
        with session:
            found = predict_large(photograph, session.contract, session.infer, way).astype(int)
            expected = predict_large(photograph, session.contract, network, way)
            assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    "words",
    [
        "MODEL --images photos --output out --style overlay",
        "--model MODEL --images photos --output=out --style=overlay",
        "photos --model MODEL -o out --type overlay",
        "photos/2.png photos/3.png --model MODEL -o out --type overlay",
    ],
)
def test_the_command_in_its_older_forms(
    save_model: SaveModel, photos: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(photos.parent)
    (photos / "broken.jpg").unlink()
    line = words.replace("MODEL", save_model().name).split()
    with pytest.raises(SystemExit) as end:
        command_line.application_of(script.main)(line)
    assert end.value.code == 0
    assert cv2.imread("out/3.png", cv2.IMREAD_UNCHANGED).shape == (23, 30, 3)


def test_results_is_the_folder_by_default(
    save_model: SaveModel, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    model = save_model()
    script.main(str(photos / "3.png"), model)
    assert Path("results/3.png").is_file()
    script.main(str(photos / "3.png"), model)
    assert "0 pictures in results, 1 were there already (--overwrite replaces them)" in capsys.readouterr().out
