"""Checkpoints that run in PyTorch, opened as every model is."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sodeploy.errors import UserError
from sodeploy.runtime.infer import infer
from sodeploy.runtime.large_images import HasPyramids, LargeImages, predict_large
from sodeploy.runtime.processing import preprocess
from sodeploy.runtime.pyramid import Levels
from sodeploy.runtime.session import open_session
from sodeploy.training.models import build
from sodeploy.training.models.inspyrenet import InSPyReNet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(build("u2net_tiny").state_dict(), path)
    return path


def image(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", [None, "u2net_tiny"])
def test_a_checkpoint_is_a_session(tiny: Path, name: str | None) -> None:
    network = build("u2net_tiny").eval()
    network.load_state_dict(torch.load(tiny))
    with open_session(tiny, network=name) as session:
        assert (session.contract.network, session.contract.height) == ("u2net_tiny", 160)
        batch = np.stack([preprocess(image(), session.contract)] * 2)
        with torch.no_grad():
            expected = network.predict(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(session.infer(batch), expected, atol=1e-6)
        assert session.infer(batch[..., :96]).shape == (2, 1, 160, 96)


def test_checkpoints_that_cannot_be_opened(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit u2netp"):
        open_session(tiny, network="u2netp")
    with pytest.raises(UserError, match="no network is called 'u2nettp'"):
        open_session(tiny, network="u2nettp")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"fits no network by its names and shapes; name one by --network: u2net, "):
        open_session(tmp_path / "other.pth")
    with pytest.raises(UserError, match="sees masks, not images"):
        open_session(tiny, network="isnet_gt_encoder")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"PyTorch finds 0 GPUs, so there is no cuda:0"):
            open_session(tiny, "cuda")
    (tmp_path / "a.onnx").touch()
    with pytest.raises(UserError, match="is no checkpoint: leave --network and --compile out"):
        open_session(tmp_path / "a.onnx", network="u2netp")


def test_infer_takes_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), image(300, 400))
    for name, way in {"one": LargeImages(), "all": LargeImages(patches=True, two_scales=True)}.items():
        assert infer(tiny, tmp_path / "a.png", tmp_path / name, large=way).written == 1
        assert cv2.imread(str(tmp_path / name / "a.png"), cv2.IMREAD_UNCHANGED).shape == (300, 400)


def test_inspyrenet_gives_its_own_pyramid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("inspyrenet_res2net50").eval()
    assert isinstance(network, InSPyReNet)
    torch.save(network.state_dict(), tmp_path / "inspyrenet.pth")
    with open_session(tmp_path / "inspyrenet.pth", network="inspyrenet_res2net50") as session:
        assert isinstance(session, HasPyramids)
        session.contract = session.contract.model_copy(update={"height": 64, "width": 64})  # type: ignore[misc]
        batch = np.stack([preprocess(image(), session.contract)] * 2)
        (first, _), levels = session.pyramids(batch), network.levels(torch.from_numpy(batch))
        for found, expected in zip((*first.saliency, *first.details), (*levels.saliency, *levels.details), strict=True):
            np.testing.assert_allclose(found, expected[0, 0].detach().numpy(), atol=1e-5)
        seen: list[int] = []

        def counted(one: np.ndarray) -> list[Levels]:
            seen.append(len(one))
            return session.pyramids(one)

        way = LargeImages(patches=True, two_scales=True)
        made = predict_large(image(60, 100), session.contract, session.infer, way, counted)
        assert made.shape == (60, 100)
        assert seen == [1, 1, 1]  # two patches, and the whole


def test_torch_compile(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    with open_session(tiny, compiled=True) as session:
        assert session.infer(np.zeros((1, 3, 160, 160), np.float32)).shape == (1, 1, 160, 160)
    assert len(compiled) == 1
