"""Real daemons on both sides of a real router that stops forwarding: packets vanish without an error."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pelago.core.notes.gps import ExchangeArrived, RegionLeft
from pelago.core.notes.lps import LpsJoined
from pelago.runlog.events import ConnectionRenewed, ServerDisconnected, WaitingForServer
from tests.e2e.topology import ONE_THREAD, Daemons, assert_ledger_balances, run_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HERE, THERE = "10.211.1.2", "10.211.2.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Router:
    """Three network namespaces: one on each side of a router. Root only."""

    def __init__(self) -> None:
        names = {side: f"pelago-{side}-{os.getpid()}" for side in ("here", "there", "router")}
        self.here, self.there, self._router = names.values()

    def build(self) -> None:
        for name in (self.here, self.there, self._router):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for side, own, way in ((self.here, HERE, "r1"), (self.there, THERE, "r2")):
            gate = own.rpartition(".")[0] + ".1"
            ip(
                "link",
                "add",
                "w0",
                "netns",
                side,
                "type",
                "veth",
                "peer",
                "name",
                way,
                "netns",
                self._router,
            )
            ip("-n", side, "address", "add", f"{own}/24", "dev", "w0")
            ip("-n", self._router, "address", "add", f"{gate}/24", "dev", way)
            ip("-n", side, "link", "set", "w0", "up")
            ip("-n", self._router, "link", "set", way, "up")
            ip("-n", side, "route", "add", "default", "via", gate)
        self.forward(True)

    def forward(self, on: bool) -> None:
        switch = f"echo {int(on)} > /proc/sys/net/ipv4/ip_forward"
        ip("netns", "exec", self._router, "sh", "-c", switch)

    def remove(self) -> None:
        for name in (self.here, self.there, self._router):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router()
    try:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("network namespaces need root and iproute2")
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        yield made
    finally:
        made.remove()


def start(daemons: Daemons, namespace: str, node: str, role: str, *flags: str) -> None:
    """Start a daemon in a namespace, as `Daemons.start` does here."""
    daemon = [sys.executable, "-m", role, "--run", str(daemons.path), "--out", str(daemons.out)]
    daemons.processes[node] = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *daemon, *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ONE_THREAD,
    )


def test_a_region_behind_a_black_hole_is_back_when_the_line_is_and_has_lost_nothing(
    tmp_path: Path, router: Router
) -> None:
    """The GPS, an LPS and its worker train; the router between GPS and LPS forwards nothing until the LPS has
    given up its connection. When it forwards again exchanges go on, on new connections: the LPS
    did not have to join again, and the ledger balances."""
    path = run_file(tmp_path, budget=10**6, interval=10**6, regions={"eu": [1.0]})
    text = path.read_text(encoding="utf-8")
    lines = [each for each in text.splitlines() if not each.startswith("bind = ")]
    text = "\n".join(lines).replace("[gps]", f'[gps]\nconnect = "{HERE}:7700"')
    path.write_text(text, encoding="utf-8")
    with Daemons(path, tmp_path / "out") as daemons:
        start(daemons, router.here, "gps", "gps")
        start(daemons, router.there, "lps-eu", "lps", "--region", "eu")
        start(
            daemons,
            router.there,
            "worker-eu-0",
            "worker",
            "--region",
            "eu",
            "--group",
            "0",
            "--paced",
        )

        def applied() -> int:
            return len(daemons.events("gps", ExchangeArrived))

        daemons.until("exchanges are applied", lambda: applied() >= 3)
        router.forward(False)
        daemons.until(
            "the silence is noticed", lambda: bool(daemons.events("lps-eu", ConnectionRenewed))
        )
        daemons.until(
            "both ends have given up",
            lambda: (
                len(daemons.events("lps-eu", ServerDisconnected)) >= 1
                and bool(daemons.events("lps-eu", WaitingForServer))
            ),
        )
        before = applied()
        router.forward(True)
        daemons.until("exchanges go on", lambda: applied() >= before + 3)
        assert len(daemons.events("lps-eu", LpsJoined)) == 1
        assert not daemons.events("gps", RegionLeft)
        daemons.processes["gps"].terminate()
        for node in ("worker-eu-0", "lps-eu", "gps"):
            code, output = daemons.wait(node)
            assert code == 0, (node, output)
        result = daemons.result()
    assert_ledger_balances(result)
