"""`result.json`: the results of a run, from the GPS's state and the last reports of its regions.

Both drivers make it here, so the same keys mean the same thing under both clocks:

    method, clock ("real" | "virtual"), seed
    elapsed_ms        from the first lease to the end of the run, without the time in which there was no GPS
    counted_steps     local steps in the updates that the GPS applied, dropped movement included
    samples, tokens   what those steps were trained on, whatever the batch size was at the time
    model             {parameters, fingerprint}
    gps               {version, updates, updates_by_region {NAME: updates}, rejected}
    lps               {NAME: {updates, exchanges, in_flight_updates, rejected}}; rejected: rounds of
                      workers without an accepted update, since not finite or too large
    workers           {"NAME/GROUP": {rounds, steps, skipped, busy_fraction}}; skipped: steps whose
                      gradient was not finite
    validation        [[elapsed_ms, counted_steps, loss] ...] global model, held-out, nats per token
    ledger            {issued, applied, dropped_in_flight, unexchanged, returned, duplicated}
                      in samples
    bytes             {wan, lan} payload bytes that arrived: between regions, inside them
    error             why the run ended before it was over, in words; "": it was over
"""

from typing import Any, Literal

from gps.state import Gps
from pelago.config.run_file import RunFile
from pelago.core.machine import PS_PER_MS
from pelago.wire.messages import RegionReport, WorkerReport


def result(
    gps: Gps, run: RunFile, *, clock: Literal["real", "virtual"], model_parameters: int
) -> dict[str, Any]:
    """The result of a run whose GPS has finished: JSON values only, in the order above."""
    reports = {region.name: region.report for region in gps.regions.values()}
    present = [report for report in reports.values() if report is not None]
    return {
        "method": "halos" if run.simulation is None else run.simulation.method,
        "clock": clock,
        "seed": run.run.seed,
        "elapsed_ms": gps.clock.elapsed_ps() / PS_PER_MS,
        "counted_steps": gps.model.counted_steps,
        "samples": gps.model.samples,
        "tokens": gps.model.tokens,
        "model": {"parameters": model_parameters, "fingerprint": gps.settings.fingerprint},
        "gps": {
            "version": gps.model.version.counter,
            "updates": gps.model.updates,
            "updates_by_region": {region.name: region.updates for region in gps.regions.values()},
            "rejected": gps.exchanges.refusals.total,
        },
        "lps": {name: _region(report) for name, report in reports.items()},
        "workers": {
            f"{name}/{worker.group}": _worker(worker)
            for name, report in reports.items()
            for worker in (report.workers if report is not None else ())
        },
        "validation": [
            [at / PS_PER_MS, steps, loss] for at, steps, loss in gps.evaluators.validations
        ],
        "ledger": _ledger(gps),
        "bytes": {
            "wan": sum(report.wan_bytes for report in present),
            "lan": sum(report.lan_bytes for report in present),
        },
        "error": gps.error,
    }


def _region(report: RegionReport | None) -> dict[str, int]:
    """Zeros for a region that no process ever served, or that was lost before its first report."""
    return {
        "updates": report.updates if report is not None else 0,
        "exchanges": report.exchanges if report is not None else 0,
        "in_flight_updates": report.in_flight_updates if report is not None else 0,
        "rejected": report.rejected if report is not None else 0,
    }


def _worker(report: WorkerReport) -> dict[str, int | float]:
    busy_fraction = report.busy_ms / report.alive_ms if report.alive_ms else 0.0
    return {
        "rounds": report.rounds,
        "steps": report.steps,
        "skipped": report.skipped,
        "busy_fraction": busy_fraction,
    }


def _ledger(gps: Gps) -> dict[str, int]:
    totals = gps.ledger.totals()
    # Those who still hold samples did not settle: their work never reached the model.
    return {
        "issued": totals.issued,
        "applied": totals.applied,
        "dropped_in_flight": totals.dropped_in_flight,
        "unexchanged": totals.unexchanged + totals.held,
        "returned": totals.returned,
        "duplicated": totals.duplicated,
    }
