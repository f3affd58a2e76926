"""The time to encode and decode envelopes of a chunk and of a push, against plain msgpack."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgpack
from parts.machine import describe, summary

from pelago.core.names import PushId, Version
from pelago.wire.codec import decode_frame, decode_message, encode
from pelago.wire.messages import Chunk, Push

RUN = "bench-0123456789ab"
CALLS = 2_000
CHUNK = Chunk(transfer=1 << 40, index=77, checksum=(1 << 64) - 3)
PUSH = Push(
    push=PushId(17, 2),
    base=Version(1_700_000_000, 41),
    steps=8,
    updates=1,
    tokens=65_536,
    loss=2.5,
    spans=((0, 512),),
    dropped=(),
    next_samples=512,
)


def microseconds(job: Callable[[], object]) -> float:
    """Mean time of a call, over `CALLS` of them."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        job()
    return 1e6 * (time.perf_counter() - begin) / CALLS


def measure(rounds: int) -> dict[str, Any]:
    """Interleave all jobs, round by round."""
    chunk, push = encode(RUN, CHUNK), encode(RUN, PUSH)
    plain = msgpack.unpackb(push, use_list=False)
    jobs: dict[str, Callable[[], object]] = {
        "encode_chunk_us": lambda: encode(RUN, CHUNK),
        "decode_chunk_us": lambda: decode_frame(RUN, chunk),
        "encode_push_us": lambda: encode(RUN, PUSH),
        "decode_push_us": lambda: decode_message(RUN, push),
        "msgpack_encode_push_us": lambda: msgpack.packb(plain),
        "msgpack_decode_push_us": lambda: msgpack.unpackb(push, use_list=False),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(microseconds(job))
    sizes = {"chunk_bytes": len(chunk), "push_bytes": len(push)}
    return {**sizes, **{name: summary(found, 2) for name, found in times.items()}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds (default 15)")
    options = parser.parse_args()
    machine = describe()
    print(json.dumps({"benchmark": "codec", "machine": machine, **measure(options.rounds)}))


if __name__ == "__main__":
    main()
