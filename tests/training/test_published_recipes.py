"""The published recipes train: each for two steps on small images, with all that it augments, weights and freezes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sodeploy.errors import UserError
from sodeploy.training.activity_decay import forward_with_activity_decay
from sodeploy.training.backbone import load_backbone
from sodeploy.training.models import build
from sodeploy.training.models.csnet import CSNet, unpruned
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.optimizers import LR_SHARE, parameter_groups
from sodeploy.training.recipe import load_recipe
from sodeploy.training.train import train

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
RECIPES = (
    "csnet_x1",
    "csnet_x1_unpruned",
    "csf_res2net",
    "ras_v1",
    "ras_v2",
    "inspyrenet_res2net50",
    "isnet_integrity",
)


def smaller(value: Any) -> Any:
    """The same with sides of a fifth, multiples of 16 as all networks take."""
    if isinstance(value, list):
        return [smaller(item) for item in value]
    return max(48, round(value / 80) * 16)


def small_recipe(name: str, folder: Path) -> Path:
    """The recipe on a synthetic set, without the weights that it starts from."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for step in content["augment"]:
        for key in {"size", "sizes"} & step.keys():
            step[key] = smaller(step[key]) if key == "size" else [side // 4 for side in step[key]]
    content |= {"train": "synthetic:train:6:80", "validation": {"data": "synthetic:val:2:64", "every": 2}}
    content |= {"size": smaller(content["size"]), "batch": 2, "steps": 2, "workers": 0, "batch_norm": "local"}
    content["accumulate"] = min(content.get("accumulate", 1), 2)
    if "multi_scale" in content:
        content["multi_scale"] = smaller(content["multi_scale"])
    if "backbone" in content:
        content["backbone"]["init"] = None
    del content["epochs"]
    content["optimizer"]["lr"] /= 100  # two steps have no room for a warm-up
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains(name: str, tmp_path: Path) -> None:
    path = small_recipe(name, tmp_path)
    recipe = load_recipe(path)
    torch.manual_seed(recipe.seed)
    before = build(recipe.network)  # as the run begins with
    after = torch.load(train(path, output=tmp_path / "run"), weights_only=True)
    frozen = {key for key, parameter in groups_of(before, name)[1].items() if not parameter.requires_grad}
    assert frozen or not recipe.freeze
    changed = {key for key, parameter in before.named_parameters() if not torch.equal(parameter, after[key])}
    assert not changed & frozen
    assert len(changed) > 0.7 * (len(list(before.parameters())) - len(frozen))


def groups_of(network: SaliencyNetwork, name: str) -> tuple[list[dict[str, Any]], dict[str, torch.nn.Parameter]]:
    recipe = load_recipe(CONFIGS / f"{name}.yaml")
    return parameter_groups(network, recipe.backbone.lr, recipe.freeze), dict(network.named_parameters())


def test_csf_freezes_every_batch_norm_of_its_backbone_and_nothing_else() -> None:
    with torch.device("meta"):
        network = build("csf_res2net")
    groups_of(network, "csf_res2net")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    assert {id(parameter) for norm in norms for parameter in norm.parameters()} == set(map(id, frozen))


def test_backbones_learn_at_their_share_of_the_rate() -> None:
    with torch.device("meta"):
        network = build("ras_v2")
    groups, parameters = groups_of(network, "ras_v2")
    shares = {id(parameter): group[LR_SHARE] for group in groups for parameter in group["params"]}
    assert shares[id(parameters["bkbone.layer1.0.conv1.weight"])] == 0.1
    assert shares[id(parameters["ra2.convert.weight"])] == 1
    assert id(parameters["bkbone.conv1.weight"]) not in shares


def test_dynamic_weight_decay_has_the_gradient_of_its_formula() -> None:
    """Of one scale: cost x activity x scale."""
    torch.manual_seed(0)
    network = CSNet(unpruned(20)).train()
    block: Any = network.stage2[1]
    kept: list[torch.Tensor] = []
    block.conv3x3_1.register_forward_hook(lambda _, __, outputs: kept.append(outputs[0].detach()))
    logits, penalty = forward_with_activity_decay(network, torch.randn(2, 3, 32, 48))
    penalty.backward()
    assert logits[0].shape == (2, 1, 32, 48)
    scale = block.conv3x3_1.bns[0].weight
    expected = 4 * 2 * kept[0].mean((2, 3)).abs().mean(0) * scale.detach()
    torch.testing.assert_close(scale.grad, expected)
    learning = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in network.named_parameters() if re.match(r"stage\d\..+bns\.\d\.weight", name)}


def test_scales_under_dynamic_decay_have_no_other() -> None:
    recipe = load_recipe(CONFIGS / "csnet_x1_unpruned.yaml")
    groups = parameter_groups(build(recipe.network), undecayed=recipe.undecayed)
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(build(recipe.network).parameters()))


def test_a_pattern_that_freezes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="freeze: no parameter of RAS begins with backbone"):
        parameter_groups(build("ras_v2"), freeze=["backbone"])


def published(network: str, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The backbone of a network as its authors' file would have it: without a prefix, with a classifier."""
    source = build(network)
    return source.get_submodule(source.backbone_name).state_dict() | more


@pytest.mark.parametrize("network", ["ras_v1", "csf_res2net", "inspyrenet_res2net50"])
def test_imagenet_weights_enter_the_backbone(network: str, tmp_path: Path) -> None:
    weights = published(network, **{"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)})
    torch.save(weights, tmp_path / "b.pth")
    other = build(network)
    load_backbone(tmp_path / "b.pth", other)
    own = other.get_submodule(other.backbone_name).state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in own)


def test_swin_weights_have_no_norms_of_features(tmp_path: Path) -> None:
    extra = {"head.weight": torch.zeros(1000, 768), "norm.weight": torch.ones(768)}
    weights = published("inspyrenet_swint", **extra, **{"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)})
    weights = {
        key: tensor for key, tensor in weights.items() if not key.startswith(("norm0", "norm1", "norm2", "norm3"))
    }
    torch.save({"model": weights}, tmp_path / "b.pth")
    other: Any = build("inspyrenet_swint")
    load_backbone(tmp_path / "b.pth", other)
    assert torch.equal(other.backbone.layers[2].blocks[5].mlp.fc1.weight, weights["layers.2.blocks.5.mlp.fc1.weight"])
    assert torch.equal(other.backbone.norm0.weight, torch.ones(96))


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    torch.save(published("ras_v1"), tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth holds no weights of Res2Net50"):
        load_backbone(tmp_path / "b.pth", build("csf_res2net"))
    with pytest.raises(UserError, match="CSNet has no backbone"):
        load_backbone(tmp_path / "b.pth", build("csnet_x1"))
