"""Talk to one machine: say what happens, read what it wishes; it is checked each time."""

from typing import Self

from pelago.core.machine import PS_PER_MS, Machine, Received
from pelago.core.names import BlobId, Peer
from pelago.core.notes.note import Note
from pelago.wire.messages import Effect, Event, Message

SECOND = 1000 * PS_PER_MS


class Conversation:
    """A machine and its clock, which stands still unless a test moves it."""

    def __init__(self, machine: Machine[Message]) -> None:
        self.machine = machine
        self.now = 0

    def happens(self, event: Event) -> list[Effect]:
        """One fact; returns every wish that follows from it."""
        effects = self.machine.handle(event, self.now)
        self.machine.check()
        return effects

    def hears(self, peer: Peer, message: Message, blob: BlobId | None = None) -> list[Effect]:
        """A message comes, with a staged payload or without."""
        return self.happens(Received(peer, message, blob))

    def after(self, seconds: float) -> Self:
        """Let time pass."""
        self.now += round(seconds * SECOND)
        return self


def without_notes(effects: list[Effect]) -> list[Effect]:
    """The wishes that change something."""
    return [effect for effect in effects if not isinstance(effect, Note)]
