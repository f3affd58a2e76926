"""The events and effects of nodes that hold parameters: payloads are measured, applied, pinned and released."""

from typing import Literal

from pelago.core.frozen import frozen
from pelago.core.names import BlobId, Version

Operation = Literal["step", "load", "merge", "merge_carry", "merge_replay"]
"""What `Apply` does with the parameters."""


@frozen
class Loaded:
    """The parameters are in the arena (initialised from a seed, or read from a file)."""

    version: Version


@frozen
class Measured:
    """A staged payload was measured on this node. ``norm``: L2 norm; ``finite``: whether every element is."""

    blob: BlobId
    norm: float
    finite: bool


@frozen
class Measure:
    """Answer with `Measured` for a staged payload."""

    blob: BlobId


@frozen
class Apply:
    """Change the parameters with a staged payload, in the order of emission.

    ``step``: one step of the server's outer optimiser along ``weight * blob``.
    ``load``: model and snapshot become the blob.
    ``merge``: model <- (1 - weight) * model + weight * blob; snapshot <- model.
    ``merge_carry``: as ``merge``, then snapshot <- model + (model at the last `Difference` - model just
    before the merge), so that the next `Difference` contains the movement made in between.
    ``merge_replay``: the merge is made at the send point, and the movement made since is replayed on
    it: snapshot <- (1 - weight) * sent + weight * blob, model <- snapshot + (model - sent), where sent
    is the model at the last `Difference`. So the next `Difference` contains that movement too.
    """

    operation: Operation
    blob: BlobId
    weight: float = 1.0


@frozen
class Pin:
    """Name the parameters as they are now ``blob``; later changes do not touch it.

    ``average``: name their running mean instead, if the driver's plane keeps one.
    """

    blob: BlobId
    average: bool = False


@frozen
class Difference:
    """Name ``snapshot - model`` as it is now ``blob``: the pseudo-gradient of an exchange."""

    blob: BlobId


@frozen
class Release:
    """The machine no longer needs this payload. It is freed when no send uses it."""

    blob: BlobId
