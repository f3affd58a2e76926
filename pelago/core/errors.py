"""The exceptions of Pelago. The type says where the fault is.

    PelagoError
    ├── ConfigError       what the user gave: a run file, a flag, a path, a port
    ├── WireError         what a peer sent: bytes that are not a message of this protocol
    │   ├── OtherProtocol   an envelope of another version of the protocol
    │   └── OtherRun        an envelope of another run
    ├── CheckpointError   what the disk holds: a file that is damaged, missing or of another kind
    │   └── ForeignState    the state of another run, or of another node
    ├── PeerRefused       a server refused this node, and a retry would not help
    ├── RunFailed         training failed: no update can be applied any more
    └── PeerSilent        a server did not answer for so long that the run is taken to be over

A broken invariant of Pelago itself is an ``assert``: the node stops and writes a crash report.
"""


class PelagoError(Exception):
    """Base of all errors that Pelago raises on purpose."""


class ConfigError(PelagoError):
    """The user asked for something impossible. The message names the key and the value."""


class WireError(PelagoError):
    """A peer sent bytes that are not a valid message. They are counted and dropped."""


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
    """The run, or a region's part in it, ended early because none of its updates can be applied."""


class PeerRefused(PelagoError):
    """The server refused this node: another run, model, corpus or protocol."""


class PeerSilent(PelagoError):
    """The server did not answer for `network.give_up_after_ms`."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its type if that is empty."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
