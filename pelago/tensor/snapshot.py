"""The contents of a plane at one moment: its distinct chunks, and their places in arenas and payloads.

A `PlaneSnapshot` copies no tensor. It holds chunks, and a shared chunk is never written, so it may be read
at any later time, in any thread, while the plane goes on.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import index
from typing import Any, Self, TypeAlias

import torch

from pelago.core.errors import CheckpointError
from pelago.core.names import BlobId
from pelago.tensor.checksum import Bytes
from pelago.tensor.chunk_state import ARENAS
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import ChunkBuffer, tensor_over

Layout: TypeAlias = dict[str, Any]
"""The place of each chunk, as strings, integers and lists, so that msgpack and JSON keep it as it is::

    dtype     "float32" or "float64"
    model     the manifest's fingerprint
    counter   steps so far
    arenas    [[name, [number of a chunk, ...]], ...]
    payloads  [[blob, [number of a chunk, ...]], ...]

An arena or a payload has one chunk for each of the manifest's, in that order. A number is an index into
`PlaneSnapshot.chunks`; a shared chunk has one number.
"""


class PlaneSnapshot:
    """Arenas by name, in the order of `ARENAS`, payloads by blob, and the number of steps so far.

    Its chunks do not change for as long as it is held; dropping it frees those that have no other holder.
    """

    def __init__(
        self,
        manifest: Manifest,
        dtype: torch.dtype,
        counter: int,
        arenas: Mapping[str, Sequence[ChunkBuffer]],
        payloads: Mapping[BlobId, Sequence[ChunkBuffer]],
    ) -> None:
        self.manifest = manifest
        self.dtype = dtype
        self.counter = counter
        self.arenas = arenas
        self.payloads = payloads

    @cached_property
    def chunks(self) -> Sequence[ChunkBuffer]:
        """The distinct chunks, in the order in which arenas and then payloads first name them."""
        named = (*self.arenas.values(), *self.payloads.values())
        return tuple({id(chunk): chunk for chunks in named for chunk in chunks}.values())

    def tensor(self, arena: str) -> torch.Tensor | None:
        """A copy of an arena, shape [numel]; None if the plane keeps none."""
        chunks = self.arenas.get(arena)
        return None if chunks is None else torch.cat([chunk.tensor for chunk in chunks])

    def layout(self) -> Layout:
        """The layout that `of` needs, beside the bytes of `chunks`, to make this snapshot again."""
        number_of = {id(chunk): number for number, chunk in enumerate(self.chunks)}

        def numbers(chunks: Sequence[ChunkBuffer]) -> list[int]:
            return [number_of[id(chunk)] for chunk in chunks]

        return {
            "dtype": _name_of(self.dtype),
            "model": self.manifest.fingerprint,
            "counter": self.counter,
            "arenas": [[name, numbers(chunks)] for name, chunks in self.arenas.items()],
            "payloads": [[blob, numbers(chunks)] for blob, chunks in self.payloads.items()],
        }

    @classmethod
    def of(
        cls,
        layout: Mapping[str, Any],
        chunks: Sequence[Bytes],
        manifest: Manifest,
        dtype: torch.dtype,
    ) -> Self:
        """The snapshot with this layout and these bytes, of a plane of this manifest and dtype.

        The buffers themselves become the memory of its chunks and may not change any more. Raises
        `CheckpointError` where they are not those of such a plane.
        """
        model, found, counter, arenas, payloads = _fields(layout)
        if model != manifest.fingerprint:
            raise CheckpointError(f"tensors of another model: {model}, not {manifest.fingerprint}")
        if found != _name_of(dtype):
            raise CheckpointError(f"tensors are {found}, not {_name_of(dtype)}")
        sizes = [(stop - start) * dtype.itemsize for start, stop in manifest.chunks]
        given = [memoryview(buffer).nbytes for buffer in chunks]
        missing = set(range(len(chunks)))
        for what, numbers in [*arenas.items(), *payloads.items()]:
            if len(numbers) != len(sizes):
                raise CheckpointError(f"{what!r} has {len(numbers)} chunks, not {len(sizes)}")
            for place, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
                if not 0 <= number < len(given):
                    raise CheckpointError(f"chunk {place} of {what!r}: {number} of {len(given)}")
                if given[number] != size:
                    raise CheckpointError(
                        f"chunk {place} of {what!r} has {given[number]} bytes, not {size}"
                    )
            missing.difference_update(numbers)
        if missing:
            raise CheckpointError(f"{len(missing)} of {len(chunks)} chunks belong to nothing")
        held = [ChunkBuffer(tensor_over(buffer, dtype)) for buffer in chunks]
        return cls(
            manifest,
            dtype,
            counter,
            {name: [held[number] for number in numbers] for name, numbers in arenas.items()},
            {blob: [held[number] for number in numbers] for blob, numbers in payloads.items()},
        )


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fields(
    layout: Mapping[str, Any],
) -> tuple[str, str, int, dict[str, list[int]], dict[BlobId, list[int]]]:
    """The parts of a layout: model, dtype, counter, arenas, payloads. Raises `CheckpointError`."""
    try:
        model, dtype, counter = layout["model"], layout["dtype"], layout["counter"]
        arenas = {str(name): list(map(index, numbers)) for name, numbers in layout["arenas"]}
        payloads = {index(blob): list(map(index, numbers)) for blob, numbers in layout["payloads"]}
        named = len(layout["arenas"]) + len(layout["payloads"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"no layout of tensors: {error!r}") from None
    if not isinstance(counter, int) or counter < 0:
        raise CheckpointError(f"no layout of tensors: counter = {counter!r}")
    if unknown := arenas.keys() - set(ARENAS):
        raise CheckpointError(f"unknown tensors: {', '.join(sorted(unknown))}")
    if named != len(arenas) + len(payloads):
        raise CheckpointError("no layout of tensors: a name twice")
    return str(model), str(dtype), counter, arenas, payloads
