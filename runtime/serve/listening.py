"""The listening socket, and an end for it that resets no connection.

A system accepts connections before the program takes them; those that wait when the socket closes are reset. So the
socket first drops new ones (a client tries again, and finds the port closed), then those that wait are taken and
answered, and only then it closes.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from sodeploy.errors import UserError

BACKLOG = 2048  # connections that the system holds until they are taken
_KEEP_ALIVE_S = 75  # longer than the usual 60 of a proxy before it, which must be the one to close
_SO_ATTACH_FILTER = 26  # of Linux, asm-generic/socket.h; to read it, too
# Classic BPF (linux/filter.h), which sees a packet from its TCP header on: one with the flag SYN is dropped. The other
# packets of a handshake that has begun pass, and connections that it leads to inherit the filter without harm.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x45, 0, 1, 0x02),  # SYN set: the next line, else the one after it
    (0x06, 0, 0, 0),  # keep nothing
    (0x06, 0, 0, 0xFFFFFFFF),  # keep all
)
_HANDSHAKE_S = 0.1  # for handshakes that had begun before


@contextlib.contextmanager
def listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at an address.

    Raises:
        UserError: the host is unknown, or the port cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}; give an address of this machine, or 0.0.0.0") from None
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port} cannot be had ({error.strerror}); give another --port, or end the "
                "program that has it"
            ) from None
        yield listening


def drop_new_connections(listening: socket.socket) -> None:
    """Let the system drop the packets that open further connections. Linux alone can; elsewhere nothing changes."""
    if sys.platform == "linux":
        lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
        program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(lines))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def drops_new_connections(listening: socket.socket) -> bool:
    """Whether some process has called `drop_new_connections` for this socket; elsewhere than on Linux always."""
    if sys.platform != "linux":
        return True
    room = 8 * len(_DROP_SYN)  # Linux copies the whole filter
    return bool(listening.getsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, room))


class Server(uvicorn.Server):
    """uvicorn's server, which answers what the system has accepted before it closes."""

    def __init__(self, config: uvicorn.Config, alone: bool, drain_s: float) -> None:
        """
        Args:
            alone: no other process has the socket.
            drain_s: a fifth of the seconds that open connections have for one more request.
        """
        super().__init__(config)
        self._alone, self._drain_s = alone, drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in sockets or []:
            if self._alone:
                drop_new_connections(listening)
            else:  # a parent on a busy machine does it late; where this process ends alone, nobody does it
                await self._await_dropping(listening)
            await asyncio.sleep(_HANDSHAKE_S)
            # asyncio makes a task of each connection that it takes, which fails where the server has closed meanwhile.
            asyncio.get_running_loop().remove_reader(listening)
            await asyncio.sleep(0)
            await self._take_waiting(listening)
        for server in self.servers:
            server.close()
        end = time.monotonic() + 5 * self._drain_s  # on a busy machine a request that was sent is read late
        while self.server_state.connections and time.monotonic() < end:  # each closes with its next answer
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    async def _await_dropping(self, listening: socket.socket) -> None:
        """Serve new connections until the system drops them, for as long as open connections are waited for."""
        end = time.monotonic() + 5 * self._drain_s
        while not drops_new_connections(listening) and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def _take_waiting(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = listening.accept()
                connection.setblocking(False)
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> Any:
        protocol: Any = self.config.http_protocol_class
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _protocol_with_patience(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which closes a connection whose next request does not begin: its head is late.

    Without it a sender of half a head would hold a connection for ever.

    Args:
        seconds: from the connection, or from the first byte of a further request, to the end of its head.
    """
    base: Any = AutoHTTPProtocol

    class Protocol(base):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self._rest()

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:  # a request is under way
                self._rest()
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

        def _rest(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Protocol


def make_server(app: Any, alone: bool, deadline_s: float, drain_s: float) -> Server:
    """A server for an ASGI application, without a word in any log.

    Args:
        alone, drain_s: see `Server`.
        deadline_s: of one request.
    """
    config = uvicorn.Config(
        app,
        http=_protocol_with_patience(deadline_s),
        log_config=None,
        log_level="critical",
        access_log=False,  # its lines would tell who sent what
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(deadline_s) + 5,
        ws="none",
        interface="asgi3",
    )
    return Server(config, alone, drain_s)
