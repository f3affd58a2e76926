"""The exceptions of Pelago; whose fault it was is in the type.

    PelagoError
    ├── ConfigError       the user's: a run file, a flag, a path, a port
    ├── WireError         a peer's: bytes that are not a message of this protocol
    │   ├── OtherProtocol   an envelope of another version of the protocol
    │   └── OtherRun        an envelope of another run
    ├── CheckpointError   the disk's: a file that is not what it should be
    │   └── ForeignState    the state of another run, or of another node
    ├── PeerRefused       a peer said no, and retrying will not help
    ├── RunFailed         training came to nothing: no update can be applied any more
    └── PeerSilent        a server did not answer for so long that the run must be taken for over

A broken invariant of our own is an ``assert``: the node stops and says what it saw.
"""


class PelagoError(Exception):
    """Base of all errors that Pelago raises on purpose."""


class ConfigError(PelagoError):
    """The user asked for something impossible; the text names the key and the value."""


class WireError(PelagoError):
    """A peer sent bytes that are not a valid message; they are counted and dropped."""


class OtherProtocol(WireError):
    """The envelope is sound, but of another version of the protocol."""

    def __init__(self, protocol: int) -> None:
        super().__init__(f"protocol {protocol} is not ours")
        self.protocol = protocol


class OtherRun(WireError):
    """The envelope is sound, but belongs to another run."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} is not ours")
        self.run = run


class CheckpointError(PelagoError):
    """A file on disk is missing, torn or of another model."""


class ForeignState(CheckpointError):
    """A folder of state is sound, but of another run or node."""


class RunFailed(PelagoError):
    """The run, or a region's part in it, ended before it was over, since training comes to nothing."""


class PeerRefused(PelagoError):
    """The server refused this node: another run, model, corpus or protocol."""


class PeerSilent(PelagoError):
    """The server did not answer for `network.give_up_after_ms`."""
