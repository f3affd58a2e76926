"""The worker groups of a region: who holds which group, its fence, what it waits for."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pelago.core.durable import durable
from pelago.core.names import BlobId, Lease, Peer, PushId
from pelago.wire.messages import COUNT_MAX, PROTOCOL_VERSION, Hello, WorkerReport

GROUPS_MAX: Final = 1 << 16
ROUNDS_UNMEASURED: Final = 2
"""Rounds to have in hand for a member of which it is not known how long they take."""
ROUNDS_AHEAD_MAX: Final = 4096
"""Rounds to have in hand for a member at most, however short they are."""


DEPARTED_MAX: Final = 256
"""Departed processes whose last reports are kept, since they may come back. Of earlier ones only sums are kept."""


@durable()
@dataclass(slots=True)
class Member:
    """A worker process that was welcomed."""

    peer: Peer
    group: int
    fence: int
    incarnation: int
    heard_at: int
    leases: tuple[Lease, ...] = ()
    """What it holds, oldest first."""
    wants: int = 0
    """Samples that it waits for, and for a model; 0: it does not wait."""
    ahead: int = 0
    """Samples of the lease ahead of need that it waits for; 0: it waits for none."""
    decided: PushId | None = None
    """Its last update about which the region decided."""
    replying: BlobId | None = None
    """The model that is on its way to it."""
    begun_at: int = 0
    """When the round under way began: when its lease was cut, or the update before it was decided."""
    round_samples: int = 0
    """Samples of the round that it asked for last."""
    round_ps: int = 0
    """Duration of its last round in picoseconds, from its lease to its update; 0: it has finished none yet."""
    sent: int = 0
    """Newest version that was sent to it."""
    report: WorkerReport | None = None

    def lend(self, lease: Lease, now: int) -> None:
        """It gets a lease."""
        if not self.leases:
            self.begun_at = now
        self.leases = (*self.leases, lease)

    def round_done(self, push: PushId, now: int) -> None:
        """A round of it is over: the update was applied or rejected."""
        self.round_ps = max(1, now - self.begun_at)
        self.leases = tuple(each for each in self.leases if each.push != push)
        self.decided, self.begun_at = push, now


@durable(settings=("get",))
class Members:
    """The members of a region. A group's fence grows each time its holder changes."""

    def __init__(self) -> None:
        self._members: dict[Peer, Member] = {}
        self.get: Final = self._members.get
        """The member behind a connection, if there is one; the dict's own method, since every message
        asks for it. An image is restored into the same dict."""
        self._fences: dict[int, int] = {}
        self._departed: OrderedDict[Peer, WorkerReport] = OrderedDict()
        """Last reports of the `DEPARTED_MAX` processes that left last. One that comes back continues its counts."""
        self._before: dict[int, WorkerReport] = {}
        """Sums of the reports of all processes that left earlier, by group."""

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def holder(self, group: int) -> Member | None:
        """The member that holds a group; none holds group -1."""
        return next((each for each in self._members.values() if each.group == group), None)

    def admit(self, peer: Peer, hello: Hello, now: int) -> Member:
        """Admit a process to the group that it asks for, or to the first free one."""
        group = hello.address.group
        if group < 0:
            held = {member.group for member in self._members.values()}
            group = next(index for index in range(len(held) + 1) if index not in held)
        self._fences[group] = self._fences.get(group, 0) + 1
        member = Member(peer, group, self._fences[group], hello.incarnation, now)
        report = self._departed.pop(peer, None)
        member.report = None if report is None else replace(report, group=group)
        self._members[peer] = member
        return member

    def remove(self, member: Member) -> None:
        """Forget a process; its group's next holder gets a higher fence."""
        if member.report is not None:
            self._departed[member.peer] = member.report
            if len(self._departed) > DEPARTED_MAX:
                _, report = self._departed.popitem(last=False)
                self._before[report.group] = _sum(self._before.get(report.group), report)
        del self._members[member.peer]

    def silent_since(self, then: int) -> list[Member]:
        """Members that sent nothing after ``then``."""
        return [member for member in self._members.values() if member.heard_at < then]

    def samples_in(self, ahead_ps: int) -> int:
        """Samples that the members need in the next ``ahead_ps`` at the pace of their last rounds, and for one more
        round each, which may begin at any time. 0 if ``ahead_ps`` is 0."""
        if not ahead_ps:
            return 0
        return sum(each.round_samples * _rounds(each, ahead_ps) for each in self._members.values())

    def reports(self) -> tuple[WorkerReport, ...]:
        """One report a group, over all processes that held it, in order of the groups."""
        reports = dict(self._before)
        present = [each.report for each in self._members.values() if each.report is not None]
        for report in (*self._departed.values(), *present):
            reports[report.group] = _sum(reports.get(report.group), report)
        return tuple(reports[group] for group in sorted(reports))


def _rounds(member: Member, ahead_ps: int) -> int:
    if not member.round_ps:
        return ROUNDS_UNMEASURED
    return min(ROUNDS_AHEAD_MAX, 1 - (-ahead_ps // member.round_ps))


def _sum(before: WorkerReport | None, now: WorkerReport) -> WorkerReport:
    if before is None:
        return now
    return WorkerReport(
        group=now.group,
        rounds=min(COUNT_MAX, before.rounds + now.rounds),
        steps=min(COUNT_MAX, before.steps + now.steps),
        tokens=min(COUNT_MAX, before.tokens + now.tokens),
        busy_ms=min(COUNT_MAX, before.busy_ms + now.busy_ms),
        alive_ms=min(COUNT_MAX, before.alive_ms + now.alive_ms),
        loss=now.loss,
        skipped=min(COUNT_MAX, before.skipped + now.skipped),
    )


def hello_fault(message: Hello, region: str, fingerprint: str, corpus: str) -> str:
    """Why a process cannot be a worker of this region, for its user; empty if it can."""
    if message.protocol != PROTOCOL_VERSION:
        return f"protocol {message.protocol} is not {PROTOCOL_VERSION}: update the older node"
    if message.role != "worker":
        return f"an LPS serves workers, not {message.role}"
    if message.address.region != region:
        return f"region {message.address.region!r} is not this LPS's {region!r}"
    if message.address.group >= GROUPS_MAX:
        return f"group {message.address.group} is not below {GROUPS_MAX}"
    if message.fingerprint != fingerprint:
        return (
            f"model fingerprint {message.fingerprint!r} is not the run's {fingerprint!r}:"
            " the worker's model differs from the GPS's"
        )
    if message.corpus != corpus:
        return (
            f"corpus digest {message.corpus!r} is not the run's {corpus!r}:"
            " the worker's corpus or tokenizer differs from the GPS's"
        )
    return ""
