"""The encodings by their names."""

from typing import Final

from pelago.tensor.encodings.blockwise import INT4, INT8
from pelago.tensor.encodings.encoding import Encoding
from pelago.tensor.encodings.plain import BF16, FP32

ENCODINGS: Final[dict[str, Encoding]] = {each.name: each for each in (FP32, BF16, INT8, INT4)}
"""From the largest to the smallest."""
