"""Batch norms behind sums and concatenations go into the convolutions, and nothing else changes."""

import io
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sodeploy.export.batch_norm import absorb_batch_norms
from sodeploy.export.parity import runner
from sodeploy.export.simplify import simplify

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter that we have chosen


class Paths(nn.Module):
    """A sum of a convolution and an enlarged one, a concatenation, and a batch norm on something that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1)
        self.left, self.right = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(4, 5, 3, padding=1)
        self.last = nn.Conv2d(7, 3, 1)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(4), nn.BatchNorm2d(7), nn.BatchNorm2d(3)
        for norm in (self.norm1, self.norm2, self.norm3):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        coarse = F.avg_pool2d(self.coarse(F.max_pool2d(image, 2)), 2)
        enlarged = F.interpolate(coarse, scale_factor=4.0, mode="bilinear")
        x = F.relu(self.norm1(enlarged + self.fine(image)))
        x = F.relu(self.norm2(torch.cat([self.left(x), self.right(x)], 1)))
        x = self.last(x)
        return self.norm3(x) + x


@pytest.fixture
def traced() -> onnx.ModelProto:
    torch.manual_seed(0)
    file = io.BytesIO()
    torch.onnx.export(
        Paths().eval(),
        (torch.zeros(1, 3, 16, 16),),
        file,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=18,
        output_names=["y"],
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    model = onnx.load_from_string(file.getvalue())
    model.ir_version = 10
    return model


def test_they_are_absorbed_where_that_is_exact(traced: onnx.ModelProto) -> None:
    wanted = runner(traced, "y")
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    assert absorb_batch_norms(model) == 2
    left = Counter(node.op_type for node in model.graph.node)
    assert left["BatchNormalization"] == 1  # its input is also read by the sum
    assert len(model.graph.initializer) < len(traced.graph.initializer) + 2
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)
    np.testing.assert_allclose(runner(model, "y")(image), wanted(image), rtol=1e-5, atol=1e-5)


def test_a_weight_that_two_convolutions_share_is_changed_for_one(traced: onnx.ModelProto) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.uniform_(self.norm.weight, 2, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(image) + self.conv(image.flip(3))) + self.conv(image * 2)

    torch.manual_seed(0)
    network, file = Shared().eval(), io.BytesIO()
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 8, 8),),
        file,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=18,
        output_names=["y"],
    )
    model = simplify(onnx.load_from_string(file.getvalue()), "shared")
    model.ir_version = 10
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(runner(model, "y")(image), expected, rtol=1e-5, atol=1e-5)
