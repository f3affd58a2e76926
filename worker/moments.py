"""A worker's optimiser moments on its disk, so that a process that is killed does not take them along.

One file for each slot, that is for each group of a region that this host had:

    OUT/optimiser/REGION-GROUP.moments

    magic 8 | length of the header 8, little-endian | header, JSON | XXH3-64 of all of that 8
    | tensors, one after the other | XXH3-64 of all of that 8

It is written beside its place and renamed, without a sync: what a loss of power leaves of it is seen by
the checksum. It is a cache. Whatever is wrong with it, the worker starts without.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import torch
import xxhash

Tensors: TypeAlias = dict[str, torch.Tensor]
Tell: TypeAlias = Callable[[str, dict[str, Any]], None]

MAGIC: Final = b"PLGMOM01"
DTYPES: Final = {
    str(each).removeprefix("torch."): each
    for each in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
HEADER_BYTES_MAX: Final = 1 << 26
PIECE_BYTES: Final = 4 << 20
INTERVAL_S: Final = 30.0
"""Seconds between two writings, at least."""
SHARE: Final = 0.05
"""Of its time that the disk may be kept busy with it, at most."""


@dataclass(frozen=True, slots=True)
class Whose:
    """What moments must be of, or they are no good here."""

    run: str
    model: str
    """Its fingerprint."""
    optimiser: str
    region: str
    group: int


@dataclass(frozen=True, slots=True)
class SavedMoments:
    """What an earlier process left."""

    tensors: Tensors
    clock: int
    """Samples handed out in the run before its last lease."""
    steps: int
    """Steps behind them."""
    age_s: float
    """By the wall's clock; for people only."""


class MomentsFile:
    """The file of one slot. Not thread-safe, but for what it does in a thread of its own."""

    def __init__(self, folder: Path, whose: Whose, tell: Tell) -> None:
        """Nothing is touched yet. ``tell``: logs an event, from any thread."""
        self.path = folder / f"{whose.region}-{whose.group}.moments"
        self._whose = whose
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._due_s = -math.inf
        self._trouble = ""

    def take(self, clock: int) -> SavedMoments | str:
        """What is there for a worker whose next lease has this clock; or else why there is nothing."""
        try:
            with self.path.open("rb") as file:
                return _read(file, self._whose, clock)
        except FileNotFoundError:
            return "there are none"
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            return f"{self.path} is of no use: {error}"

    def due(self) -> bool:
        """Whether it is time to put something there."""
        return time.monotonic() >= self._due_s and (
            self._thread is None or not self._thread.is_alive()
        )

    def put(self, tensors: Tensors, clock: int, steps: int) -> None:
        """Keep these; a copy is made at once, and written by a thread of its own."""
        copies = {
            name: each.detach().to("cpu", copy=True).contiguous() for name, each in tensors.items()
        }
        self._due_s = math.inf
        self._thread = threading.Thread(
            target=self._write, args=(copies, clock, steps), name="moments", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until what was put there lies there."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, tensors: Tensors, clock: int, steps: int) -> None:
        began_s = time.monotonic()
        part, trouble = self.path.with_name(self.path.name + ".part"), ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                _dump(file, _header(self._whose, tensors, clock, steps), tensors)
            os.replace(part, self.path)
        except OSError as error:
            # A disk that is full is everybody's: leave nothing half made there, and try again in time.
            trouble = f"{part}: {error.strerror or error}"
            with suppress(OSError):
                part.unlink(missing_ok=True)
        ended_s = time.monotonic()
        self._due_s = ended_s + max(INTERVAL_S, (ended_s - began_s) / SHARE)
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                self._tell("optimiser_not_kept", {"why": trouble})


def _header(whose: Whose, tensors: Tensors, clock: int, steps: int) -> bytes:
    facts = {
        "whose": [whose.run, whose.model, whose.optimiser, whose.region, whose.group],
        "clock": clock,
        "steps": steps,
        "wall_s": time.time(),
        "tensors": [
            [name, str(each.dtype).removeprefix("torch."), list(each.shape)]
            for name, each in tensors.items()
        ],
    }
    text = json.dumps(facts).encode()
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


def _read(file: BinaryIO, whose: Whose, clock: int) -> SavedMoments:
    """Raises `ValueError` with the reason, and what damaged files make libraries raise."""
    start = file.read(16)
    length = int.from_bytes(start[8:], "little")
    if start[:8] != MAGIC or length > HEADER_BYTES_MAX:
        raise ValueError("not a file of moments of this Pelago")
    text = file.read(length)
    digest = xxhash.xxh3_64(start + text)
    if file.read(8) != digest.intdigest().to_bytes(8, "little"):
        raise ValueError("its header is damaged")
    facts = json.loads(text)
    names = ("run", "model", "optimiser", "region", "group")
    ours = [whose.run, whose.model, whose.optimiser, whose.region, whose.group]
    for name, theirs, our in zip(names, facts["whose"], ours, strict=True):
        if theirs != our:
            raise ValueError(f"it is of {name} {theirs!r}, not {our!r}")
    if facts["clock"] > clock:
        raise ValueError(f"it is of sample {facts['clock']:,} of the run, which is at {clock:,}")
    size = sum(_size(dtype, shape) for _, dtype, shape in facts["tensors"])
    if os.fstat(file.fileno()).st_size != len(start) + length + size + 16:
        raise ValueError("it was not written to its end")
    tensors: Tensors = {}
    for name, dtype, shape in facts["tensors"]:
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
    age_s = time.time() - float(facts["wall_s"])
    return SavedMoments(tensors, int(facts["clock"]), int(facts["steps"]), age_s)


def _size(dtype: str, shape: list[int]) -> int:
    return DTYPES[dtype].itemsize * math.prod(shape)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
