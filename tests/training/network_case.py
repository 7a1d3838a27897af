"""What every network must pass: inherit `NetworkCase` as `class TestX(NetworkCase)` and name the network.

The specification of a network is a folder of the research data: `state_dict.json` (name, shape, dtype of every entry,
in order) and `golden.npz` (outputs of the published code under parameters that depend on names and shapes only).
"""

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from settled import settled

from sodeploy.artifacts import read_manifest
from sodeploy.calib_data import open_dataset
from sodeploy.export.parity import runner
from sodeploy.export.to_onnx import export
from sodeploy.quant.calibration.observer import calibrate
from sodeploy.quant.emit.tensorrt import emit_simulation
from sodeploy.quant.graph import load_network
from sodeploy.quant.planning.decide import make_plan
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.runtime.processing import preprocess
from sodeploy.training.models import build, entry
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.networks import channels, macs

SIZE = 64  # of exported images


class NetworkCase:
    """The shared tests; the class attributes say what the network is."""

    name: ClassVar[str]
    folder: ClassVar[str]  # of the specification
    params_m: ClassVar[float]
    gmacs: ClassVar[float]
    gmacs_size: ClassVar[int] = 320
    state_dict_file: ClassVar[str] = "state_dict.json"
    golden_file: ClassVar[str] = "golden.npz"
    logit_atol: ClassVar[float] = 1e-3
    maps: ClassVar[tuple[str, ...]]  # golden keys of what forward returns, in order
    golden_sizes: ClassVar[tuple[tuple[int, int], ...]] = ((96, 96), (100, 132))
    step_size: ClassVar[int] = 64  # of the images of the training step
    steps: ClassVar[int] = 4
    learning_rate: ClassVar[float] = 1e-3
    int8_db: ClassVar[float] = 10  # logits above the noise that int8 adds to them; of a wrong plan it is below 0

    @pytest.fixture
    def specification(self, research: Path) -> Path:
        return research / "networks" / self.folder

    @pytest.fixture
    def golden(self, specification: Path) -> Any:
        return np.load(specification / self.golden_file)

    @pytest.fixture
    def fill(self, research: Path) -> ModuleType:
        return load_fill(research)

    def filled(self, fill: ModuleType, golden: Any) -> SaliencyNetwork:
        """The network with the golden parameters; a network that overrides some after filling extends this."""
        return fill.fill_state_dict(build(self.name))

    def test_state_dict_is_the_published_one(self, specification: Path) -> None:
        expected = [tuple(item[:2]) for item in json.loads((specification / self.state_dict_file).read_text())]
        with torch.device("meta"):
            state = build(self.name).state_dict()
        assert [(name, list(tensor.shape)) for name, tensor in state.items()] == expected

    def test_golden_logits(self, fill: ModuleType, golden: Any) -> None:
        network = self.filled(fill, golden).eval()
        for height, width in self.golden_sizes:
            with torch.no_grad():
                logits = network(fill.golden_input(height, width, channels(self.name)))
            assert len(logits) == len(self.maps)
            for key, logit in zip(self.maps, logits, strict=True):
                expected = golden[f"{height}x{width}/logit/{key}"]
                np.testing.assert_allclose(logit, expected, atol=self.logit_atol, rtol=0, err_msg=key)

    def test_predict_is_the_first_map_as_probability(self, fill: ModuleType, golden: Any) -> None:
        network = self.filled(fill, golden).eval()
        image = fill.golden_input(64, 96, channels(self.name))
        with torch.no_grad():
            assert torch.equal(network.predict(image), torch.sigmoid(network(image)[0]))

    def test_size(self) -> None:
        with torch.device("meta"):
            network = build(self.name)
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == pytest.approx(self.params_m, abs=2e-3)
        count = macs(network, channels(self.name), self.gmacs_size, self.gmacs_size)
        assert count / 1e9 == pytest.approx(self.gmacs, rel=5e-3)

    def test_contract_names_the_network(self) -> None:
        assert entry(self.name).contract.network == self.name

    def test_saved_and_loaded_it_answers_the_same(self, fill: ModuleType, golden: Any, tmp_path: Path) -> None:
        network = self.filled(fill, golden).eval()
        torch.save(network.state_dict(), tmp_path / "w.pth")
        again = build(self.name).eval()
        again.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True), strict=True)
        image = torch.rand(1, channels(self.name), 64, 64)
        with torch.no_grad():
            assert torch.equal(network(image)[0], again(image)[0])

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "name"):  # one worker for all tests of a network, so that it is exported once
            cls.pytestmark = [pytest.mark.xdist_group(cls.name)]  # type: ignore[attr-defined]

    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """ONNX that takes any batch and size."""
        if entry(cls.name).sees == "masks":
            pytest.skip("a network that sees masks is not deployed")
        folder = tmp_path_factory.mktemp(cls.name)
        torch.save(settled(cls.name, SIZE).state_dict(), folder / "w.pth")
        return export(
            cls.name, folder / "w.pth", folder / "network.onnx", size=(SIZE, SIZE), batch=None, dynamic_size=True
        )

    def test_exported_it_answers_the_same_at_any_batch_and_size(self, exported: Path) -> None:
        parity = read_manifest(exported)["parity"]  # which the export would have refused, had it been too large
        assert len({tuple(shape) for shape in parity["shapes"]}) == 3  # the native one, more images, another size

    def test_int8_simulation_agrees(self, exported: Path) -> None:
        network = load_network(exported)
        images = open_dataset(f"synthetic:calib:2:{SIZE}", masks=False)
        plan = make_plan(network, Evidence(calibrate(network, images)), "max")
        assert len(plan.nodes("int8")) > len(plan.layers) / 2
        unseen = [preprocess(s.image(), network.contract) for s in open_dataset(f"synthetic:eval:2:{SIZE}")]
        fp32, int8 = (
            logits(runner(model, network.contract.output_name)(np.stack(unseen)))
            for model in (network.model, emit_simulation(network, plan))
        )
        assert np.std(fp32) > 0.03
        noise = np.mean((int8 - fp32) ** 2) / np.var(fp32)
        assert -10 * np.log10(noise) > self.int8_db

    def loss(self, network: SaliencyNetwork, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What a training step minimises; networks with maps of other sizes extend this."""
        return sum_of_bce(network(image), mask)

    def test_training_steps_lower_the_loss(self) -> None:
        torch.manual_seed(0)
        network = build(self.name).train()
        mask = torch.zeros(2, 1, self.step_size, self.step_size)
        mask[:, :, 16:48, 8:40] = 1.0
        image = mask.repeat(1, channels(self.name), 1, 1) + 0.1 * torch.randn(2, channels(self.name), *mask.shape[2:])
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        losses = []
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss = self.loss(network, image, mask)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.95 * losses[0]


class GoldenTrainingStep:
    """A second base for the networks whose golden file has the train-mode pass of the U-type networks."""

    def test_golden_training_step(self, fill: ModuleType, golden: Any) -> None:
        network = self.filled(fill, golden).train()  # type: ignore[attr-defined]
        seen = channels(self.name)  # type: ignore[attr-defined]
        image = torch.cat([fill.golden_input(96, 96, seen, seed) for seed in (0, 1)])
        mask = torch.cat([(fill.golden_input(96, 96, 1, seed) > 0).float() for seed in (7, 8)])
        loss = sum_of_bce(network(image), mask)
        loss.backward()
        assert loss.item() == pytest.approx(golden["train96/loss_sum"].item(), rel=1e-4)
        parameters = dict(network.named_parameters())
        norms = [parameters[str(name)].grad.norm().item() for name in golden["train96/grad_norm_names"]]
        # The batch norms of two small images magnify rounding, which differs from one CPU to another, up to 1 %.
        np.testing.assert_allclose(norms, golden["train96/grad_norm"], rtol=2e-2)
        buffers = dict(network.named_buffers())
        names = [key for key in golden if key.startswith("train96/buffer/")]
        assert names
        for key in names:
            name = key.removeprefix("train96/buffer/")
            np.testing.assert_allclose(buffers[name], golden[key], rtol=1e-4, atol=1e-5)


@functools.cache
def load_fill(research: Path) -> ModuleType:
    """The research data's `fill.py`: parameters from names and shapes, and input images."""
    spec = importlib.util.spec_from_file_location("network_fill", research / "networks" / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits(probability: np.ndarray) -> np.ndarray:
    probability = probability.astype(np.float64).clip(1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))


def sum_of_bce(logits: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([F.binary_cross_entropy_with_logits(logit, mask) for logit in logits]).sum()
