"""The bare peers: one ROUTER or DEALER socket and one thread each, and nothing beyond what the task needs.

`bare.py SIDE KIND PORT MODEL.json` is one process. KIND: `blocked` verifies and computes every
checksum and does the same fused step as the LPS; `whole` does the step as torch users write it, an
operation at a time on whole tensors; `nothing` only moves the bytes. The client answers each line on
its standard input with the seconds of one round: push the update, pull the model.
"""

import json
import struct
import sys
import time
from pathlib import Path

import torch
import zmq

from pelago.config.servers import LpsSection
from pelago.tensor.checksum import checksum
from pelago.tensor.manifest import Manifest
from pelago.tensor.optim import DelayedNesterov, OptimiserState, Slots
from pelago.tensor.payload import bytes_of, tensor_over
from pelago.wire.messages import TensorSpec

HEADER = struct.Struct("<IQ")
SEED = 7


def read_manifest(path: Path) -> Manifest:
    """The model's tensors, as `push_pull.py` wrote them."""
    specs = json.loads(path.read_text(encoding="utf-8"))["specs"]
    return Manifest(tuple(TensorSpec(name, tuple(shape)) for name, shape in specs))


def optimiser() -> DelayedNesterov:
    """The optimiser of an LPS with default settings, which are those of HALoS."""
    lps = LpsSection()
    return DelayedNesterov.from_eta(
        lps.lr, lps.momentum, lps.momentum_delay, lps.momentum_activation
    )


def whole_step(
    outer: DelayedNesterov, model: torch.Tensor, update: torch.Tensor, state: OptimiserState
) -> None:
    """Delayed Nesterov as the paper writes it, each operation over all elements."""
    assert state.momentum is not None
    assert state.accumulator is not None
    factors = outer.factors(state.counter)
    state.accumulator.add_(update)
    if factors.absorbs:
        state.momentum.mul_(outer.momentum).add_(state.accumulator, alpha=1 / outer.delay)
        state.accumulator.zero_()
    model.sub_(update, alpha=factors.gradient_rate)
    if factors.momentum_rate:
        model.sub_(state.momentum, alpha=factors.momentum_rate)
    state.counter += 1


def send_all(
    socket: "zmq.Socket[bytes]", to: list[bytes], flat: torch.Tensor, manifest: Manifest, sums: bool
) -> None:
    """Send every chunk, with its checksum unless ``sums`` is false."""
    for index, (start, stop) in enumerate(manifest.chunks):
        buffer = bytes_of(flat[start:stop])
        header = HEADER.pack(index, checksum(buffer) if sums else 0)
        socket.send_multipart([*to, header, buffer], copy=False)


def receive_all(
    socket: "zmq.Socket[bytes]", manifest: Manifest, sums: bool
) -> tuple[list[bytes], list[memoryview]]:
    """Receive every chunk without a copy. Returns the sender's routing frames and the chunks' bytes. Verifies
    checksums unless ``sums`` is false. Raises `ValueError` if a chunk is damaged."""
    chunks: list[memoryview] = [memoryview(b"")] * len(manifest.chunks)
    sender: list[bytes] = []
    for _ in chunks:
        *first, header, payload = socket.recv_multipart(copy=False)
        index, expected = HEADER.unpack(header.bytes)
        if sums and checksum(payload.buffer) != expected:
            raise ValueError(f"chunk {index} is damaged")
        chunks[index], sender = payload.buffer, [each.bytes for each in first]
    return sender, chunks


def serve(kind: str, port: int, manifest: Manifest) -> None:
    """Receive an update, do a step, answer with the model, again and again."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.set_hwm(0)
    socket.bind(f"tcp://127.0.0.1:{port}")
    model = torch.randn(manifest.numel, generator=torch.Generator().manual_seed(SEED))
    update = torch.zeros(manifest.numel if kind == "whole" else 0)
    outer = optimiser()
    state = outer.init(manifest.numel, torch.float32)
    work = kind != "nothing"
    while True:
        sender, chunks = receive_all(socket, manifest, work)
        if kind == "blocked":
            factors = outer.factors(state.counter)
            for (start, stop), chunk in zip(manifest.chunks, chunks, strict=True):
                slots: Slots = state.piece(start, stop)
                gradient = tensor_over(chunk, torch.float32)
                outer.step_piece(model[start:stop], gradient, slots, factors)
            state.counter += 1
        elif kind == "whole":
            for (start, stop), chunk in zip(manifest.chunks, chunks, strict=True):
                update[start:stop] = tensor_over(chunk, torch.float32)
            whole_step(outer, model, update, state)
        send_all(socket, sender, model, manifest, work)


def ask(kind: str, port: int, manifest: Manifest) -> None:
    """Time a round for each line of the standard input."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{port}")
    update = 1e-3 * torch.randn(manifest.numel, generator=torch.Generator().manual_seed(SEED))
    work = kind != "nothing"
    print(json.dumps({"ready": kind}), flush=True)
    while sys.stdin.readline():
        begin = time.perf_counter()
        send_all(socket, [], update, manifest, work)
        _, chunks = receive_all(socket, manifest, work)
        seconds = time.perf_counter() - begin
        # A worker copies the model to where it trains and releases the received frames; not part of the round.
        del chunks
        print(json.dumps({"seconds": seconds}), flush=True)


def main() -> None:
    """One process of a bare pair."""
    side, kind, port, path = sys.argv[1:]
    torch.set_num_threads(1)
    run = serve if side == "server" else ask
    run(kind, int(port), read_manifest(Path(path)))


if __name__ == "__main__":
    main()
