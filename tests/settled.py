"""Networks that were never trained, yet compute something: what rounds or is quantized in them does not explode.

Under random weights every layer mixes all it sees, and errors grow by a factor per layer until nothing of the image is
left. Here every layer mostly passes on what it sees, so that the map still shows the image.
"""

import torch
from torch import nn

from sodeploy.calib_data import open_dataset
from sodeploy.runtime.processing import preprocess
from sodeploy.training.models import build, entry
from sodeploy.training.models.network import SaliencyNetwork

_MIXED = 0.2  # share of the usual random weights


def settled(name: str, size: int = 64) -> SaliencyNetwork:
    """The network `name`, in eval mode, with batch norms that know their statistics on size x size images."""
    torch.manual_seed(0)
    network = build(name).train()
    contract = entry(name).contract.model_copy(update={"height": size, "width": size})
    scenes = open_dataset(f"synthetic:train:4:{size}", masks=False)
    images = torch.stack([torch.from_numpy(preprocess(scene.image(), contract)) for scene in scenes])
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(_MIXED)
                at = (slice(None), slice(None), *(side // 2 for side in module.weight.shape[2:]))
                module.weight[at] += _identity(*module.weight.shape[:2])
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches, which are one
                module.reset_running_stats()
                module.weight.fill_(0.5)
                module.bias.fill_(1)  # nearly all values are positive, and pass a ReLU
        network(torch.cat([images, torch.randn_like(images)]))  # noise too: no input is far from all of these
    return network.eval()


def _identity(outputs: int, inputs: int) -> torch.Tensor:
    """`(outputs, inputs)`: outputs are copies of inputs, or means of them."""
    channels = min(outputs, inputs)
    same = torch.arange(outputs)[:, None] % channels == torch.arange(inputs) % channels
    return same / same.sum(1, keepdim=True)
