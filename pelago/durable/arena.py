"""When the tensor operations of a durable server may run, and which of them a restart does again.

The tensors of a durable server lie in the slots of a slab, whose memory outlives the process. A slot that anything
refers to is never written again: an operation reads old slots and writes new ones. A *chunk record* for each chunk of
the model says which slots hold its parameters and optimiser state, and after which operation. The log holds the
machine's events, and the slots in which payloads arrived, but no tensor. Four rules make that enough:

1. Operations are numbered in the order in which the machine emits them. The machine is a function of its events, so a
   replay of the log gives the same numbers.
2. An effect on tensors is performed only when the log holds the event that caused it (`EffectGate`). So no slot has a
   result whose cause may be lost, and no slot of a payload is used again before the log holds its release.
3. An operation writes its result for a chunk, then the chunk's record, then gives back the chunk's old slots
   (`RecordFormat`: a kill between two stores leaves one sound record of the two copies).
4. A restart does an operation again only for the chunks whose record is older (`Redo`).

A checkpoint holds the machine's state after an event, the number of the last operation up to it, and the slots of
the payloads that the machine holds. It counts only when all of these operations are published on every chunk, so all
later ones follow from the log.
"""

import struct
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import xxhash

from pelago.core.errors import CheckpointError
from pelago.core.names import BlobId
from pelago.core.tensor_effects import Apply, Difference, Pin, Release

TensorOperation: TypeAlias = Apply | Difference
"""An effect that changes what a chunk record refers to."""
GatedEffect: TypeAlias = Apply | Difference | Pin | Release
"""An effect whose order and time the gate decides; measuring a payload changes nothing."""


# --- the gate ------------------------------------------------------------------------------------


class Admitted(NamedTuple):
    """An effect that may be performed now."""

    effect: GatedEffect
    operation: int
    """Its number; for effects that are no operation, that of the last one before it."""


class EffectGate:
    """Holds effects on tensors back until the log holds their events. Gives them out in the order of emission.

    ``operations``: the number of the last operation before the first effect.
    """

    def __init__(self, operations: int = 0) -> None:
        self.operations = operations
        """Number of the last operation that was added."""
        self._waiting: deque[tuple[int, Admitted]] = deque()

    def add(self, event: int, effect: GatedEffect) -> None:
        """An event caused an effect. ``event``: the number of its record in the log, never below those before."""
        assert not self._waiting or event >= self._waiting[-1][0], (event, self._waiting[-1])
        self.operations += isinstance(effect, Apply | Difference)
        self._waiting.append((event, Admitted(effect, self.operations)))

    def admit(self, durable: int) -> list[Admitted]:
        """The effects that may be performed now that the log holds all records up to ``durable``."""
        admitted = []
        while self._waiting and self._waiting[0][0] <= durable:
            admitted.append(self._waiting.popleft()[1])
        return admitted

    @property
    def waiting(self) -> int:
        """How many effects wait."""
        return len(self._waiting)


# --- records of chunks ---------------------------------------------------------------------------

NO_SLOT: Final = -1


class Slot(NamedTuple):
    """A place in the slab, and XXH3-64 of what is in it (0: not computed)."""

    place: int
    checksum: int = 0


NOTHING: Final = Slot(NO_SLOT)


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """The state of one chunk after an operation.

    ``slots``: one for each arena of the plane, `NOTHING` where it keeps none; ``difference``: of the last difference
    that the machine holds or held, and ``payload`` which one that is.
    """

    operation: int
    slots: tuple[Slot, ...]
    difference: Slot = NOTHING
    payload: BlobId = 0


