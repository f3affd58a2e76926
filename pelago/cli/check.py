"""`pelago check`: everything that can be known about a run before it starts."""

import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress, TaskID

from pelago import address, children, reading
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.net.durability.archive import Archive
from pelago.net.sockets.lookup import addresses
from pelago.net.sockets.tcp_ports import THIS_MACHINE, require_free
from pelago.net.telemetry import say

PROGRESS: Final = "progress"
"""First word of a progress line of the worker that describes the model."""
MODEL_BYTES: Final = "model_bytes"
"""First word of its line with the size of the model."""


def check(run: RunFile, *, step: bool = True) -> int:
    """Validate files, ports and shapes, then print what would run. Raises `ConfigError`.

    ``step``: also try one micro-batch, forward and backward, as far as this machine has room for it.
    """
    _check_ports(run)
    _check_out(run.out)
    disks: list[str] = []
    short = ""
    if run.simulation is None:
        described, model_bytes = _describe_model(run, step)
        disks, short = _check_room(run, model_bytes)
    else:
        described = (
            f"problem {run.simulation.problem}, {run.simulation.model_bytes:,} bytes a model"
        )
    say(f"run        {run.run_id}")
    say(f"model      {described}")
    minutes = f" or {run.run.budget_minutes:g} minutes" if run.run.budget_minutes else ""
    say(f"budget     {run.run.budget_local_steps:,} local steps{minutes}")
    say(f"gps        {run.gps.bind} in region {run.gps_region}")
    for index, region in enumerate(run.region):
        host, port = run.lps_bind(index)
        speeds = ", ".join(
            f"{run.relative_speed(index, g):.3g}" for g in range(len(region.worker_speeds))
        )
        say(
            f"region     {region.name}: LPS {address.join(host, port)}, {len(region.worker_speeds)} workers"
            f" at {speeds}"
        )
    if run.gps.snapshots:
        say(
            f"copies     {Archive(run.gps.snapshots).url} every {run.gps.snapshots_minutes:g} minutes,"
            f" the newest {run.gps.snapshots_kept} stay"
        )
    for line in disks:
        say(f"disk       {line}")
    say(f"results    {run.out}")
    if run.simulation is None:
        for doubt in [*_doubts(run), *([short] if short else [])]:
            say(f"beware     {doubt}")
    return 0


def _servers(run: RunFile) -> dict[str, tuple[tuple[str, int], tuple[str, int]]]:
    """Where each server listens, and where it is found; by what the run file calls it."""
    servers = {"gps": (run.gps_bind(), run.gps_connect())}
    for index, region in enumerate(run.region):
        servers[f"region {region.name}"] = (run.lps_bind(index), run.lps_connect(index))
    return servers


def _doubts(run: RunFile) -> Iterator[str]:
    """Warnings that need not be errors: a name may become known later, and there may be a proxy."""
    for name, ((bind_host, _), (host, port)) in _servers(run).items():
        shown = f"{name}: connect = {address.join(host, port)}"
        try:
            found = {":" in each for each in addresses(host)}
        except OSError as error:
            yield f"{shown}: the name is not known here ({error.strerror}); nodes wait until it is"
            continue
        if not address.is_number(bind_host) or bind_host == "::":
            continue
        if (":" in bind_host) not in found:
            families = ("IPv6", "IPv4") if True in found else ("IPv4", "IPv6")
            yield (
                f"{shown} leads to {families[0]} only, and bind = {bind_host} listens on {families[1]} only;"
                " bind = *:PORT listens on both"
            )


def _check_ports(run: RunFile) -> None:
    """Ports of servers that share a host must differ, and those of this machine must be free.

    A server is on the host under which others find it: its `connect`, this machine if that is left out. There
    its port is taken on the addresses that it binds.
    """
    servers = {
        "gps.bind" if name == "gps" else f"{name}: bind": each
        for name, each in _servers(run).items()
    }
    for index, (key, ((bind_host, port), (host, _))) in enumerate(servers.items()):
        for other, ((its_bind, its_port), (its_host, _)) in islice(servers.items(), index):
            near = _is_loopback(host) and _is_loopback(its_host)
            if abs(port - its_port) < 2 and (
                _overlap(bind_host, its_bind) if near else host == its_host
            ):
                raise ConfigError(
                    f"{key}: port {max(port, its_port)} is used by {other} too (each server needs two)"
                )
        if host in THIS_MACHINE and run.simulation is None:
            require_free(bind_host, port, key)


def _is_loopback(host: str) -> bool:
    """Whether it is this machine, seen from itself."""
    if not address.is_number(host):
        return host.rstrip(".").lower() == "localhost"
    return ipaddress.ip_address(host).is_loopback


def _overlap(one: str, other: str) -> bool:
    """Whether two servers of this machine that listen on these hosts want an address in common."""
    return any(
        mine == its
        or ((":" in mine) == (":" in its) and (mine in address.ANY or its in address.ANY))
        for mine, its in product(_bound(one), _bound(other))
    )


def _bound(host: str) -> list[str]:
    if host in ("*", "::"):
        return ["0.0.0.0", "::"]
    with suppress(OSError):
        return addresses(host)
    return [host]


def _check_out(out: Path) -> None:
    reading.require_folder(out)
    standing = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not os.access(standing, os.W_OK):
        raise ConfigError(f"run.out = '{out}': cannot be made, {standing} cannot be written to")


def _check_room(run: RunFile, model_bytes: int) -> tuple[list[str], str]:
    """Lines with the room that the run needs and finds on the disks of this machine, and needs elsewhere; and a
    warning if the room may be too small, or "". Raises `ConfigError` where it surely is too small."""
    # It imports torch, which takes seconds; faults of ports and folders are reported before.
    from pelago.net.durability import disk_needs

    here, elsewhere = disk_needs.on_this_machine(run, model_bytes, run.out)
    try:
        found = disk_needs.compare(here)
    except OSError as error:
        raise ConfigError(f"run.out = '{run.out}': cannot see how much is free: {error}") from None
    if found.will:
        raise ConfigError(f"run.out = '{run.out}': {found.will}")
    others = [f"on other hosts: up to {disk_needs.listed(elsewhere)}"] if elsewhere else []
    return [*found.lines, *others], found.may


def _describe_model(run: RunFile, step: bool) -> tuple[str, int]:
    """Build the model and open the corpus in a worker process, since only workers can. Returns its description of
    both, and the bytes of a model."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = _shows_progress(progress)
        model_bytes = 0

        def heard(line: str) -> bool:
            nonlocal model_bytes
            word, _, figure = line.partition(" ")
            if word != MODEL_BYTES:
                return shown(line)
            model_bytes = int(figure)
            return True

        flags = ("--run", "/dev/stdin", "--describe", *(() if step else ("--no-step",)))
        described = children.ask(
            "worker", *flags, stdin_text=run_toml.dump(run), heard=heard
        ).strip()
    return described, model_bytes


def _shows_progress(progress: Progress) -> Callable[[str], bool]:
    """Shows the progress that the child reports in lines of their own."""
    tasks: list[TaskID] = []

    def heard(line: str) -> bool:
        word, _, part = line.partition(" ")
        if word != PROGRESS:
            return False
        if not tasks:
            tasks.append(progress.add_task("reading the corpus"))
        progress.update(tasks[0], total=1.0, completed=float(part))
        return True

    return heard
