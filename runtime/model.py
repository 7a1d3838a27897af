"""A network from Python: `model = load("out/u2netp.onnx")`, then `model(image)` and `cutout(image, model)`."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.infer import Edges, parse_device
from sodeploy.runtime.large_images import LARGEST_SIDE, LargeImages
from sodeploy.runtime.media import opening
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.pictures import Look, finish_picture, parse_look
from sodeploy.runtime.media.reading import decode_frame, read_frame
from sodeploy.runtime.session import EngineName

if TYPE_CHECKING:
    import PIL.Image

    Image: TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | PIL.Image.Image

_MAP = Look()


class Model:
    """A network that is ready to find salient objects; a context manager that frees what its engine holds.

    An image is a path, the bytes of an image file, an array (H, W, 3) RGB or (H, W, 4) RGBA of uint8, or a PIL image.
    Files are read as the command `infer` reads them, so the maps have the same bytes. Use a model in one thread at a
    time.

    Attributes:
        contract: the input and the output of the network.
        precision: fp32, fp16 or int8.
    """

    def __init__(self, opened: opening.Opened, on_device: bool, resources: contextlib.ExitStack) -> None:
        """See `load`, which opens one. `close` frees `resources`."""
        self.contract: Contract = opened.contract
        self.precision: str = opened.precision
        self._mapper = opened.mapper
        self._on_device = on_device
        self._resources = resources
        self._is_open = True

    @overload
    def __call__(self, image: "Image") -> np.ndarray: ...  # type: ignore[overload-overlap]  # a str is one image

    @overload
    def __call__(self, image: "Sequence[Image]") -> list[np.ndarray]: ...

    def __call__(self, image: "Image | Sequence[Image]") -> np.ndarray | list[np.ndarray]:
        """Find the salient object.

        Args:
            image: an image; a list or tuple of images; or an array (N, H, W, 3) of them.

        Returns:
            (H, W) uint8, the map at the image's own size: 255 is the object. A list of maps for a list or tuple, an
            array (N, H, W) for an array of images.

        Raises:
            UserError: an image cannot be read, an array has another shape or type, or the network's output is not
                finite.
            ValueError: the model is closed.
        """
        return _one_or_many(image, self.maps)

    def maps(self, images: "Iterable[Image]") -> Iterator[np.ndarray]:
        """Yield the map of each image, in order. The next images are read meanwhile, a few and never all of them.

        Raises:
            UserError, ValueError: as `__call__` does, after the maps of the images before.
        """
        yield from self.pictures(images, _MAP)

    def pictures(self, images: "Iterable[Image]", look: Look) -> Iterator[np.ndarray]:
        """Yield a picture of each image, as `maps` yields maps.

        Args:
            look: what the picture shows; `sodeploy.runtime.media.pictures.parse_look` makes one.
        """
        if not self._is_open:
            raise ValueError("the model is closed")
        style = look.kernel if self._on_device else "map"
        named = (_Given(image, number) for number, image in enumerate(images, start=1))
        with contextlib.closing(self._mapper(style).maps(named, lambda one: one.frame(look.whole_frame))) as made:
            for mapped in made:
                if isinstance(mapped.result, UserError):
                    raise mapped.result
                assert mapped.frame is not None
                yield finish_picture(mapped.frame, mapped.result, style, look)

    def close(self) -> None:
        """Free what the engine holds. A closed model makes no maps."""
        self._is_open = False
        self._resources.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    engine: EngineName = "onnxruntime",
    threads: int | None = None,
    batch: int | None = None,
    network: str | None = None,
    compiled: bool = False,
    patches: bool = False,
    two_scales: bool = False,
    largest_side: int = LARGEST_SIDE,
) -> Model:
    """Open a network for images of any size.

    Args:
        path: an ONNX file with a contract; a checkpoint, which runs in PyTorch; on cuda also an engine.
        device: "cpu", "cuda", or "cuda:1" for the second GPU.
        engine: the runtime of an ONNX model on the CPU.
        threads: CPU threads within one operator of an ONNX model; one per core by default.
        batch: images in one run of the network on cuda, chosen by the size of its input by default; on the CPU one.
        network: the registered network that a checkpoint belongs to; by default the one that fits.
        compiled: a checkpoint's network goes through torch.compile.
        patches, two_scales, largest_side: how an image larger than the input is seen
            (`sodeploy.runtime.large_images.LargeImages`).

    Raises:
        UserError: the file is missing, broken or has no contract, or the device or the engine cannot be had.
    """
    large = LargeImages(patches, two_scales, largest_side)
    model = opening.ModelFile(Path(path), parse_device(device), engine, network, compiled, large, threads)
    with contextlib.ExitStack() as resources:
        opened = resources.enter_context(opening.open_mappers(model, batch, None))
        return Model(opened, model.on_device, resources.pop_all())


@overload
def cutout(  # type: ignore[overload-overlap]  # a str is one image
    image: "Image", model: Model, type: str = ..., *, edges: Edges = ..., threshold: float | None = ...
) -> np.ndarray: ...


@overload
def cutout(
    image: "Sequence[Image]", model: Model, type: str = ..., *, edges: Edges = ..., threshold: float | None = ...
) -> list[np.ndarray]: ...


def cutout(
    image: "Image | Sequence[Image]",
    model: Model,
    type: str = "rgba",
    *,
    edges: Edges = "estimate",
    threshold: float | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Make a picture of the salient object, as the command `infer --type` does.

    Args:
        image: as for `Model.__call__`.
        type: a type of the command `infer`, such as "rgba", "white" or "color:#FF8800".
        edges: "estimate" the colors of the edge without the old background, or "keep" the image's colors.
        threshold: make the map 255 from this value in [0, 1] on, else 0.

    Returns:
        uint8: (H, W, 4) RGBA of type "rgba", (H, W) of type "map", else (H, W, 3) RGB; of several images a list or an
        array, as of `Model.__call__`.

    Raises:
        UserError: as of `Model.__call__`; there is no such type; or the package that estimates colors is missing.
        ValueError: the model is closed, or there are no such edges.
    """
    if edges not in ("estimate", "keep"):
        raise ValueError(f"edges={edges!r}: choose estimate or keep")
    look = parse_look(type, threshold, edges == "estimate")
    return _one_or_many(image, lambda images: model.pictures(images, look))


