"""From the run file to the settings of a worker's machine and of the evaluator's, for both drivers."""

from pelago.config.run_file import RunFile
from pelago.config.timeouts import Timeouts
from pelago.core.machine import PS_PER_MINUTE
from pelago.core.names import Address, Peer
from worker.client_settings import ClientSettings
from worker.evaluator.state import EvaluatorSettings
from worker.schedule import local_steps
from worker.state import WorkerSettings


def worker_settings(
    run: RunFile,
    region: int,
    group: int,
    *,
    incarnation: int,
    fingerprint: str,
    corpus: str,
    server: Peer = "lps",
    lossless: bool = False,
) -> WorkerSettings:
    """Settings of a worker of one region, by the region's place in the run file.

    ``group``: its place in the region; -1: the server chooses, and the worker takes the speed that the
    run file gives that group, or 1 if it names none.
    ``server``: the driver's name for the LPS.
    ``lossless``: for a driver that loses nothing, so no heartbeats and no retries.
    """
    worker, section = run.worker, run.region[region]

    def round_samples(group: int) -> int:
        speed = run.relative_speed(region, group)
        return local_steps(worker.local_steps, speed, worker.rescale) * worker.batch_size

    client = _client(
        run, server, Address(section.name, group), incarnation, fingerprint, corpus, lossless
    )
    groups = 0 if group >= 0 else len(section.worker_speeds)
    return WorkerSettings(
        client=client,
        round_samples=round_samples(group),
        group_samples=tuple(round_samples(each) for each in range(groups)),
        overlap=worker.overlap,
    )


def evaluator_settings(
    run: RunFile,
    *,
    incarnation: int,
    fingerprint: str,
    corpus: str,
    server: Peer = "gps",
    lossless: bool = False,
) -> EvaluatorSettings:
    """Settings of the evaluator. ``server``: the driver's name for the GPS; ``lossless`` as for a worker."""
    address = Address(run.gps_region, -1)
    return EvaluatorSettings(
        client=_client(run, server, address, incarnation, fingerprint, corpus, lossless),
        validation_interval_steps=run.gps.validation_interval_steps,
        export_interval_ps=round(run.run.export_minutes * PS_PER_MINUTE),
    )


def _client(
    run: RunFile,
    server: Peer,
    address: Address,
    incarnation: int,
    fingerprint: str,
    corpus: str,
    lossless: bool,
) -> ClientSettings:
    timeouts = Timeouts.of(run.network, lossless=lossless)
    return ClientSettings(
        server=server,
        address=address,
        incarnation=incarnation,
        fingerprint=fingerprint,
        corpus=corpus,
        tick_ps=timeouts.tick_ps,
        retry_ps=timeouts.retry_ps,
        lost_after_ps=timeouts.lost_after_ps,
        stuck_after_ps=round(run.worker.stuck_minutes * PS_PER_MINUTE),
        give_up_after_ps=timeouts.give_up_after_ps,
    )
