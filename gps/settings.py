"""From the run file to the settings of the GPS's machine, for the daemon and the virtual driver."""

from gps.machine_settings import GpsSettings
from pelago.config import models_held
from pelago.config.run_file import RunFile
from pelago.config.timeouts import Timeouts
from pelago.core.machine import PS_PER_MINUTE
from pelago.core.watchdog import longest_ps
from pelago.protocol.staging import WITHOUT_LIMIT
from pelago.wire.messages import TensorSpec


def settings(
    run: RunFile,
    *,
    incarnation: int,
    manifest: tuple[TensorSpec, ...],
    fingerprint: str,
    corpus: str,
    lossless: bool = False,
) -> GpsSettings:
    """Settings of the one GPS.

    ``lossless``: for a driver that loses nothing, so no heartbeats and no retries, on a server with
    room for everyone, as the paper's are. Without ticks the machine does not see ``budget_minutes``
    pass: such a driver ends the run itself.
    """
    timeouts = Timeouts.of(run.network, lossless=lossless)
    return GpsSettings(
        regions=tuple(region.name for region in run.region),
        incarnation=incarnation,
        manifest=manifest,
        fingerprint=fingerprint,
        corpus=corpus,
        budget_local_steps=run.run.budget_local_steps,
        budget_ps=round(run.run.budget_minutes * PS_PER_MINUTE),
        sample_tokens=run.data.sequence_length,
        update_norm_max=run.gps.update_norm_max,
        rejected_max=run.gps.rejected_max,
        max_lr=run.worker.max_lr,
        staleness_power=run.gps.staleness_power,
        staged_max=WITHOUT_LIMIT if lossless else run.gps.staged_max,
        versions_max=0 if lossless else models_held.versions_max(run.gps, models_held.of_gps(run)),
        tick_ps=timeouts.tick_ps,
        retry_ps=timeouts.retry_ps,
        lost_after_ps=timeouts.lost_after_ps,
        stuck_after_ps=longest_ps(round(run.worker.stuck_minutes * PS_PER_MINUTE)),
        region_lost_after_ps=timeouts.region_lost_after_ps,
    )
