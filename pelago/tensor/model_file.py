"""A model as a safetensors file, written in place.

The library's own writer writes another file beside it, with other permissions, and renames that, so it cannot
write to an open file without a name. Format: https://huggingface.co/docs/safetensors (8 bytes with the header's
length, a JSON header, then the tensors one after the other, as they lie in an arena).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pelago.tensor.manifest import ELEMENT_BYTES, Manifest

if TYPE_CHECKING:
    import torch

_ALIGNMENT: Final = 8


def write(
    path: Path, manifest: Manifest, flat: "torch.Tensor", metadata: Mapping[str, str]
) -> None:
    """Write ``flat``, shape [numel], fp32, on the CPU, with ``metadata`` in the header. Raises `OSError`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for spec, start in zip(manifest.specs, manifest.offsets, strict=False):
        ends = [start * ELEMENT_BYTES, (start + math.prod(spec.shape)) * ELEMENT_BYTES]
        header[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": ends}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    array: Any = flat.detach().contiguous().numpy()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Not by the array's `tofile`, whose error does not say that the disk is full.
        file.write(memoryview(array).cast("B"))
