"""What one round cannot do without on this machine: each part alone, one thread."""

import statistics
import threading
import time
from collections.abc import Callable

import torch
import zmq

from pelago.config.servers import LpsSection
from pelago.tensor.checksum import checksum
from pelago.tensor.optim import DelayedNesterov, Slots
from pelago.tensor.payload import bytes_of

MESSAGE_BYTES = 1 << 20


LARGE_ELEMENTS = 1 << 28
"""A model of 1 GB needs no second and third run."""


def measured(work: Callable[[], None], runs: int) -> float:
    """Median seconds of so many runs after a first one."""
    work()
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def floors(elements: int) -> dict[str, float]:
    """Seconds for a model of so many fp32 parameters: copy, hash, step of an LPS, and one way over ZeroMQ on loopback
    with one connection and with four."""
    runs = 1 if elements > LARGE_ELEMENTS else 3
    model, update = torch.zeros(elements), torch.full((elements,), 1e-3)
    other = torch.zeros(elements)
    found = {
        "copy": measured(lambda: copy(model, other), runs),
        "hash": measured(lambda: hashed(update), runs),
    }
    found["step"] = measured(stepping(model, update, other), runs)
    found["wire"] = measured(lambda: wire(update, 1), runs)
    found["wire_4"] = measured(lambda: wire(update, 4), runs)
    return {name: round(seconds, 4) for name, seconds in found.items()}


def copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Device to host or back where there is a device, through page-locked memory; else within the host."""
    if not torch.cuda.is_available():
        target.copy_(source)
        return
    if not hasattr(copy, "pair"):
        pinned = torch.empty(source.numel(), pin_memory=True)
        copy.pair = pinned, torch.empty(source.numel(), device="cuda")  # type: ignore[attr-defined]
    host, device = copy.pair  # type: ignore[attr-defined]
    host.copy_(device, non_blocking=True)
    torch.cuda.synchronize()


def pieces_of(flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of `MESSAGE_BYTES` each."""
    return torch.split(flat, MESSAGE_BYTES // 4)


def hashed(flat: torch.Tensor) -> None:
    """Checksums of chunks."""
    for piece in pieces_of(flat):
        checksum(bytes_of(piece))


def stepping(
    model: torch.Tensor, update: torch.Tensor, accumulator: torch.Tensor
) -> Callable[[], None]:
    """A step of an LPS with default settings that does not close a period, as 15 of 16 do."""
    lps = LpsSection()
    outer = DelayedNesterov.from_eta(
        lps.lr, lps.momentum, lps.momentum_delay, lps.momentum_activation
    )
    momentum, factors = torch.zeros_like(model), outer.factors(0)

    def work() -> None:
        pieces = (pieces_of(each) for each in (model, update, momentum, accumulator))
        for p, g, m, a in zip(*pieces, strict=True):
            outer.step_piece(p, g, Slots(m, a), factors)

    return work


def wire(flat: torch.Tensor, connections: int) -> None:
    """All of it in messages over loopback, received in another thread."""
    context = zmq.Context(io_threads=connections)
    pairs = []
    for _ in range(connections):
        receiver = context.socket(zmq.PULL)
        port = receiver.bind_to_random_port("tcp://127.0.0.1")
        sender = context.socket(zmq.PUSH)
        for each in (sender, receiver):
            each.setsockopt(zmq.LINGER, 0)
        sender.connect(f"tcp://127.0.0.1:{port}")
        pairs.append((sender, receiver))
    pieces = pieces_of(flat)
    threads = [
        threading.Thread(target=drain, args=(receiver, len(pieces[place::connections])))
        for place, (_, receiver) in enumerate(pairs)
    ]
    for thread in threads:
        thread.start()
    for place, piece in enumerate(pieces):
        pairs[place % connections][0].send(bytes_of(piece), copy=False)
    for thread in threads:
        thread.join()
    context.destroy(linger=0)


def drain(socket: "zmq.Socket[bytes]", count: int) -> None:
    """Receive so many messages."""
    for _ in range(count):
        socket.recv(copy=False)
