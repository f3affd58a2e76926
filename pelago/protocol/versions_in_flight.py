"""Which versions of a server's model are on their way to its peers.

A version that is being sent stays in memory until its reader has it, and a slow reader takes long. So that slow
readers of many versions do not hold as many models, a server has a limit on the versions that are on their way at
once. Readers of one version share its memory, however many they are. Who asks for another version waits, and gets the
newest one when there is room.
"""

from collections.abc import Callable

from pelago.core.durable import durable
from pelago.core.names import BlobId, Peer, Version


@durable(settings=("_limit",))
class VersionsInFlight:
    """One version for each peer at most; a later one takes the place of an earlier one. ``limit``: how many different
    versions may be on their way at once; 0: any number, and nothing is noted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sent: dict[Peer, tuple[BlobId, Version, bool]] = {}

    def has_room(self, peer: Peer, version: Version, average: bool = False) -> bool:
        """Whether a version may be sent to a peer. ``average``: it is the mean of that time, another tensor."""
        if not self._limit:
            return True
        others = {tuple(held) for other, (_, *held) in self._sent.items() if other != peer}
        return (version, average) in others or len(others) < self._limit

    def begin(self, peer: Peer, blob: BlobId, version: Version, average: bool = False) -> None:
        """A version is on its way."""
        assert self.has_room(peer, version, average), (peer, version)
        if self._limit:
            self._sent[peer] = blob, version, average

    def end(self, peer: Peer, blob: BlobId | None = None) -> bool:
        """The payload ``blob`` (None: any) is not on its way to a peer any more. Returns whether one was."""
        held = self._sent.get(peer)
        if held is None or blob not in (None, held[0]):
            return False
        del self._sent[peer]
        return True

    def keep(self, is_here: Callable[[Peer], bool]) -> bool:
        """Forget what is on its way to peers that are not here any more, which may be dead: nobody waits for them.
        Returns whether there were any."""
        gone = [peer for peer in self._sent if not is_here(peer)]
        for peer in gone:
            del self._sent[peer]
        return bool(gone)

    def clear(self) -> None:
        """Nothing is on its way any more."""
        self._sent.clear()

    def check(self) -> None:
        """Assert that the limit is kept."""
        versions = {tuple(held) for _, *held in self._sent.values()}
        assert len(versions) <= self._limit or not self._limit, self._sent
