"""Seconds of a worker's step and round, the share of them in which it computes, and the seconds between exchanges."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pelago.cli.plan.facts import Gpu, ModelFacts
from pelago.cli.plan.links import Hop
from pelago.config.run_file import RunFile

MS_PER_S: Final = 1000
DEFAULT_MFU: Final = 0.4
"""Share of a GPU's peak that training uses where nothing better is known; it is an assumption."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a local step at relative speed 1, and where the figure is from."""

    seconds: float
    origin: str


def step_time(
    run: RunFile, facts: ModelFacts, stated_s: float | None, gpu: Gpu | None, mfu: float | None
) -> StepTime | None:
    """The stated time, or that of ``local.step_ms``, or the operations of a step at ``mfu`` of a GPU's peak; None:
    nothing is known."""
    if stated_s is not None:
        return StepTime(stated_s, "as stated")
    if run.local.step_ms:
        return StepTime(run.local.step_ms / MS_PER_S, "local.step_ms")
    if gpu is None or not gpu.operations:
        return None
    share = DEFAULT_MFU if mfu is None else mfu
    tokens = run.worker.batch_size * run.data.sequence_length
    operations = facts.step_operations(tokens, run.data.sequence_length)
    return StepTime(operations / (share * gpu.operations), f"{share:g} of the peak of a {gpu.name}")


@dataclass(frozen=True, slots=True)
class RoundTime:
    """One worker's round: it trains, pushes its update and gets the next model."""

    train_s: float
    push_s: float
    pull_s: float

    @property
    def seconds(self) -> float:
        """From the start of a round to the start of the next one."""
        return self.train_s + self.push_s + self.pull_s

    @property
    def busy(self) -> float:
        """Share of the time in which the worker computes."""
        return self.train_s / self.seconds


@dataclass(frozen=True, slots=True)
class ExchangePace:
    """A region's exchanges. ``seconds``: of one, from its offer until the global model is there. ``updates_s``: in
    which the workers make K updates; None: unknown."""

    seconds: float
    updates_s: float | None

    @property
    def in_flight(self) -> float | None:
        """Share of the region's updates that are made while an exchange is in flight: K updates after a merge the
        next exchange begins."""
        return None if self.updates_s is None else self.seconds / (self.seconds + self.updates_s)


def round_time(
    steps: int, step_s: float, speed: float, hop: Hop, sizes: tuple[int, int]
) -> RoundTime:
    """``steps`` local steps of ``step_s / speed`` seconds; ``sizes``: bytes of the update, and of the model."""
    up, down = sizes
    return RoundTime(steps * step_s / speed, hop.push_s(up), hop.pull_s(down))


def exchange_pace(
    rounds: Mapping[str, RoundTime] | None, per_exchange: int, hop: Hop, sizes: tuple[int, int]
) -> ExchangePace:
    """``rounds``: of the region's workers, by name; None: unknown. ``per_exchange``: K. ``sizes``: bytes of the
    exchange, and of the global model."""
    up, down = sizes
    seconds = hop.push_s(up) + hop.pull_s(down)
    if rounds is None:
        return ExchangePace(seconds, None)
    rate = sum(1 / each.seconds for each in rounds.values())
    return ExchangePace(seconds, per_exchange / rate)
