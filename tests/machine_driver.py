"""Drives one machine: gives it events and returns its effects; its invariants are checked each time."""

from typing import Self

from pelago.core.machine import PS_PER_MS, Machine, Received
from pelago.core.names import BlobId, Peer
from pelago.core.notes.note import Note
from pelago.wire.messages import Effect, Event, Message

SECOND = 1000 * PS_PER_MS


class MachineDriver:
    """A machine and its clock, which stands still unless a test moves it. ``payload_bytes``: of each payload that
    comes with a message."""

    def __init__(self, machine: Machine[Message], payload_bytes: int = 0) -> None:
        self.machine = machine
        self._payload_bytes = payload_bytes
        self.now = 0

    def happens(self, event: Event) -> list[Effect]:
        """One event; returns every effect that follows from it."""
        effects = self.machine.handle(event, self.now)
        self.machine.check()
        return effects

    def hears(self, peer: Peer, message: Message, blob: BlobId | None = None) -> list[Effect]:
        """A message comes, with a staged payload or without."""
        size = 0 if blob is None else self._payload_bytes
        return self.happens(Received(peer, message, blob, size))

    def after(self, seconds: float) -> Self:
        """Let time pass."""
        self.now += round(seconds * SECOND)
        return self


def without_notes(effects: list[Effect]) -> list[Effect]:
    """The effects that change something."""
    return [effect for effect in effects if not isinstance(effect, Note)]
