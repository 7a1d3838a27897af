"""The entry point of the images: the service, or any stage.

    docker run IMAGE                                        # serve the one ONNX file in /models
    docker run IMAGE serve --model /models/u2netp.onnx      # serve this one
    docker run IMAGE bench ...                              # sodeploy bench ...

On a GPU, `serve` gets an engine for every ONNX file. The first start builds it into /engines, with its manifest; later
starts take it from there, and build it again where it does not fit the GPU or the TensorRT at hand.

Environment: PORT of the service (8000), DEVICE (cpu; cuda in the image for GPUs), SHAPES of the engines, as
`sodeploy engine --shapes` has them.
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

MODELS = Path("/models")
ENGINES = Path("/engines")
COMPILED = Path(sys.prefix, "numba")  # by numba_ahead.py


def command(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command line that takes the place of this process. Engines that are missing are built first.

    Raises:
        UserError: no model is named, and /models does not hold exactly one; or an engine cannot be built.
    """
    if not arguments or arguments[0] != "serve" or {"-h", "--help"} & set(arguments):
        return ["sodeploy", *(arguments or ["--help"])]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", action="append")
    parser.add_argument("--device", default=environment.get("DEVICE", "cpu"))
    given, others = parser.parse_known_args(arguments[1:])
    models = given.model or [str(only_model(MODELS))]
    if given.device != "cpu":
        models = with_engines(models, ENGINES, environment.get("SHAPES"))
    # Of an option that stands twice the last one counts, so the user's --host and --port do.
    fixed = ["--host", "0.0.0.0", "--port", environment.get("PORT", "8000"), "--device", given.device]
    return ["sodeploy", "serve", *fixed, *others, *(f"--model={model}" for model in models)]


def only_model(folder: Path) -> Path:
    """The one ONNX file in `folder`.

    Raises:
        UserError: there is none, or there are several.
    """
    from sodeploy.errors import UserError

    found = sorted(folder.glob("*.onnx"))
    if len(found) == 1:
        return found[0]
    there = f"{folder} holds {', '.join(file.name for file in found)}" if found else f"{folder} holds no .onnx file"
    raise UserError(f"{there}; mount a folder of models there and name one: serve --model {folder / 'NAME.onnx'}")


def with_engines(models: Sequence[str], folder: Path, shapes: str | None) -> list[str]:
    """The models with an engine in place of every ONNX file.

    Args:
        models: as --model has them: FILE or NAME=FILE.
        folder: where engines are kept.
        shapes: range of input shapes, min:opt:max, of graphs with dynamic shapes.

    Raises:
        UserError: a model is missing, or its engine cannot be built here.
    """
    from sodeploy.runtime.serve.settings import parse_models

    files = parse_models(models)
    return [f"{name}={engine_of(file, folder, shapes)}" for name, file in files.items()]


def engine_of(file: Path, folder: Path, shapes: str | None) -> Path:
    """The engine of an ONNX file for the GPU at hand, from `folder` or built into it; any other file as it is.

    Raises:
        UserError: it cannot be built here, or another container builds in `folder` now.
    """
    if file.suffix != ".onnx":
        return file
    from sodeploy import terminal
    from sodeploy.artifacts import sha256
    from sodeploy.errors import UserError
    from sodeploy.folder_lock import locked
    from sodeploy.quant.engine import build, choose_builder, parse_profile
    from sodeploy.runtime.gpu.driver import current_gpu
    from sodeploy.runtime.gpu.engine_record import check_engine

    content = f"{sha256(file)[:16]}-{current_gpu().capability}"
    engine = folder / f"{file.stem}-{content}.engine"
    if engine.is_file():
        try:
            check_engine(engine)
            return engine
        except UserError as error:
            terminal.warn(str(error))
    terminal.note(f"building the engine of {file}: {engine}; this takes minutes, and only the first start does it")
    with locked(folder):
        build(file, engine, choose_builder(), profile=parse_profile(shapes) if shapes else None)
    return engine


def fill_cache(compiled: Path, cache: str | None) -> None:
    """Copy what numba compiled when the image was built into its cache, which must be a place that it can write to."""
    if cache and compiled.is_dir() and not Path(cache).exists():
        with contextlib.suppress(OSError):  # nothing can be written there; numba says so, where it is needed
            shutil.copytree(compiled, cache)


def main() -> None:
    """Become the command that the arguments ask for."""
    from sodeploy import command_line, terminal

    fill_cache(COMPILED, os.environ.get("NUMBA_CACHE_DIR"))
    with command_line.errors_in_one_line("serve"), terminal.talking():
        words = command(sys.argv[1:], os.environ)
        os.execvp(words[0], words)


if __name__ == "__main__":
    main()
