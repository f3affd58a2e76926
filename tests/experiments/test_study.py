"""Study files: the runs that they resolve to, and the messages about wrong ones."""

import math
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.study import study_file
from experiments.study.plan import Case, StudyPlan, draw
from experiments.study.study_file import Space
from pelago.config import run_toml
from pelago.config.run_file import RunFile
from tests.experiments.studies import plan, write

BASE = '[study]\nbase = "base.toml"\n'
SEARCH = """
[[study.variant]]
name = "plain"
[[study.variant]]
name = "wide"
space = {"lps.updates_per_exchange" = {low = 2, high = 5, integer = true}, "worker.max_lr" = {choices = [0.5]}}
[study.search]
trials = 4
seed = 7
[study.search.space]
"worker.max_lr" = {low = 3e-4, high = 1e-2, log = true}
"lps.merge_weight" = {low = 0.1, high = 0.9}
"""


def resolved(found: StudyPlan) -> list[RunFile]:
    return [run_toml.parse(run.text) for run in found.runs]


def test_a_study_is_the_product_of_variants_axes_and_seeds(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        BASE
        + """
        seeds = [3, 4]
        [study.set]
        "run.budget_local_steps" = 500
        [[study.variant]]
        name = "halos"
        [[study.variant]]
        name = "carry"
        set = {"lps.in_flight" = "carry", "run.budget_local_steps" = 600}
        [[study.axis]]
        key = "lps.updates_per_exchange"
        values = [4, 8]
        [[study.axis]]
        key = "lps.merge_weight"
        values = [0.25, 0.5, 1.0]
        """,
    )
    runs = resolved(found)
    seen = [
        (
            run.lps.in_flight,
            run.run.budget_local_steps,
            run.lps.updates_per_exchange,
            run.lps.merge_weight,
            run.run.seed,
        )
        for run in runs
    ]
    assert seen == [
        (in_flight, budget, every, weight, seed)
        for in_flight, budget in (("drop", 500), ("carry", 600))
        for every in (4, 8)
        for weight in (0.25, 0.5, 1.0)
        for seed in (3, 4)
    ]
    assert [run.index for run in found.runs] == list(range(24))
    assert len({run.folder for run in found.runs}) == 24
    assert found.runs[0].folder.startswith("0000-")


def test_without_variants_and_seeds_there_is_the_base_alone(tmp_path: Path) -> None:
    found = plan(tmp_path, BASE)
    (run,) = found.runs
    assert run.case == Case("short")
    assert run.text == run_toml.dump(found.base)


def test_a_shipped_run_file_can_be_the_base(tmp_path: Path) -> None:
    found = plan(tmp_path, '[study]\nbase = "halos_paper"\n')
    assert resolved(found)[0].run.name == "halos-paper"


def test_keys_that_stand_for_several_change_all_of_them(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        BASE
        + """
        [study.set]
        regions = 2
        "network.bandwidth_scale" = 0.5
        "region.worker_speeds" = [[1.0, 1.0], [2.0], [1.0], [1.0]]
        "region.r1.worker_speeds" = [3.0, 3.0]
        "model.overrides.hidden_size" = 32
        """,
    )
    (run,) = resolved(found)
    assert [(region.name, region.worker_speeds) for region in run.region] == [
        ("r0", (1.0, 1.0)),
        ("r1", (3.0, 3.0)),
    ]
    assert run.network.bandwidth_gbps == ((100.0, 0.537 / 2), (0.537 / 2, 100.0))
    assert run.model.overrides == {"hidden_size": 32}


def test_a_later_layer_wins_whatever_the_form_of_its_key(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        BASE
        + """
        [study.set]
        "region.r1.worker_speeds" = [3.0, 3.0]
        "model.overrides.hidden_size" = 32
        [[study.variant]]
        name = "even"
        [study.variant.set]
        "region.worker_speeds" = [[1.0], [1.0], [1.0], [1.0]]
        "model.overrides" = {num_hidden_layers = 2}
        """,
    )
    (run,) = resolved(found)
    assert {region.worker_speeds for region in run.region} == {(1.0,)}
    assert run.model.overrides == {"num_hidden_layers": 2}


def test_a_search_draws_the_same_for_the_same_seed_and_key(tmp_path: Path) -> None:
    one, other = plan(tmp_path / "one", BASE + SEARCH), plan(tmp_path / "other", BASE + SEARCH)
    assert [run.text for run in one.runs] == [run.text for run in other.runs]
    reseeded = plan(tmp_path / "reseeded", BASE + SEARCH.replace("seed = 7", "seed = 8"))
    assert [run.drawn for run in one.runs] != [run.drawn for run in reseeded.runs]

    by_case = {(run.case.variant, run.trial): run.drawn for run in one.runs}
    assert len(by_case) == 2 * 4
    for trial in range(4):
        plain, wide = by_case["plain", trial], by_case["wide", trial]
        # Variants differ in the keys that they search; they share the draws of shared keys.
        assert plain["lps.merge_weight"] == wide["lps.merge_weight"]
        assert 3e-4 <= plain["worker.max_lr"] <= 1e-2
        assert wide["worker.max_lr"] == 0.5
        assert wide["lps.updates_per_exchange"] in (2, 3, 4, 5)
        assert "lps.updates_per_exchange" not in plain


