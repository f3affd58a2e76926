"""What `pelago check` says of addresses."""

import pytest

from pelago import config
from pelago.cli.check import _doubts

REGION = '[[region]]\nname = "eu"\nworker_speeds = [1]\n'


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", []),
        ('connect = "[::1]:7700"', ["leads to IPv6 only, and bind = 0.0.0.0 listens on IPv4 only"]),
        ('bind = "*:7700"\nconnect = "[::1]:7700"', []),
        ('bind = "[::]:7700"\nconnect = "127.0.0.1:7700"', []),
        ('bind = "[::1]:7700"\nconnect = "127.0.0.1:7700"', ["leads to IPv4 only"]),
        ('connect = "no-such-host.invalid:7700"', ["the name is not known here"]),
    ],
)
def test_check_warns_of_addresses_that_may_lead_nowhere(keys: str, said: list[str]) -> None:
    doubts = list(_doubts(config.parse(f"[gps]\n{keys}\n{REGION}")))
    assert len(doubts) == len(said)
    for doubt, part in zip(doubts, said, strict=True):
        assert doubt.startswith("gps: connect = ")
        assert part in doubt
