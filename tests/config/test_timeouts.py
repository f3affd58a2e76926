"""The times of [network] on the machines' clock."""

from pelago.config.timeouts import Timeouts
from pelago.config.topology import NetworkSection

NETWORK = NetworkSection(
    heartbeat_ms=3, lost_after_ms=70, region_lost_after_ms=500, give_up_after_ms=1100
)


def test_times_are_picoseconds_and_a_retry_waits_two_heartbeats() -> None:
    assert Timeouts.of(NETWORK) == Timeouts(
        tick_ps=3 * 10**9,
        retry_ps=6 * 10**9,
        lost_after_ps=70 * 10**9,
        region_lost_after_ps=500 * 10**9,
        give_up_after_ps=1100 * 10**9,
    )


def test_a_driver_that_loses_nothing_has_no_ticks() -> None:
    assert Timeouts.of(NETWORK, lossless=True).tick_ps == 0