@dataclass(frozen=True)
class _Given:
    """An image of a call.

    Attributes:
        number: its place in the call, from 1 on.
    """

    image: Any
    number: int

    def __str__(self) -> str:
        return str(self.image) if isinstance(self.image, str | os.PathLike) else f"image {self.number}"

    def frame(self, whole: bool) -> Frame:
        """The pixels; of an image file with its transparency and color profile if `whole`."""
        if isinstance(self.image, bytes | bytearray):
            return decode_frame(bytes(self.image), str(self), whole=whole)
        if isinstance(self.image, np.ndarray):
            return _frame_of_array(self.image, str(self))
        if isinstance(self.image, str | os.PathLike):
            return read_frame(Path(self.image), whole=whole)
        if hasattr(self.image, "getbands"):  # PIL's; the package itself is not needed here
            return _frame_of_pil(self.image, str(self))
        raise UserError(
            f"{self} is a {type(self.image).__name__}; give a path, bytes, an array (H, W, 3) of uint8, or a PIL image"
        )


def _frame_of_array(pixels: np.ndarray, name: str) -> Frame:
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8 or not pixels.size:
        raise UserError(
            f"{name} is an array {pixels.shape} of {pixels.dtype}; give (H, W, 3) of uint8, RGB, or (H, W, 4), RGBA"
        )
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Frame(np.ascontiguousarray(pixels[..., :3]), alpha)


def _frame_of_pil(image: "PIL.Image.Image", name: str) -> Frame:
    """The pixels of a PIL image, turned as its EXIF orientation says."""
    from PIL import ImageOps

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise UserError(f"{name} is a PIL image of mode {image.mode}, which is not 8 bits deep; give the file's path")
    upright = ImageOps.exif_transpose(image)
    return _frame_of_array(np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB")), name)


def _one_or_many(image: Any, made: Callable[[Iterable[Any]], Iterator[np.ndarray]]) -> Any:
    """The result of one image, a list for a list or tuple, an array for an array of images."""
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return np.stack(list(made(image)))
    if isinstance(image, list | tuple):
        return list(made(image))
    (result,) = made([image])
    return result
