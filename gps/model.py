"""The global model's version, what it was trained on, and the replies that carry it."""

from pelago.core.durable import durable
from pelago.core.machine import Send
from pelago.core.names import BlobId, Peer, PushId, Version, samples_of
from pelago.core.tensor_effects import Pin, Release
from pelago.protocol.versions_in_flight import VersionsInFlight
from pelago.wire.messages import Effect, Model, Push


@durable()
class GlobalModel:
    """Its tensors are the plane's. Every applied update makes one version."""

    def __init__(self, incarnation: int, versions_max: int = 0) -> None:
        self.version = Version(incarnation, 0)
        self.updates = 0
        self.counted_steps = 0
        """Local steps in the updates that were applied."""
        self.samples = 0
        """That the counted steps were trained on, dropped movement included."""
        self.tokens = 0
        self.in_flight = VersionsInFlight(versions_max)
        """Versions on their way to regions and evaluators."""
        self._next_blob = 1

    def count(self, update: Push) -> None:
        """An update was applied."""
        self.version = Version(self.version.incarnation, self.version.counter + 1)
        self.updates += 1
        self.counted_steps += update.steps
        self.samples += samples_of(update.spans) + samples_of(update.dropped)
        self.tokens += update.tokens

    def has_room(self, peer: Peer, *, average: bool) -> bool:
        """Whether the newest version, or its mean, may be sent to a peer now."""
        return self.in_flight.has_room(peer, self.version, average)

    def reply(
        self, peer: Peer, answers: PushId | None, *, final: bool, average: bool
    ) -> tuple[BlobId, list[Effect]]:
        """Send the newest version, or the running mean of the versions where one is kept (``average``).

        ``answers``: the exchange that it answers. ``final``: no version follows. Returns the payload's
        name beside the effects. There must be room for it (`has_room`).
        """
        blob, self._next_blob = self._next_blob, self._next_blob + 1
        self.in_flight.begin(peer, blob, self.version, average)
        message = Model(self.version, self.counted_steps, None, answers, final)
        return blob, [Pin(blob, average), Send(peer, message, blob), Release(blob)]
