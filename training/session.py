"""A checkpoint opened for inference in PyTorch, without an export.

`sodeploy.runtime.session.open_session` opens it, as it opens every model.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from sodeploy import terminal
from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.runtime.batches import run_in_batches
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.errors import OutOfDeviceMemory
from sodeploy.runtime.pyramid import Levels
from sodeploy.training.checkpoint import load_checkpoint, read_weights, trained_size
from sodeploy.training.models import NETWORKS, build, entry
from sodeploy.training.models.inspyrenet import InSPyReNet
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.signatures import networks_fitting


def open_checkpoint(
    path: Path, network: str | None = None, device: str = "cpu", threads: int | None = None, compiled: bool = False
) -> "CheckpointSession":
    """Open a checkpoint.

    Args:
        path: a .pth or .safetensors file.
        network: a registered network; by default the one whose names and shapes the weights have.
        device: of PyTorch: "cpu", "cuda" or "cuda:1".
        threads: CPU threads within one operator; PyTorch's default if left out.
        compiled: run it through torch.compile, which takes a minute at the first run of each size.

    Raises:
        UserError: the checkpoint is broken or of another network, or the device cannot be had.
    """
    name = network or _network_of(path)
    if entry(name).sees != "images":
        raise UserError(f"{name} sees masks, not images: it serves training only; give another network")
    if device.startswith("cuda"):
        index, count = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"PyTorch finds {count} GPUs, so there is no {device}; see nvidia-smi, or run on the CPU")
    if threads:
        torch.set_num_threads(threads)
    built = build(name).eval()
    load_checkpoint(path, built)
    contract = entry(name).contract
    height, width = trained_size(path, name) or (contract.height, contract.width)
    changed = {"height": height, "width": width, "batch": None, "dynamic_size": True, "output": "probability"}
    kind = PyramidSession if isinstance(built, InSPyReNet) else CheckpointSession
    return kind(path, built, contract.model_copy(update=changed), torch.device(device), compiled)


class CheckpointSession:
    """A registered network with the weights of a checkpoint: a `sodeploy.runtime.session.Session` in fp32."""

    precision = "fp32"

    def __init__(
        self, path: Path, network: SaliencyNetwork, contract: Contract, device: torch.device, compiled: bool
    ) -> None:
        """See `open_checkpoint`."""
        self._path, self._device = path, device
        self._network = network.to(device)
        self.contract = contract
        self.metadata: dict[str, str] = {}
        self._predict = torch.compile(network.predict) if compiled else network.predict
        self._compiled = compiled

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """(N, 3, h, w) float32 -> (N, 1, h, w) float32.

        Raises:
            OutOfDeviceMemory: there is no room for the run.
            UserError: the network cannot take h, w, or torch.compile fails.
        """
        self._network.check_size(batch.shape[2], batch.shape[3])
        return run_in_batches(self._run, batch, self.contract, self._path)

    def _run(self, images: np.ndarray) -> np.ndarray:
        try:
            with torch.inference_mode():
                return np.asarray(self._predict(torch.from_numpy(images).to(self._device)).float().cpu().numpy())
        except torch.cuda.OutOfMemoryError:
            raise OutOfDeviceMemory(f"{self._path}: there is no room for {len(images)} images on the GPU") from None
        except Exception as error:
            if not self._compiled or "torch._dynamo" not in type(error).__module__ + type(error).__qualname__:
                raise
            raise UserError(f"{self._path}: torch.compile fails ({one_line(error)}); leave --compile out") from None

    def close(self) -> None:
        """Nothing is held that Python does not free."""

    def __enter__(self) -> "CheckpointSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PyramidSession(CheckpointSession):
    """A checkpoint of InSPyReNet, whose pyramids a large image is put together from."""

    def pyramids(self, batch: np.ndarray) -> list[Levels]:
        """The pyramid of logits of each image of (N, 3, h, w) float32.

        Raises:
            UserError: the network cannot take h, w.
        """
        assert isinstance(self._network, InSPyReNet)
        self._network.check_size(batch.shape[2], batch.shape[3])
        with torch.inference_mode():
            levels = self._network.levels(torch.from_numpy(batch).to(self._device))
        saliency, details = ([x[:, 0].cpu().numpy() for x in part] for part in levels)
        return [Levels([x[n] for x in saliency], [x[n] for x in details]) for n in range(len(batch))]


def _network_of(path: Path) -> str:
    """The registered network that a checkpoint's weights fit.

    Raises:
        UserError: none does, or several do.
    """
    found = [name for name in networks_fitting(read_weights(path)) if entry(name).sees == "images"]
    if len(found) != 1:
        names = ", ".join(found or [name for name in NETWORKS if entry(name).sees == "images"])
        fits = "fits several networks" if found else "fits no network by its names and shapes"
        raise UserError(f"{path} {fits}; name one by --network: {names}")
    terminal.note(f"{path} is a checkpoint of {found[0]}")
    return found[0]
