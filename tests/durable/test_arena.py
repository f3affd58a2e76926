"""The rules of a durable arena: effects wait for the log, records survive a torn write, no operation is done twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.core.errors import CheckpointError
from pelago.core.tensor_effects import Apply, Difference, Measure, Pin, Release
from pelago.durable.arena import (
    NOTHING,
    ChunkRecord,
    EffectGate,
    RecordFormat,
    Redo,
    Slot,
    redo_effect,
)

STEP = Apply("step", -1)
RECORD = ChunkRecord(7, (Slot(0, 1), Slot(4096, (1 << 64) - 1), NOTHING), Slot(8192, 5), 3)


# --- the gate ------------------------------------------------------------------------------------


def test_an_effect_is_admitted_when_the_log_holds_its_event_and_not_before() -> None:
    gate = EffectGate()
    gate.add(4, STEP)
    gate.add(4, Release(-1))
    gate.add(6, Pin(2))
    assert gate.admit(3) == []
    assert [each.effect for each in gate.admit(5)] == [STEP, Release(-1)]
    assert gate.waiting == 1
    assert [each.effect for each in gate.admit(6)] == [Pin(2)]


def test_operations_are_numbered_in_the_order_of_emission_also_while_they_wait() -> None:
    gate = EffectGate(operations=10)
    for event, effect in enumerate((STEP, Pin(1), Release(1), Difference(2), Release(-1))):
        gate.add(event, effect)
    assert gate.operations == 12
    assert [each.operation for each in gate.admit(9)] == [11, 11, 11, 12, 12]


# --- records -------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 62), st.integers(0, (1 << 64) - 1), st.integers(-(1 << 62), 1 << 62))
def test_a_record_is_read_as_it_was_written(operation: int, checksum: int, blob: int) -> None:
    record = ChunkRecord(operation, (Slot(512, checksum), NOTHING), Slot(0, 0), blob)
    form = RecordFormat(2, salt=9)
    assert form.unpack(3, [form.pack(3, record)]) == record


def test_a_record_whose_write_was_cut_at_any_byte_leaves_the_one_before_it() -> None:
    form = RecordFormat(3, salt=9)
    older, newer = form.pack(0, RECORD), form.pack(0, ChunkRecord(9, RECORD.slots))
    below = form.pack(0, ChunkRecord(5, RECORD.slots))
    for cut in range(form.bytes_each):
        torn = newer[:cut] + below[cut:]
        assert form.unpack(0, [older, torn]) == RECORD, cut
    assert form.unpack(0, [older, newer]) == ChunkRecord(9, RECORD.slots)


def test_a_record_of_another_chunk_or_another_node_is_not_sound() -> None:
    packed = RecordFormat(3, salt=9).pack(1, RECORD)
    assert RecordFormat(3, salt=9).unpack(2, [packed]) is None
    assert RecordFormat(3, salt=8).unpack(1, [packed]) is None
    assert RecordFormat(3, salt=9).unpack(1, [b"", bytes(len(packed))]) is None


# --- recovery ------------------------------------------------------------------------------------


class RecordingPlane:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def hold(self, blob: int, slots: object) -> None:
        raise AssertionError("nothing arrives here")

    def redo(self, effect: object, operation: int, chunks: object) -> None:
        self.calls.append((operation, chunks))

    def release(self, blob: int) -> None:
        self.calls.append(blob)


def test_an_operation_is_done_again_only_for_chunks_whose_record_is_older() -> None:
    redo = Redo([6, 5, 7], checkpoint=5)
    assert [redo.next() for _ in range(3)] == [[1], [0, 1], [0, 1, 2]]
    redo.finish()


def test_a_chunk_behind_the_checkpoint_is_refused() -> None:
    with pytest.raises(CheckpointError, match="chunk 1 is at operation 4, and the checkpoint at 5"):
        Redo([5, 4], checkpoint=5)


def test_a_result_that_the_log_knows_nothing_of_is_refused() -> None:
    redo = Redo([5, 6], checkpoint=5)
    with pytest.raises(CheckpointError, match="chunk 1 is at operation 6"):
        redo.finish()


def test_a_replay_makes_no_pins_and_knows_which_payloads_are_held() -> None:
    plane, redo, held, pinned = RecordingPlane(), Redo([0, 1], checkpoint=0), {-1: None}, set[int]()
    for effect in (STEP, Pin(1), Measure(-1), Release(1), Release(-1), Difference(2)):
        redo_effect(effect, redo, plane, held, pinned)
    assert plane.calls == [(1, [0]), -1, (2, [0, 1])]
    assert (held, pinned) == ({2: None}, set())
