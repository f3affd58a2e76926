"""What `pelago local` shows while a run goes on, read from the GPS's event log, and its summary."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pelago.config.run_file import RunFile
from pelago.core.machine import PS_PER_S
from pelago.core.notes.gps import RegionSummary, RunStatus, ValidationReported
from pelago.runlog.events import (
    DeviceChosen,
    DiskShort,
    JournalBlocked,
    JournalUnblocked,
    ResultNotWritten,
    SnapshotFailed,
)
from pelago.runlog.log import LOG_NAME, LogLine, LogReader, lines_of, read_log

PLAIN_INTERVAL_S = 5.0
GONE = (OSError, SystemExit)
"""What rich raises when its output is not taken any more: the terminal is gone, or the disk is full. For a closed
pipe it raises `SystemExit`, which must not end the run."""
HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a node's log, in which it says on which device it computes."""


class ProgressDisplay:
    """A live table on a terminal; elsewhere a line every `PLAIN_INTERVAL_S` of the run's time."""

    def __init__(self, run: RunFile, out: Path, live: bool) -> None:
        self._run = run
        self._out = out
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if live else None
        self._log = LogReader(out / "gps" / LOG_NAME)
        self._status: RunStatus | None = None
        self._loss: float | None = None
        self._printed_s = -PLAIN_INTERVAL_S

    def __enter__(self) -> Self:
        self.say(f"{self._run.run_id}: starting {self._nodes()}; results in {self._out}")
        if self._live is not None:
            with suppress(*GONE):
                self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            # The terminal may be gone.
            with suppress(*GONE):
                self._live.stop()

    @property
    def phase(self) -> str:
        """The GPS's phase, as far as it was read."""
        return "starting" if self._status is None else self._status.phase

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        # The output may be a file on a full disk, or a pipe without a reader: the run goes on.
        with suppress(*GONE):
            self._console.print(text, soft_wrap=True)

    def update(self) -> None:
        """Read what the GPS has logged since the last call and show it."""
        for line in self._log.read():
            match line.event if isinstance(line, LogLine) else None:
                case RunStatus() as event:
                    self._status = event
                case ValidationReported() as event:
                    self._loss = event.loss
                    self._say_validation(event)
                case (
                    JournalBlocked() | DiskShort() | SnapshotFailed() | ResultNotWritten() as event
                ):
                    self.say(f"gps: {event.kind}: {event.why}".rstrip(": "))
                case JournalUnblocked() as event:
                    self.say(f"gps: {event.kind}")
                case _:
                    pass
        status = self._status
        if status is None:
            return
        if self._live is not None:
            with suppress(*GONE):
                self._live.update(Group(self._headline(status), _table(status)))
        elif _elapsed_s(status) - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = _elapsed_s(status)
            self.say(f"{self._headline(status).plain} | {_regions_line(status)}")

    def device(self, node: str) -> str:
        """On which device a worker or the evaluator computes; empty until it has logged it."""
        lines = read_log(self._out / node / LOG_NAME, HEAD_BYTES)
        chosen = [event.device for _, event in lines_of(DeviceChosen, lines)]
        return chosen[-1] if chosen else ""

    def summarise(self, result: dict[str, Any]) -> None:
        """The end of the run in a few lines."""
        elapsed_s = result["elapsed_ms"] / 1e3
        ledger = result["ledger"]
        self.say("")
        self.say(
            f"{result['counted_steps']:,} local steps, {result['tokens']:,} tokens in {elapsed_s:.1f} s"
            f" ({result['tokens'] / max(elapsed_s, 1e-9):,.0f} tokens/s)"
        )
        if result["validation"]:
            first, last = result["validation"][0], result["validation"][-1]
            self.say(f"held-out loss {first[2]:.3f} -> {last[2]:.3f} nats per token")
        self.say(
            f"global updates {result['gps']['updates']}: "
            + ", ".join(
                f"{name} {count}" for name, count in result["gps"]["updates_by_region"].items()
            )
        )
        self.say("samples " + ", ".join(f"{key} {value:,}" for key, value in ledger.items()))
        self._say_losses(result)
        wan, lan = result["bytes"]["wan"] / 1e6, result["bytes"]["lan"] / 1e6
        self.say(f"payload {wan:,.1f} MB between regions, {lan:,.1f} MB inside them")
        self.say(f"results in {self._out}: result.json, loss.png, model/")

    def _say_losses(self, result: dict[str, Any]) -> None:
        """Say how many steps and updates were lost, if any were."""
        skipped = sum(each["skipped"] for each in result["workers"].values())
        rejected = sum(each["rejected"] for each in result["lps"].values())
        if skipped or rejected or result["gps"]["rejected"]:
            self.say(
                f"{skipped:,} steps skipped, since their gradient was not finite; rejected: {rejected:,} rounds"
                f" of workers, {result['gps']['rejected']:,} updates of regions"
            )

    def _nodes(self) -> str:
        workers = sum(len(each.worker_speeds) for each in self._run.region)
        return f"1 GPS, {len(self._run.region)} LPSs, {workers} workers and an evaluator"

    def _left_s(self, status: RunStatus) -> float | None:
        elapsed_s, steps = _elapsed_s(status), status.counted_steps
        limits = []
        if steps:
            limits.append(elapsed_s * (self._run.run.budget_local_steps / steps - 1))
        if self._run.run.budget_minutes:
            limits.append(self._run.run.budget_minutes * 60 - elapsed_s)
        return max(0.0, min(limits)) if limits else None

    def _headline(self, status: RunStatus) -> Text:
        elapsed_s, left_s = _elapsed_s(status), self._left_s(status)
        loss = "-" if self._loss is None else f"{self._loss:.3f}"
        left = "-" if left_s is None else f"{left_s:.0f} s"
        tokens = sum(region.tokens for region in status.regions.values())
        rate = tokens / elapsed_s if elapsed_s else 0.0
        return Text(
            f"{status.phase} {elapsed_s:.0f} s, left {left}"
            f" | steps {status.counted_steps:,}/{self._run.run.budget_local_steps:,}"
            f" | held-out loss {loss} | {rate:,.0f} tokens/s | global version {status.version}"
        )

    def _say_validation(self, validation: ValidationReported) -> None:
        if self._live is None:
            seconds = validation.elapsed_ps / PS_PER_S
            self.say(
                f"held-out loss {validation.loss:.4f} at {seconds:.1f} s,"
                f" {validation.counted_steps:,} steps"
            )


def _elapsed_s(status: RunStatus) -> float:
    return status.elapsed_ps / PS_PER_S


def _table(status: RunStatus) -> Table:
    table = Table(
        "region", "workers", "updates", "exchanges", "in flight", "staleness", "steps", "loss"
    )
    for name, region in status.regions.items():
        table.add_row(name, *_cells(region))
    return table


def _cells(region: RegionSummary) -> list[str]:
    return [
        str(region.workers) if region.serving else "away",
        f"{region.updates:,}",
        f"{region.exchanges:,}",
        "yes" if region.exchanging else "no",
        str(region.staleness_max),
        f"{region.steps:,}",
        "-" if region.loss is None else f"{region.loss:.3f}",
    ]


def _regions_line(status: RunStatus) -> str:
    parts = []
    for name, region in status.regions.items():
        _, updates, exchanges, flying, staleness, _, loss = _cells(region)
        parts.append(
            f"{name}: {updates} updates, {exchanges} exchanges (in flight: {flying}),"
            f" staleness <= {staleness}, loss {loss}"
        )
    return "; ".join(parts)
