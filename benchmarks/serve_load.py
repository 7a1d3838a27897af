"""The service under load, on this machine alone: pictures/s beside the pipeline's own, waiting times, memory.

    python benchmarks/serve_load.py out/u2netp.onnx --data PHOTOS --requests 400
    python benchmarks/serve_load.py out/u2netp.onnx --data PHOTOS --requests 10000 --rembg
    python benchmarks/serve_load.py out/u2netp.onnx --data PHOTOS --soak 30 --soak-rate 5

It starts `serve` on a free port of 127.0.0.1, sends a fixed number of requests, and stops it by SIGTERM. `--rembg` then
does the same with rembg's server, which runs the same ONNX file; both make cut-outs whose edges keep their colors.
rembg gets the environment of beside_rembg.py.
"""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from environments import python_of
from process_cost import CommandFailed

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.errors import UserError
from sodeploy.runtime.cpu import processor_name
from sodeploy.runtime.infer import infer
from sodeploy.runtime.measure.report import Table
from sodeploy.runtime.media.pictures import parse_look
from sodeploy.runtime.media.sources import find_source

_SERVICE = Path(__file__).resolve().parents[1] / "runtime" / "serve" / "serve.py"
_READY_S = 120.0
_REQUIREMENTS = Path(__file__).with_name("beside-requirements.txt")
_BOUNDARY = "sodeploy-serve-load"


class Server(NamedTuple):
    """A server that is ready.

    Attributes:
        fields: form fields that are sent with a picture.
    """

    process: "subprocess.Popen[str]"
    port: int
    path: str
    fields: dict[str, str]

    def body(self, picture: bytes) -> bytes:
        """The form with a picture."""
        head = "".join(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in self.fields.items()
        )
        file = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        return f"{head}{file}".encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()


