"""The client's end of a conversation with its server: join, stay alive, get one update across.

A worker speaks so to its LPS, an LPS and the evaluator to the GPS. Pure: it returns effects, and the
machine that owns it emits them. Nothing here rests on a message arriving: Hello, Offer and whatever
the owner asks for are repeated on the tick until they are answered, or until nothing at all was heard
for so long that the run must be taken for over or lost.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from pelago.core.durable import durable
from pelago.core.machine import PS_PER_S, Finish, Send
from pelago.core.names import BlobId, Peer, PushId
from pelago.core.notes.common import GoingOn, LeftUnanswered, Waiting
from pelago.wire.messages import (
    Effect,
    Grant,
    Heartbeat,
    Hello,
    Leave,
    Offer,
    Push,
    RegionReport,
    WorkerReport,
)

UNANSWERED: Final = "unanswered"
"""`Finish.reason` of a node that waited for its server in vain."""
GIVE_UP_AFTER_PS: Final = 3600 * PS_PER_S
"""An hour: for whoever says nothing else."""
LEAVE_TICKS_MAX: Final = 20
"""How often a leaving node says so before it goes without an answer."""


@durable()
@dataclass(slots=True)
class Upload:
    """One update on its way: offered, then sent, then (all of it arrived) awaiting its fate."""

    message: Push
    blob: BlobId
    state: Literal["offered", "sending", "arrived"]
    asked_at: int
    """When we last asked, in the driver's picoseconds."""

    @property
    def push(self) -> PushId:
        """The update's name."""
        return self.message.push


@durable(settings=("server", "_retry_ps", "_lost_after_ps", "_give_up_after_ps"))
class ClientSession:
    """State of the conversation. The owner holds at most one update in it at a time.

    After ``lost_after_ps`` without a word it is noted that the node waits; after ``give_up_after_ps`` the
    node ends with an error.
    """

    def __init__(
        self,
        server: Peer,
        hello: Hello,
        retry_ps: int,
        lost_after_ps: int,
        give_up_after_ps: int = GIVE_UP_AFTER_PS,
    ) -> None:
        self.server = server
        self.hello = hello
        self.joined = False
        self.fence = 0
        self.upload: Upload | None = None
        self.leaving: Leave | None = None
        """What was said in parting, once it was."""
        self._leave_ticks = 0
        self._retry_ps = retry_ps
        self._lost_after_ps = lost_after_ps
        self._give_up_after_ps = give_up_after_ps
        self._heard_at: int | None = None
        self._quiet_since: int | None = None
        """When the server was last heard, or else when we first asked."""
        self._waiting = ""

    def join(self) -> list[Effect]:
        """Say Hello: at the start, on every tick until welcome, and when the server forgot us."""
        self.joined = False
        return [Send(self.server, self.hello)]

    def welcome(self, fence: int, group: int) -> list[Effect]:
        """The server took us in. From now on we ask for the group that it gave us."""
        self.joined, self.fence = True, fence
        address = replace(self.hello.address, group=group)
        self.hello = replace(self.hello, address=address)
        return self.waiting("")

    def heard(self, now: int) -> list[Effect]:
        """Any message of the server's came."""
        self._heard_at = self._quiet_since = now
        return self.waiting("") if self.joined and self._waiting else []

    def waiting(self, what: str) -> list[Effect]:
        """Say for what this node waits, once; an empty ``what`` says that it goes on."""
        if what == self._waiting:
            return []
        self._waiting = what
        return [Waiting(what) if what else GoingOn()]

    def tick(self, report: WorkerReport | RegionReport | None, now: int) -> list[Effect]:
        """Repeat what was not answered; beat the heart."""
        effects: list[Effect] = []
        if self._quiet_since is None:
            self._quiet_since = now
        if self._heard_at is None or now - self._heard_at > self._lost_after_ps:
            effects += self.waiting(f"{self.server} to answer")
        if self.gives_up(now):
            seconds = self._give_up_after_ps / PS_PER_S
            why = f"no answer for {seconds:g} s (network.give_up_after_ms): is the run over?"
            return [*effects, Finish(UNANSWERED, error=why)]
        if not self.joined:
            return [*effects, *self.join()]
        effects.append(Send(self.server, Heartbeat(report)))
        upload = self.upload
        if upload and upload.state != "sending" and now - upload.asked_at >= self._retry_ps:
            upload.asked_at = now
            effects.append(Send(self.server, Offer(upload.push)))
        return effects

    @property
    def has_heard(self) -> bool:
        """Whether the server ever said anything."""
        return self._heard_at is not None

    def gives_up(self, now: int) -> bool:
        """Whether nothing was heard for too long: `tick` ends the node then."""
        since = self._quiet_since
        return since is not None and now - since > self._give_up_after_ps

    def offer(self, message: Push, blob: BlobId, now: int) -> list[Effect]:
        """Begin to get an update across."""
        assert self.upload is None, self.upload
        self.upload = Upload(message, blob, "offered", now)
        return [Send(self.server, Offer(message.push))]

    def granted(self, message: Grant, now: int) -> list[Effect]:
        """Send the update, unless this is a late echo. A grant for one that arrived means it was lost."""
        upload = self.upload
        if upload is None or upload.push != message.push or upload.state == "sending":
            return []
        upload.state, upload.asked_at = "sending", now
        return [Send(self.server, upload.message, upload.blob)]

    def delivered(self, blob: BlobId, now: int) -> None:
        """All of the payload arrived; what became of it comes as an Ack."""
        if self.upload is not None and self.upload.blob == blob:
            self.upload.state, self.upload.asked_at = "arrived", now

    def decided(self) -> None:
        """The update's fate is known, but not yet all that follows from it: an offer asks for that again."""
        if self.upload is not None:
            self.upload.state = "arrived"

    def lost(self, now: int) -> None:
        """The driver gave up on sending to the server: ask again on the tick."""
        if self.upload is not None and self.upload.state == "sending":
            self.upload.state, self.upload.asked_at = "offered", now

    def restarted(self, now: int) -> None:
        """The process is another one: what it was sending is lost, and it does not know of a silence."""
        self.lost(now)
        self._heard_at = self._quiet_since = now

    def finished(self, push: PushId) -> Upload | None:
        """The update's fate is known: forget it and return it, once."""
        upload = self.upload
        if upload is None or upload.push != push:
            return None
        self.upload = None
        return upload

    def leave(self, message: Leave) -> list[Effect]:
        """Say goodbye, for good; the owner calls `leave_again` on every tick until it is answered."""
        self.leaving = message
        return [Send(self.server, message)]

    def come_back(self) -> None:
        """Having left, this node is wanted again; to the server it is a stranger."""
        self.joined, self.leaving, self._leave_ticks = False, None, 0

    def leave_again(self) -> list[Effect]:
        """Repeat the goodbye, but not for ever: then the node goes without an answer."""
        assert self.leaving is not None
        self._leave_ticks += 1
        if self._leave_ticks <= LEAVE_TICKS_MAX:
            return [Send(self.server, self.leaving)]
        if self._leave_ticks == LEAVE_TICKS_MAX + 1:
            return [LeftUnanswered(), Finish(self.leaving.reason, self.leaving.error)]
        return []
