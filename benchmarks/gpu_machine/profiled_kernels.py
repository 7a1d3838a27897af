"""Each kernel chain once on 16 Full-HD images, for ncu.

ncu --set detailed -k regex:'resize|normalise|compose|saliency|output_range' python
benchmarks/gpu_machine/profiled_kernels.py
"""

import numpy as np

from sodeploy.runtime.composition import Style
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.device import open_device
from sodeploy.runtime.gpu.processing import CudaProcessing

CHAINS: tuple[tuple[str, str, Style], ...] = (
    ("linear", "255", "map"),
    ("area", "255", "rgba"),
    ("linear", "max", "green"),
    ("linear", "255", "overlay"),
)


def main() -> None:
    """Run the chains."""
    images = [np.random.default_rng(seed).integers(0, 256, (1080, 1920, 3), np.uint8) for seed in range(16)]
    with open_device() as device, device.current():
        for interpolation, divide_by, style in CHAINS:
            fields = {"interpolation": interpolation, "divide_by": divide_by, "stretch": True}
            size = {"network": "profiled", "height": 320, "width": 320}
            colors = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
            stream = device.stream()
            processing = CudaProcessing(device, Contract.model_validate(size | colors | fields), stream, style)
            processing.stage(images)
            processing.preprocess()
            processing.postprocess()
            device.wait(stream)
            processing.release()
            device.keep(stream)


if __name__ == "__main__":
    main()