class Sender(threading.Thread):
    """One client on one connection, which sends the next picture as soon as it has its answer."""

    def __init__(self, port: int, path: str, jobs: "queue.SimpleQueue[bytes | None]", pace: float) -> None:
        super().__init__(daemon=True)
        self._port, self._path, self._jobs, self._pace = port, path, jobs, pace
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while (data := self._jobs.get()) is not None:
            began = time.monotonic()
            try:
                connection.request(
                    "POST", self._path, data, {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
                )
                answer = connection.getresponse()
                answer.read()
                self.statuses[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                connection.close()
            self.seconds.append(time.monotonic() - began)
            time.sleep(max(0.0, self._pace - self.seconds[-1]))


def load(
    server: Server, pictures: list[bytes], requests: int, clients: int, rate: float | None = None
) -> dict[str, Any]:
    """Send a number of requests.

    Args:
        clients: connections at a time.
        rate: requests a second of all clients together; as fast as they are answered by default.
    """
    jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    bodies = [server.body(picture) for picture in pictures]
    for number in range(requests):
        jobs.put(bodies[number % len(bodies)])
    senders = [Sender(server.port, server.path, jobs, clients / rate if rate else 0.0) for _ in range(clients)]
    began = time.monotonic()
    for sender in senders:
        jobs.put(None)
        sender.start()
    for sender in senders:
        sender.join()
    wall = time.monotonic() - began
    seconds = np.array([one for sender in senders for one in sender.seconds])
    statuses = sum((sender.statuses for sender in senders), Counter[str]())
    return {
        "clients": clients,
        "pictures_per_s": round(statuses["200"] / wall, 2),
        "p50_ms": round(1e3 * float(np.percentile(seconds, 50)), 1),
        "p99_ms": round(1e3 * float(np.percentile(seconds, 99)), 1),
        "statuses": dict(statuses),
    }


def pipeline_rate(model: Path, data: str, images: int) -> float:
    """Pictures/s of `infer` on the same files, without the start of the model."""
    with tempfile.TemporaryDirectory() as folder:
        look = parse_look("rgba", estimated=False)
        infer(model, data, Path(folder, "warm"), style=look)
        began = time.monotonic()
        infer(model, data, Path(folder, "measured"), style=look)
        whole = time.monotonic() - began
        first = next(item.path for item in find_source(data, Path(folder)).items if item.path is not None)
        began = time.monotonic()
        infer(model, first, Path(folder, "one"), style=look)
        start = time.monotonic() - began
    return (images - 1) / max(whole - start, 1e-6)


def resident_mb(pid: int) -> float:
    """Memory of a process, as Linux counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def start(model: Path, path: str, options: list[str]) -> Server:
    """The service, ready."""
    call = [sys.executable, str(_SERVICE), "--model", str(model), "--port", "0", *options]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    if not line.startswith("serving at "):
        raise UserError(f"serve does not start: {line.strip()}")
    server = Server(process, int(line.rstrip("/\n").rpartition(":")[2]), path, {})
    return _ready(server, "GET", "/readyz", None)


def start_rembg(model: Path, environment: Path, picture: bytes) -> Server:
    """rembg's server with the same ONNX file, ready: it has made one cut-out."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    python = python_of(environment, _REQUIREMENTS, environment.with_suffix(".log"))
    if isinstance(python, CommandFailed):
        raise UserError(f"rembg cannot be installed: {python}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = [str(Path(python).with_name("rembg")), "s", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    silent = subprocess.DEVNULL
    home = os.environ | {"REMBG_HOME": str(model.resolve().parent)}  # it reads models there alone
    process = subprocess.Popen(call, stdout=silent, stderr=silent, text=True, env=home)
    extras = urllib.parse.quote(json.dumps({"model_path": str(model.resolve())}))  # rembg reads them in the query alone
    server = Server(process, port, f"/api/remove?extras={extras}", {"model": "u2net_custom"})
    return _ready(server, "POST", server.path, server.body(picture))


def _ready(server: Server, method: str, path: str, body: bytes | None) -> Server:
    """The server, once it answers a request with status 200."""
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"} if body else {}
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and server.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_READY_S)
        try:
            connection.request(method, path, body, headers)
            if connection.getresponse().status == 200:
                return server
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    server.process.kill()
    raise UserError(f"{' '.join(map(str, server.process.args))} did not become ready")  # type: ignore[arg-type]


def measure(server: Server, pictures: list[bytes], requests: int, clients: int) -> dict[str, Any]:
    """Full load, half load and one client, and the memory before and after; the server ends by SIGTERM."""
    record: dict[str, Any] = {}
    try:
        load(server, pictures, min(requests, 50), clients)  # memory is taken, kernels are chosen
        before = resident_mb(server.process.pid)
        record["full_load"] = full = load(server, pictures, requests, clients)
        after = resident_mb(server.process.pid)
        record["half_load"] = load(server, pictures, min(requests // 2, 1000), clients, full["pictures_per_s"] / 2)
        record["one_client"] = load(server, pictures, max(10, min(requests // 4, 200)), 1)
        record["memory_mb"] = {"warm": round(before, 1), "end": round(after, 1), "growth": round(after / before - 1, 4)}
    finally:
        server.process.send_signal(signal.SIGTERM)
        record["exit_status"] = server.process.wait(120)
    return record


def soak(server: Server, pictures: list[bytes], minutes: int, rate: float) -> dict[str, Any]:
    """An even load for a long time, and the memory after each minute; the growth counts from the second minute on."""
    statuses = Counter[str]()
    memory = []
    try:
        for _ in terminal.progress(range(minutes), "minutes"):
            statuses.update(load(server, pictures, max(1, round(60 * rate)), 2, rate)["statuses"])
            memory.append(round(resident_mb(server.process.pid), 1))
    finally:
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(120)
    first = memory[min(1, len(memory) - 1)]
    return {
        "requests_per_s": rate,
        "statuses": dict(statuses),
        "memory_mb": memory,
        "growth": round(memory[-1] / first - 1, 4),
        "exit_status": status,
    }


def tables(record: dict[str, Any]) -> list[Table]:
    """The tables of the documentation; of a soak alone, one."""
    loads = {"full load": "full_load", "half load": "half_load", "one client": "one_client"}
    names = {"sodeploy serve": "serve", "rembg s": "rembg"}
    measured = {name: record[key] for name, key in names.items() if key in record}
    made: list[Table] = []
    if measured:
        rows = [
            [
                name,
                load_name,
                str(one[key]["clients"]),
                f"{one[key]['pictures_per_s']:.1f}",
                f"{one[key]['p50_ms']:.0f}",
                f"{one[key]['p99_ms']:.0f}",
                _statuses(one[key]["statuses"]),
            ]
            for name, one in measured.items()
            for load_name, key in loads.items()
        ]
        caption = [
            f"{record['model']}, {record['images']} photographs in turn, on {record['hardware']}",
            f"`infer` on the same photographs: {record['infer_pictures_per_s']:.1f} images/s, of which the service "
            f"under full load reaches {100 * record['of_infer']:.0f} %",
        ]
        header = ["server", "load", "clients", "images/s", "p50 (ms)", "p99 (ms)", "answers by status"]
        made.append(Table("Load", header, rows, text_columns=2, caption="\n".join(caption)))
        memory = [
            [name, _statuses(one["full_load"]["statuses"]), *(f"{one['memory_mb'][at]:.0f}" for at in ("warm", "end"))]
            for name, one in measured.items()
        ]
        made.append(Table("Memory", ["server", "requests at full load", "before (MB)", "after (MB)"], memory))
    if soaked := record.get("soak"):
        memory_mb = soaked["memory_mb"]
        row = [str(len(memory_mb)), f"{soaked['requests_per_s']:g}", _statuses(soaked["statuses"])]
        row += [f"{memory_mb[:2][-1]:.0f}", f"{memory_mb[-1]:.0f}", f"{100 * soaked['growth']:.1f} %"]
        header = ["minutes", "requests/s", "answers by status", "MB after 2 minutes", "MB at the end", "growth"]
        made.append(Table("Soak", header, [row], text_columns=0, caption=f"{record['model']} on {record['hardware']}"))
    return made


def _statuses(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


def main(
    model: Annotated[Path, typer.Argument(help="an ONNX model")],
    data: Annotated[str, typer.Option(help="a folder of photographs")],
    requests: Annotated[int, typer.Option(help="requests of each measurement", min=10, max=1_000_000)] = 400,
    clients: Annotated[int, typer.Option(help="connections at full load", min=1, max=512)] = 8,
    limit: Annotated[int, typer.Option(help="photographs that are sent, one after the other", min=2)] = 40,
    path: Annotated[str, typer.Option(help="path and parameters")] = "/v1/cutout?edges=keep",
    serve: Annotated[str, typer.Option(help="further options of serve, for example '--workers 2'")] = "",
    rembg: Annotated[bool, typer.Option("--rembg", help="measure rembg's server too")] = False,
    environment: Annotated[Path, typer.Option(help="environment of rembg; made where it is missing")] = Path(
        "out/beside/environment"
    ),
    soak_minutes: Annotated[
        int, typer.Option("--soak", help="only an even load for so many minutes, and the memory", min=0)
    ] = 0,
    soak_rate: Annotated[float, typer.Option(help="soak: requests a second", min=0.1)] = 5.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record to this file")] = None,
) -> None:
    """Measure the service under load."""
    found = [item.path for item in find_source(data, Path("results")).items if item.path is not None][:limit]
    if len(found) < 2:
        raise UserError(f"--data {data} has fewer than two photographs; give a folder of them")
    pictures = [file.read_bytes() for file in found]
    record: dict[str, Any] = {"model": model.stem, "images": len(pictures), "hardware": processor_name()}
    if soak_minutes:
        record["soak"] = soak(start(model, path, serve.split()), pictures, soak_minutes, soak_rate)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for file in found:
                Path(folder, file.name).symlink_to(file.resolve())
            record["infer_pictures_per_s"] = round(pipeline_rate(model, folder, len(found)), 2)
        record["serve"] = measure(start(model, path, serve.split()), pictures, requests, clients)
        rate = record["serve"]["full_load"]["pictures_per_s"]
        record["of_infer"] = round(rate / record["infer_pictures_per_s"], 3)
    if rembg:
        record["rembg"] = measure(start_rembg(model, environment, pictures[0]), pictures, requests, clients)
    terminal.results.print_json(json.dumps(record))
    if json_file:
        write_text(json_file, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
