"""`pelago plan`: what a run will need and how fast it can be, and whether that is possible."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from pelago.cli.plan.facts import Gpu
from pelago.cli.plan.forecast import Assumptions, Forecast, forecast
from pelago.cli.plan.model import model_facts
from pelago.cli.plan.verdicts import Judgement, verdicts
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.net.durability import disk_needs
from pelago.net.durability.disk_needs import Need, size

EXIT_IMPOSSIBLE: Final = 1
"""The run file asks for something that cannot work."""
TABLE_WIDTH: Final = 120
"""Of the tables, where there is no terminal."""


def plan(run: RunFile, assumed: Assumptions, *, as_json: bool) -> int:
    """Print the plan; returns the exit code: 0, or `EXIT_IMPOSSIBLE`. Raises `ConfigError`."""
    if run.simulation is not None:
        raise ConfigError(
            "simulation: a run file with this table starts no processes; `experiments replay` tells its times"
        )
    completed = _completed(run, assumed)
    found = forecast(run, model_facts(run), completed)
    here, elsewhere = disk_needs.on_this_machine(run, found.model.bytes, run.out)
    judged = sorted(
        [*verdicts(run, found), *_disk_verdicts(run, here)], key=lambda each: not each.fatal
    )
    if as_json:
        disks = [{"node": n.node, "folder": str(n.folder), "bytes": n.bytes} for n in here]
        others = [{"node": n.node, "bytes": n.bytes} for n in elsewhere]
        figures = found.figures() | {
            "disks": disks,
            "disks_elsewhere": others,
            "verdicts": [asdict(each) for each in judged],
        }
        print(json.dumps(figures))
    else:
        _show(run, found, [*here, *elsewhere], judged)
    return EXIT_IMPOSSIBLE if any(each.fatal for each in judged) else 0


def _completed(run: RunFile, assumed: Assumptions) -> Assumptions:
    """With this machine's GPUs and memory, where nothing else is assumed and nodes are on this machine."""
    if run.worker.device == "cpu":
        if assumed.gpu is not None:
            raise ConfigError(f"--gpu {assumed.gpu.name}: worker.device = 'cpu'")
    elif assumed.gpu is None:
        gpu, count = _gpus_here()
        if gpu is None and run.worker.device == "cuda":
            raise ConfigError("worker.device = 'cuda': there is no GPU here; name one with --gpu")
        assumed = replace(assumed, gpu=gpu, gpus=assumed.gpus or count)
    if assumed.host_bytes is None and len(_hosts(run)) == 1:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assumed = replace(assumed, host_bytes=memory)
    return assumed


def _hosts(run: RunFile) -> set[str]:
    regions = range(len(run.region))
    return {run.gps_connect()[0], *(run.lps_connect(index)[0] for index in regions)}


def _gpus_here() -> tuple[Gpu | None, int]:
    import torch

    from pelago.cli.plan.facts import GPUS

    if not torch.cuda.is_available():
        return None, 0
    name = torch.cuda.get_device_name(0)
    known = next((each for key, each in GPUS.items() if key in name.lower()), None)
    total = torch.cuda.get_device_properties(0).total_memory
    # One that is not in the table has no known peak.
    gpu = Gpu(name, total, 0.0 if known is None else known.operations)
    return gpu, torch.cuda.device_count()


def _disk_verdicts(run: RunFile, here: Sequence[Need]) -> Iterator[Judgement]:
    try:
        found = disk_needs.compare([*here])
    except OSError as error:
        yield Judgement(False, f"run.out = '{run.out}': cannot see how much is free: {error}", "")
        return
    for fatal, why in ((True, found.will), (False, found.may)):
        if why:
            yield Judgement(fatal, why.rpartition(": ")[0], "make room, or choose another run.out")


def _show(
    run: RunFile, found: Forecast, needs: Sequence[Need], judged: Sequence[Judgement]
) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    for line in _heading(run, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for table in (_memory(found, needs), _transfers(found), _rounds(run, found)):
        console.print(table)
    for each in judged:
        lines = [f"{'impossible' if each.fatal else 'beware':<11}{each.what}"]
        lines += [f"{'':<11}would do: {each.remedy}"] if each.remedy else []
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not judged:
        console.print("Nothing stands against it.", highlight=False)


def _heading(run: RunFile, found: Forecast) -> Iterator[str]:
    model = found.model
    active = "" if model.active == model.parameters else f", {model.active:,} of them active"
    yield f"run        {run.run_id}"
    yield f"model      {run.model.preset}: {model.parameters:,} parameters{active}, {size(model.bytes)} in fp32"
    gpu = found.assumed.gpu
    yield f"workers    {'compute on CPUs' if gpu is None else f'compute on {gpu.name}, {size(gpu.bytes)} each'}"
    if found.step is None:
        yield (
            "step       unknown: give --step-seconds, or --gpu (with --mfu); without it there are no times of"
            " rounds"
        )
    else:
        yield f"step       {_seconds(found.step.seconds)} ({found.step.origin}) at relative speed 1"
    if not run.network.bandwidth_gbps:
        yield "links      [network] gives none: taken as those of one host"


def _memory(found: Forecast, needs: Sequence[Need]) -> Table:
    """A row for each process: at most so much."""
    disks: dict[str, int] = {}
    for each in needs:
        disks[each.node] = disks.get(each.node, 0) + each.bytes
    table = _table("memory and disk, at most", "process", "host", "memory", "models", "GPU", "disk")
    for process in found.processes:
        models = f"{process.host_bytes / found.model.bytes:.1f}"
        gpu = size(process.gpu_bytes) if process.gpu_bytes else "-"
        disk = size(disks[process.name]) if process.name in disks else "-"
        table.add_row(process.name, process.place, size(process.host_bytes), models, gpu, disk)
    for node in disks.keys() - {process.name for process in found.processes}:
        table.add_row(node, "", "", "", "", size(disks[node]))
    for host, total in found.hosts.items():
        table.add_row("all", host, size(total), "", "", "", style="bold")
    return table


def _transfers(found: Forecast) -> Table:
    table = _table("transfers", "from", "to", "encoding", "up", "seconds", "down", "seconds")
    for region in found.regions:
        for ends, transfers in (
            ((f"lps-{region.name}", "gps"), region.exchange),
            (("a worker", f"lps-{region.name}"), region.push_pull),
        ):
            for each in transfers:
                up, down = size(each.up_bytes), size(each.down_bytes)
                times = (_seconds(each.up_s), _seconds(each.down_s))
                table.add_row(*ends, each.encoding, up, times[0], down, times[1])
    return table


def _rounds(run: RunFile, found: Forecast) -> Table:
    table = _table("times", "", "steps train", "push and pull", "round", "busy")
    for region in found.regions:
        for name, each in region.rounds.items():
            waits, whole = _seconds(each.push_s + each.pull_s), _seconds(each.seconds)
            table.add_row(name, _seconds(each.train_s), waits, whole, f"{each.busy:.1%}")
        pace = region.pace
        name = f"exchange of {region.name}"
        if pace.updates_s is None or pace.in_flight is None:
            table.add_row(name, "unknown", _seconds(pace.seconds), "unknown", "")
            continue
        cycle = _seconds(pace.updates_s + pace.seconds)
        in_flight = f"{pace.in_flight:.1%} of updates in flight"
        table.add_row(name, _seconds(pace.updates_s), _seconds(pace.seconds), cycle, in_flight)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    left: Any = {"process", "host", "from", "to", "encoding", ""}
    for each in columns:
        table.add_column(each, justify="left" if each in left else "right")
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
