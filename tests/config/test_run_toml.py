"""The run file: what is refused, with which message, and what two hosts must agree on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelago.config import run_toml
from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError

REGIONS = '[[region]]\nname = "eu"\nworker_speeds = [1, 0.5]\n[[region]]\nname = "us"\nworker_speeds = [2]\n'


def fault(text: str) -> str:
    """The message about a wrong run file."""
    with pytest.raises(ConfigError) as refused:
        run_toml.parse(text + REGIONS)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_two_regions_are_all_that_must_be_said() -> None:
    run = run_toml.parse(REGIONS)
    assert run.gps_region == "eu"
    assert run.lps.updates_per_exchange == 32
    assert run.gps_connect() == ("127.0.0.1", 7700)
    assert [run.lps_bind(index) for index in (0, 1)] == [("0.0.0.0", 7710), ("0.0.0.0", 7720)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[lps]\nmomentun = 0.5\n", "lps.momentun = 0.5: no such key; did you mean 'momentum'?"),
        ("[lps]\nlr = nan\n", "lps.lr = nan"),
        ("[lps]\nmerge_weight = 1.5\n", "lps.merge_weight = 1.5"),
        ("[lps]\nmomentum_activation = 1.0\n", "momentum_activation = 1.0 must not exceed"),
        ("[lps]\nin_flight = 'keep'\n", "lps.in_flight = 'keep'"),
        ("[worker]\nlocal_steps = '8'\n", "worker.local_steps = '8'"),
        ("[worker]\nlocal_steps = true\n", "worker.local_steps = True"),
        ("[worker]\nmicro_batch_size = 7\n", "micro_batch_size = 7 must divide batch_size = 64"),
        (
            "[worker]\noptimiser = 'muon'\nmoments_dtype = 'bfloat16'\n",
            "moments_dtype = 'bfloat16' needs optimiser = 'adamw', not 'muon'",
        ),
        ("[worker]\nmin_lr = 1.0\n", "min_lr = 1.0 must not exceed max_lr = 0.001"),
        ("[gps]\nregion = 'mars'\n", "gps.region = 'mars' is no region"),
        ("[gps]\nbind = 'nowhere'\n", "gps.bind = 'nowhere'"),
        ("[gps]\nconnect = 'host:65535'\n", "gps.connect = 'host:65535'"),
        ("[gps]\nconnect = '0.0.0.0:7700'\n", "one that others can reach"),
        ("[data]\nsource = 'web'\n", "data.source = 'web'"),
        ("[network]\nlost_after_ms = 600\n", "2 * heartbeat_ms (500) <= lost_after_ms (600)"),
        (
            "[network]\ngive_up_after_ms = 600\n",
            "give_up_after_ms = 600 must not be below lost_after_ms",
        ),
        ("[network]\nlatency_ms = [[0, 1]]\n", "network.latency_ms must be 2 x 2"),
        ("[simulation]\nproblem = 'chess'\n", "simulation.problem = 'chess'"),
        ("[simulation]\nmethod = 'halo'\n", "simulation.method = 'halo'"),
        ("[simulation]\nstep_jitter = -0.1\n", "simulation.step_jitter = -0.1"),
        ("[simulation]\nproblem = 'lm'\nheterogeneity = 1.5\n", "heterogeneity = 1.5 must not"),
        (
            "[simulation]\ndaemons = true\n[[simulation.event]]\nat_m = 5\nnode = 'eu/0'\nkind = 'lose'\n",
            "simulation.event.0.at_m = 5: no such key; did you mean 'at_ms'?",
        ),
        ("[run]\nbudget_minutes = 1e308\n", "less than or equal to 52,560,000"),
        ("[worker]\nstuck_minutes = 1e308\n", "worker.stuck_minutes = 1e+308: must be less"),
        ("[network]\nstripes = 9\n", "network.stripes"),
        ("[network]\nstripes = 0\n", "network.stripes"),
        ("[network]\nwindow_mib = 7\n", "network.window_mib"),
        ('[network]\nwindow_mib = "big"\n', "network.window_mib"),
        ("[network]\nheartbeat_ms = 4_000_000_000_000\n", "equal to 3,153,600,000,000"),
        ("[network]\nbandwidth_gbps = [[1e-300]]\n", "must be greater than or equal to 1e-09"),
        (f"[worker]\nlocal_steps = 1{'0' * 5000}\n", "not TOML: Exceeds the limit (4300 digits)"),
        ("[run]\nseed = 1_0000_0000_0000_0000_0000\n", "equal to 9,223,372,036,854,775,807"),
        (
            "[worker]\nmax_lr = 1e308\n",
            "worker.max_lr = 1e+308: must be less than or equal to 1e+38",
        ),
        ("[local]\nstep_ms = 1e12\n", "equal to 3,600,000"),
        ('[[region]]\nname = "a"\nworker_speeds = [1e-7]\n', "than 1,000,000 times as fast"),
        ("[worker]\nlocal_steps = 1_000_000_000_000_000\n", "equal to 281,474,976,710,656"),
        ("[worker]\nlocal_steps = 100_000_000\n", "must not exceed 4,294,967,296"),
        ("[gps]\naverage = 1.0\n", "gps.average = 1.0"),
        ("[gps]\nstaleness_power = -1\n", "gps.staleness_power = -1"),
        ("[worker]\noptimiser = 'sgd'\n", "worker.optimiser = 'sgd'"),
        ("[run\n", "not TOML"),
    ],
)
def test_a_fault_is_one_line_with_the_key_and_the_value(text: str, said: str) -> None:
    assert said in fault(text)


def test_regions_need_names_of_their_own() -> None:
    assert "names must differ" in fault('[[region]]\nname = "eu"\nworker_speeds = [1]\n')


def test_a_file_that_is_not_there_is_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the run file .*nothing\.toml"):
        run_toml.load(tmp_path / "nothing.toml")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    out=texts, overrides=st.dictionaries(texts, st.one_of(st.booleans(), st.integers(-9, 9), texts))
)
def test_what_is_dumped_is_parsed_back_unchanged(out: str, overrides: dict[str, Any]) -> None:
    tables = run_toml.parse(REGIONS).model_dump()
    tables["run"]["out"] = out
    tables["model"]["overrides"] = overrides
    run = RunFile.model_validate(tables)
    assert run_toml.parse(run_toml.dump(run)) == run


def test_the_events_of_a_simulation_survive_a_dump() -> None:
    events = "[simulation]\ndaemons = true\n" + "".join(
        f'[[simulation.event]]\nat_ms = {at}\nnode = "eu/0"\nkind = "{kind}"\n'
        for at, kind in ((5, "lose"), (7.5, "join"))
    )
    run = run_toml.parse(events + REGIONS)
    assert run.simulation is not None
    assert [each.kind for each in run.simulation.event] == ["lose", "join"]
    assert run_toml.parse(run_toml.dump(run)) == run


def test_hosts_may_differ_in_addresses_and_paths_but_in_nothing_else() -> None:
    here = run_toml.parse(REGIONS)
    same = '[run]\nout = "/elsewhere"\n[gps]\nconnect = "gps.example:7700"\n[data]\nsource = "text:/data"\n'
    same += "[network]\nstripes = 4\nwindow_mib = 64\n"
    assert run_toml.parse(same + REGIONS).run_id == here.run_id
    for other in ("[lps]\nmomentum = 0.8\n", "[run]\nseed = 1\n", "[run]\nname = 'x'\n"):
        assert run_toml.parse(other + REGIONS).run_id != here.run_id


def test_speeds_may_be_in_any_unit() -> None:
    """For example operations a second: only their ratios count."""
    run = run_toml.parse('[[region]]\nname = "eu"\nworker_speeds = [989e12, 312e12]\n')
    assert run.relative_speed(0, 1) == pytest.approx(312 / 989)


def test_speeds_are_relative_to_the_fastest_of_the_whole_file() -> None:
    run = run_toml.parse(REGIONS)
    assert [run.relative_speed(0, 0), run.relative_speed(0, 1), run.relative_speed(1, 0)] == [
        0.5,
        0.25,
        1,
    ]
    assert run.relative_speed(0, 7) == 1


def test_addresses_of_every_kind_stand_in_a_run_file() -> None:
    run = run_toml.parse(
        '[gps]\nbind = "[::1]:7700"\n[[region]]\nname = "eu"\nworker_speeds = [1]\n'
        'bind = "*:7710"\nconnect = "bücher.example:7711"\n'
    )
    assert run.gps_bind() == run.gps_connect() == ("::1", 7700)
    assert run.lps_bind(0) == ("*", 7710)
    assert run.lps_connect(0) == ("xn--bcher-kva.example", 7711)
    assert run_toml.parse(run_toml.dump(run)) == run
