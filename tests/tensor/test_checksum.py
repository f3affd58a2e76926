"""The checksum of chunks."""

import xxhash

from pelago.tensor.checksum import checksum


def test_the_checksum_is_the_published_xxh3_64():
    assert checksum(b"") == 0x2D06800538D394C2  # of the XXH3 specification: empty input, seed 0
    assert checksum(b"pelago") == xxhash.xxh3_64(b"pelago").intdigest()


def test_one_changed_bit_changes_the_checksum():
    chunk = bytearray(range(256)) * 64
    before = checksum(chunk)
    chunk[5000] ^= 1
    assert checksum(memoryview(chunk)) != before
