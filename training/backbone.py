"""ImageNet weights for a network's backbone, from the files of the backbone's authors."""

import re
from pathlib import Path

from sodeploy.errors import UserError
from sodeploy.training.checkpoint import read_weights
from sodeploy.training.fitting import without_prefix
from sodeploy.training.models.network import SaliencyNetwork

_OF_CLASSIFIERS = re.compile(r"(fc|head|norm)\.|.*\.attn_mask$")  # Swin has a "norm" in front of its classifier
_NOT_IN_CLASSIFIERS = re.compile(
    r"norm[0-3]\.|.*num_batches_tracked$"
)  # Swin's norms of the features keep their first values


def load_backbone(path: str | Path, network: SaliencyNetwork) -> None:
    """Load the weights in `path` into the backbone of `network`, without those of the classifier.

    Raises:
        UserError: the network has no backbone, or the file cannot be read or belongs to another backbone.
    """
    if not network.backbone_name:
        raise UserError(f"{type(network).__name__} has no backbone for {path}; remove backbone.init from the recipe")
    backbone = network.get_submodule(network.backbone_name)
    own = backbone.state_dict()
    weights = without_prefix(read_weights(path), own)
    weights = {key: tensor for key, tensor in weights.items() if not _OF_CLASSIFIERS.match(key)}
    lacking = [key for key in own if key not in weights and not _NOT_IN_CLASSIFIERS.match(key)]
    foreign = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if lacking or foreign or reshaped:
        first = (lacking + foreign + reshaped)[0]
        raise UserError(
            f"{path} holds no weights of {type(backbone).__name__}: {len(lacking)} are lacking, {len(foreign)} are not "
            f"of it, {len(reshaped)} are of another shape, the first is {first}; give its authors' ImageNet file"
        )
    backbone.load_state_dict(own | weights)
