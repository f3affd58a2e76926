"""From the run file to the settings of an LPS's machine, for the daemon and the virtual driver."""

from lps.machine_settings import LpsSettings
from pelago.config import models_held
from pelago.config.run_file import RunFile
from pelago.config.timeouts import Timeouts
from pelago.core.machine import PS_PER_MINUTE, PS_PER_S
from pelago.core.names import Peer
from pelago.core.watchdog import longest_ps
from pelago.protocol.staging import WITHOUT_LIMIT


def settings(
    run: RunFile,
    region: int,
    *,
    incarnation: int,
    gps: Peer = "gps",
    lossless: bool = False,
) -> LpsSettings:
    """Settings of the LPS of one region, by its place in the run file.

    ``gps``: what the driver calls the GPS. ``lossless``: for a driver that loses nothing, so no heartbeats
    and no retries; with room for every update, and samples granted when they are wanted
    (`lease_seconds` = 0), HALoS's learning-rate clock.
    """
    timeouts = Timeouts.of(run.network, lossless=lossless)
    return LpsSettings(
        gps=gps,
        region=run.region[region].name,
        incarnation=incarnation,
        updates_per_exchange=run.lps.updates_per_exchange,
        merge_weight=run.lps.merge_weight,
        in_flight=run.lps.in_flight,
        lease_ahead_ps=0 if lossless else round(run.lps.lease_seconds * PS_PER_S),
        # A bound for every worker: none is faster than 1, and `rescale` only makes rounds shorter.
        round_samples_max=run.worker.local_steps * run.worker.batch_size,
        sample_tokens=run.data.sequence_length,
        update_norm_max=run.lps.update_norm_max,
        rejected_max=run.lps.rejected_max,
        max_lr=run.worker.max_lr,
        staged_max=WITHOUT_LIMIT if lossless else run.lps.staged_max,
        versions_max=0
        if lossless
        else models_held.versions_max(run.lps, models_held.of_lps(run, region)),
        wan=run.region[region].name != run.gps_region,
        tick_ps=timeouts.tick_ps,
        retry_ps=timeouts.retry_ps,
        lost_after_ps=timeouts.lost_after_ps,
        give_up_after_ps=timeouts.give_up_after_ps,
        leases_max=2 if run.worker.overlap else 1,
        stuck_after_ps=longest_ps(round(run.worker.stuck_minutes * PS_PER_MINUTE)),
    )
