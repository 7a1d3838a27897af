"""Opening the models of a measurement, and the checks that come before it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from sodeploy import stages, terminal
from sodeploy.calib_data import Dataset, Sample
from sodeploy.errors import UserError
from sodeploy.runtime.contract import DIALECT_KEY
from sodeploy.runtime.gpu.device import open_device
from sodeploy.runtime.measure.report import labels
from sodeploy.runtime.measure.runners import CpuRunner, GpuRunner
from sodeploy.runtime.measure.under_test import ModelUnderTest
from sodeploy.runtime.session import EngineName


def open_models(
    models: Sequence[str | Path],
    on_gpu: Sequence[bool],
    threads: int,
    engines: Sequence[EngineName],
    first: Sample,
    stack: contextlib.ExitStack,
) -> list[ModelUnderTest]:
    """Each model, ready to run, on a CPU once for each engine that it can be measured in.

    Args:
        on_gpu: of each model, whether it runs on the GPU.
        threads: CPU threads of the network.
        engines: runtimes of models on the CPU.
        first: an image to warm up with.
        stack: closes the models and the device.

    Raises:
        UserError: a model is unfit, or the device cannot be had.
    """
    gpu = stack.enter_context(open_device()) if any(on_gpu) else None
    if gpu is not None:
        stack.enter_context(gpu.current())
    tested = []
    for model, name, there in zip(map(str, models), labels(list(map(str, models))), on_gpu, strict=True):
        if gpu is None or not there:
            for engine in _engines_for(Path(model), engines):
                own_name = name if len(engines) == 1 else f"{name} in {engine}"
                runner = stack.enter_context(CpuRunner(Path(model), threads, engine))
                tested.append(ModelUnderTest(model, runner, own_name))
            continue
        before = gpu.memory()[0]
        one = ModelUnderTest(model, stack.enter_context(GpuRunner(Path(model), gpu)), name)
        one.warm_up(first.image(), first.name)  # onnxruntime takes its memory when it first runs
        one.own_memory_mib = (before - gpu.memory()[0]) / 2**20
        tested.append(one)
    return tested


def _engines_for(model: Path, engines: Sequence[EngineName]) -> list[EngineName]:
    """The engines among `engines` that a graph is made for, or all of them; one for a stand-in for a GPU."""
    if len(engines) == 1:
        return list(engines)
    from sodeploy.runtime.onnx_file import read_model

    metadata = {entry.key: entry.value for entry in read_model(model).metadata_props}
    dialect = metadata.get(DIALECT_KEY, "")
    if dialect in ("simulation", "tensorrt"):  # its accuracy is wanted, in whatever engine
        return list(engines[:1])
    made_for = {"cpu": "onnxruntime", "openvino": "openvino"}.get(dialect, "")
    return [engine for engine in engines if engine.startswith(made_for)] or list(engines)


def count_calibration_images(tested: Sequence[ModelUnderTest], dataset: Dataset) -> None:
    """Fill in on how many of the images each model was calibrated."""
    if not any(model.calibration_digests for model in tested):
        return
    digests = [sample.digest() for sample in terminal.progress(dataset, "comparing with the calibration images")]
    for model in tested:
        if theirs := model.calibration_digests:
            model.calibrated_on = sum(digest in theirs for digest in digests)


def refuse_overlap(tested: Sequence[ModelUnderTest], dataset: Dataset) -> None:
    """
    Raises:
        UserError: a model was calibrated on images of `dataset`, by `count_calibration_images`.
    """
    for model in tested:
        if model.calibrated_on:
            raise UserError(
                f"{model.path} was calibrated on {model.calibrated_on} of the {len(dataset)} images of {dataset.name}, "
                "which flatters it; evaluate on other images, or insist with --allow-overlap"
            )


def announce_stand_ins(tested: Sequence[ModelUnderTest]) -> None:
    """Warn about graphs for a GPU on a CPU: onnxruntime runs them in other arithmetic without a word."""
    for model in tested:
        if model.stand_in not in ("", "simulates an engine"):
            simulation = Path(model.path).stem.removesuffix(".trt") + ".sim.onnx"
            terminal.warn(
                f"{model.path} {model.stand_in}, so its accuracy differs from that of an engine; measure {simulation} "
                f"instead, which {stages.command('build_engine')} writes"
            )
