"""The emulated WAN between real sockets: rate, latency, fairness, limits, and how connections end.

Clocks are only asked for lower bounds: a busy machine may be slower than the link, never faster.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import pytest

from pelago.emulate.link import Item, Link
from pelago.emulate.wan import WanProxy

MB = 10**6
DEADLINE_S = 20
FAST = 1e9
READ_BYTES_MAX = 256 << 10
"""What the event loop reads from a socket at once."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Sink:
    """A server that counts what it is sent, and answers at the end with one byte."""

    look: Callable[[], None] = lambda: None
    received: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.received += len(data)
            self.begun.set()
            self.look()
        writer.write(b"!")
        writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxied(
    serve: Serve, up: Link | None = None, down: Link | None = None
) -> AsyncIterator[WanProxy]:
    """A server behind a proxy; afterwards nothing may be left of either."""
    before = asyncio.all_tasks()
    serving: set[asyncio.Task[None]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(tracked, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    up, down = up or Link(FAST, 0), down or Link(FAST, 0)
    try:
        async with asyncio.timeout(DEADLINE_S):
            async with WanProxy("127.0.0.1", 0, "127.0.0.1", port, up, down) as proxy:
                yield proxy
            assert proxy.connections == 0
            for task in serving:
                await asyncio.wait([task])
            assert asyncio.all_tasks() <= before
    finally:
        server.close()


async def connect(proxy: WanProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_a_link_carries_every_byte_unchanged_and_counts_it() -> None:
    up, down = Link(FAST, 1), Link(FAST, 1)
    sent = bytes(range(256)) * 8000
    async with proxied(echo, up, down) as proxy:
        reader, writer = await connect(proxy)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        writer.close()
        assert up.bytes_carried == down.bytes_carried == len(sent)


async def test_a_link_never_carries_more_than_its_rate_allows() -> None:
    """A megabyte at 4 MB/s takes a quarter of a second, whichever buffers lie on the way."""
    up, sink = Link(4 * MB, 0), Sink()
    async with proxied(sink.serve, up) as proxy:
        reader, writer = await connect(proxy)
        begin = monotonic()
        writer.write(bytes(MB))
        writer.write_eof()
        assert await reader.read(-1) == b"!"
        assert monotonic() - begin >= MB / (4 * MB)
        assert sink.received == MB
        writer.close()


async def test_two_connections_over_two_proxies_share_one_rate() -> None:
    up, sinks = Link(4 * MB, 0), (Sink(), Sink())
    async with proxied(sinks[0].serve, up) as one, proxied(sinks[1].serve, up) as other:
        begin = monotonic()
        ends = [await connect(one), await connect(other)]
        for _, writer in ends:
            writer.write(bytes(MB // 2))
            writer.write_eof()
        assert [await reader.read(-1) for reader, _ in ends] == [b"!", b"!"]
        assert monotonic() - begin >= MB / (4 * MB)
        for _, writer in ends:
            writer.close()
    assert up.bytes_carried == MB


async def test_latency_is_paid_in_each_direction() -> None:
    async with proxied(echo, Link(FAST, 40), Link(FAST, 70)) as proxy:
        reader, writer = await connect(proxy)
        begin = monotonic()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert monotonic() - begin >= 0.110
        writer.close()


async def test_latency_does_not_limit_throughput() -> None:
    """Much more is on the line at once than any queue holds: nothing stops and waits."""
    up, on_the_line = Link(8 * MB, 200), [0]
    sink = Sink(look=lambda: on_the_line.append(up.bytes_on_the_line))
    async with proxied(sink.serve, up) as proxy:
        reader, writer = await connect(proxy)
        writer.write(bytes(3 * MB))
        writer.write_eof()
        assert await reader.read(-1) == b"!"
        writer.close()
    assert max(on_the_line) > 4 * up.queue_bytes_max


async def test_a_connection_has_no_more_in_flight_than_its_window() -> None:
    """A window of 0.2 MB, and a round trip of 40 ms before the next one may leave."""
    flight, quantum, sink = MB // 5, MB // 20, Sink()
    up, peaks = Link(50 * MB, 20, flight), []
    sink.look = lambda: peaks.append(up.bytes_on_the_line)
    async with proxied(sink.serve, up, Link(50 * MB, 20)) as proxy:
        ends = [await connect(proxy), await connect(proxy)]
        begin = monotonic()
        for _, writer in ends:
            writer.write(bytes(MB))
            writer.write_eof()
        assert [await reader.read(-1) for reader, _ in ends] == [b"!", b"!"]
        assert monotonic() - begin >= (MB / (flight + quantum) - 1) * 0.040
        for _, writer in ends:
            writer.close()
    assert sink.received == 2 * MB
    assert 0 < max(peaks) <= 2 * (flight + quantum)


@dataclass
class Queued:
    """A flow with everything queued already; ``served`` is the order in which flows were served."""

    name: str
    quanta: int
    served: list[str]
    on_arrival: Callable[[], None]

    def wants_service(self) -> bool:
        return self.quanta > 0

    def take(self, bytes_max: int) -> bytes:
        self.quanta -= 1
        self.served.append(self.name)
        return bytes(bytes_max)

    def arrive(self, item: Item) -> None:
        self.on_arrival()


async def test_flows_take_turns_and_a_late_one_waits_for_one_turn_of_each_other() -> None:
    """1. Two flows with a hundred quanta each share the link.  2. A third asks on the way; no more
    than one turn of each of the others comes before its own."""
    served: list[str] = []
    served_before: list[int] = []
    arrived = asyncio.Semaphore(0)
    link = Link(50 * MB, 0)
    late = Queued("late", 1, served, arrived.release)

    def ask_late() -> None:
        arrived.release()
        if len(served) >= 10 and not served_before:
            served_before.append(len(served))
            link.request(late)

    for name in ("one", "other"):
        link.request(Queued(name, 100, served, ask_late))
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(201):
            await arrived.acquire()
    assert served.index("late") <= served_before[0] + 2
    served.remove("late")
    # The first flow had a turn to itself before the second asked, and the second one at the end.
    assert served == ["one", *["one", "other"] * 99, "other"]


async def test_a_flow_that_has_nothing_left_when_its_turn_comes_is_passed_over() -> None:
    served: list[str] = []
    served_before: list[list[str]] = []
    arrived = asyncio.Semaphore(0)
    link = Link(50 * MB, 0)

    def drop_other() -> None:
        arrived.release()
        if not served_before:
            other.quanta = 0
            served_before.append(list(served))

    other = Queued("other", 100, served, lambda: None)
    link.request(Queued("one", 100, served, drop_other))
    link.request(other)
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(100):
            await arrived.acquire()
    assert served.count("other") == served_before[0].count("other") < 100


async def test_a_small_message_overtakes_the_bulk_of_another_connection() -> None:
    """1. Two megabytes flow at 4 MB/s.  2. Meanwhile pings on a second connection come back."""
    up, sink = Link(4 * MB, 5), Sink()
    async with proxied(sink.serve, up) as bulk, proxied(echo, up) as control:
        bulk_reader, bulk_writer = await connect(bulk)
        reader, writer = await connect(control)
        bulk_writer.write(bytes(2 * MB))
        await sink.begun.wait()
        for _ in range(5):
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
        assert up.bytes_carried < 2 * MB
        writer.close()
        bulk_writer.write_eof()
        assert await bulk_reader.read(-1) == b"!"
        bulk_writer.close()


async def test_a_receiver_that_does_not_read_stops_its_sender_and_nobody_else() -> None:
    """1. A client sends far more than all buffers hold to a server that never reads.  2. Another
    connection over the same link still works.  3. The link comes to rest with most of it unsent."""
    release = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()

    up = Link(FAST, 1)
    async with proxied(deaf, up) as stuck, proxied(echo, up) as healthy:
        _, stuck_writer = await connect(stuck)
        stuck_writer.write(bytes(64 * MB))
        reader, writer = await connect(healthy)
        carried = -1
        while carried != up.bytes_carried - 20:
            carried = up.bytes_carried
            for _ in range(20):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
        # The kernel's buffers of the server come on top of the proxy's own.
        assert up.bytes_carried < 32 * MB
        writer.close()
        release.set()


async def test_a_slow_link_makes_its_sender_wait_instead_of_hoarding() -> None:
    """The queue may exceed its limit by the one read that filled it."""
    up = Link(100_000, 0)
    queued = [0]
    sink = Sink(look=lambda: queued.append(proxy.queued_bytes))
    async with proxied(sink.serve, up) as proxy:
        _, writer = await connect(proxy)
        writer.write(bytes(16 * MB))
        while len(queued) < 20:
            sink.begun.clear()
            await sink.begun.wait()
        writer.transport.abort()
    assert 0 < max(queued) <= up.queue_bytes_max + READ_BYTES_MAX


async def test_a_half_closed_connection_still_carries_the_answer() -> None:
    async with proxied(Sink().serve, Link(FAST, 5), Link(FAST, 5)) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read(-1) == b"!"
        writer.close()


async def test_a_reset_by_the_client_reaches_the_server() -> None:
    seen: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()
    heard = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        heard.set()
        try:
            await reader.readexactly(1)
        except BaseException as error:
            seen.set_result(type(error))
            raise

    async with proxied(serve, Link(FAST, 5)) as proxy:
        _, writer = await connect(proxy)
        writer.write(b"hello")
        await heard.wait()
        reset(writer)
        assert await seen is ConnectionResetError


async def test_a_reset_drops_what_is_still_queued_and_spares_other_connections() -> None:
    sink = Sink()
    async with proxied(sink.serve, Link(MB, 1)) as proxy:
        _, writer = await connect(proxy)
        writer.write(bytes(4 * MB))
        await sink.begun.wait()
        reset(writer)
        other_reader, other_writer = await connect(proxy)
        other_writer.write(bytes(10_000))
        other_writer.write_eof()
        assert await other_reader.read(-1) == b"!"
        other_writer.close()
    assert sink.received < 4 * MB


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a socket so that its peer sees a reset and not an end."""
    own = writer.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_cut_line_drops_and_refuses_connections_until_it_is_healed() -> None:
    async with proxied(echo) as proxy:
        reader, writer = await connect(proxy)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        with pytest.raises(ConnectionError):  # noqa: PT012
            reader, writer = await connect(proxy)
            writer.write(b"two")
            if not await reader.read(1):
                raise ConnectionResetError
        assert proxy.connections == 0
        proxy.heal()
        reader, writer = await connect(proxy)
        writer.write(b"three")
        assert await reader.readexactly(5) == b"three"
        writer.close()


async def test_a_target_that_is_not_there_resets_the_client() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    link = Link(FAST, 0)
    async with (
        asyncio.timeout(DEADLINE_S),
        WanProxy("127.0.0.1", 0, "127.0.0.1", port, link, link) as proxy,
    ):
        reader, _ = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)


async def test_a_faster_rate_takes_effect_on_what_is_already_queued() -> None:
    """At the first rate the transfer would take minutes; the deadline of the test is seconds."""
    up, sink = Link(20_000, 0), Sink()
    async with proxied(sink.serve, up) as proxy:
        reader, writer = await connect(proxy)
        writer.write(bytes(4 * MB))
        writer.write_eof()
        await sink.begun.wait()
        up.set_rate(FAST)
        assert await reader.read(-1) == b"!"
        assert sink.received == 4 * MB
        writer.close()


async def test_a_slower_rate_takes_effect_on_what_is_already_queued() -> None:
    up, sink = Link(FAST, 0), Sink()
    async with proxied(sink.serve, up) as proxy:
        reader, writer = await connect(proxy)
        up.set_rate(4 * MB)
        begin = monotonic()
        writer.write(bytes(MB))
        writer.write_eof()
        assert await reader.read(-1) == b"!"
        assert monotonic() - begin >= MB / (4 * MB)
        writer.close()


async def test_stopping_in_the_middle_of_transfers_leaves_nothing_behind() -> None:
    """No byte on the line; and, as after every test, no connection and no task."""
    up, sink = Link(MB, 50), Sink()
    async with proxied(sink.serve, up) as proxy:
        ends = [await connect(proxy) for _ in range(8)]
        for _, writer in ends:
            writer.write(bytes(MB))
        await sink.begun.wait()
        assert up.bytes_on_the_line > 0
    for _, writer in ends:
        writer.transport.abort()
    assert up.bytes_on_the_line == 0
    assert sink.received < 8 * MB


@pytest.mark.parametrize(("rate", "latency_ms"), [(0, 0), (-1, 0), (float("nan"), 0), (1, -1)])
def test_an_impossible_link_is_refused(rate: float, latency_ms: float) -> None:
    with pytest.raises(ValueError, match="must"):
        Link(rate, latency_ms)
