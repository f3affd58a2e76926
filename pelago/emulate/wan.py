"""A wide-area network emulated in user space: a TCP proxy with a rate and a latency per direction.

`pelago local` puts a `WanProxy` between a region and the GPS for each port, and gives the proxies
of one pair of regions the same two `Link`s, one per direction, so that their connections share the
link as they would share a fibre.

Everything has a limit. A stream's queue holds about `QUEUE_MS` of the link's rate; then its socket
is not read, the kernel's buffer (kept small) fills, and TCP slows the sender. A stream whose
receiver does not read is not served, and the others take its share. Half-closes and resets travel
as bytes do.

Connections are established at once, not after a round trip; packet loss is not emulated.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Final, Self, cast

from pelago.emulate.link import Acknowledged, Item, Link, Mark, size_bytes

__all__ = ["Link", "WanProxy"]

SOCKET_MS: Final = 100
"""A socket's buffers hold what the link carries in so long: small, so that the kernel does not hide
the rate from a sender, but not so small that TCP's window stalls between two turns of the loop."""
SOCKET_BYTES_MIN: Final = 128 << 10
SOCKET_BYTES_MAX: Final = 4 << 20
BACKLOG: Final = 64
"""Connections that may wait to be accepted."""


def _socket_bytes(link: Link) -> int:
    wanted = link.rate_bytes_per_second * SOCKET_MS / 1000
    return int(min(max(wanted, SOCKET_BYTES_MIN), SOCKET_BYTES_MAX))


class _Stream:
    """One direction of one connection: the queue before the link, and the socket after it."""

    def __init__(self, links: tuple[Link, Link], source: "_End", sink: "_End") -> None:
        self.ended = False
        """The end of the stream has been passed on."""
        self.swallows = False
        """Whether bytes from the source are dropped."""
        self.link, self._back = links
        self._flying_bytes = 0
        """Bytes that left and are not acknowledged."""
        self._source = source
        self._sink = sink
        self._queue: deque[Item] = deque()
        self.queued_bytes = 0

    def push(self, item: bytes | Mark) -> None:
        """Take what the source's socket gave; stop reading it when the queue is full."""
        if self.swallows:
            return
        self._queue.append(item)
        self.queued_bytes += size_bytes(item)
        if self.queued_bytes > self.link.queue_bytes_max:
            self._source.read(False)
        self.link.request(self)

    def sink_may_take_more(self) -> None:
        """The sink's socket is there, or has room again."""
        self.link.request(self)

    def reset(self) -> None:
        """The source's connection was reset: so is the sink's, a latency later."""
        self._queue.clear()
        self.queued_bytes = 0
        self.link.send_past_the_queue(self, Mark.RESET)

    def close(self) -> None:
        """Forget everything that is under way."""
        self._queue.clear()
        self.queued_bytes = 0
        self.link.forget(self)
        self._back.forget(self)

    def wants_service(self) -> bool:
        flight = self.link.flight_bytes_max
        room = flight is None or self._flying_bytes < flight
        return bool(self._queue) and self._sink.writable and room

    def take(self, bytes_max: int) -> Item:
        item = self._queue.popleft()
        if isinstance(item, Mark | Acknowledged):
            pass
        elif len(item) > bytes_max:
            whole = memoryview(item)
            self._queue.appendleft(whole[bytes_max:])
            item = whole[:bytes_max]
        else:
            item = self._gather(item, bytes_max)
        self.queued_bytes -= size_bytes(item)
        self._flying_bytes += size_bytes(item)
        if self.queued_bytes <= self.link.queue_bytes_max // 2:
            self._source.read(True)
        return item

    def _gather(self, first: bytes | memoryview, bytes_max: int) -> bytes | memoryview:
        """Fill a turn with small pieces, so that a flow of small pieces gets its share too."""
        pieces, size = [first], len(first)
        while self._queue:
            item = self._queue[0]
            if isinstance(item, Mark | Acknowledged) or size + len(item) > bytes_max:
                break
            pieces.append(item)
            size += len(item)
            self._queue.popleft()
        return first if len(pieces) == 1 else b"".join(pieces)

    def arrive(self, item: Item) -> None:
        match item:
            case Mark.END:
                self.ended = True
                self._sink.write_end()
            case Mark.RESET:
                self._sink.abort()
            case Acknowledged(size):
                self._flying_bytes -= size
                self.link.request(self)
            case _:
                self._sink.write(item)
                if self.link.flight_bytes_max is not None:
                    self._back.send_past_the_queue(self, Acknowledged(len(item)))


class _End(asyncio.Protocol):
    """One of the two sockets of a proxied connection."""

    def __init__(self, connection: "_Connection") -> None:
        self.writable = False
        self.open = False
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of `asyncio.Transport` without being instances of it.
        self._transport = transport = cast("asyncio.Transport", transport)
        self.open = True
        transport.set_write_buffer_limits(high=_socket_bytes(self._connection.to(self).link))
        own = transport.get_extra_info("socket")
        receive_bytes = _socket_bytes(self._connection.from_(self).link)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.writable = True
        self._connection.made(self)

    def data_received(self, data: bytes) -> None:
        self._connection.from_(self).push(data)

    def eof_received(self) -> bool:
        self._ended = True
        self._connection.from_(self).push(Mark.END)
        return True  # The other direction stays open.

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._connection.to(self).sink_may_take_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = self.writable = False
        self._connection.lost(self)

    def read(self, wanted: bool) -> None:
        """Read the socket, or stop reading, so that TCP slows the sender down."""
        if self._transport is None or self._ended or self._transport.is_closing():
            return
        if wanted and not self._transport.is_reading():
            self._transport.resume_reading()
        elif not wanted and self._transport.is_reading():
            self._transport.pause_reading()

    def write(self, data: bytes | memoryview) -> None:
        """Hand bytes to the socket."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_end(self) -> None:
        """Close the socket for writing; wholly, if the other direction has ended as well."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
        self._connection.close_if_both_ended()

    def close(self) -> None:
        """Close the socket when all is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the socket so that its peer sees a reset."""
        if self._transport is not None and self.open:
            own = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


