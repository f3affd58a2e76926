"""The region's place in the run: joining at the GPS, loading the first model, draining, leaving."""

from lps.machine_settings import LpsSettings
from lps.phases import LPS_PHASES, LpsPhase
from pelago.core.durable import durable
from pelago.core.machine import Finish, Send
from pelago.core.names import Version
from pelago.core.notes.lps import LpsJoined
from pelago.protocol.client_session import ClientSession
from pelago.wire.messages import Effect, Leave, Pull, Welcome


@durable(settings=("_settings", "_session"))
class RunMembership:
    """The phase of this LPS, and what the GPS said of the run."""

    def __init__(self, settings: LpsSettings, session: ClientSession) -> None:
        self.phase: LpsPhase = "joining"
        self.fingerprint = ""
        self.corpus = ""
        self.preloaded: Version | None = None
        """Global version that the driver put into the arena: it need not be transferred."""
        self._settings = settings
        self._session = session
        self._pulled_at = 0
        self._may_return = False
        """It was this LPS that was asked to end, and not the run: started again, it serves again."""

    @property
    def is_over(self) -> bool:
        """Whether no more samples are lent to workers, for good."""
        return self.phase in ("draining", "leaving", "gone")

    def _enter(self, phase: LpsPhase) -> None:
        self.phase = LPS_PHASES.move(self.phase, phase)

    def welcome(self, message: Welcome, now: int) -> tuple[list[Effect], Version | None]:
        """The GPS knows this region. Returns the effects, and the version that is loaded already, if one is."""
        effects = self._session.welcome(message.fence, -1)
        self.fingerprint, self.corpus = message.fingerprint, message.corpus
        effects.append(LpsJoined(message.fence))
        if self.phase != "joining":
            return effects, None
        version, self.preloaded = self.preloaded, None
        if version is not None:
            self._enter("serving")
        else:
            self._enter("loading")
            effects += self._pull(now)
        return effects, version

    def _pull(self, now: int) -> list[Effect]:
        self._pulled_at = now
        return [Send(self._settings.gps, Pull(0, 0))]

    def pull_again(self, now: int) -> list[Effect]:
        """Repeat the request for the first model if it was not answered in time."""
        due = self._pulled_at + self._settings.retry_ps <= now
        return self._pull(now) if self.phase == "loading" and due and self._session.joined else []

    def loaded(self) -> None:
        """The first model came."""
        self._enter("serving")

    def begin_anew(self) -> list[Effect]:
        """Say Hello again, as a region that holds nothing."""
        effects: list[Effect] = []
        if self._session.joined:
            # A late or repeated Rejoin may find us known after all: then what we voided must be lent
            # again, and this says so; a GPS that does not know us takes no notice.
            leave = Leave("rejoining", None, (), (), ())
            effects.append(Send(self._settings.gps, leave))
        if self.phase == "serving":
            self._enter("joining")
        return [*effects, *self._session.join()]

    def drain(self) -> None:
        """Let the workers finish; then `leave`."""
        self._enter("draining")

    def leave(self, message: Leave) -> list[Effect]:
        """Settle with the GPS and leave it."""
        self._enter("leaving")
        return self._session.leave(message)

    def finish(self, error: str) -> list[Effect]:
        """The GPS knows that this region left."""
        self._enter("gone")
        return [Finish("run finished", error)]

    def give_up_joining(self, reason: str, error: str) -> list[Effect]:
        """End without a word to a GPS that does not answer."""
        self._enter("gone")
        return [Finish(reason, error)]

    def refused(self, detail: str) -> list[Effect]:
        """The GPS refuses this region. Started again, it asks again."""
        self._enter("gone")
        self.allow_return()
        return [Finish("refused", error=detail)]

    def allow_return(self) -> None:
        """A process that follows this one serves the region again, although this one ends."""
        self._may_return = True

    def come_back(self) -> bool:
        """Whether a process that found this region gone joins again. If so, it is joining now."""
        if not self._may_return:
            return False
        self._may_return = False
        self._session.come_back()
        self._enter("joining")
        return True
