"""A file with the moments of a worker's optimiser, from which the next process of the same group goes on.

There is one file for each group of a region that this host has had:

    OUT/optimiser/REGION-GROUP.moments

    magic 8 | length of the header 8, little-endian | header, JSON | XXH3-64 of all of that 8
    | tensors, one after the other | clock 8, steps 8 and time 8 of its end | XXH3-64 of all of that 8

It is written to a file beside it and renamed, without a sync: a checksum finds what a loss of power damaged.
The file is a cache: if anything is wrong with it, the worker starts without moments.

Between two rounds so much is copied as fits into one buffer; a thread writes it during the next round. So training
never waits for a disk, and the memory is limited. Moments that are longer than the buffer are therefore not all of
the same round; the file's clock and steps are the newest. AdamW and Muon step each element, or each matrix, by its own
moments, and these forget what is older than some tens of steps; so they go on from such moments as well.
"""

import json
import math
import os
import struct
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

MAGIC: Final = b"PLGMOM02"
DTYPES: Final = {
    str(each).removeprefix("torch."): each
    for each in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
HEADER_BYTES_MAX: Final = 1 << 26
PIECE_BYTES: Final = 4 << 20
BATCH_BYTES: Final = 256 << 20
"""What is copied between two rounds at most: 5 ms from a GPU."""
END: Final = struct.Struct("<qqd")
"""Clock, steps, and seconds of the wall clock."""
INTERVAL_S: Final = 30.0
"""Shortest time between the end of a file and the next file."""
SHARE: Final = 0.02
"""Largest share of the time that copying and writing may take."""


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

    @property
    def dtype(self) -> str:
        """The type of the moments."""
        sizes = {str(each.dtype): each.numel() for each in self.tensors.values()}
        return max(sizes, key=sizes.__getitem__, default="").removeprefix("torch.")


class MomentsFile:
    """The file of one group. Not thread-safe; it writes in a thread of its own."""

    def __init__(self, folder: Path, owner: MomentsOwner, log: LogEvent) -> None:
        """Touches no file yet."""
        self.path = folder / f"{owner.region}-{owner.group}.moments"
        self._owner = owner
        self._log = log
        self._thread: threading.Thread | None = None
        self._writing: _Writing | None = None
        self._batch = torch.empty(0, dtype=torch.uint8)
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

    @property
    def is_writing(self) -> bool:
        """Whether a part of the file is written, and `save` is to be called for the rest."""
        return self._writing is not None

    def due(self) -> bool:
        """Whether it is time to save, or to go on with it. Never while the disk is busy with it."""
        if self._thread is not None and self._thread.is_alive():
            return False
        return self.is_writing or time.monotonic() >= self._due_s

    def save(self, tensors: Tensors, clock: int, steps: int) -> None:
        """Copy the tensors, or the next `BATCH_BYTES` of them, and write the copies in a thread of its own. Only when
        `due`, and with the same tensors until `is_writing` is False."""
        began_s = time.monotonic()
        if self._writing is None:
            self._writing = _Writing(self.path, self._owner, tensors)
        writing = self._writing
        size = min(BATCH_BYTES, writing.left)
        if len(self._batch) < size:
            on_device = any(each.is_cuda for each in tensors.values())
            self._batch = torch.empty(size, dtype=torch.uint8, pin_memory=on_device)
        batch = self._batch[:size]
        writing.copy_next(batch)
        end = None if writing.left else END.pack(clock, steps, time.time())
        writing.busy_s += time.monotonic() - began_s
        self._thread = threading.Thread(
            target=self._write, args=(writing, _bytes(batch), end), name="moments", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until what the last `save` copied is in the file."""
        if self._thread is not None:
            self._thread.join()

    def give_up(self) -> None:
        """Leave no partial file."""
        self.wait()
        if self._writing is not None:
            self._writing.remove()
            self._writing = None

    def _write(self, writing: "_Writing", batch: memoryview, end: bytes | None) -> None:
        began_s, fault = time.monotonic(), ""
        try:
            writing.write(batch, end)
        except OSError as error:
            # If the disk is full, other processes need the room too: leave no partial file. Try again later.
            fault = f"{writing.part}: {error.strerror or error}"
            writing.remove()
        ended_s = time.monotonic()
        writing.busy_s += ended_s - began_s
        if end is None and not fault:
            return
        self._due_s = ended_s + max(INTERVAL_S, writing.busy_s / SHARE)
        self._writing = None
        if fault != self._fault:
            self._fault = fault
            if fault:
                self._log(OptimiserNotKept(fault))


class _Writing:
    """A file that is being written beside the one that it will replace."""

    def __init__(self, path: Path, owner: MomentsOwner, tensors: Tensors) -> None:
        self.part = path.with_name(path.name + ".part")
        self.busy_s = 0.0
        """Time for copying and writing so far."""
        self._path = path
        self._header = _header(owner, tensors)
        self._flats = [
            each.detach().reshape(-1).view(torch.uint8) for each in tensors.values() if each.numel()
        ]
        self._file: BinaryIO | None = None
        self._digest = xxhash.xxh3_64()
        self.left = sum(len(each) for each in self._flats)
        """Bytes that are not copied yet."""

    def copy_next(self, batch: torch.Tensor) -> None:
        """Copy the next bytes, as many as ``batch`` has."""
        filled = 0
        while filled < len(batch):
            source = self._flats[0]
            count = min(len(source), len(batch) - filled)
            batch[filled : filled + count].copy_(source[:count], non_blocking=True)
            filled += count
            self._flats[0] = source[count:]
            if not len(self._flats[0]):
                del self._flats[0]
            if source.is_cuda:
                torch.cuda.current_stream(source.device).synchronize()
        self.left -= filled

    def write(self, batch: memoryview, end: bytes | None) -> None:
        """Append copied bytes; with ``end`` the file is complete. Raises `OSError`."""
        if self._file is None:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("wb")
            self._append(self._header)
            self._append(self._digest.intdigest().to_bytes(8, "little"))
        for start in range(0, len(batch), PIECE_BYTES):
            self._append(batch[start : start + PIECE_BYTES])
        if end is not None:
            self._append(end)
            self._append(self._digest.intdigest().to_bytes(8, "little"))
            self._file.close()
            os.replace(self.part, self._path)

    def remove(self) -> None:
        """Remove what is there of it."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            self.part.unlink(missing_ok=True)

    def _append(self, piece: bytes | memoryview) -> None:
        assert self._file is not None
        self._digest.update(piece)
        self._file.write(piece)


def _header(owner: MomentsOwner, tensors: Tensors) -> bytes:
    fields = {
        "whose": [owner.run, owner.model, owner.optimiser, owner.region, owner.group],
        "tensors": [
            [name, str(each.dtype).removeprefix("torch."), list(each.shape)]
            for name, each in tensors.items()
        ],
    }
    text = json.dumps(fields).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text


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
    digest.update(digest.intdigest().to_bytes(8, "little"))
    names = ("run", "model", "optimiser", "region", "group")
    ours = [owner.run, owner.model, owner.optimiser, owner.region, owner.group]
    for name, theirs, our in zip(names, fields["whose"], ours, strict=True):
        if theirs != our:
            raise ValueError(f"it is of {name} {theirs!r}, not {our!r}")
    size = sum(_size(dtype, shape) for _, dtype, shape in fields["tensors"])
    first = file.tell()
    if os.fstat(file.fileno()).st_size != first + size + END.size + 8:
        raise ValueError("it was not written to its end")
    file.seek(first + size)
    end = file.read(END.size)
    saved_clock, steps, wall_s = END.unpack(end)
    if saved_clock > clock:
        raise ValueError(f"it is of sample {saved_clock:,} of the run, which is at {clock:,}")
    file.seek(first)
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
    digest.update(end)
    file.seek(END.size, os.SEEK_CUR)
    if file.read(8) != digest.intdigest().to_bytes(8, "little"):
        raise ValueError("its checksum is wrong")
    return SavedMoments(tensors, saved_clock, steps, time.time() - wall_s)


def _size(dtype: str, shape: list[int]) -> int:
    return DTYPES[dtype].itemsize * math.prod(shape)


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
