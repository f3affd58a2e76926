"""What `pelago local` shows while a run goes on, read from the GPS's event log, and its summary."""

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pelago.config.run_file import RunFile

PLAIN_INTERVAL_S = 5.0
DISK_KINDS = ("disk_short", "disk_trouble", "disk_well", "snapshot_failed", "not_written")
"""Events of the GPS that its user should see."""
PS_PER_S = 10**12
GONE = (OSError, SystemExit)
"""What rich raises when nobody takes its output any more: a terminal that is gone, a file on a full disk; and
of a pipe that was closed it makes an end of the program, which is not its to decide."""
HEAD_BYTES = 1 << 16
"""Of a node's log, in which it tells what it is."""


class ProgressDisplay:
    """A live table on a terminal; elsewhere a line every `PLAIN_INTERVAL_S` of the run's time."""

    def __init__(self, run: RunFile, out: Path, live: bool) -> None:
        self._run = run
        self._out = out
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if live else None
        self._path = out / "gps" / "events.jsonl"
        self._offset = 0
        self._status: dict[str, Any] = {}
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
        return str(self._status.get("phase", "starting"))

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        # The output may be a file on a full disk, or a pipe that nobody reads any more: the run goes on.
        with suppress(*GONE):
            self._console.print(text, soft_wrap=True)

    def update(self) -> None:
        """Read what the GPS has told since the last time and show it."""
        for event in self._read():
            if event["kind"] == "status":
                self._status = event
            elif event["kind"] == "validation":
                self._loss = event["loss"]
                self._say_validation(event)
            elif event["kind"] in DISK_KINDS:
                self.say(f"gps: {event['kind']}: {event.get('why', '')}".rstrip(": "))
        if not self._status:
            return
        if self._live is not None:
            with suppress(*GONE):
                self._live.update(Group(self._headline(), self._table()))
        elif self._elapsed_s() - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = self._elapsed_s()
            self.say(f"{self._headline().plain} | {self._regions_line()}")

    def device(self, node: str) -> str:
        """On which device a worker or the evaluator computes; empty as long as it has not told."""
        path = self._out / node / "events.jsonl"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            events = [_event(line) for line in file.read(HEAD_BYTES).splitlines()]
        told = [event["device"] for event in events if event and event.get("kind") == "device"]
        return str(told[-1]) if told else ""

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
        """What came to nothing, if anything did."""
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

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")
        # The last line may not be whole yet.
        self._offset += sum(len(line) + 1 for line in lines[:-1])
        return [event for line in lines[:-1] if (event := _event(line)) is not None]

    def _elapsed_s(self) -> float:
        return float(self._status.get("elapsed_ps", 0)) / PS_PER_S

    def _left_s(self) -> float | None:
        elapsed_s, steps = self._elapsed_s(), self._status["counted_steps"]
        limits = []
        if steps:
            limits.append(elapsed_s * (self._run.run.budget_local_steps / steps - 1))
        if self._run.run.budget_minutes:
            limits.append(self._run.run.budget_minutes * 60 - elapsed_s)
        return max(0.0, min(limits)) if limits else None

    def _headline(self) -> Text:
        status = self._status
        elapsed_s, left_s = self._elapsed_s(), self._left_s()
        loss = "-" if self._loss is None else f"{self._loss:.3f}"
        left = "-" if left_s is None else f"{left_s:.0f} s"
        rate = self._region_tokens() / elapsed_s if elapsed_s else 0.0
        return Text(
            f"{status['phase']} {elapsed_s:.0f} s, left {left}"
            f" | steps {status['counted_steps']:,}/{self._run.run.budget_local_steps:,}"
            f" | held-out loss {loss} | {rate:,.0f} tokens/s | global version {status['version']}"
        )

    def _region_tokens(self) -> int:
        regions = self._status["regions"].values()
        return sum(region["tokens"] for region in regions)

    def _table(self) -> Table:
        table = Table(
            "region", "workers", "updates", "exchanges", "in flight", "staleness", "steps", "loss"
        )
        for name, region in self._status["regions"].items():
            table.add_row(name, *self._cells(region))
        return table

    @staticmethod
    def _cells(region: dict[str, Any]) -> list[str]:
        loss = region["loss"]
        return [
            str(region["workers"]) if region["serving"] else "away",
            f"{region['updates']:,}",
            f"{region['exchanges']:,}",
            "yes" if region["exchanging"] else "no",
            str(region["staleness_max"]),
            f"{region['steps']:,}",
            "-" if loss is None else f"{float(loss):.3f}",
        ]

    def _regions_line(self) -> str:
        parts = []
        for name, region in self._status["regions"].items():
            _, updates, exchanges, flying, staleness, _, loss = self._cells(region)
            parts.append(
                f"{name}: {updates} updates, {exchanges} exchanges (in flight: {flying}),"
                f" staleness <= {staleness}, loss {loss}"
            )
        return "; ".join(parts)

    def _say_validation(self, event: dict[str, Any]) -> None:
        if self._live is None:
            seconds = event["elapsed_ps"] / PS_PER_S
            self.say(
                f"held-out loss {event['loss']:.4f} at {seconds:.1f} s, {event['counted_steps']:,} steps"
            )


def _event(line: bytes) -> dict[str, Any] | None:
    """An event of a log; None for a line that its writer never ended, since it was killed or found no room."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event
