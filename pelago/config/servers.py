"""Tables of the run file about the parameter servers: lps and gps."""

from typing import Self

from pydantic import model_validator

from pelago.config.fields import (
    Connects,
    Durability,
    Fraction,
    InFlight,
    ListensRequired,
    Momentum,
    Natural,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveMinutes,
    Seconds,
    Section,
    UserPath,
)


class ServerSection(Section):
    """Keys of both kinds of parameter server: delayed Nesterov, DN(lr * delay, momentum, delay)."""

    lr: PositiveFloat
    """eta; the optimiser multiplies by the delay itself."""
    momentum: Momentum
    momentum_delay: Positive
    momentum_activation: Fraction = 0.0
    """c of delayed Nesterov."""
    update_norm_max: PositiveFloat = 1e6
    """An update with a larger norm, or one that is not finite, is rejected."""
    rejected_max: Positive = 16
    """How many updates of one worker (at the GPS: of one region) in a row may be rejected, or be missing since no
    gradient was finite. Then it is asked to end; if no other does better, the run ends with an error."""
    staged_max: Positive = 2
    """Updates that may be staged or under way to this server at once. As many more may be late: a client that
    holds a place for much longer than others need loses it to one that waits, and goes on sending without it."""
    models_max: Natural = 0
    """Models that this server may hold in memory: its state, updates that arrive, and versions on their way to slow
    readers. Who asks for another version waits until one of them has arrived. 0: no limit."""
    durability: Durability = "process"
    """The failures that this server survives without losing anything that it acknowledged: none (nothing is written),
    process (kill -9 of it), host (loss of power; every acknowledgement waits for the disk)."""

    @property
    def arriving_max(self) -> int:
        """Updates that may be arriving at once, the late ones included: memory for so many models."""
        return 2 * self.staged_max

    @model_validator(mode="after")
    def _momentum_is_no_more_than_whole(self) -> Self:
        if self.momentum_activation * self.momentum_delay > 1:
            raise ValueError(
                f"momentum_activation = {self.momentum_activation} must not exceed"
                f" 1 / momentum_delay = {1 / self.momentum_delay:.4g}"
            )
        return self


class LpsSection(ServerSection):
    """The local parameter servers."""

    lr: PositiveFloat = 0.2
    momentum: Momentum = 0.9
    momentum_delay: Positive = 16
    updates_per_exchange: Positive = 32
    """K: updates of workers between exchanges with the GPS."""
    merge_weight: Fraction = 0.25
    """alpha: weight of the global model when it is merged into the region's."""
    in_flight: InFlight = "drop"
    """How movement between the send and the merge is treated: lost to the other regions (as in the
    released HALoS code), carried into the next exchange, or replayed on top of a merge made at the
    send point."""
    lease_seconds: Seconds = 75.0
    """Seconds for which a region holds samples in advance, at the pace of its workers, beside a round for each of
    them. It trains on for so long without the GPS. 0: no samples in advance."""


class GpsSection(ServerSection):
    """The global parameter server."""

    region: str = ""
    """The region of the GPS; empty: the first one."""
    lr: PositiveFloat = 0.15
    momentum: Momentum = 0.5
    momentum_delay: Positive = 2
    rejected_max: Positive = 4
    bind: ListensRequired = "0.0.0.0:7700"
    """Control port; bulk data uses the next one. Host 0.0.0.0: all IPv4 addresses; *: those of IPv6 too."""
    connect: Connects = ""
    """HOST:PORT under which the regions reach it; empty: that of bind, 127.0.0.1 where that is all addresses."""
    staleness_power: NonNegativeFloat = 0.0
    """An update based on a version that is n versions old counts (1 + n)^-power times; 0: in full."""
    average: Momentum = 0.0
    """Decay per version of a running mean of the global model, which is what is evaluated and exported;
    0: the model itself is. Training goes on from the model itself."""
    validation_interval_steps: Positive = 2048
    """Counted local steps between validations of the global model."""
    snapshots: UserPath = ""
    """Where copies of the GPS's snapshots go, away from its host: a folder, or any URL that fsspec knows
    (s3://BUCKET/PATH, gs://..., file:///...). `gps --resume` goes on from them. Empty: nowhere."""
    snapshots_minutes: PositiveMinutes = 10.0
    """Minutes between copies. A GPS that is lost with its disk loses at most these, and the time of a copy."""
    snapshots_kept: Positive = 3
    """How many copies stay, the newest ones."""

    @model_validator(mode="after")
    def _snapshots_of_something(self) -> Self:
        if self.snapshots and self.durability == "none":
            raise ValueError(
                f"snapshots = {self.snapshots!r} needs durability = 'process' or 'host': a GPS with 'none' makes none"
            )
        return self
