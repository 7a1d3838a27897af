"""The service under load, on this machine alone: pictures/s beside the pipeline's own, waiting times, memory.

    python benchmarks/serve_load.py out/u2netp.onnx --data PHOTOS --requests 400

It starts `serve` on a free port of 127.0.0.1, sends a fixed number of requests, and stops it by SIGTERM.
"""

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.errors import UserError
from sodeploy.runtime.infer import infer
from sodeploy.runtime.media.sources import find_source

_SERVICE = Path(__file__).resolve().parents[1] / "runtime" / "serve" / "serve.py"
_READY_S = 120.0


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
                connection.request("POST", self._path, data, {"Content-Type": "application/octet-stream"})
                answer = connection.getresponse()
                answer.read()
                self.statuses[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                connection.close()
            self.seconds.append(time.monotonic() - began)
            time.sleep(max(0.0, self._pace - self.seconds[-1]))


def load(
    port: int, path: str, pictures: list[bytes], requests: int, clients: int, rate: float | None = None
) -> dict[str, Any]:
    """Send a number of requests.

    Args:
        clients: connections at a time.
        rate: requests a second of all clients together; as fast as they are answered by default.
    """
    jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for number in range(requests):
        jobs.put(pictures[number % len(pictures)])
    senders = [Sender(port, path, jobs, clients / rate if rate else 0.0) for _ in range(clients)]
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
        infer(model, data, Path(folder, "warm"))
        began = time.monotonic()
        infer(model, data, Path(folder, "measured"))
        whole = time.monotonic() - began
        first = next(item.path for item in find_source(data, Path(folder)).items if item.path is not None)
        began = time.monotonic()
        infer(model, first, Path(folder, "one"))
        start = time.monotonic() - began
    return (images - 1) / max(whole - start, 1e-6)


def resident_mb(pid: int) -> float:
    """Memory of a process, as Linux counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def start(model: Path, options: list[str]) -> tuple["subprocess.Popen[str]", int]:
    """The service, ready, and its port."""
    call = [sys.executable, str(_SERVICE), "--model", str(model), "--port", "0", *options]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    if not line.startswith("serving at "):
        raise UserError(f"serve does not start: {line.strip()}")
    port = int(line.rstrip("/\n").rpartition(":")[2])
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/readyz")
        if connection.getresponse().status == 200:
            return process, port
        connection.close()
        time.sleep(0.2)
    process.kill()
    raise UserError("serve did not become ready")


def main(
    model: Annotated[Path, typer.Argument(help="an ONNX model")],
    data: Annotated[str, typer.Option(help="a folder of photographs")],
    requests: Annotated[int, typer.Option(help="requests of each measurement", min=10, max=1_000_000)] = 400,
    clients: Annotated[int, typer.Option(help="connections at full load", min=1, max=512)] = 8,
    limit: Annotated[int, typer.Option(help="photographs that are sent, one after the other", min=2)] = 40,
    path: Annotated[str, typer.Option(help="path and parameters")] = "/v1/mask",
    serve: Annotated[str, typer.Option(help="further options of serve, for example '--workers 2'")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="write the record to this file")] = None,
) -> None:
    """Measure the service under load."""
    found = [item.path for item in find_source(data, Path("results")).items if item.path is not None][:limit]
    if len(found) < 2:
        raise UserError(f"--data {data} has fewer than two photographs; give a folder of them")
    pictures = [file.read_bytes() for file in found]
    with tempfile.TemporaryDirectory() as folder:
        for file in found:
            Path(folder, file.name).symlink_to(file.resolve())
        record: dict[str, Any] = {"infer_pictures_per_s": round(pipeline_rate(model, folder, len(found)), 2)}
    process, port = start(model, serve.split())
    try:
        load(port, path, pictures, min(requests, 50), clients)  # memory is taken, kernels are chosen
        before = resident_mb(process.pid)
        record["full_load"] = full = load(port, path, pictures, requests, clients)
        record["half_load"] = load(port, path, pictures, requests // 2, clients, full["pictures_per_s"] / 2)
        record["one_client"] = load(port, path, pictures, max(10, requests // 4), 1)
        after = resident_mb(process.pid)
        record["of_infer"] = round(full["pictures_per_s"] / record["infer_pictures_per_s"], 3)
        record["memory_mb"] = {"warm": round(before, 1), "end": round(after, 1), "growth": round(after / before - 1, 4)}
    finally:
        process.send_signal(signal.SIGTERM)
        record["exit_status"] = process.wait(120)
    terminal.results.print_json(json.dumps(record))
    if json_file:
        write_text(json_file, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    command_line.run(main)