class _Connection:
    """A client's connection and the one to the target that stands for it."""

    def __init__(self, proxy: "WanProxy") -> None:
        self._proxy = proxy
        self.client, self.target = _End(self), _End(self)
        self._up = _Stream((proxy.up, proxy.down), self.client, self.target)
        self._down = _Stream((proxy.down, proxy.up), self.target, self.client)
        self._dialling: asyncio.Task[None] | None = None

    def from_(self, end: _End) -> _Stream:
        """The stream that begins at an end."""
        return self._up if end is self.client else self._down

    def to(self, end: _End) -> _Stream:
        """The stream that leads to an end."""
        return self._down if end is self.client else self._up

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for their turn, in both directions."""
        return self._up.queued_bytes + self._down.queued_bytes

    def made(self, end: _End) -> None:
        """A socket is connected; the client's comes first."""
        if end is self.target:
            self._up.sink_may_take_more()
            return
        if not self._proxy.adopt(self):
            self.client.abort()
            return
        self._dialling = asyncio.get_running_loop().create_task(self._dial())
        self._proxy.watch(self._dialling)

    async def _dial(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.target, *self._proxy.target
            )
        except OSError:
            self.client.abort()
            return
        if not self.client.open:
            self.target.abort()

    def lost(self, end: _End) -> None:
        """A socket is gone: unless both streams had ended, drop the other one too."""
        other = self.target if end is self.client else self.client
        if self._up.swallows:
            pass  # The other end does not learn this either.
        elif other.open and not (self._up.ended and self._down.ended):
            self.to(end).close()
            self.from_(end).reset()
        self._forget_if_over()

    def close_if_both_ended(self) -> None:
        """Close both sockets once both streams have ended."""
        if self._up.ended and self._down.ended:
            self.client.close()
            self.target.close()

    def swallow(self) -> None:
        """Take all that comes, and pass nothing on any more; neither end learns of it."""
        for end in (self.client, self.target):
            stream = self.from_(end)
            stream.swallows = True
            stream.close()
            end.read(True)

    def abort(self) -> None:
        """Drop both sockets at once."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._up.close()
        self._down.close()
        self.client.abort()
        self.target.abort()

    def _forget_if_over(self) -> None:
        if self.client.open or self.target.open:
            return
        if self._dialling is not None:
            self._dialling.cancel()
        self._up.close()
        self._down.close()
        self._proxy.disown(self)


class WanProxy:
    """A port that leads to a target's port over two links, one per direction.

    ``up`` carries what clients send to the target, ``down`` what the target answers; both may be
    shared with other proxies. ``listen_port`` 0 takes a free one; `port` says which. To be used as
    an asynchronous context manager, or by `start` and `stop`.
    """

    def __init__(
        self,
        listen_host: str,
        listen_port: int,
        target_host: str,
        target_port: int,
        up: Link,
        down: Link,
    ) -> None:
        self.target = (target_host, target_port)
        self.up = up
        self.down = down
        self._listen = (listen_host, listen_port)
        self._port = listen_port
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}
        """In the order in which they were made."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = self._swallows = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._port

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    @property
    def queued_bytes(self) -> int:
        """Bytes read from sockets that wait for their turn; a limit for each stream bounds it."""
        return sum(connection.queued_bytes for connection in self._connections)

    async def start(self) -> None:
        """Listen. Raises `OSError` if the port is taken."""
        family = socket.AF_INET6 if ":" in self._listen[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it; a window once opened wide is not taken back.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _socket_bytes(self.up))
            listener.bind(self._listen)
            listener.setblocking(False)
            self._port = listener.getsockname()[1]
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self).client, sock=listener, backlog=BACKLOG
            )
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Stop listening, drop every connection, and wait until nothing is left of them."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._idle.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def cut(self, newest: int | None = None) -> None:
        """Reset every connection, or so many of the newest, and every new one until `heal`."""
        self._cut = True
        here = tuple(self._connections)
        for connection in here if newest is None else here[len(here) - newest :]:
            connection.abort()

    def swallow(self) -> None:
        """Act as a firewall that has forgotten its connections: they and new ones stay open, and nothing comes out
        of them. After `heal` new ones pass; the old ones stay as they are."""
        self._swallows = True
        for connection in tuple(self._connections):
            connection.swallow()

    def heal(self) -> None:
        """Let new connections pass again."""
        self._cut = self._swallows = False

    def adopt(self, connection: _Connection) -> bool:
        """Take a new connection, unless the line is cut."""
        self._connections[connection] = None
        self._idle.clear()
        if self._swallows:
            connection.swallow()
        return not self._cut

    def disown(self, connection: _Connection) -> None:
        """Both sockets of a connection are gone."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._idle.set()

    def watch(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done; `stop` waits for it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
