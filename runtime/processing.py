"""From image to network input and from network output to saliency map, on the CPU.

The reference for every other implementation (CUDA kernels, serving): what stands here is what the numbers in our
tables were measured with. Everything follows the model's contract.
"""

from collections.abc import Callable

import cv2
import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.pyramid import sigmoid

_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


def preprocess(image: np.ndarray, contract: Contract, size: tuple[int, int] | None = None) -> np.ndarray:
    """Turn an image into the network's input.

    Resized as uint8 with half-pixel centres, aspect ratio not kept; then `(x / divisor - mean) / std` per channel in
    the contract's colour order. The divisor is 255 or, as in U²-Net's loader, the largest value of the resized image
    over all channels; an image that is black all over then stays 0 before the mean is taken off (upstream: NaN).

    Args:
        image: (H, W, 3) uint8 RGB.
        size: (h, w) of the input; the contract's height and width by default.

    Returns:
        (3, h, w) float32, contiguous.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8 or has no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = size or (contract.height, contract.width)
    resized = cv2.resize(image, (width, height), interpolation=_INTERPOLATION[contract.interpolation])
    divisor = 255.0 if contract.divide_by == "255" else max(float(resized.max()), 1.0)
    channels = (0, 1, 2) if contract.colour == "RGB" else (2, 1, 0)
    tensor = np.empty((3, height, width), np.float32)
    for plane, channel, mean, std in zip(tensor, channels, contract.mean, contract.std, strict=True):
        np.multiply(resized[..., channel], np.float32(1.0 / (divisor * std)), out=plane)
        plane -= np.float32(mean / std)
    return tensor


def postprocess(output: np.ndarray, contract: Contract, size: tuple[int, int]) -> np.ndarray:
    """Turn one output of the network into a saliency map of the image's own size.

    `to_saliency`, then resized bilinearly with half-pixel centres; times 255, rounded half to even.

    Args:
        output: (h, w) float, probability or logit as in the contract.
        size: (H, W) of the map.

    Returns:
        (H, W) uint8 saliency map.

    Raises:
        UserError: a value is NaN or infinite; a logit may be infinite.
        ValueError: `output` is not (h, w).
    """
    height, width = size
    saliency = cv2.resize(to_saliency(output, contract), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(saliency * 255.0).astype(np.uint8)


def predict(image: np.ndarray, contract: Contract, network: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Turn an image into its saliency map: `preprocess`, the network, `postprocess`.

    Args:
        image: (H, W, 3) uint8 RGB.
        network: (1, 3, h, w) float32 -> (1, 1, h, w), for example `Session.infer`.

    Returns:
        (H, W) uint8 saliency map.

    Raises:
        UserError: a value is NaN or infinite; a logit may be infinite.
    """
    output = network(preprocess(image, contract)[None])
    return postprocess(output[0, 0], contract, (image.shape[0], image.shape[1]))


def to_saliency(output: np.ndarray, contract: Contract) -> np.ndarray:
    """The saliency in one output of the network, at the network's size.

    Sigmoid if the contract says logit; min-max stretch if it says so, where a constant map has nothing to stretch and
    stays as it is (upstream: NaN); clipped to [0, 1].

    Args:
        output: (h, w) float, probability or logit as in the contract.

    Returns:
        (h, w) float32 in [0, 1].

    Raises:
        UserError: a value is NaN or infinite; a logit may be infinite.
        ValueError: `output` is not (h, w).
    """
    saliency = probability(output, contract)
    low, high = float(saliency.min()), float(saliency.max())
    if contract.stretch and high > low:
        saliency = (saliency - low) / (high - low)
    return np.clip(saliency, 0.0, 1.0)


def probability(output: np.ndarray, contract: Contract) -> np.ndarray:
    """One output of the network, by a sigmoid if the contract says logit.

    Args:
        output: (h, w) float, probability or logit as in the contract.

    Returns:
        (h, w) float32.

    Raises:
        UserError: a value is NaN or infinite; a logit may be infinite.
        ValueError: `output` is not (h, w).
    """
    if output.ndim != 2:
        raise ValueError(f"expected one output map (h, w), got {output.shape}")
    saliency = np.asarray(output, np.float32)
    if contract.output == "logit":
        saliency = sigmoid(saliency)
    if not np.isfinite([saliency.min(), saliency.max()]).all():  # NaN and infinity both show in one of them
        broken = int(np.size(saliency) - np.isfinite(saliency).sum())
        raise UserError(
            f"{contract.network}: {broken} of {saliency.size} output values are NaN or infinite; "
            "if the model is fp16, keep the layers that overflow in fp32, else check the weights"
        )
    return saliency
