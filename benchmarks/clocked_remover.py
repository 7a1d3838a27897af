"""transparent-background's own command, with a clock around its network; runs in that tool's environment.

    python clocked_remover.py ckpt_fast.pth clock.json --source photos --dest cutouts --type rgba --mode fast

Writes the seconds of each run of the network to clock.json. Without more arguments than the checkpoint, it writes one:
the tool's network (fast mode, 384 x 384) with random weights, always the same ones.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transparent_background
from transparent_background.InSPyReNet import InSPyReNet, InSPyReNet_SwinB

SIDE = 384  # of the fast mode


def write_random_weights(path: str) -> None:
    """Write the checkpoint that stands for the published one, which has the same names and shapes."""
    torch.manual_seed(0)
    network = InSPyReNet_SwinB(depth=64, pretrained=False, threshold=None, base_size=[SIDE, SIDE])
    torch.save(network.state_dict(), path)


def run_clocked(checkpoint: str, clock: str, arguments: list[str]) -> None:
    """Run the tool's command on the CPU and write the seconds of each run of its network."""
    seconds = []
    forward = InSPyReNet.forward_inference

    def clocked(network: Any, image: torch.Tensor) -> Any:
        start = time.perf_counter()
        result = forward(network, image)
        seconds.append(time.perf_counter() - start)
        return result

    InSPyReNet.forward_inference = clocked
    sys.argv = ["transparent-background", *arguments, "--ckpt", checkpoint, "--device", "cpu"]
    transparent_background.console()
    Path(clock).write_text(json.dumps(seconds))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_random_weights(sys.argv[1])
    else:
        run_clocked(sys.argv[1], sys.argv[2], sys.argv[3:])
