"""A plane that is read and filled in an encoding."""

import pytest
import torch

from pelago.tensor.checksum import checksum
from pelago.tensor.encodings.encoding import Encoding, chunk_sizes
from pelago.tensor.encodings.plain import BF16, FP32
from pelago.tensor.encodings.registry import ENCODINGS
from pelago.tensor.manifest import Manifest
from pelago.tensor.plane import Plane
from pelago.tensor.snapshot import PlaneSnapshot
from pelago.wire.messages import TensorSpec

MANIFEST = Manifest((TensorSpec("a", (5,)), TensorSpec("b", (3, 4))), chunk_bytes=32)


def a_plane(flat: torch.Tensor) -> Plane:
    plane = Plane(MANIFEST, None)
    plane.adopt(1, flat.clone())
    return plane


def numbers() -> torch.Tensor:
    return torch.rand(MANIFEST.numel, generator=torch.Generator().manual_seed(1)) - 0.5


def carried(flat: torch.Tensor, encoding: Encoding) -> Plane:
    """A plane whose payload 2 came in an encoding from a plane whose payload 1 is ``flat``."""
    sender, receiver = a_plane(flat), Plane(MANIFEST, None)
    receiver.open(2)
    for index in range(len(MANIFEST.chunks)):
        buffer, sum_ = sender.read(1, index, encoding)
        assert receiver.stage(2, index, bytearray(buffer), sum_, encoding)
    return receiver


def test_fp32_sizes_are_those_of_the_manifest_in_memory() -> None:
    assert chunk_sizes(FP32, MANIFEST) == (20, 32, 16)
    assert sum(chunk_sizes(FP32, MANIFEST)) == MANIFEST.bytes


def test_fp32_is_the_memory_itself() -> None:
    """Nothing is copied on either side, and the bytes are those without an encoding."""
    chunk = numbers()
    encoded = memoryview(FP32.encode(chunk))
    assert FP32.decode(encoded, MANIFEST.numel).data_ptr() == chunk.data_ptr()
    plane = a_plane(chunk)
    assert plane.read(1, 0, FP32) == plane.read(1, 0)


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=list(ENCODINGS))
def test_a_payload_arrives_as_its_encoding_leaves_it(encoding: Encoding) -> None:
    flat = numbers()
    chunks = [flat[start:stop] for start, stop in MANIFEST.chunks]
    expected = torch.cat([encoding.decode(encoding.encode(chunk), len(chunk)) for chunk in chunks])
    found = carried(flat, encoding)
    assert torch.equal(found.lend(2), expected)
    assert found.complete(2)


def test_a_plane_keeps_an_encoded_chunk_as_fp32() -> None:
    """Its checksum is that of the decoded bytes, so it is right for journals, snapshots and other receivers."""
    flat = numbers()
    plane = carried(flat, BF16)
    for index, (start, stop) in enumerate(MANIFEST.chunks):
        decoded = flat[start:stop].bfloat16().float().numpy().tobytes()
        assert plane.read(2, index) == (decoded, checksum(decoded))
    taken = plane.snapshot([2])
    restored = PlaneSnapshot.of(
        taken.layout(), [each.buffer() for each in taken.chunks], MANIFEST, torch.float32
    )
    assert torch.equal(
        torch.cat([each.tensor for each in restored.payloads[2]]), flat.bfloat16().float()
    )


def test_an_encoded_chunk_of_another_size_or_checksum_is_not_kept() -> None:
    sender, receiver = a_plane(numbers()), Plane(MANIFEST, None)
    receiver.open(2)
    plain, sum_ = sender.read(1, 0)
    assert not receiver.stage(2, 0, plain, sum_, BF16)
    encoded, sum_ = sender.read(1, 0, BF16)
    assert not receiver.stage(2, 0, encoded, sum_ ^ 1, BF16)
    assert not receiver.stage(2, 0, encoded, sum_)
    assert receiver.arrived(2) == []
