"""The service as a process of its own: its start, its workers, and its end under load."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs sodeploy[serve]")

SaveModel = Callable[..., Path]
PICTURE = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))[1].tobytes()


def command(repository: Path, *arguments: object) -> list[str]:
    return [sys.executable, str(repository / "runtime/serve/serve.py"), *map(str, arguments)]


@contextmanager
def started(repository: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running service that is ready, and its port; it is killed at the end if it still lives."""
    call = command(repository, "--port", 0, *arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment, cwd=repository) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("serving at http://127.0.0.1:"), line + process.stderr.read()
            port = int(line.rstrip("/\n").rpartition(":")[2])
            deadline = time.monotonic() + 120
            while status(port, "/readyz") != 200:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process, port
        finally:
            if process.poll() is None:
                process.kill()


def status(port: int, path: str) -> int:
    """Of the answer; 0 where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


class Load:
    """Threads that send pictures until the service refuses connections.

    Attributes:
        answered: answers by status.
        lost: requests that were sent on an open connection and got no answer.
    """

    def __init__(self, port: int, threads: int) -> None:
        self._port = port
        self.answered: dict[int, int] = {}
        self.lost: list[str] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while True:
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                return  # the port is closed: nothing was accepted
            try:
                connection.request("POST", "/v1/mask", PICTURE, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.lost.append(repr(error))
                return
            with self._lock:
                self.answered[answer.status] = self.answered.get(answer.status, 0) + 1


@pytest.mark.slow  # test_serve_ending.py tests the moments that matter, without a process
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(save_model: SaveModel, repository: Path, workers: int) -> None:
    with started(repository, "--model", save_model(batch=None), "--workers", workers) as (process, port):
        load = Load(port, 6)
        while sum(load.answered.values()) < 30:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        load.join()
        assert process.stderr is not None
        assert process.wait(60) == 0
        assert "stopped; all accepted requests are answered" in process.stderr.read()
    assert not load.lost
    assert set(load.answered) == {200}


def test_draining_says_so(save_model: SaveModel, repository: Path) -> None:
    with started(repository, "--model", save_model()) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.request("GET", "/readyz")  # the connection from before is still served, once
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (503, {"status": "draining"})
        assert answer.getheader("Connection") == "close"
        assert process.wait(30) == 0


def failed(call: list[str], **settings: Any) -> str:
    """What a command that is to fail prints."""
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False, **settings)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_in_use_is_one_line(save_model: SaveModel, repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = failed(command(repository, "--model", save_model(), "--port", port), cwd=repository)
    assert said.count("\n") == 1
    assert f"--port {port} cannot be had (Address already in use)" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_model_is_one_line(save_model: SaveModel, repository: Path, workers: int) -> None:
    model = save_model(with_contract=False)
    said = failed(command(repository, "--model", model, "--port", 0, "--workers", workers), cwd=repository)
    errors = [line for line in said.splitlines() if not line.startswith(("serving at", "loading pymatting"))]
    assert len(errors) == 1, said
    assert "has no sodeploy contract" in errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "none.onnx"), "none.onnx does not exist"),
        (("--model", "MODEL", "--host", "no.such.host.invalid"), "--host no.such.host.invalid"),
        (("--model", "MODEL", "--api-key-file", "none.txt"), "none.txt does not exist"),
        (("--model", "MODEL", "--device", "tpu"), "--device tpu"),
    ],
)
def test_bad_options_are_one_line(
    save_model: SaveModel, repository: Path, arguments: tuple[str, ...], message: str
) -> None:
    model = str(save_model())
    said = failed(command(repository, *[model if word == "MODEL" else word for word in arguments]), cwd=repository)
    assert said.count("\n") == 1
    assert message in said


def test_workers_share_their_figures_and_end_with_their_parent(save_model: SaveModel, repository: Path) -> None:
    with started(repository, "--model", save_model(), "--workers", 2) as (process, port):
        for _ in range(20):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/mask", PICTURE, {"Content-Type": "image/png"})
            assert connection.getresponse().status == 200
            connection.close()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        assert 'sodeploy_requests_total{path="/v1/mask",status="200"} 20.0' in text
        process.kill()
        deadline = time.monotonic() + 20
        while status(port, "/healthz"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
