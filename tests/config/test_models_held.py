"""How many models servers hold, and the limit that a run file sets."""

import pytest

from pelago.config import models_held
from pelago.config.run_file import RunFile
from pelago.config.run_toml import parse
from pelago.core.errors import ConfigError

BEGIN = '[run]\nname = "r"\n[[region]]\nname = "eu"\nworker_speeds = [1.0]\n'


def test_what_is_left_beside_state_and_updates_is_for_versions_on_their_way() -> None:
    free = parse(BEGIN)
    assert models_held.versions_max(free.lps, models_held.of_lps(free, 0)) == 0
    least = models_held.of_lps(free, 0).memory
    run: RunFile = parse(f"{BEGIN}[lps]\nmodels_max = {least + 2}\n")
    held = models_held.of_lps(run, 0)
    assert models_held.versions_max(run.lps, held) == 3
    assert held.memory == least + 2


@pytest.mark.parametrize("server", ["lps", "gps"])
def test_a_limit_without_room_for_a_version_is_refused_with_what_would_do(server: str) -> None:
    free = parse(BEGIN)
    held = models_held.of_gps(free) if server == "gps" else models_held.of_lps(free, 0)
    with pytest.raises(
        ConfigError, match=rf"{server}.models_max = 2: must be 0, or at least {held.memory}"
    ):
        parse(f"{BEGIN}[{server}]\nmodels_max = 2\n")


def test_the_limit_may_differ_from_host_to_host() -> None:
    assert parse(BEGIN).run_id == parse(f"{BEGIN}[gps]\nmodels_max = 90\n").run_id
