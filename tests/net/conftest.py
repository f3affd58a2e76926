"""Everything that a test of the driver starts must be gone after it."""

import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq

from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec
from tests.net.nodes import Nodes
from tests.tcp_ports import pairs


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Nodes of one test; at its end every one has stopped without a crash, and nothing leaks."""
    # Chunks of 16 KiB, the last ones shorter: three tensors, 2 + 4 + 1 chunks.
    specs = (TensorSpec("a", (100, 50)), TensorSpec("b", (16_384,)), TensorSpec("c", (3,)))
    threads = set(threading.enumerate())
    built = Nodes(tmp_path, {}, pairs(3), Manifest(specs, chunk_bytes=1 << 14))
    yield built
    for name in list(built.nodes):
        await built.stop(name)
    assert not built.crashes(), built.crashes()
    # pyzmq keeps one thread of its own, for buffers sent without a copy.
    left = [t.name for t in set(threading.enumerate()) - threads if "Garbage" not in repr(t)]
    assert not left, left
    gc.collect()
    open_sockets = [each for each in gc.get_objects() if _is_open_socket(each)]
    assert not open_sockets, open_sockets


PYZMQS_OWN = frozenset({zmq.PUSH, zmq.PULL})
"""Kinds of which pyzmq keeps one each, and we none, for large buffers that are sent without a copy."""


def _is_open_socket(each: object) -> bool:
    # Asking the type, not the object: a proxy in another library may do anything when asked.
    if not issubclass(type(each), zmq.Socket) or each.closed:  # type: ignore[attr-defined]
        return False
    return each.getsockopt(zmq.TYPE) not in PYZMQS_OWN  # type: ignore[attr-defined]
