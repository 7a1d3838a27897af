"""The end of the service's listening socket: no connection that the system has accepted is lost."""

import asyncio
import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs sodeploy[serve]")

from sodeploy.runtime.serve.listening import Server, drop_new_connections, listening_socket, make_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone drops new connections")


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers every request with "ok", and closes its connection."""
    while scope["type"] == "lifespan":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
    headers = [(b"content-length", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def running(server: Server, listening: socket.socket) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(30)


def ask(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_connection_without_a_whole_head_is_closed() -> None:
    with (
        listening_socket("127.0.0.1", 0) as listening,
        running(make_server(application, True, 0.3, 0.1), listening),
        socket.socket() as half,
        socket.socket() as silent,
    ):
        for connection in (half, silent):
            connection.connect(listening.getsockname())
            connection.settimeout(20)
        half.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert (half.recv(100), silent.recv(100)) == (b"", b"")
        assert ask(listening.getsockname()[1]) == b"ok"


def test_a_connection_that_asyncio_accepts_at_the_end_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Server._take_waiting
    late = socket.socket()

    async def take_waiting(server: Server, listening: socket.socket) -> None:
        late.connect(listening.getsockname())
        late.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(2):  # asyncio would take it in the second step, and have no server for it after the close
            await asyncio.sleep(0)
        await before(server, listening)

    monkeypatch.setattr(Server, "_take_waiting", take_waiting)
    monkeypatch.setattr("sodeploy.runtime.serve.listening.drop_new_connections", lambda _: None)
    with listening_socket("127.0.0.1", 0) as listening, late:
        with running(make_server(application, True, 5.0, 0.2), listening):
            pass
        late.settimeout(5)
        assert late.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_worker_serves_until_its_parent_drops_new_connections() -> None:
    with listening_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        server = make_server(application, False, 5.0, 0.4)
        with running(server, listening.dup()) as worker:
            server.should_exit = True
            late_until = time.monotonic() + 0.8  # the parent, on a busy machine
            while time.monotonic() < late_until:
                assert ask(port) == b"ok"
            assert worker.is_alive()
            drop_new_connections(listening)
            worker.join(1.5)
            assert not worker.is_alive()


def test_a_worker_that_is_ended_alone_does_not_wait_for_ever() -> None:
    with listening_socket("127.0.0.1", 0) as listening:
        server = make_server(application, False, 5.0, 0.02)
        with running(server, listening.dup()) as worker:
            server.should_exit = True
            worker.join(5)
            assert not worker.is_alive()
