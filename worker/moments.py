"""A file with the moments of a worker's optimiser, from which the next process of the same group goes on.

There is one file for each group of a region that this host has had:

    OUT/optimiser/REGION-GROUP.moments

    magic 8 | length of the header 8, little-endian | header, JSON | XXH3-64 of all of that 8
    | tensors, one after the other | XXH3-64 of all of that 8

It is written to a file beside it and renamed, without a sync: a checksum finds what a loss of power damaged.
The file is a cache: if anything is wrong with it, the worker starts without moments.
"""

import json
import math
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import torch
import xxhash

from pelago.core.notes.trainer import OptimiserNotKept
from pelago.core.ports import LogEvent

Tensors: TypeAlias = dict[str, torch.Tensor]

MAGIC: Final = b"PLGMOM01"
DTYPES: Final = {
    str(each).removeprefix("torch."): each
    for each in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
HEADER_BYTES_MAX: Final = 1 << 26
PIECE_BYTES: Final = 4 << 20
INTERVAL_S: Final = 30.0
"""Shortest time between the end of a write and the next write."""
SHARE: Final = 0.05
"""Largest share of the time that writing may take."""


@dataclass(frozen=True, slots=True)
class MomentsOwner:
    """The owner of moments; those of another owner are refused."""

    run: str
    model: str
    """Fingerprint of the model's manifest."""
    optimiser: str
    region: str
    group: int


@dataclass(frozen=True, slots=True)
class SavedMoments:
    """The moments that an earlier process saved."""

    tensors: Tensors
    clock: int
    """Samples handed out in the run before the process's last lease."""
    steps: int
    """Optimiser steps made so far."""
    age_s: float
    """When they were saved, by the wall clock; for display only."""


class MomentsFile:
    """The file of one group. Not thread-safe; it writes in a thread of its own."""

    def __init__(self, folder: Path, owner: MomentsOwner, log: LogEvent) -> None:
        """Touches no file yet."""
        self.path = folder / f"{owner.region}-{owner.group}.moments"
        self._owner = owner
        self._log = log
        self._thread: threading.Thread | None = None
        self._due_s = -math.inf
        self._fault = ""

    def load(self, clock: int) -> SavedMoments | str:
        """The saved moments, for a worker whose next lease has this clock; or the reason why they cannot be used."""
        try:
            with self.path.open("rb") as file:
                return _read(file, self._owner, clock)
        except FileNotFoundError:
            return "there are none"
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            return f"{self.path} is of no use: {error}"

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._due_s and (
            self._thread is None or not self._thread.is_alive()
        )

    def save(self, tensors: Tensors, clock: int, steps: int) -> None:
        """Copy the tensors at once, and write the copies in a thread of its own."""
        copies = {
            name: each.detach().to("cpu", copy=True).contiguous() for name, each in tensors.items()
        }
        self._due_s = math.inf
        self._thread = threading.Thread(
            target=self._write, args=(copies, clock, steps), name="moments", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last `save` is on the disk."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, tensors: Tensors, clock: int, steps: int) -> None:
        began_s = time.monotonic()
        part, fault = self.path.with_name(self.path.name + ".part"), ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                _dump(file, _header(self._owner, tensors, clock, steps), tensors)
            os.replace(part, self.path)
        except OSError as error:
            # If the disk is full, other processes need the room too: leave no partial file. Try again later.
            fault = f"{part}: {error.strerror or error}"
            with suppress(OSError):
                part.unlink(missing_ok=True)
        ended_s = time.monotonic()
        self._due_s = ended_s + max(INTERVAL_S, (ended_s - began_s) / SHARE)
        if fault != self._fault:
            self._fault = fault
            if fault:
                self._log(OptimiserNotKept(fault))


def _header(owner: MomentsOwner, tensors: Tensors, clock: int, steps: int) -> bytes:
    fields = {
        "whose": [owner.run, owner.model, owner.optimiser, owner.region, owner.group],
        "clock": clock,
        "steps": steps,
        "wall_s": time.time(),
        "tensors": [
            [name, str(each.dtype).removeprefix("torch."), list(each.shape)]
            for name, each in tensors.items()
        ],
    }
    text = json.dumps(fields).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text


def _dump(file: BinaryIO, header: bytes, tensors: Tensors) -> None:
    digest = xxhash.xxh3_64(header)
    file.write(header + digest.intdigest().to_bytes(8, "little"))
    for each in tensors.values():
        view = _bytes(each)
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            digest.update(piece)
            file.write(piece)
    file.write(digest.intdigest().to_bytes(8, "little"))


def _read(file: BinaryIO, owner: MomentsOwner, clock: int) -> SavedMoments:
    """Raises `ValueError` with the reason, or whatever a library raises on a damaged file."""
    start = file.read(16)
    length = int.from_bytes(start[8:], "little")
    if start[:8] != MAGIC or length > HEADER_BYTES_MAX:
        raise ValueError("not a file of moments of this Pelago")
    text = file.read(length)
    digest = xxhash.xxh3_64(start + text)
    if file.read(8) != digest.intdigest().to_bytes(8, "little"):
        raise ValueError("its header is damaged")
    fields = json.loads(text)
    names = ("run", "model", "optimiser", "region", "group")
    ours = [owner.run, owner.model, owner.optimiser, owner.region, owner.group]
    for name, theirs, our in zip(names, fields["whose"], ours, strict=True):
        if theirs != our:
            raise ValueError(f"it is of {name} {theirs!r}, not {our!r}")
    if fields["clock"] > clock:
        raise ValueError(f"it is of sample {fields['clock']:,} of the run, which is at {clock:,}")
    size = sum(_size(dtype, shape) for _, dtype, shape in fields["tensors"])
    if os.fstat(file.fileno()).st_size != len(start) + length + size + 16:
        raise ValueError("it was not written to its end")
    tensors: Tensors = {}
    for name, dtype, shape in fields["tensors"]:
        tensor = torch.empty(shape, dtype=DTYPES[dtype])
        view = _bytes(tensor)
        for begin in range(0, len(view), PIECE_BYTES):
            piece = view[begin : begin + PIECE_BYTES]
            if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise ValueError("it was not written to its end")
            digest.update(piece)
        tensors[name] = tensor
    if file.read(8) != digest.intdigest().to_bytes(8, "little"):
        raise ValueError("its checksum is wrong")
    age_s = time.time() - float(fields["wall_s"])
    return SavedMoments(tensors, int(fields["clock"]), int(fields["steps"]), age_s)


def _size(dtype: str, shape: list[int]) -> int:
    return DTYPES[dtype].itemsize * math.prod(shape)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