def test_draws_cover_their_range() -> None:
    whole = Space(low=1, high=4, integer=True)
    values = [draw(whole, 0, "key", trial) for trial in range(400)]
    assert {values.count(value) > 60 for value in (1, 2, 3, 4)} == {True}
    assert set(values) == {1, 2, 3, 4}
    decades = Space(low=1e-4, high=1e-1, log=True)
    exponents = [math.log10(draw(decades, 0, "key", trial)) for trial in range(400)]
    assert -2.7 < sum(exponents) / 400 < -2.3
    assert -4 <= min(exponents) < -3.9
    assert -1.1 < max(exponents) <= -1


def test_confirmations_keep_their_places_whatever_is_best(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        BASE
        + "seeds = [0]"
        + SEARCH
        + """
        [study.confirm]
        seeds = [10, 11]
        sets = [{name = "other", set = {"worker.clip_norm" = 2.0}}]
        """,
    )
    assert found.confirmations == 2 * 2 * 2
    plain, wide = found.cases
    both = {run.folder: run for run in found.confirm({plain: 1, wide: 3})}
    alone = found.confirm({wide: 3})
    assert len(both) == 8
    assert all(run.folder in both for run in alone)
    assert [run.index for run in alone] == [12, 13, 14, 15]
    last = run_toml.parse(alone[-1].text)
    assert (last.run.seed, last.worker.clip_norm, last.worker.max_lr) == (11, 2.0, 0.5)


def test_the_study_file_beside_the_results_resolves_to_the_same_runs(tmp_path: Path) -> None:
    found = plan(tmp_path, "# A line.\n" + BASE + "seeds = [0, 1]" + SEARCH)
    assert found.study.description == "A line."
    again = tmp_path / "again"
    again.mkdir()
    (again / "base.toml").write_text(run_toml.dump(found.base), encoding="utf-8")
    (again / "copy.toml").write_text(study_file.dump(found.study), encoding="utf-8")
    other = StudyPlan(study_file.load(again / "copy.toml"), again / "copy.toml")
    assert other.study == found.study
    assert [run.folder for run in other.runs] == [run.folder for run in found.runs]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[study]\n", "study.base"),
        ('[study]\nbase = "nothing"\n', "study.base = nothing: no such file"),
        ('[study]\nbase = "study.toml"\n', "is a study itself"),
        (BASE + 'seed = [1]\n', "study.seed = [1]: no such key; did you mean 'seeds'?"),
        (BASE + "seeds = [0, 0]\n", "seeds = [0, 0]: must differ"),
        (BASE + 'set = {"worker.max_lrr" = 0.1}\n', "worker.max_lrr = 0.1: no such key; did you mean 'worker.max_lr'?"),
        (BASE + 'set = {"run.seed" = 1}\n', "run.seed = 1: cannot be set here"),
        (BASE + 'set = {"worker.max_lr" = "high"}\n', "variant 'short': worker.max_lr = 'high'"),
        (BASE + 'set = {"lps.lr" = -1.0}\n', "lps.lr = -1.0"),
        (BASE + "set = {regions = 9}\n", "regions = 9: must be an integer from 1 to 4"),
        (BASE + 'set = {regions = 1, "gps.region" = "r3"}\n', "gps.region = 'r3' is no region"),
        (BASE + 'set = {"region.r9.worker_speeds" = [1.0]}\n', "'r9' is no region; there are ['r0', 'r1', 'r2', 'r3']"),
        (BASE + 'set = {"network.bandwidth_scale" = 0}\n', "network.bandwidth_scale = 0: must be a number above 0"),
        (BASE + 'set = {"region.worker_speeds" = [[1.0]]}\n', "must be 4 lists of speeds"),
        (BASE + 'variant = [{name = "a"}, {name = "a"}]\n', "variant.name = ['a', 'a']: must differ"),
        (BASE + 'targets_from = "b"\nvariant = [{name = "a"}]\n', "targets_from = 'b': no such variant"),
        (BASE + 'axis = [{key = "lps.k", values = [1]}]\n', "key = 'lps.k': no such key"),
        (BASE + 'axis = [{key = "lps.lr", values = [1.0], names = ["a", "b"]}]\n', "names = ['a', 'b']: must be 1"),
        (BASE + 'axis = [{key = "lps.lr", values = [0.1, "x"]}]\n', "variant 'short', lps.lr = x: lps.lr = 'x'"),
        (BASE + "confirm = {seeds = [1]}\n", "there is no study.search"),
        (BASE + "search = {trials = 0}\n", "study.search.trials = 0"),
        (BASE + 'search = {trials = 2, space = {"lps.lr" = {low = 1.0}}}\n', "high = None"),
        (BASE + 'search = {trials = 2, space = {"lps.lr" = {low = 0.0, high = 1.0, log = true}}}\n', "low = 0"),
        (BASE + 'search = {trials = 2, space = {"lps.lr" = {lo = 0.0, high = 1.0}}}\n', "did you mean 'low'?"),
        (BASE + "search = {trials = 2}\nconfirm = {seeds = [0, 1]}\n", "study.confirm.seeds = [0]: the search"),
        (BASE + "search = {trials = 20001}\n", "20,001 runs, and at most 20,000"),
        (BASE + "[run]\nseed = 1\n", "run: no such key; there are ['study']"),
    ],
)  # fmt: skip
def test_a_wrong_study_gets_one_clear_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    assert main(["replay", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"experiments: {path}: ")
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_trace_of_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, BASE)
    assert main(["replay", str(path), "--trace"]) == 2
    assert f"--trace: {path} is a study" in capsys.readouterr().err
