"""The stacked Llama is the transformers' one, and its rounds are those of the workers' trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convergence.lm import attention
from convergence.lm.optimiser import Moments, StackedOptimiser, orthogonal
from convergence.lm.problem import LanguageModelling
from convergence.lm.samples import Samples, mixed, permuted
from convergence.lm.shape import Shape, check_layout, shape_of
from convergence.lm.stacked import Stacked
from convergence.problems.problem import Job, Part
from convergence.problems.registry import build
from pelago.config.run_file import RunFile
from pelago.config.training import WorkerSection
from pelago.core.errors import ConfigError
from pelago.core.names import Lease, PushId, Spans
from pelago.core.prng import GlobalOrder, Permutation, mix
from pelago.sim.planes import Round
from pelago.tensor.manifest import Manifest
from pelago.wire.messages import TensorSpec
from tests.worker.corpora import TINY, write_texts, write_tokens
from tests.worker.flat_training import train_flat
from worker.data.sources import open_corpus
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.models.architecture import architecture
from worker.models.build import build as build_model
from worker.models.language import LanguageModel
from worker.trainer import Trainer

CPU = torch.device("cpu")
LENGTH = 16
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "num_hidden_layers": 2},
    "a key per query": {"num_key_value_heads": 4, "rms_norm_eps": 1e-3},
    "one key": {"num_key_value_heads": 1, "head_dim": 6, "rope_theta": 100.0},
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


def run_file(source: str = "stdlib", *, regions: int = 1, **tables: dict[str, Any]) -> RunFile:
    """A tiny model; ``tables`` change keys of the run file's tables."""
    settings: dict[str, dict[str, Any]] = {
        "model": {"preset": "llama3-tiny", "overrides": TINY | tables.pop("overrides", {})},
        "data": {"source": source, "sequence_length": LENGTH, "validation_samples": 20},
        "worker": {
            "batch_size": 4,
            "global_batch_size": 8,
            "max_lr": 3e-3,
            "warmup_iterations": 2,
            "total_iterations": 100,
            "device": "cpu",
        },
        "simulation": {"problem": "lm"},
    }
    for name, table in tables.items():
        settings[name] |= table
    names = [{"name": f"r{number}", "worker_speeds": [1.0]} for number in range(regions)]
    return RunFile.model_validate(settings | {"region": names})


