"""A payload in an encoding of half the bytes, between two real nodes."""

import pytest
import torch

from pelago.core.machine import Delivered, PeerLost, Started
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.encodings.plain import BF16, FP32
from pelago.tensor.plane import Plane
from pelago.wire.messages import Model, Push
from tests.net.nodes import Nodes
from tests.net.transfer.test_transfers import give, modelling, pulling, pushing, welcoming


async def test_a_model_travels_in_half_the_bytes_and_arrives_rounded(nodes: Nodes) -> None:
    server, client = modelling(), pulling()
    plane = nodes.plane(seed=3)
    above = nodes.server(server, plane=plane, encoding=BF16)
    below = nodes.client(client, plane=Plane(nodes.manifest, None), encoding=BF16)
    received = await client.hears(Model)
    await server.hears(Delivered)
    assert torch.equal(below.tensors.plane.lend(received.blob), plane.model().bfloat16().float())
    assert above.telemetry.counters["bulk_bytes_sent"] == nodes.manifest.bytes // 2
    assert below.telemetry.counters["bulk_bytes_received"] == nodes.manifest.bytes // 2


@pytest.mark.parametrize(("sent", "expected"), [(BF16, FP32), (FP32, BF16)], ids=["bf16", "fp32"])
async def test_an_encoding_that_is_not_expected_is_refused_before_a_byte_is_kept(
    nodes: Nodes, sent: Encoding, expected: Encoding
) -> None:
    server, client = welcoming(), pushing()
    above = nodes.server(server, plane=nodes.plane(), encoding=expected)
    below = nodes.client(client, plane=Plane(nodes.manifest, None), encoding=sent)
    await client.hears(Started)
    give(below, nodes.flat(1))
    lost = await client.hears(PeerLost)
    assert lost.reason == f"encoding {sent.name!r}; here it is {expected.name!r}"
    assert above.telemetry.counters["dropped_transfer"] == 1
    assert above.telemetry.counters["chunks_received"] == 0
    assert above.tensors.payloads == 0
    assert not server.messages(Push)
