"""Models to a model repository for NVIDIA Triton Inference Server.

    sodeploy triton --model out/u2netp.onnx --output repository
    sodeploy triton --model u2netp=out/sm86.engine --model u2netp=out/sm89.engine --output repository

For each network a folder with `config.pbtxt` and a version folder; beside it NAME_mask, which takes encoded images and
gives saliency maps. The repository is written whole or not at all.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import onnx
import typer
from onnx.external_data_helper import uses_external_data
from tritonclient.grpc import model_config_pb2 as schema

from sodeploy import command_line, terminal
from sodeploy.artifacts import check_output_folder, write_manifest
from sodeploy.errors import UserError
from sodeploy.runtime.onnx_file import graphs, read_model
from sodeploy.runtime.triton_server.model_config import config_text, mask_config, network_config, parse_config
from sodeploy.runtime.triton_server.served import MASK, DeviceKind, OnnxBackend, Served, Serving, parse_models, served

VERSION = "1"
_MASK_MODEL = Path(__file__).with_name("mask_model.py")


def write_repository(
    models: Mapping[str, Sequence[Path]], output: str | Path, serving: Serving = Serving()
) -> list[str]:
    """Write a model repository.

    Args:
        models: name -> an ONNX file, or engines for different GPUs.
        output: the folder to make; it is not there yet, or empty.

    Returns:
        The names of the models in it.

    Raises:
        UserError: a model is unfit, or the folder has content; nothing is written then.
        OSError: for example no space is left; nothing is written then.
    """
    output = Path(output)
    check_output_folder(output)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; give a new folder, so that a server never sees half a repository")
    networks = [served(name, paths, serving) for name, paths in models.items()]
    names: list[str] = []
    with _whole_folder(output) as folder:
        for one in terminal.progress(networks, "models", len(networks)):
            names.append(one.network.name)
            _write_network(one, folder / one.network.name)
            if serving.masks:
                names.append(one.network.name + MASK)
                _write_mask(one, folder / names[-1], serving.mask_instances)
    return names


@contextlib.contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output` that gets its name when the block ends well, and goes if it does not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".partial") as place:
        folder = Path(place) / output.name
        folder.mkdir()
        yield folder
        folder.replace(output)


def _write_network(one: Served, folder: Path) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    for name, source in one.sources.items():
        _copy_model(source, version / name)
        write_manifest(version / name, {"model": source})
    _write_config(folder, network_config(one.network), one)


def _write_mask(one: Served, folder: Path, instances: int) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    shutil.copyfile(_MASK_MODEL, version / "model.py")
    write_manifest(version / "model.py", {})
    _write_config(folder, mask_config(folder.name, one.network, instances), one)


def _write_config(folder: Path, config: schema.ModelConfig, one: Served) -> None:
    """Write `config.pbtxt`, once Triton's schema has read the text back as the same configuration."""
    path = folder / "config.pbtxt"
    text = config_text(config)
    if parse_config(text, str(path)) != config:
        raise UserError(f"{path} does not read back as it was written; install another protobuf")
    path.write_text(text)
    write_manifest(path, one.sources, contract=one.network.contract.model_dump(mode="json"))


def _copy_model(source: Path, target: Path) -> None:
    """Copy a model into one file; weights that an ONNX file keeps in others are put into it."""
    if source.suffix == ".onnx":
        model = onnx.load(source, load_external_data=False)
        if any(uses_external_data(tensor) for graph in graphs(model.graph) for tensor in graph.initializer):
            try:
                onnx.save(read_model(source), target)
            except ValueError:  # protobuf's limit
                raise UserError(f"{source} is larger than 2 GiB with its weights; give an engine instead") from None
            return
    shutil.copyfile(source, target)


def main(
    model: Annotated[
        list[str],
        typer.Option(metavar="[NAME=]FILE", help="an .onnx or .engine file; engines for different GPUs share a name"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the repository's folder, new or empty")],
    backend: Annotated[OnnxBackend, typer.Option(help="Triton's back end for ONNX files")] = "onnxruntime",
    device: Annotated[DeviceKind, typer.Option(help="where ONNX files run; engines run on GPUs")] = "cpu",
    instances: Annotated[int, typer.Option(help="copies of each network on each GPU, or on the CPU", min=1)] = 1,
    max_batch: Annotated[
        int, typer.Option(help="images in one run, where the model leaves its batch free", min=1)
    ] = Serving.most_batch,
    preferred_batch: Annotated[
        list[int] | None,
        typer.Option(help="batch at which Triton waits for no more, by default the largest; repeatable", min=1),
    ] = None,
    queue_delay: Annotated[
        int, typer.Option(help="longest wait for more requests, in microseconds", min=0)
    ] = Serving.delay_us,
    mask: Annotated[bool, typer.Option("--mask/--no-mask", help="write NAME_mask too: image in, map out")] = True,
    mask_instances: Annotated[int, typer.Option(help="processes of each NAME_mask", min=1)] = 1,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server."""
    serving = Serving(
        backend, device, instances, max_batch, tuple(preferred_batch or ()), queue_delay, mask, mask_instances
    )
    names = write_repository(parse_models(model), output, serving)
    terminal.results.print(f"{', '.join(names)} in {output}", soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
