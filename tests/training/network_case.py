"""The tests that every network must pass: inherit `NetworkCase` as `class TestX(NetworkCase)` and name the network.

The golden values of a network are the listing of its state dict and outputs of the published code, under parameters
that depend on names and shapes only (tests/golden/README.md).
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fill import fill_state_dict, golden_batch, golden_input
from golden_values import Golden
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

SIZE = 64  # height and width of the images that a network is exported for


class NetworkCase:
    """The shared tests; the class attributes say what the network is."""

    name: ClassVar[str]
    params_m: ClassVar[float]
    gmacs: ClassVar[float]
    gmacs_size: ClassVar[int] = 320
    logit_atol: ClassVar[float] = 1e-3
    maps: ClassVar[tuple[str, ...]]  # golden names of the maps that `forward` returns, in order
    golden_sizes: ClassVar[tuple[tuple[int, int], ...]] = ((96, 96), (100, 132))
    step_size: ClassVar[int] = 64  # height and width of the images of the training step
    steps: ClassVar[int] = 4
    learning_rate: ClassVar[float] = 1e-3
    int8_db: ClassVar[float] = 10  # signal-to-noise ratio of the int8 logits; a wrong plan gives less than 0

    @pytest.fixture
    def golden(self) -> Golden:
        return Golden(self.name)

    def filled(self, golden: Golden) -> SaliencyNetwork:
        """The network with the golden parameters. A network that changes some of them after filling extends this."""
        return fill_state_dict(build(self.name))

    def test_state_dict_is_the_published_one(self, golden: Golden) -> None:
        with torch.device("meta"):
            state = build(self.name).state_dict()
        found = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()]
        assert found == [(name, shape, f"torch.{kind}") for name, shape, kind in golden.state_dict]

    def test_golden_logits(self, golden: Golden) -> None:
        network = self.filled(golden).eval()
        for height, width in self.golden_sizes:
            with torch.no_grad():
                logits = network(golden_input(height, width, channels(self.name)))
            for key, logit in zip(self.maps, logits, strict=True):
                golden.check(f"{height}x{width}/{key}", logit, atol=self.logit_atol)

    def test_predict_is_the_first_map_as_probability(self, golden: Golden) -> None:
        network = self.filled(golden).eval()
        image = golden_input(64, 96, channels(self.name))
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

    def test_saved_and_loaded_it_answers_the_same(self, golden: Golden, tmp_path: Path) -> None:
        network = self.filled(golden).eval()
        torch.save(network.state_dict(), tmp_path / "w.pth")
        again = build(self.name).eval()
        again.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True), strict=True)
        image = torch.rand(1, channels(self.name), 64, 64)
        with torch.no_grad():
            assert torch.equal(network(image)[0], again(image)[0])

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "name"):  # all tests of a network run in one process, so that it is exported once
            cls.pytestmark = [pytest.mark.xdist_group(cls.name)]  # type: ignore[attr-defined]

    @pytest.fixture(scope="class")
    @classmethod
    def exported(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """An ONNX file that takes any batch and size."""
        if entry(cls.name).sees == "masks":
            pytest.skip("a network that sees masks is not deployed")
        folder = tmp_path_factory.mktemp(cls.name)
        torch.save(settled(cls.name, SIZE).state_dict(), folder / "w.pth")
        return export(
            cls.name, folder / "w.pth", folder / "network.onnx", size=(SIZE, SIZE), batch=None, dynamic_size=True
        )

    def test_exported_it_answers_the_same_at_any_batch_and_size(self, exported: Path) -> None:
        parity = read_manifest(exported)["parity"]  # the export refuses a difference that is too large
        assert len({tuple(shape) for shape in parity["shapes"]}) == 3  # the native shape, a larger batch, another size

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
        """The loss that a training step minimizes. A network with maps of other sizes extends this."""
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
    """A second base, for the U-type networks: their golden values include one pass in train mode."""

    def test_golden_training_step(self, golden: Golden) -> None:
        network = self.filled(golden).train()  # type: ignore[attr-defined]
        image, mask = golden_batch(96, 96, channels(self.name))  # type: ignore[attr-defined]
        logits = network(image)
        # Batch norms of two small images magnify rounding, which differs between CPUs, by up to 1 %.
        for key in (key for key in golden if key.startswith("train96/logit/")):
            logit = logits[self.maps.index(key.removeprefix("train96/"))]  # type: ignore[attr-defined]
            golden.check(key, logit.detach()[:, :, ::4, ::4], atol=1e-2)
        loss = sum_of_bce(logits, mask)
        loss.backward()
        golden.check("train96/loss_sum", loss.item(), rtol=1e-4)
        parameters = dict(network.named_parameters())
        norms = [parameters[name].grad.norm().item() for name in golden.texts["train96/grad_norm_names"]]
        golden.check("train96/grad_norm", norms, rtol=2e-2)
        buffers = dict(network.named_buffers())
        keys = [key for key in golden if key.startswith("train96/buffer/")]
        assert len(keys) == 4
        for key in keys:
            golden.check(key, buffers[key.removeprefix("train96/buffer/")], rtol=1e-4, atol=1e-5)


def logits(probability: np.ndarray) -> np.ndarray:
    probability = probability.astype(np.float64).clip(1e-7, 1 - 1e-7)
    return np.log(probability / (1 - probability))


def sum_of_bce(logits: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([F.binary_cross_entropy_with_logits(logit, mask) for logit in logits]).sum()