def job(
    problem: LanguageModelling,
    spans: Spans,
    *,
    steps: int,
    replica: int = 0,
    start: torch.Tensor | None = None,
    parts: tuple[Part, ...] = (),
) -> Job:
    samples = sum(stop - first for first, stop in spans)
    parts = parts or (Part(0, 0, samples // steps),)
    flat = problem._initial if start is None else start
    return Job(replica, steps, parts, spans, spans[0][0], flat)


def delta(found: Round) -> torch.Tensor:
    assert isinstance(found.delta, torch.Tensor)
    return found.delta


def gradients(
    overrides: dict[str, Any], length: int, replicas: int = 3
) -> tuple[Shape, list[LanguageModel], torch.Tensor, torch.Tensor]:
    """Models with parameters of their own, stacked, and tokens for each."""
    run = run_file(overrides=overrides)
    shape = shape_of(run.model, architecture(run.model, 256))
    found = [build_model(run.model, 256, seed, CPU) for seed in range(replicas)]
    check_layout(run.model, shape, found[0].manifest())
    generator = torch.Generator().manual_seed(1)
    for model in found:
        # Norms' weights too, which start at 1.
        model.flat.add_(torch.randn(model.elements, generator=generator), alpha=0.1)
    flat = torch.stack([model.flat for model in found])
    return shape, found, flat, torch.randint(0, 256, (replicas, 5, length + 1), generator=generator)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("micro", [5, 2])
def test_losses_and_gradients_of_a_stack_are_those_of_transformers(kind: str, micro: int) -> None:
    shape, found, flat, tokens = gradients(MODELS[kind], LENGTH)
    grad = torch.full_like(flat, float("nan"))
    stacked = Stacked(shape, LENGTH, CPU)
    losses = stacked.gradient(flat, tokens, micro, grad)
    assert torch.allclose(stacked.loss(flat, tokens), losses, rtol=0, atol=1e-5)
    for row, model in enumerate(found):
        expected = model.gradient().zero_()
        loss = model.loss(tokens[row])
        torch.autograd.backward(loss)
        assert losses[row].item() == pytest.approx(loss.item(), abs=1e-5)
        assert torch.allclose(grad[row], expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("kind", MODELS)
def test_long_sequences_go_through_fused_attention_and_give_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, _, flat, tokens = gradients(MODELS[kind], LENGTH)
    results = []
    for limit in (LENGTH, LENGTH - 1):
        monkeypatch.setattr(attention, "KEPT_TOKENS_MAX", limit)
        grad = torch.empty_like(flat)
        losses = Stacked(shape, LENGTH, CPU).gradient(flat, tokens, 5, grad)
        results.append((losses, grad))
    (kept, kept_grad), (graph, graph_grad) = results
    assert torch.allclose(kept, graph, rtol=0, atol=1e-5)
    assert torch.allclose(kept_grad, graph_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_job_is_a_round_of_the_worker_s_trainer(source: str, tied: bool) -> None:
    """Two rounds, each from the result of the round before; the second shows that the moments stayed."""
    run = run_file(
        source,
        overrides={"tie_word_embeddings": tied},
        worker={"clip_norm": 0.5, "weight_decay": 0.3, "micro_batch_size": 2},
    )
    trainer, problem = Trainer(run), LanguageModelling(run, replicas=3)
    flat = trainer.initial()
    for number, spans in enumerate((((40, 44), (50, 62)), ((80, 88),))):
        steps = 4 - 2 * number
        lease = Lease(PushId(number, 0), spans, spans[0][0])
        wanted = train_flat(trainer, lease, flat)
        assert wanted is not None
        (found,) = problem.train([job(problem, spans, steps=steps, replica=1, start=flat)])
        assert torch.allclose(delta(found), wanted.delta, rtol=0, atol=1e-5)
        assert (found.tokens, found.loss) == (wanted.tokens, pytest.approx(wanted.loss, abs=1e-5))
        assert delta(found).abs().max() > 1e-3
        flat = flat - wanted.delta


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_no_job_depends_on_the_others_of_its_batch(source: str, optimiser: str) -> None:
    """Different lengths, batches and starts, out of order; one by one, and in twos."""
    run = run_file(source, worker={"optimiser": optimiser})
    shapes = [(2, 3), (4, 4), (3, 4), (4, 4), (1, 3)]
    results = []
    for size, rows in ((5, None), (1, None), (2, None), (5, 2)):
        problem = LanguageModelling(run, replicas=5)
        if rows is not None:
            problem._tokens_max = rows * 4 * LENGTH
        deltas: list[torch.Tensor] = []
        losses: list[float] = []
        for number in range(2):
            jobs = [
                job(
                    problem,
                    ((100 * replica + 50 * number, 100 * replica + 50 * number + steps * batch),),
                    steps=steps,
                    replica=replica,
                    start=problem._initial + 1e-3 * replica,
                )
                for replica, (steps, batch) in enumerate(shapes)
            ]
            for first in range(0, 5, size):
                found = problem.train(jobs[first : first + size])
                deltas += [delta(each) for each in found]
                losses += [each.loss for each in found]
        results.append((torch.stack(deltas), losses))
    for deltas_again, losses_again in results[1:]:
        # AdamW divides by the root of squares near 0, which magnifies a rounding error there.
        assert torch.allclose(deltas_again, results[0][0], rtol=0, atol=1e-6)
        assert losses_again == pytest.approx(results[0][1], abs=1e-6)


def stepped(
    settings: WorkerSection,
    shape: Shape,
    flat: torch.Tensor,
    grads: list[torch.Tensor],
    rate: float,
) -> torch.Tensor:
    """The rows of ``flat`` after the steps of `StackedOptimiser`."""
    optimiser = StackedOptimiser(settings, shape, len(flat) + 1, CPU)
    flat = flat.clone()
    replicas = list(range(len(flat), 0, -1))
    for grad in grads:
        moments = Moments.take([optimiser.rows(each) for each in replicas])
        optimiser.step(flat, grad.clone(), moments, torch.full((len(flat), 1), rate))
        moments.put()
    return flat


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 2e-6), (False, 2e-3)])
def test_muon_is_torch_s_for_the_blocks_and_adamw_for_the_rest(
    exact: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch iterates in bfloat16, ours in fp32: the same but for its rounding."""
    if exact:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    settings = WorkerSection(optimiser="muon", clip_norm=0.5, weight_decay=0.2)
    shape, _, flat, _ = gradients(MODELS["untied"], LENGTH, replicas=2)
    grads = [torch.randn(flat.shape) * size for size in (1e-4, 3.0, 1e-3)]
    expected = flat.clone()
    manifest = Manifest(shape.specs())
    for row in range(2):
        views = manifest.named_views(expected[row])
        parameters = {name: view.requires_grad_() for name, view in views.items()}
        blocks = [p for name, p in parameters.items() if "proj" in name]
        ends = [p for name, p in parameters.items() if p.dim() == 2 and "proj" not in name]
        vectors = [p for p in parameters.values() if p.dim() == 1]
        muon = torch.optim.Muon(blocks, 0.02, 0.2, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(
            [{"params": ends}, {"params": vectors, "weight_decay": 0.0}],
            lr=0.02,
            betas=(0.9, 0.95),
            weight_decay=0.2,
        )
        for grad in grads:
            for name, piece in manifest.named_views(grad[row]).items():
                parameters[name].grad = piece.clone()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
            muon.step()
            adamw.step()
    result = stepped(settings, shape, flat, grads, 0.02)
    assert torch.allclose(result, expected.detach(), rtol=0, atol=tolerance)
    assert (result - flat).abs().max() > 0.01


def test_orthogonalised_matrices_are_nearly_orthogonal() -> None:
    found = orthogonal(torch.randn(3, 8, 20))
    assert torch.linalg.svdvals(found).sub(0.95).abs().max() < 0.3


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(optimiser: str, broken: float) -> None:
    """In its own row; the other row takes all three steps."""
    settings = WorkerSection.model_validate({"optimiser": optimiser})
    shape, _, flat, _ = gradients({}, LENGTH, replicas=2)
    first, last = torch.randn(flat.shape), torch.randn(flat.shape)
    bad = torch.randn(flat.shape)
    bad[0, 7] = broken
    three = stepped(settings, shape, flat, [first, bad, last], 1e-3)
    two = stepped(settings, shape, flat, [first, last], 1e-3)
    assert torch.equal(three[0], two[0])
    assert three[1].isfinite().all()
    assert not torch.equal(three[1], two[1])
    lone = stepped(settings, shape, flat, [bad], 1e-3)
    assert torch.equal(lone[0], flat[0])


def test_the_loss_falls_and_what_is_validated_is_what_the_evaluator_measures(source: str) -> None:
    run = run_file(source, worker={"micro_batch_size": 2})
    problem = LanguageModelling(run, replicas=2)
    flat = problem._initial
    before = problem.validate(flat)
    found = problem.train(
        [job(problem, ((0, 400),), steps=100), job(problem, ((400, 560),), steps=40, replica=1)]
    )
    flat = flat - delta(found[0])
    after = problem.validate(flat)
    assert after[0] < 0.6 * before[0]
    assert found[0].loss < found[1].loss
    loss, tokens = HeldOutLoss(run).validate([flat])
    assert after == (pytest.approx(loss, abs=1e-5), tokens)


def test_muon_learns(source: str) -> None:
    problem = LanguageModelling(run_file(source, worker={"optimiser": "muon"}), replicas=1)
    before = problem.validate(problem._initial)[0]
    (found,) = problem.train([job(problem, ((0, 400),), steps=100)])
    assert problem.validate(problem._initial - delta(found))[0] < 0.6 * before


def test_the_simulator_gets_the_daemons_planes_and_model(source: str) -> None:
    run = run_file(source)
    problem = build(run, replicas=1)
    trainer = Trainer(run)
    assert problem.specs == trainer.manifest()
    assert problem.validates
    plane = problem.server_plane(run.gps, None)
    plane.pin(1)
    assert torch.equal(plane.lend(1), trainer.initial())  # type: ignore[arg-type]
    assert problem.value(plane) is None
    problem.client_plane().adopt(1, trainer.initial())


@pytest.mark.parametrize("size", [1, 2, 3, 48, 49, 50, 1000])
def test_many_indices_are_permuted_as_one_by_one(size: int) -> None:
    key = 2**64 - 3
    permutation = Permutation(size, key)
    expected = [permutation(index) for index in range(size)]
    assert permuted(np.arange(size), size, key).tolist() == expected
    values = [0, 1, 2**64 - 1, 0x9E3779B97F4A7C15]
    assert mixed(np.array(values, dtype=np.uint64)).tolist() == [mix(value) for value in values]


def test_without_heterogeneity_samples_are_those_of_the_global_order(source: str) -> None:
    """Across the border of two epochs."""
    run = run_file(source)
    corpus = open_corpus(run.data, run.run.seed)
    samples = Samples(corpus, run.run.seed, share=0.0, regions=4)
    numbers = np.arange(corpus.windows - 9, corpus.windows + 9)
    windows = samples.windows(numbers, np.zeros_like(numbers))
    order = GlobalOrder(corpus.windows, run.run.seed)
    assert windows.tolist() == [order(int(number)) for number in numbers]
    assert np.array_equal(samples.tokens(windows, 256), corpus.batch(numbers.tolist()).numpy())


def test_a_region_of_heterogeneity_1_reads_its_own_part_only(source: str) -> None:
    """It reads all of it in an epoch; a share of a half draws half of the samples from there."""
    run = run_file(source)
    corpus = open_corpus(run.data, run.run.seed)
    whole, half = (Samples(corpus, 0, share, regions=3) for share in (1.0, 0.5))
    numbers = np.arange(corpus.windows)
    seen = 0
    for region in range(3):
        regions = np.full_like(numbers, region)
        start, stop = whole.part(region)
        assert np.unique(whole.windows(numbers, regions)).tolist() == list(range(start, stop))
        windows = half.windows(numbers, regions)
        inside = np.mean((windows >= start) & (windows < stop))
        assert 2 / 3 - 0.1 < inside < 2 / 3 + 0.1
        seen += stop - start
    assert seen == corpus.windows


def test_the_parts_of_a_step_read_their_regions_data(source: str) -> None:
    run = run_file(source, regions=2, simulation={"heterogeneity": 1.0})
    problem = LanguageModelling(run, replicas=1)
    parts = (Part(0, 0, 1), Part(1, 1, 3))
    windows = problem._windows(job(problem, ((0, 20),), steps=5, parts=parts))
    limit = problem._samples.part(1)[0]
    assert (windows[:, 0] < limit).all()
    assert (windows[:, 1:] >= limit).all()


def test_a_corpus_smaller_than_the_regions_is_refused(source: str) -> None:
    run = run_file(source)
    corpus = open_corpus(run.data, 0)
    with pytest.raises(ConfigError, match=r"simulation\.heterogeneity = 1.0: the corpus has"):
        Samples(corpus, 0, 1.0, corpus.windows + 1)


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("llama4-tiny", {}, "model_type = 'llama4_text' must be 'llama'"),
        ("llama3-tiny", {"attention_bias": True}, "attention_bias = True must be False"),
        ("llama3-tiny", {"mlp_bias": True}, "mlp_bias = True must be False"),
        ("llama3-tiny", {"hidden_act": "gelu"}, "hidden_act = 'gelu' must be 'silu'"),
        ("llama3-tiny", {"num_key_value_heads": 3}, "num_key_value_heads = 3 must divide"),
    ],
)
def test_a_model_that_the_stack_cannot_train_is_refused(
    source: str, preset: str, overrides: dict[str, Any], message: str
) -> None:
    run = run_file(source, model={"preset": preset, "overrides": overrides})
    with pytest.raises(ConfigError, match=message) as caught:
        LanguageModelling(run, replicas=1)
    assert f"model.preset = {preset!r}" in str(caught.value)


def test_scaled_rotary_embeddings_and_unknown_tensors_are_refused() -> None:
    run = run_file()
    settings = architecture(run.model, 256)
    shape = shape_of(run.model, settings)
    settings.rope_parameters = {**settings.rope_parameters, "rope_type": "llama3"}
    with pytest.raises(ConfigError, match="rope_type = 'llama3' must be 'default'"):
        shape_of(run.model, settings)
    settings.rope_parameters = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match=r"partial_rotary_factor = 0.5 must be 1\.0"):
        shape_of(run.model, settings)
    odd = (TensorSpec("model.layers.0.self_attn.q_norm.weight", (8,)), *shape.specs())
    with pytest.raises(ConfigError, match=r"q_norm\.weight = \(8,\) is not a tensor of a plain"):
        check_layout(run.model, shape, odd)


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    """It lies in the middle of the file, which is not checked before it is read."""
    file = write_tokens(tmp_path / "a.bin", 200_000)
    tokens = np.fromfile(file, dtype="uint16")
    tokens[70_000:120_000] = 300
    tokens.tofile(file)
    problem = LanguageModelling(run_file(f"tokens:{file}"), replicas=1)
    with pytest.raises(ConfigError, match="token id 300, but the model knows ids from 0 to 255"):
        problem.train([job(problem, ((0, 64),), steps=16)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_recorded_steps_are_those_made_kernel_by_kernel(source: str, optimiser: str) -> None:
    """Jobs of different lengths, thirteen rows in a recording of sixteen, and moments that persist.

    The second round meets memory that was used for something else since the recording.
    """
    run = run_file(source, worker={"optimiser": optimiser, "device": "cuda"})
    recorded, eager = LanguageModelling(run, 13), LanguageModelling(run, 13)
    eager._graphs = None
    for place in (0, 4_000, 8_000):
        jobs, first = [], place
        for replica in range(13):
            steps = 1 + replica % 8
            spans = ((first, first + 4 * steps),)
            jobs.append(job(recorded, spans, steps=steps, replica=replica))
            first += 4 * steps
        for ours, theirs in zip(recorded.train(jobs), eager.train(jobs), strict=True):
            assert torch.allclose(delta(ours), delta(theirs), rtol=0, atol=5e-4)
            assert ours.loss == pytest.approx(theirs.loss, abs=1e-3)
