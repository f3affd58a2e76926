"""What cannot work as the run file has it, and what would."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pelago.cli.plan import processes
from pelago.cli.plan.facts import ModelFacts
from pelago.cli.plan.forecast import Forecast, RegionPlan
from pelago.config import models_held as held
from pelago.config import toml_writer
from pelago.config.run_file import RunFile

BUSY_WANTED: Final = 0.9
"""Below this share of computing a larger H is proposed."""
GB: Final = 10**9
_CHECKPOINTED: Final[dict[str, Any]] = {"checkpoint_activations": True}
_SHORT_MOMENTS: Final[dict[str, Any]] = {"moments_dtype": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Judgement:
    """Something that does not fit or does not keep up. ``fatal``: the run cannot work so. ``remedy``: keys and values
    that would do, or ""."""

    fatal: bool
    what: str
    remedy: str


def verdicts(run: RunFile, found: Forecast) -> list[Judgement]:
    """All of them."""
    judged = [*_gpus(run, found), *_hosts(run, found)]
    for region in found.regions:
        judged += [*_exchanges(run, region), *_busy(run, region)]
    return judged


def _gpus(run: RunFile, found: Forecast) -> Iterator[Judgement]:
    gpu = found.assumed.gpu
    if gpu is None:
        return
    for (host, number), wanted in found.gpus.items():
        if wanted <= gpu.bytes:
            continue
        what = (
            f"GPU memory: cuda:{number} of {host} would hold {_gb(wanted)}, and a {gpu.name} has"
            f" {_gb(gpu.bytes)}"
        )
        now = processes.sequences_at_once(run, found.model, gpu.bytes)
        own = processes.gpu_worker_bytes(run, found.model, now)
        workers = max(1, wanted // own)
        room = (gpu.bytes - (wanted - workers * own)) // workers
        yield Judgement(True, what, _smaller_step(run, found.model, room))


def _smaller_step(run: RunFile, facts: ModelFacts, room: int) -> str:
    """Keys of a step that fits into ``room`` bytes of a GPU."""
    fits = processes.largest_that_fits(run, facts, room)
    if fits:
        return f"worker.micro_batch_size = {fits}"
    for changed in (_CHECKPOINTED, _CHECKPOINTED | _SHORT_MOMENTS):
        less = run.model_copy(update={"worker": run.worker.model_copy(update=changed)})
        fits = processes.largest_that_fits(less, facts, room)
        if fits:
            keys = [f"worker.{key} = {toml_writer.value(each)}" for key, each in changed.items()]
            return " and ".join([*keys, f"worker.micro_batch_size = {fits}"])
    return "no micro-batch fits: take a smaller model or data.sequence_length, or more GPUs"


def _hosts(run: RunFile, found: Forecast) -> Iterator[Judgement]:
    limit = found.assumed.host_bytes
    if limit is None:
        return
    for host, wanted in found.hosts.items():
        if wanted <= limit:
            continue
        what = f"host memory: the processes of {host} hold up to {_gb(wanted)}, and it has {_gb(limit)}"
        saved, fewer = 0, _one_staged(run)
        for index, region in enumerate(run.region):
            name = f"lps-{region.name}"
            if any(each.name == name and each.place == host for each in found.processes):
                less = held.of_lps(run, index).memory - held.of_lps(fewer, index).memory
                saved += less * found.model.bytes
        if wanted - saved <= limit:
            yield Judgement(True, what, "lps.staged_max = 1")
        else:
            yield Judgement(
                True, what, "give some of its processes another host, or it more memory"
            )


def _one_staged(run: RunFile) -> RunFile:
    return run.model_copy(update={"lps": run.lps.model_copy(update={"staged_max": 1})})


def _exchanges(run: RunFile, region: RegionPlan) -> Iterator[Judgement]:
    """An exchange that lasts longer than its updates take: most of the region's work is made in flight."""
    pace = region.pace
    if pace.updates_s is None or pace.in_flight is None or pace.seconds <= pace.updates_s:
        return
    factor = pace.seconds / pace.updates_s
    lost = ", and lost to the other regions" if run.lps.in_flight == "drop" else ""
    what = (
        f"link of {region.name}: an exchange takes {pace.seconds:.3g} s, and K = {run.lps.updates_per_exchange}"
        f" updates {pace.updates_s:.3g} s: {pace.in_flight:.0%} of the updates are made in flight{lost}"
    )
    ways = [f"lps.updates_per_exchange = {math.ceil(factor * run.lps.updates_per_exchange)}"]
    ways += [
        f"an encoding {each.encoding} of the exchange"
        for each in region.exchange
        if each.up_s + each.down_s <= pace.updates_s
    ][:1]
    if region.rounds:
        slowest = max(region.rounds.values(), key=lambda each: each.train_s)
        longer = factor * slowest.seconds - slowest.push_s - slowest.pull_s
        steps = math.ceil(run.worker.local_steps * longer / slowest.train_s)
        ways.append(f"worker.local_steps = {steps}")
    yield Judgement(True, what, " or ".join(ways))


def _busy(run: RunFile, region: RegionPlan) -> Iterator[Judgement]:
    """Workers that mostly wait for their transfers."""
    for name, each in region.rounds.items():
        if each.busy >= BUSY_WANTED:
            continue
        waits = each.push_s + each.pull_s
        longer = BUSY_WANTED / (1 - BUSY_WANTED) * waits
        steps = math.ceil(run.worker.local_steps * longer / each.train_s)
        what = f"{name}: computes {each.busy:.0%} of the time, and waits {waits:.3g} s a round for transfers"
        remedy = f"worker.local_steps = {steps} gives {BUSY_WANTED:.0%}"
        yield Judgement(False, what, remedy)
        return  # The first such worker of a region stands for all.


def _gb(count: int) -> str:
    return f"{count / GB:,.1f} GB"
