"""Whole ways through the product on a GPU: image in, picture out, against the usual way of doing it."""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from kernel_times import FULL_HD, alternate

from sodeploy.calib_data.images import read_image
from sodeploy.errors import UserError
from sodeploy.runtime.bench import bench
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.errors import DeviceLost
from sodeploy.runtime.gpu.device import Device
from sodeploy.runtime.gpu.driver import current_gpu
from sodeploy.runtime.gpu.pipeline import Pipeline
from sodeploy.runtime.gpu.processing import CudaProcessing
from sodeploy.runtime.gpu.session import DeviceSession, open_on_device
from sodeploy.runtime.processing import postprocess, preprocess
from sodeploy.runtime.session import DeviceName, Session, open_session

Row = dict[str, Any]

_BATCH, _FILES, _REPEATS = 8, 64, 20
_UNTRAINED = "untrained_"  # begins the names of models that make_models.py writes: for times alone
_BUDGET = {"s": 0.005, "mae": 0.002}


def processing_rows(device: Device) -> Iterator[Row]:
    """Pre- and post-processing of Full-HD images, with copies: on the CPU, by our kernels, by torch if it is here."""
    contract = Contract(
        network="benchmark", height=320, width=320, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), stretch=True
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*FULL_HD, 3), dtype=np.uint8) for _ in range(_BATCH)]
    saliency = rng.random((320, 320), np.float32)
    stream = device.stream()
    processing = CudaProcessing(device, contract, stream)

    def on_cpu() -> None:
        for image in images:
            preprocess(image, contract)
            postprocess(saliency, contract, FULL_HD)

    def by_kernels() -> None:
        processing.stage(images)
        processing.preprocess()
        processing.postprocess()
        device.wait(stream)
        processing.pictures()

    works: dict[str, Callable[[], None]] = {"cv2 on the CPU": on_cpu, "our kernels": by_kernels}
    if importlib.util.find_spec("torch") and (by_torch := _torch_way(images, contract)):
        works["torch on the GPU"] = by_torch
    for name, seconds in alternate(works, _REPEATS).items():
        yield {f"pre and post of {_BATCH} images 1920x1080": name, **_percentiles(seconds, per=_BATCH)}
    processing.release()
    device.keep(stream)


def build_engines(models: Sequence[Path], folder: Path, deadline: float) -> Iterator[tuple[Path | None, Row]]:
    """Each model's engine by each builder that is here, or None, and a row on how that went.

    Args:
        deadline: no build is begun after this time of `time.monotonic`.
    """
    from sodeploy.quant.engine import build, installed_builders  # needs onnx, which the other parts do without
    from sodeploy.quant.engines.builder import load

    for builder in installed_builders():
        capability = current_gpu().capability
        targets = [capability] if builder == "tensorrt_rtx" else None
        if targets and not hasattr(load(builder).ComputeCapability, capability.upper()):
            yield None, {"engine": builder, "built": f"no: {builder} compiles nothing for {capability}"}
            continue
        for model in models:
            path = folder / f"{model.stem}.{builder}.engine"
            if time.monotonic() > deadline:
                yield None, {"engine": path.name, "built": "no: out of time"}
                continue
            try:
                report = build(model, path, builder, targets=targets, profile=_profile(model))
                yield path, {"engine": path.name, "built": str(report)}
            except UserError as error:
                yield None, {"engine": path.name, "built": f"no: {error}"}


