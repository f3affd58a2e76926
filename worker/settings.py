"""From the run file to a worker's settings, for the daemon and the virtual driver."""

from typing import Final

from pelago.config.run_file import RunFile
from pelago.core.machine import PS_PER_MS
from pelago.core.names import Address, Peer
from worker.schedule import local_steps
from worker.state import WorkerSettings

PS_PER_MINUTE: Final = 60_000 * PS_PER_MS


def settings(
    run: RunFile,
    region: int | None,
    group: int,
    *,
    incarnation: int,
    fingerprint: str,
    corpus: str,
    server: Peer | None = None,
    lossless: bool = False,
) -> WorkerSettings:
    """Settings of a worker, by its region's place in the file, or (``region`` None) the evaluator.

    ``group``: its place in the region; -1: the server chooses, and the worker takes the speed that the
    run file gives that group, or 1 if it names none.
    ``server``: what the driver calls the server; None: "lps", for the evaluator "gps".
    ``lossless``: for a driver that loses nothing, so no heartbeats and no retries.
    """
    worker = run.worker
    speed = 1.0 if region is None else run.relative_speed(region, group)
    heartbeat_ps = run.network.heartbeat_ms * PS_PER_MS

    def round_samples(speed: float) -> int:
        return local_steps(worker.local_steps, speed, worker.rescale) * worker.batch_size

    groups = 0 if region is None or group >= 0 else len(run.region[region].worker_speeds)
    return WorkerSettings(
        server=server or ("gps" if region is None else "lps"),
        address=Address(run.gps_region if region is None else run.region[region].name, group),
        incarnation=incarnation,
        fingerprint=fingerprint,
        corpus=corpus,
        round_samples=round_samples(speed),
        validation_interval_steps=run.gps.validation_interval_steps,
        tick_ps=0 if lossless else heartbeat_ps,
        retry_ps=2 * heartbeat_ps,
        lost_after_ps=run.network.lost_after_ms * PS_PER_MS,
        stuck_after_ps=round(worker.stuck_minutes * PS_PER_MINUTE),
        export_interval_ps=round(run.run.export_minutes * PS_PER_MINUTE),
        give_up_after_ps=run.network.give_up_after_ms * PS_PER_MS,
        group_samples=tuple(
            round_samples(run.relative_speed(region or 0, each)) for each in range(groups)
        ),
    )
