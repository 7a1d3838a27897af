"""A service that makes saliency maps and cut-outs over HTTP, with a page for people.

python runtime/serve/serve.py --model out/u2netp.onnx
python runtime/serve/serve.py --model fp32=out/u2netp.onnx --model int8=out/u2netp.int8.cpu.onnx --workers 2
"""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sodeploy import command_line, terminal
from sodeploy.errors import UserError
from sodeploy.runtime.infer import parse_device
from sodeploy.runtime.options import DeviceOption, EngineOption
from sodeploy.runtime.serve.settings import Settings, parse_models, read_keys
from sodeploy.workers import usable_cores


def serve(settings: Settings, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted are answered first.

    Raises:
        ModuleNotFoundError: the extra "serve" is not installed.
        UserError: the port cannot be had, or a model cannot be opened.
    """
    from sodeploy.runtime.serve.listening import listening_socket
    from sodeploy.runtime.serve.sharing import serve_by_workers

    with listening_socket(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        terminal.note(f"serving at http://{shown}:{listening.getsockname()[1]}/")
        if settings.workers > 1:
            serve_by_workers(serve_here, settings, listening)
        else:
            serve_here(settings, listening)
    terminal.note("stopped; all accepted requests are answered")


def serve_here(settings: Settings, listening: socket.socket) -> None:
    """Serve in this process until SIGTERM or Ctrl-C.

    Raises:
        UserError: a model cannot be opened, or the GPU was lost.
    """
    import cv2

    from sodeploy.runtime.serve.app import make_app
    from sodeploy.runtime.serve.listening import make_server

    cv2.setNumThreads(1)  # several pictures are worked on at a time already

    def stop() -> None:
        server.should_exit = True

    app = make_app(settings, stop)
    server = make_server(app, settings.workers == 1, settings.deadline_s, settings.drain_s)
    with _signals_ignored():  # uvicorn has its own handlers while it runs, and raises the signal again at its end
        try:
            server.run(sockets=[listening])
        except SystemExit:  # of uvicorn, where the application does not start
            if not app.state.service.failure:
                raise
    if app.state.service.failure:
        raise UserError(app.state.service.failure)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(
    model: Annotated[
        list[str], typer.Option(metavar="[NAME=]FILE", help="a model, and its name; the first one is the default")
    ],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 for all of this machine")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 for any free one", min=0, max=65535)] = 8000,
    engine: EngineOption = "onnxruntime",
    device: DeviceOption = "cpu",
    batch: Annotated[int, typer.Option(help="pictures in one run of the network, at most", min=1, max=256)] = 8,
    window_ms: Annotated[
        float, typer.Option(help="milliseconds that a run waits for more pictures", min=0, max=1000)
    ] = 4.0,
    queue: Annotated[
        int, typer.Option(help="pictures accepted and not answered yet, at most; then status 429", min=1)
    ] = 64,
    deadline: Annotated[
        float, typer.Option(help="seconds for one request, at most; then status 504", min=0.05, max=3600)
    ] = 30.0,
    max_megapixels: Annotated[
        float, typer.Option(help="larger pictures are refused before they are decoded", min=0.001)
    ] = 50.0,
    max_bytes: Annotated[int, typer.Option(help="larger files are refused", min=1)] = 32_000_000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="file of API keys, one a line; requests must have one of them")
    ] = None,
    workers: Annotated[int, typer.Option(help="processes that share the port", min=1, max=256)] = 1,
) -> None:
    """Serve saliency maps and cut-outs over HTTP, with a page for people."""
    gpu = parse_device(device)
    models = parse_models(model)
    for path in models.values():
        if gpu is None and path.suffix == ".engine":
            raise UserError(f"{path} runs on a GPU; choose the device cuda, or give the ONNX file it was built from")
    settings = Settings(
        models,
        gpu=gpu,
        engine=engine,
        threads=max(1, usable_cores() // workers) if workers > 1 else None,
        batch=batch,
        window_s=window_ms / 1e3,
        queue=queue,
        deadline_s=deadline,
        most_pixels=int(max_megapixels * 1e6),
        most_bytes=max_bytes,
        keys=read_keys(api_key_file) if api_key_file else (),
        workers=workers,
    )
    serve(settings, host, port)


if __name__ == "__main__":
    command_line.run(main)
