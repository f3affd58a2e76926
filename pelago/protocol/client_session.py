"""The client's end of a conversation with its server: join, send heartbeats, upload one update at a time.

Workers have it with their LPS, an LPS and the evaluator with the GPS. Pure: it returns effects, and the
machine that owns it emits them. No message has to arrive: Hello, Offer and what the owner asks for are
repeated on the tick until they are answered, or until the server has been silent for so long that the
client gives up.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from pelago.core.durable import durable
from pelago.core.machine import PS_PER_S, Finish, Send
from pelago.core.names import BlobId, Peer, PushId
from pelago.core.notes.common import GoingOn, LeftUnanswered, Waiting
from pelago.core.transitions import Transition, TransitionTable
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
"""An hour, unless the owner says otherwise."""
LEAVE_TICKS_MAX: Final = 20
"""How often a leaving node repeats its `Leave` before it ends without an answer."""


UploadState: TypeAlias = Literal["offered", "sending", "arrived"]

UPLOAD: Final = TransitionTable(
    "upload",
    "offered",
    (
        Transition("offered", "sending", "send", "the server grants it"),
        Transition("sending", "arrived", "deliver", "all of the payload arrived"),
        Transition("sending", "offered", "lose", "the driver gave up on the transfer"),
        Transition(
            "offered", "arrived", "deliver", "a transfer that was given up arrived after all"
        ),
        Transition(
            "arrived", "sending", "send", "the server grants it again: it has lost the payload"
        ),
        Transition("offered", "arrived", "decide", "the outcome is known before the transfer"),
        Transition(
            "sending", "arrived", "decide", "the outcome is known before the transfer ended"
        ),
    ),
)


@durable()
@dataclass(slots=True)
class Upload:
    """One update on its way: offered, then sent, then (all of it has arrived) waiting for its `Ack`."""

    message: Push
    blob: BlobId
    asked_at: int
    """When we last asked, in the driver's picoseconds."""
    state: UploadState = "offered"

    @property
    def push(self) -> PushId:
        """The update's name."""
        return self.message.push

    def send(self, now: int) -> None:
        """Its transfer begins."""
        self._enter("sending")
        self.asked_at = now

    def deliver(self, now: int) -> None:
        """All of it arrived, perhaps again."""
        if self.state != "arrived":
            self._enter("arrived")
        self.asked_at = now

    def lose(self, now: int) -> None:
        """Its transfer was given up."""
        self._enter("offered")
        self.asked_at = now

    def decide(self) -> None:
        """Its outcome is known."""
        if self.state != "arrived":
            self._enter("arrived")

    def _enter(self, target: UploadState) -> None:
        self.state = UPLOAD.move(self.state, target)


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
        """The `Leave` that was sent, if one was."""
        self._leave_ticks = 0
        self._retry_ps = retry_ps
        self._lost_after_ps = lost_after_ps
        self._give_up_after_ps = give_up_after_ps
        self._heard_at: int | None = None
        self._quiet_since: int | None = None
        """When the server was last heard, or else when this client first asked."""
        self._waiting = ""

    def join(self) -> list[Effect]:
        """Say Hello: at the start, on every tick until `Welcome` comes, and when the server does not know this
        client any more."""
        self.joined = False
        return [Send(self.server, self.hello)]

    def welcome(self, fence: int, group: int) -> list[Effect]:
        """`Welcome` came. From now on Hello asks for the group that the server assigned."""
        self.joined, self.fence = True, fence
        address = replace(self.hello.address, group=group)
        self.hello = replace(self.hello, address=address)
        return self.waiting("")

    def heard(self, now: int) -> list[Effect]:
        """A message from the server came, of any type."""
        self._heard_at = self._quiet_since = now
        return self.waiting("") if self.joined and self._waiting else []

    def waiting(self, what: str) -> list[Effect]:
        """Note what this node waits for, once; an empty ``what`` means that it goes on."""
        if what == self._waiting:
            return []
        self._waiting = what
        return [Waiting(what) if what else GoingOn()]

    def tick(self, report: WorkerReport | RegionReport | None, now: int) -> list[Effect]:
        """Repeat what was not answered, and send a heartbeat."""
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
        """Whether anything has come from the server."""
        return self._heard_at is not None

    def gives_up(self, now: int) -> bool:
        """Whether nothing was heard for too long: `tick` ends the node then."""
        since = self._quiet_since
        return since is not None and now - since > self._give_up_after_ps

    def offer(self, message: Push, blob: BlobId, now: int) -> list[Effect]:
        """Begin to upload an update: ask for a place."""
        assert self.upload is None, self.upload
        self.upload = Upload(message, blob, now)
        return [Send(self.server, Offer(message.push))]

    def granted(self, message: Grant, now: int) -> list[Effect]:
        """Send the update, unless this grant is a late repeat. A grant for an update that has arrived means that the
        server lost it."""
        upload = self.upload
        if upload is None or upload.push != message.push or upload.state == "sending":
            return []
        upload.send(now)
        return [Send(self.server, upload.message, upload.blob)]

    def delivered(self, blob: BlobId, now: int) -> None:
        """All of the payload arrived; the server's decision comes as an `Ack`."""
        if self.upload is not None and self.upload.blob == blob:
            self.upload.deliver(now)

    def decided(self) -> None:
        """The server decided about the update. It is kept: its offer is repeated until the answer is complete."""
        if self.upload is not None:
            self.upload.decide()

    def lost(self, now: int) -> None:
        """The driver gave up on sending to the server: ask again on the tick."""
        if self.upload is not None and self.upload.state == "sending":
            self.upload.lose(now)

    def restarted(self, now: int) -> None:
        """The process was started again: what it was sending is lost, and the silence counts from now."""
        self.lost(now)
        self._heard_at = self._quiet_since = now

    def finished(self, push: PushId) -> Upload | None:
        """The update is decided: forget it and return it, once."""
        upload = self.upload
        if upload is None or upload.push != push:
            return None
        self.upload = None
        return upload

    def leave(self, message: Leave) -> list[Effect]:
        """Leave for good; the owner calls `leave_again` on every tick until the server answers."""
        self.leaving = message
        return [Send(self.server, message)]

    def come_back(self) -> None:
        """Join again after leaving; the server does not know this client any more."""
        self.joined, self.leaving, self._leave_ticks = False, None, 0

    def leave_again(self) -> list[Effect]:
        """Repeat the `Leave`, `LEAVE_TICKS_MAX` times at most; then the node ends without an answer."""
        assert self.leaving is not None
        self._leave_ticks += 1
        if self._leave_ticks <= LEAVE_TICKS_MAX:
            return [Send(self.server, self.leaving)]
        if self._leave_ticks == LEAVE_TICKS_MAX + 1:
            return [LeftUnanswered(), Finish(self.leaving.reason, self.leaving.error)]
        return []