class RecordFormat:
    """Chunk records as bytes: two copies of `bytes_each` for each chunk, written in turn.

    ``arenas``: slots in a record. ``salt``: a random number of the node, so that no other bytes are taken for a
    record.
    """

    def __init__(self, arenas: int, salt: int) -> None:
        self._arenas = arenas
        self._salt = salt
        self._body = struct.Struct(f"<Qq{2 * (arenas + 1)}q")
        self.bytes_each: Final = self._body.size + _SEAL.size

    def pack(self, chunk: int, record: ChunkRecord) -> bytes:
        """One copy of a record. Its last eight bytes make it sound, so they have to be written last."""
        assert len(record.slots) == self._arenas, record
        numbers = [
            number
            for place, checksum in (*record.slots, record.difference)
            for number in (place, checksum - _HALF)
        ]
        packed = self._body.pack(record.operation, record.payload, *numbers)
        return packed + _SEAL.pack(self._seal(chunk, packed))

    def unpack(self, chunk: int, copies: Sequence[bytes | memoryview]) -> ChunkRecord | None:
        """The newest sound record among the copies for a chunk; None: none is sound."""
        sound = [found for copy in copies if (found := self._unpack_one(chunk, copy)) is not None]
        return max(sound, key=lambda record: record.operation, default=None)

    def _unpack_one(self, chunk: int, copy: bytes | memoryview) -> ChunkRecord | None:
        if len(copy) != self.bytes_each:
            return None
        packed = bytes(copy[: self._body.size])
        if _SEAL.unpack(copy[self._body.size :]) != (self._seal(chunk, packed),):
            return None
        operation, payload, *numbers = self._body.unpack(packed)
        slots = [
            Slot(place, checksum + _HALF)
            for place, checksum in zip(numbers[::2], numbers[1::2], strict=True)
        ]
        return ChunkRecord(operation, tuple(slots[:-1]), slots[-1], payload)

    def _seal(self, chunk: int, packed: bytes) -> int:
        # The chunk's number is part of it: a record in another chunk's place is not sound.
        return xxhash.xxh3_64_intdigest(packed + chunk.to_bytes(8, "little"), self._salt)


_SEAL: Final = struct.Struct("<Q")
_HALF: Final = 1 << 63
"""Checksums are unsigned; one format letter for all numbers of a record keeps the struct simple."""


# --- recovery ------------------------------------------------------------------------------------


class RecoveringPlane(Protocol):
    """What a recovery does with the tensors of a server, which are in the slab."""

    def hold(self, blob: BlobId, slots: Mapping[int, Slot]) -> None:
        """A payload of the machine is in these slots, by chunk. Its contents are used only by `redo`, or if the
        machine holds it at the end: they may be gone if it was released long ago."""
        ...

    def redo(self, effect: TensorOperation, operation: int, chunks: Collection[int]) -> None:
        """Perform an operation on these chunks, whose records are those of the operation before it; on the others
        it is done. A payload that it makes is in the chunks' records."""
        ...

    def release(self, blob: BlobId) -> None:
        """A payload is not needed any more."""
        ...


class Redo:
    """Decides for each operation of a replay which chunks it is done again for.

    ``records``: the operation of each chunk's record. ``checkpoint``: the number of the last operation before the
    replay. Raises `CheckpointError` if a chunk is behind the checkpoint.
    """

    def __init__(self, records: Sequence[int], checkpoint: int) -> None:
        behind = [chunk for chunk, operation in enumerate(records) if operation < checkpoint]
        if behind:
            raise CheckpointError(
                f"chunk {behind[0]} is at operation {records[behind[0]]}, and the checkpoint at {checkpoint}"
            )
        self.operation = checkpoint
        """Number of the last operation that was replayed."""
        self._records = list(records)

    def next(self) -> list[int]:
        """The chunks for which the next operation has to be done again."""
        self.operation += 1
        older = [chunk for chunk, done in enumerate(self._records) if done < self.operation]
        for chunk in older:
            self._records[chunk] = self.operation
        return older

    def finish(self) -> None:
        """The replay is over. Raises `CheckpointError` if a chunk has a result that the log knows nothing of."""
        for chunk, done in enumerate(self._records):
            if done > self.operation:
                raise CheckpointError(
                    f"chunk {chunk} is at operation {done}, and the log ends with operation {self.operation}"
                )


def redo_effect(
    effect: object,
    redo: Redo,
    plane: RecoveringPlane,
    held: dict[BlobId, None],
    pinned: set[BlobId],
) -> None:
    """Perform an effect of a replayed event, if it is one on tensors and not done.

    ``held``: the payloads that the machine holds, which is updated. ``pinned``: versions that the event pinned so
    far. A replay sends nothing, so these are not made; the machine releases them within the same event.
    """
    match effect:
        case Apply():
            plane.redo(effect, redo.operation + 1, redo.next())
        case Difference(blob):
            plane.redo(effect, redo.operation + 1, redo.next())
            held[blob] = None
        case Pin(blob):
            pinned.add(blob)
        case Release(blob) if blob in pinned:
            pinned.remove(blob)
        case Release(blob):
            plane.release(blob)
            del held[blob]
        case _:
            pass
