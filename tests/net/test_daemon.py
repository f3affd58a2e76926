"""What every daemon's command line does alike."""

import platform

import pytest

from pelago.net import daemon
from pelago.net.sockets.identity import IDENTITY_BYTES_MAX


def test_processes_that_share_host_name_number_and_second_have_names_and_folders_of_their_own() -> (
    None
):
    # As in containers of one image: here host, process id and (nearly always) second are equal.
    bits = [daemon.random_bits() for _ in range(1_000)]
    assert len({daemon.process_name("worker-eu", each) for each in bits}) == len(bits)
    assert len({daemon.worker_folder("eu", -1, each) for each in bits}) == len(bits)
    assert {len(bytes.fromhex(each)) for each in bits} == {8}


def test_a_worker_that_claims_a_group_has_the_folder_of_that_group() -> None:
    assert daemon.worker_folder("eu", 3, daemon.random_bits()) == "worker-eu-3"


@pytest.mark.parametrize("host", ["", "bücher", "x" * 80])
def test_a_process_name_fits_a_routing_identity_whatever_the_host_is_called(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: host)
    name = daemon.process_name("lps-" + "x" * 80, daemon.random_bits())
    assert len(name.encode()) <= IDENTITY_BYTES_MAX
    assert name.isascii()
