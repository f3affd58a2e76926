"""The GPS's end of exchanges: updates of regions are admitted, judged, applied and answered."""

from typing import Final, NamedTuple

from gps.clock import RunClock
from gps.machine_settings import GpsSettings
from gps.model import GlobalModel
from gps.phases import GpsPhase
from gps.regions import Region, Regions
from pelago.core.durable import durable
from pelago.core.leases import SampleLedger
from pelago.core.machine import Send
from pelago.core.names import BlobId, Peer, PushId, samples_of
from pelago.core.notes.gps import ExchangeArrived, ExchangeRejected
from pelago.core.refusals import Refusals, hopeless, update_fault
from pelago.core.tensor_effects import Apply, Measured, Release
from pelago.protocol.update_admission import UpdateAdmission
from pelago.wire.messages import Ack, Effect, Push, Refuse, Wait

NORM_KEY: Final = "gps.update_norm_max"
NO_ROOM: Final = "room for another version of the model at the GPS (gps.models_max)"
"""What a region is told that waits for it."""


class Decided(NamedTuple):
    """The effects of a measured update."""

    effects: list[Effect]
    applied: tuple[Region, PushId] | None = None
    """The exchange that is still to be answered with the model; None: it was not applied."""
    error: str = ""
    """Why no update can be applied any more; empty: others may be."""


@durable(settings=("_settings", "_clock", "_model", "_ledger", "_regions", "_admission"))
class RegionExchanges:
    """Every update is decided once: applied, rejected or fenced."""

    def __init__(
        self,
        settings: GpsSettings,
        clock: RunClock,
        model: GlobalModel,
        ledger: SampleLedger,
        regions: Regions,
        admission: UpdateAdmission,
    ) -> None:
        self.refusals = Refusals(settings.rejected_max)
        """Updates of regions that were rejected."""
        self._settings = settings
        self._clock = clock
        self._model = model
        self._ledger = ledger
        self._regions = regions
        self._admission = admission

    def offered(self, region: Region, peer: Peer, push: PushId, phase: GpsPhase) -> list[Effect]:
        """A region asks whether it may send an update, or for the outcome of one."""
        outcome = region.outcome(push)
        if outcome is None:
            return self._admission.offered(peer, push) if phase == "serving" else []
        settled = self._admission.settled(peer, push, outcome)
        is_newest = push == (region.newest, region.fence)
        if phase == "loading" or not is_newest or region.replying is not None:
            return settled
        # The model that answers this update was lost, or never sent.
        return [*settled, *self.reply(region, push)]

    def pushed(self, region: Region, peer: Peer, message: Push, blob: BlobId) -> list[Effect]:
        """An update arrived whole."""
        outcome = region.outcome(message.push)
        if outcome is not None:
            return [Release(blob), *self._admission.settled(peer, message.push, outcome)]
        return self._admission.arrived(peer, message, blob)

    def measured(self, event: Measured, phase: GpsPhase) -> Decided:
        """An update was measured: apply or reject it."""
        pending = self._admission.measured(event.blob)
        if pending is None:
            return Decided([])
        peer, message, _ = pending
        region = self._regions.served_by(peer)
        effects = self._admission.free(peer, message.push)
        if phase != "serving" or region is None or region.outcome(message.push) is not None:
            # The run is over, or the update was fenced while it was being measured.
            return Decided([*effects, Release(event.blob)])
        fault = self._fault(region, message, event)
        if fault:
            effects += self._reject(region, peer, message, event, fault)
            return self._refused(region, peer, message.push, fault, effects)
        effects += self._apply(region, message, event)
        effects.append(Send(peer, Ack(message.push, "applied")))
        return Decided(effects, (region, message.push))

    def reply_to_all_that_wait(self) -> list[Effect]:
        """A version has arrived somewhere, so there may be room for another."""
        effects: list[Effect] = []
        for region in self._regions.values():
            if region.waits and self._model.has_room(region.peer or "", average=False):
                effects += self.reply(region, region.waits_for)
        return effects

    def reply(self, region: Region, answers: PushId | None) -> list[Effect]:
        """Send the model to a region that is served. ``answers``: the exchange that it answers."""
        assert region.peer is not None
        if answers is None and region.replying is not None:
            return []  # What it asks for is on its way.
        if not self._model.has_room(region.peer, average=False):
            region.waits, region.waits_for = True, answers
            return [Send(region.peer, Wait(NO_ROOM))]
        region.waits = False
        region.replying, effects = self._model.reply(
            region.peer, answers, final=False, average=False
        )
        return effects

    def _fault(self, region: Region, message: Push, event: Measured) -> str:
        fault = update_fault(event, self._settings.update_norm_max, NORM_KEY)
        if fault:
            return fault
        # A step takes a sample at least. Those of samples that were dropped count as well.
        samples = samples_of((*message.spans, *message.dropped))
        tokens_max = samples * self._settings.sample_tokens
        if not 0 <= message.steps <= samples or not 0 <= message.tokens <= tokens_max:
            claim = f"{message.steps} steps and {message.tokens} tokens"
            return f"{claim} are more than {samples} samples give"
        if not self._ledger.holds(region.name, (*message.spans, *message.dropped)):
            return "samples that this region does not hold"
        return ""

    def _reject(
        self, region: Region, peer: Peer, message: Push, event: Measured, fault: str
    ) -> list[Effect]:
        region.settle(message.push, "rejected")
        held = self._ledger.held[region.name]
        self._ledger.give_back(region.name, held.common(message.spans))
        self._ledger.give_back(region.name, held.common(message.dropped))
        return [
            ExchangeRejected(region.name, fault, event.norm),
            Release(event.blob),
            Send(peer, Ack(message.push, "rejected")),
        ]

    def _refused(
        self, region: Region, peer: Peer, push: PushId, fault: str, effects: list[Effect]
    ) -> Decided:
        """What follows from another update of a region that was rejected."""
        verdict = self.refusals.refused(region.name, self._regions.present())
        if verdict == "go on":
            return Decided([*effects, *self.reply(region, push)])
        settings, count = self._settings, self.refusals.in_a_row[region.name]
        error = hopeless(
            f"region {region.name}",
            count,
            fault,
            settings.max_lr,
            settings.update_norm_max,
            NORM_KEY,
        )
        if verdict == "all":
            return Decided(effects, error=error)
        self._ledger.reclaim(region.name)
        parted = self._regions.part(region, "its updates are rejected")
        return Decided([*effects, Send(peer, Refuse(error)), *parted])

    def _apply(self, region: Region, message: Push, event: Measured) -> list[Effect]:
        self.refusals.accepted(region.name)
        self._ledger.consume(region.name, message.spans, message.dropped)
        # A base above the newest version is a peer's mistake; it must not raise the weight above 1.
        staleness = max(0, self._model.version.counter - message.base.counter)
        weight = (1.0 + staleness) ** -self._settings.staleness_power
        self._model.count(message)
        self._clock.reached_at = self._clock.now
        region.settle(message.push, "applied")
        region.updates += 1
        note = ExchangeArrived(
            region=region.name,
            version=self._model.version.counter,
            exchange=message.push.lease,
            fence=message.push.fence,
            spans=message.spans,
            dropped=message.dropped,
            steps=message.steps,
            cumulative_steps=self._model.counted_steps,
            elapsed_ps=self._clock.elapsed_ps(),
            staleness=staleness,
            norm=event.norm,
            loss=message.loss,
        )
        return [Apply("step", event.blob, weight), Release(event.blob), note]
