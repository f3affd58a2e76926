"""The settings that the worker's machine and the evaluator's machine share: both are clients of one server."""

from dataclasses import dataclass

from pelago.core.names import Address, Peer
from pelago.protocol.client_session import GIVE_UP_AFTER_PS, ClientSession
from pelago.wire.messages import PROTOCOL_VERSION, Hello, Role


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Which server a node belongs to, how it introduces itself there, and how long it waits."""

    server: Peer
    address: Address
    incarnation: int
    fingerprint: str
    """Fingerprint of the model's manifest."""
    corpus: str
    """Digest of the corpus."""
    tick_ps: int
    """Interval of heartbeats; 0: no heartbeats and no retries, for a driver that loses nothing."""
    retry_ps: int
    """How long until a request without an answer is repeated, in picoseconds."""
    lost_after_ps: int
    stuck_after_ps: int = 0
    """How long a micro-batch may take, see `Watchdog`; 0: without limit."""
    give_up_after_ps: int = GIVE_UP_AFTER_PS
    """How long the server may send nothing before the node ends with an error, in picoseconds."""

    def hello(self, role: Role) -> Hello:
        """The first message of this node to its server."""
        return Hello(
            PROTOCOL_VERSION,
            role,
            self.address,
            self.incarnation,
            self.fingerprint,
            self.corpus,
        )

    def session(self, role: Role) -> ClientSession:
        """A new session with the server."""
        return ClientSession(
            self.server, self.hello(role), self.retry_ps, self.lost_after_ps, self.give_up_after_ps
        )