def runs_onnx_on_gpu() -> bool:
    """Whether an onnxruntime with a CUDA provider is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def pipeline_rows(device: Device, models: Sequence[Path]) -> Iterator[Row]:
    """GPU time of each network alone, and images per second through the pipeline and the usual way."""
    with tempfile.TemporaryDirectory() as folder:
        files = _photographs(Path(folder))
        for path in models:
            try:
                with open_on_device(path, device) as session, open_session(path, "cuda") as usual:
                    yield {"model": path.name, **_pipeline_figures(device, session, usual, files)}
            except DeviceLost:
                raise
            except UserError as error:
                yield {"model": path.name, "failed": str(error)}


def accuracy_rows(graphs: Sequence[Path], engines: Sequence[Path], data: str) -> Iterator[Row | str]:
    """Accuracy of each float32 graph, of its other graphs if onnxruntime runs them on the GPU, and of its engines, with
    differences and speed; then sentences: what to deploy on this GPU, and whether int8 pays."""
    device: DeviceName = "cuda" if runs_onnx_on_gpu() else "cpu"
    for baseline in graphs:
        if {".fp16", ".int8"} & set(baseline.suffixes) or baseline.name.startswith(_UNTRAINED):
            continue
        graphs_too = graphs if runs_onnx_on_gpu() else ()
        others = [path for path in (*graphs_too, *engines) if path.name.startswith(f"{baseline.stem}.")]
        yield from _accuracy_of([baseline, *(path for path in others if path != baseline)], data, device)


def _accuracy_of(candidates: Sequence[Path], data: str, device: DeviceName) -> Iterator[Row | str]:
    models: list[Path] = []
    for path in candidates:
        try:
            bench([path], data, device=device, limit=1)
            models.append(path)
        except DeviceLost:
            raise
        except UserError as error:
            yield {"model": path.name, "failed": str(error)}
    if not models:
        return
    record = bench(models, data, device=device, budget=_BUDGET)
    for row in record.rows:
        scores = {name: row.metrics[name] for name in ("mae", "max_f", "s")}
        yield {
            "model": Path(row.model).name,
            "on": row.device,
            **scores,
            "difference of s": row.delta["s"].value,
            "difference of mae": row.delta["mae"].value,
            "inference p50 ms": row.latency_ms["infer"].p50,
            "total p50 ms": row.latency_ms["total"].p50,
            "images/s": row.images_per_s or "",
            "device memory MiB": row.device_memory_mib or "",
        }
    yield f"{Path(models[0]).stem}: {record.images} images of {Path(data).name}."
    yield from record.recommendation.text


def _pipeline_figures(device: Device, session: DeviceSession, usual: Session, files: list[Path]) -> Row:
    batch = min(_BATCH, session.largest_batch or _BATCH)
    contract = session.contract

    def usual_way() -> None:
        for start in range(0, len(files), batch):
            images = [read_image(file) for file in files[start : start + batch]]
            outputs = usual.infer(np.stack([preprocess(image, contract) for image in images]))
            for image, output in zip(images, outputs, strict=True):
                postprocess(output[0], contract, (image.shape[0], image.shape[1]))

    def pipelined() -> None:
        for _, picture in pipeline.pictures(files, read_image):
            if isinstance(picture, UserError):
                raise picture

    with Pipeline(session, batch=batch) as pipeline:
        seconds = alternate({"usual": usual_way, "pipeline": pipelined}, 3)
        free, total = device.memory()  # what a session has taken it keeps
    rates = {name: len(files) / statistics.median(times) for name, times in seconds.items()}
    return {
        "network batch 1 ms": _network_time(device, session, 1) * 1e3,
        "batch": batch,
        "network batch ms": _network_time(device, session, batch) * 1e3,
        "usual way images/s": rates["usual"],
        "pipeline images/s": rates["pipeline"],
        "times as many": rates["pipeline"] / rates["usual"],
        "device memory in use MiB": (total - free) / 2**20,
    }


def _network_time(device: Device, session: DeviceSession, batch: int) -> float:
    """Median GPU seconds of one run."""
    batch = max(batch, session.smallest_batch)
    shape = (batch, 3, session.contract.height, session.contract.width)
    size = int(np.prod(shape)) * 4
    memory, stream, seconds = device.allocate(2 * size), device.stream(), []
    device.clear(memory.address, 2 * size, stream)

    def run() -> None:
        timed.enqueue(memory.address, memory.address + size, shape)

    with session.fork(stream) as timed:
        for _ in range(3 + 50):
            begin, end = device.event(), device.event()
            begin.record(stream)
            timed.graphs.run(shape, run)
            end.record(stream)
            device.wait(stream)
            seconds.append(begin.time_till(end) / 1e3)
    memory.free()
    device.keep(stream)
    return statistics.median(seconds[3:])


def _photographs(folder: Path) -> list[Path]:
    """Full-HD JPEG files with the detail of photographs: smoothed noise over a gradient."""
    files = []
    for number in range(_FILES):
        noise = np.random.default_rng(number).integers(0, 256, (270, 480, 3), dtype=np.uint8)
        image = cv2.resize(cv2.GaussianBlur(noise, (0, 0), 2), FULL_HD[::-1], interpolation=cv2.INTER_CUBIC)
        files.append(folder / f"{number}.jpg")
        cv2.imwrite(str(files[-1]), image)
    return files


def _torch_way(images: list[np.ndarray], contract: Contract) -> Callable[[], None] | None:
    """The same with torch's own operations on the GPU; None where torch cannot use it."""
    import torch
    from torch.nn.functional import interpolate

    if not torch.cuda.is_available():
        return None
    size = (contract.height, contract.width)
    mean, std = (torch.tensor(values, device="cuda").view(1, 3, 1, 1) for values in (contract.mean, contract.std))
    saliency = torch.rand(1, 1, *size, device="cuda")

    def work() -> None:
        for image in images:
            pixels = torch.from_numpy(image).cuda(non_blocking=True).permute(2, 0, 1)[None].float()
            (interpolate(pixels, size, mode="bilinear", align_corners=False) / 255 - mean) / std
            stretched = (saliency - saliency.min()) / (saliency.max() - saliency.min())
            large = interpolate(stretched, FULL_HD, mode="bilinear", align_corners=False)
            (large * 255).round().to(torch.uint8).cpu()

    return work


def _profile(model: Path) -> Any:
    """The range of batches to build for; None for a model whose input has one shape."""
    from sodeploy.quant.engines.shapes import parse_profile
    from sodeploy.runtime.contract import contract_of
    from sodeploy.runtime.onnx_file import read_model

    contract = contract_of({entry.key: entry.value for entry in read_model(model).metadata_props}, model)
    if contract.batch is not None and not contract.dynamic_size:
        return None
    batches = (1, _BATCH, _BATCH) if contract.batch is None else (contract.batch,) * 3
    return parse_profile(":".join(f"{n}x3x{contract.height}x{contract.width}" for n in batches))


def _percentiles(seconds: list[float], per: int) -> Row:
    return {f"p{p} ms an image": float(np.percentile(seconds, p)) * 1e3 / per for p in (50, 90, 99)}
