"""Opening the network of a run, in the way that fits its file, its device and the size of the images."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sodeploy.file_kinds import CHECKPOINT_SUFFIXES
from sodeploy.runtime.composition import Style
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.gpu.session import open_on_device
from sodeploy.runtime.gpu.timeline import Timeline
from sodeploy.runtime.large_images import HasPyramids, LargeImages, predict_large, require_fit
from sodeploy.runtime.media.mapping import DeviceMapper, HostMapper, Mapper
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import EngineName, Session, open_session
from sodeploy.runtime.triton_server.client import TritonServer, TritonSession


class ModelFile(NamedTuple):
    """The network of a run, not opened yet.

    Attributes:
        path: an ONNX file, an engine, or a checkpoint; with `server` the name of a model there.
        gpu: the GPU's index; None for the CPU.
        engine, network, compiled: see `sodeploy.runtime.session.open_session`.
        large: how an image that is larger than the input is seen.
        threads: CPU threads within one operator of an ONNX model; one per core by default.
        server: the Triton server that runs the network; this machine by default.
    """

    path: Path
    gpu: int | None
    engine: EngineName
    network: str | None
    compiled: bool
    large: LargeImages
    threads: int | None = None
    server: TritonServer | None = None

    @property
    def on_device(self) -> bool:
        """Whether images go through the GPU's own pipeline; patches and PyTorch have their images on the host."""
        return self.gpu is not None and not self.large and self.path.suffix.lower() not in CHECKPOINT_SUFFIXES


class Opened(NamedTuple):
    """An open network.

    Attributes:
        mapper: gives the mapper for a style of pictures; on the host there is only "map".
        precision: fp32, fp16 or int8.
    """

    mapper: Callable[[Style], Mapper]
    contract: Contract
    precision: str


@contextlib.contextmanager
def open_mappers(
    model: ModelFile, batch: int | None, timeline: Timeline | None, live: bool = False
) -> Iterator[Opened]:
    """Open the model until the block ends.

    Args:
        live: one picture at a time and none ahead, for a camera.

    Raises:
        UserError: the model is unfit, or the device cannot be had.
    """
    if model.on_device:
        with open_on_device(model.path, gpu=model.gpu or 0) as on_device:
            size, lanes = (1, 1) if live else (batch, 3)
            yield Opened(
                lambda style: DeviceMapper(on_device, style, size, timeline, lanes),
                on_device.contract,
                on_device.precision,
            )
        return
    with _open(model) as session:
        require_fit(session.contract, model.large)
        ahead = 0 if live else None
        yield Opened(
            lambda style: HostMapper(partial(_predict, session=session, large=model.large), ahead),
            session.contract,
            session.precision,
        )


def _open(model: ModelFile) -> Session:
    if model.server is not None:
        return TritonSession(model.server, str(model.path))
    return open_session(
        model.path,
        "cpu" if model.gpu is None else "cuda",
        model.threads,
        engine=model.engine,
        gpu=model.gpu or 0,
        network=model.network,
        compiled=model.compiled,
    )


def _predict(image: np.ndarray, session: Session, large: LargeImages) -> np.ndarray:
    if not large:
        return predict(image, session.contract, session.infer)
    pyramids = session.pyramids if isinstance(session, HasPyramids) else None
    return predict_large(image, session.contract, session.infer, large, pyramids)
