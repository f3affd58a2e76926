"""What `pelago check` says of addresses."""

import pytest

from pelago.cli.check import _check_ports, _doubts
from pelago.config import run_toml
from pelago.core.errors import ConfigError

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
    doubts = list(_doubts(run_toml.parse(f"[gps]\n{keys}\n{REGION}")))
    assert len(doubts) == len(said)
    for doubt, part in zip(doubts, said, strict=True):
        assert doubt.startswith("gps: connect = ")
        assert part in doubt


@pytest.mark.parametrize(
    ("gps", "region", "taken"),
    [
        ("127.0.0.1:7700", "localhost:7701", 7701),
        ("localhost:7701", "127.0.0.1:7700", 7701),
        ("*:7700", "[::1]:7700", 7700),
        ("[::]:7700", "127.0.0.1:7701", 7701),
        ("0.0.0.0:7700", "127.0.0.2:7701", 7701),
        ("0.0.0.0:7700", "LOCALHOST:7699", 7700),
        ("127.0.0.1:7700", "127.0.0.1:7702", 0),
        ("127.0.0.1:7700", "127.0.0.2:7700", 0),
        ("127.0.0.1:7700", "[::1]:7700", 0),
        ("0.0.0.0:7700", "[::1]:7700", 0),
    ],
)
def test_servers_of_this_machine_may_not_want_a_port_of_one_address(
    monkeypatch: pytest.MonkeyPatch, gps: str, region: str, taken: int
) -> None:
    """However the address is written. Each server takes two ports."""
    monkeypatch.setattr("pelago.cli.check.require_free", lambda *_: None)
    run = run_toml.parse(f'[gps]\nbind = "{gps}"\n{REGION}bind = "{region}"\n')
    if not taken:
        _check_ports(run)
        return
    with pytest.raises(ConfigError) as refused:
        _check_ports(run)
    assert str(refused.value) == (
        f"region eu: bind: port {taken} is used by gps.bind too (each server needs two)"
    )


def test_servers_of_other_hosts_may_have_the_same_ports() -> None:
    text = '[gps]\nconnect = "a.example:7700"\n' + REGION + 'bind = "0.0.0.0:7700"\n'
    _check_ports(run_toml.parse(text + 'connect = "b.example:7700"\n'))
    with pytest.raises(ConfigError, match=r"port 7700 is used by gps\.bind too"):
        _check_ports(run_toml.parse(text + 'connect = "a.example:7800"\n'))
