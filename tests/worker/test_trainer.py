"""The inner loop is HALoS's: AdamW on a lease, from a server's model to a pseudo-gradient."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pelago.config.run_file import RunFile
from pelago.config.training import WorkerSection
from pelago.core.errors import ConfigError
from pelago.core.names import Lease, PushId, Spans
from pelago.core.ports import TrainingResult
from pelago.tensor.manifest import Manifest
from pelago.tensor.payload import Payload
from tests.small_disk import fill, small_disk
from tests.worker.corpora import TINY, run_file, write_texts, write_tokens
from tests.worker.flat_training import train_flat
from tests.worker.tiny_models import config_folder
from worker.data.sources import open_corpus
from worker.models.build import build
from worker.models.language import LanguageModel
from worker.optimiser import WorkerOptimiser, in_blocks
from worker.schedule import Pace, learning_rate
from worker.settings import worker_settings
from worker.trainer import Trainer


@pytest.fixture
def source(tmp_path: Path) -> str:
    return f"text:{write_texts(tmp_path / 'texts')}"


def lease(*spans: tuple[int, int], clock: int | None = None) -> Lease:
    return Lease(PushId(1, 0), spans, spans[0][0] if clock is None else clock)


def train(
    trainer: Trainer,
    spans: Spans,
    start: torch.Tensor | None = None,
    on_step: Callable[[int, int], None] = lambda steps, skipped: None,
    cancel: threading.Event | None = None,
) -> TrainingResult | None:
    flat = trainer.initial() if start is None else start
    return train_flat(trainer, lease(*spans), flat, on_step, cancel)


def done(result: TrainingResult | None) -> TrainingResult:
    assert result is not None
    return result


def reference(run: RunFile, batches: list[list[int]], clocks: list[int]) -> torch.Tensor:
    """The same steps with PyTorch's own parts, tensor by tensor; the flat parameters after them."""
    corpus = open_corpus(run.data, run.run.seed)
    model = build(run.model, corpus.vocabulary, run.run.seed, torch.device("cpu"))
    parameters = list(model.module.parameters())
    settings = run.worker
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    for batch, clock in zip(batches, clocks, strict=True):
        optimiser.zero_grad()
        torch.autograd.backward(model.loss(corpus.batch(batch)))
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, clock)
        optimiser.step()
    return model.flat.clone()


def test_a_round_is_adamw_with_decay_on_matrices_clipping_and_the_global_clock(source: str) -> None:
    """Samples 16..31 at a global batch of 8: the clock stands at 2 and ticks once a step."""
    run = run_file(source, clip_norm=0.05)
    trainer = Trainer(run)
    start = trainer.initial()
    result = done(train(trainer, ((16, 32),)))
    batches = [list(range(first, first + 4)) for first in range(16, 32, 4)]
    expected = reference(run, batches, clocks=[3, 4, 5, 6])
    assert torch.allclose(start - result.delta, expected, rtol=0, atol=2e-6)
    assert result.delta.abs().max() > 1e-3
    assert (result.steps, result.tokens) == (4, 16 * 16)


def test_samples_that_are_lent_again_train_at_the_rate_of_now(source: str) -> None:
    """Samples 0..8 of a run that has come to sample 320: iterations 41 and 42, not 1 and 2."""
    run = run_file(source)
    trainer = Trainer(run)
    start = trainer.initial()
    work = lease((0, 8), clock=320)
    result = done(train_flat(trainer, work, start))
    expected = reference(run, [[0, 1, 2, 3], [4, 5, 6, 7]], clocks=[41, 42])
    assert torch.allclose(start - result.delta, expected, rtol=0, atol=2e-6)


def muon_reference(run: RunFile, batches: list[list[int]], clocks: list[int]) -> torch.Tensor:
    """The same steps with PyTorch's own parts, tensor by tensor, sorted by name."""
    corpus = open_corpus(run.data, run.run.seed)
    model = build(run.model, corpus.vocabulary, run.run.seed, torch.device("cpu"))
    named = dict(model.module.named_parameters())
    inside = [p for name, p in named.items() if ".layers." in name and p.dim() == 2]
    outside = [p for name, p in named.items() if ".layers." not in name and p.dim() >= 2]
    experts = [p for p in named.values() if p.dim() > 2]
    vectors = [p for p in named.values() if p.dim() < 2]
    muon = torch.optim.Muon(inside, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": outside + experts, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    for batch, clock in zip(batches, clocks, strict=True):
        muon.zero_grad(), adamw.zero_grad()
        torch.autograd.backward(model.loss(corpus.batch(batch)))
        torch.nn.utils.clip_grad_norm_(list(named.values()), run.worker.clip_norm)
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = learning_rate(run.worker, clock)
        muon.step(), adamw.step()
    return model.flat.clone()


TINY_EXPERTS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    "model",
    [
        {"preset": "llama3-tiny", "overrides": TINY},
        {"preset": "llama3-tiny", "overrides": TINY | {"tie_word_embeddings": False}},
        {"preset": "llama4-tiny", "overrides": TINY_EXPERTS},
    ],
    ids=["tied", "head of its own", "experts"],
)
def test_muon_steps_the_matrices_of_the_blocks_and_adamw_the_rest(
    source: str, model: dict[str, object]
) -> None:
    """Embeddings, head, experts and vectors as without Muon; the same clock, decay and moments.

    Muon's products are bf16, which magnifies a last bit from step to step. So there are two steps only,
    nothing is clipped, and the second round starts exactly from the result of the first.
    """
    run = RunFile.model_validate(
        run_file(source, optimiser="muon", clip_norm=1e9).model_dump() | {"model": model}
    )
    trainer = Trainer(run)
    start = trainer.initial()
    for spans in (((0, 4),), ((8, 12),)):
        done(train(trainer, spans))
    expected = muon_reference(run, [[0, 1, 2, 3], [8, 9, 10, 11]], clocks=[1, 2])
    assert torch.allclose(trainer.initial(), expected, rtol=0, atol=3e-5)
    assert (trainer.initial() - start).abs().max() > 1e-3


def test_a_step_of_muon_is_as_large_as_one_of_adamw(source: str) -> None:
    """The root mean square is about 0.2 of the learning rate on every matrix inside the blocks, of any shape.
    It is less where a few tokens span few directions; Muon's own spread is 0.7 to 1.2.
    """
    run = run_file(source, optimiser="muon", weight_decay=0.0)
    trainer = Trainer(run)
    delta = done(train(trainer, ((0, 4),))).delta
    rate = learning_rate(run.worker, 1)
    inside = in_blocks(trainer.model)
    assert len(inside) == 7
    for name, view in Manifest(trainer.manifest()).named_views(delta).items():
        size = float(view.square().mean().sqrt())
        if name in inside:
            assert 0.5 < size / (0.2 * rate) < 1.3, name
        elif view.dim() < 2:
            assert size == pytest.approx(rate, rel=0.1), name


def test_muon_learns(source: str) -> None:
    trainer = Trainer(run_file(source, optimiser="muon"))
    done(train(trainer, ((0, 600),)))
    assert done(train(trainer, ((0, 16),), trainer.initial())).loss < 0.6 * 5.5


def test_muon_needs_a_pytorch_that_has_it(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    Trainer(run_file(source))
    with pytest.raises(ConfigError, match=r"worker\.optimiser = 'muon': PyTorch .* 'adamw'"):
        Trainer(run_file(source, optimiser="muon"))


def test_muon_needs_matrices_inside_blocks() -> None:
    class Flat(torch.nn.Module):
        """A model without blocks."""

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=4))
            self.embedding = torch.nn.Embedding(4, 4)
            self.head = torch.nn.Linear(4, 4)

    with pytest.raises(ConfigError, match="no matrices inside blocks"):
        WorkerOptimiser(WorkerSection(optimiser="muon"), LanguageModel(Flat()))


def test_moments_stay_with_the_worker_from_round_to_round(source: str) -> None:
    """Two rounds, each from the result of the round before, are one longer run of the optimiser."""
    run = run_file(source)
    trainer = Trainer(run)
    flat = trainer.initial()
    for spans in (((0, 8),), ((8, 16),)):
        flat = flat - done(train(trainer, spans, flat)).delta
    batches = [list(range(first, first + 4)) for first in range(0, 16, 4)]
    expected = reference(run, batches, clocks=[1, 2, 2, 3])
    assert torch.allclose(flat, expected, rtol=0, atol=2e-6)


def test_the_pseudo_gradient_is_start_minus_end(source: str) -> None:
    """The start is the server's model, not the one that this worker had."""
    trainer = Trainer(run_file(source))
    start = trainer.initial() + 0.01
    kept = start.clone()
    result = done(train(trainer, ((0, 8),), start))
    assert torch.equal(start, kept)
    assert torch.equal(start - trainer.model.flat, result.delta)


def test_a_lease_of_several_spans_and_an_odd_size_is_trained_whole(source: str) -> None:
    """Eleven samples in two pieces, four a step: the last step has three."""
    run = run_file(source)
    trainer = Trainer(run)
    steps: list[int] = []
    result = done(
        train(trainer, ((40, 45), (90, 96)), on_step=lambda done, skipped: steps.append(done))
    )
    batches = [[40, 41, 42, 43], [44, 90, 91, 92], [93, 94, 95]]
    expected = reference(run, batches, clocks=[6, 7, 8])
    assert torch.allclose(trainer.initial(), expected, rtol=0, atol=2e-6)
    assert (steps, result.steps, result.tokens) == ([1, 2, 3], 3, 11 * 16)


def test_micro_batches_add_up_to_the_batch(source: str) -> None:
    """Also where the last micro-batch of the last step is smaller."""
    whole, pieces = (
        done(train(Trainer(run_file(source, micro_batch_size=size)), ((0, 11),))) for size in (0, 2)
    )
    assert torch.allclose(whole.delta, pieces.delta, rtol=0, atol=1e-5)
    assert whole.loss == pytest.approx(pieces.loss, abs=1e-5)


def test_the_same_lease_gives_the_same_bits(source: str) -> None:
    first, second = (done(train(Trainer(run_file(source)), ((0, 16),))) for _ in range(2))
    assert torch.equal(first.delta, second.delta)
    assert first.loss == second.loss


def with_dropout(source: str, folder: Path, **worker: object) -> RunFile:
    """A run of a GPT-2, which leaves out a tenth of everything in training."""
    keys = run_file(source, **worker).model_dump()
    return RunFile.model_validate(keys | {"model": {"preset": str(config_folder(folder, "gpt2"))}})


def test_dropout_differs_in_every_step_and_is_the_same_for_the_same_samples(
    source: str, tmp_path: Path
) -> None:
    """A lease that is trained again by any worker gives the same bits, whatever was trained before it."""
    run = with_dropout(source, tmp_path / "gpt2", max_lr=1e-30, min_lr=0.0)
    trainer, other = Trainer(run), Trainer(run)
    torch.manual_seed(1)
    first = done(train(trainer, ((0, 8),)))
    torch.manual_seed(2)
    assert done(train(other, ((8, 16),))).loss != first.loss
    state = torch.random.get_rng_state()
    again = done(train(other, ((0, 8),)))
    assert again.loss == first.loss
    assert torch.equal(torch.random.get_rng_state(), state)
    with trainer.model.evaluating():
        whole = trainer.model.loss(trainer.corpus.batch(range(8))).item()
    assert first.loss != pytest.approx(whole, abs=1e-5)


def test_a_trainer_leaves_training_mode_also_when_it_is_cancelled(
    source: str, tmp_path: Path
) -> None:
    trainer = Trainer(with_dropout(source, tmp_path / "gpt2"))
    modes: list[bool] = []
    trainer.model.module.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    done(train(trainer, ((0, 8),)))
    cancel = threading.Event()
    assert train(trainer, ((0, 8),), None, lambda steps, skipped: cancel.set(), cancel) is None
    assert modes == [True] * 3
    assert not any(each.training for each in trainer.model.module.modules())


def test_a_step_that_the_model_cannot_do_is_a_configuration_error(source: str) -> None:
    """The worker ends with a message, not with a traceback."""
    trainer = Trainer(run_file(source))

    def broken(module: torch.nn.Module, arguments: object) -> None:
        raise IndexError("index out of range in self")

    trainer.model.module.register_forward_pre_hook(broken)
    with pytest.raises(
        ConfigError, match=r"4 sequences of data\.sequence_length = 16 tokens: index"
    ):
        train(trainer, ((0, 4),))


def test_the_loss_is_the_mean_over_the_lease(source: str) -> None:
    """With a learning rate of almost nothing every sample is measured on the initial model."""
    run = run_file(source, max_lr=1e-30, min_lr=0.0)
    trainer = Trainer(run)
    expected = [
        trainer.model.loss(trainer.corpus.batch([sample])).item() for sample in range(20, 31)
    ]
    result = done(train(trainer, ((20, 31),)))
    assert result.loss == pytest.approx(sum(expected) / 11, rel=1e-5)


def test_training_learns(source: str) -> None:
    trainer = Trainer(run_file(source))
    result = done(train(trainer, ((0, 600),)))
    after = done(train(trainer, ((0, 16),), trainer.initial()))
    assert after.loss < 0.6 * 5.5
    assert after.loss < result.loss


def round_samples(run: RunFile, group: int) -> int:
    """The size of the leases that a worker asks for."""
    found = worker_settings(run, 0, group, incarnation=1, fingerprint="", corpus="")
    return found.round_samples


def test_slow_workers_ask_for_smaller_leases(source: str) -> None:
    run = run_file(source, local_steps=5)
    same = run_file(source, local_steps=5, rescale=False)
    assert [round_samples(run, group) for group in (0, 1)] == [20, 12]
    assert [round_samples(same, group) for group in (0, 1)] == [20, 20]


def test_a_cancelled_lease_gives_nothing_and_leaves_whole_steps_in_the_optimiser(
    source: str,
) -> None:
    """Cancelled after two of four steps: the next lease gives the same as after a lease of those two."""
    run = run_file(source)
    trainer = Trainer(run)
    start, cancel = trainer.initial(), threading.Event()
    stop_after_two = lambda steps, skipped: cancel.set() if steps == 2 else None  # noqa: E731
    assert train(trainer, ((0, 16),), start, stop_after_two, cancel) is None

    other = Trainer(run)
    done(train(other, ((0, 8),), start))
    again, expected = (done(train(each, ((16, 24),), start)) for each in (trainer, other))
    assert torch.equal(again.delta, expected.delta)


def test_a_cancel_during_a_step_changes_nothing(source: str) -> None:
    """It comes while the second micro-batch is read; the incomplete gradient is discarded."""
    run = run_file(source, micro_batch_size=2)
    trainer = Trainer(run)
    start, cancel = trainer.initial(), threading.Event()
    read = trainer.corpus.batch
    trainer.corpus = SimpleNamespace(  # type: ignore[assignment]
        batch=lambda samples: (cancel.set(), read(samples))[1],
        sequence_length=trainer.corpus.sequence_length,
    )
    assert train(trainer, ((0, 4),), start, cancel=cancel) is None
    assert torch.equal(trainer.initial(), start)
    trainer.corpus.batch = read  # type: ignore[method-assign]
    fresh = Trainer(run)
    resumed, expected = (done(train(each, ((0, 8),), start)) for each in (trainer, fresh))
    assert torch.equal(resumed.delta, expected.delta)


def test_a_cancel_ends_a_wait_for_the_pace_at_once(source: str) -> None:
    """At this pace a step takes an hour; the test would run into its time limit."""
    trainer = Trainer(run_file(source), pace=Pace(step_ms=3.6e6, speed=1.0))
    cancel, stepped = threading.Event(), threading.Event()
    results: list[TrainingResult | None] = []

    def work() -> None:
        results.append(
            train(trainer, ((0, 16),), None, lambda steps, skipped: stepped.set(), cancel)
        )

    thread = threading.Thread(target=work)
    thread.start()
    assert stepped.wait(30)
    cancel.set()
    thread.join(30)
    assert not thread.is_alive()
    assert results == [None]


def test_a_pace_changes_no_number(source: str) -> None:
    run = run_file(source)
    paced = done(train(Trainer(run, pace=Pace(step_ms=1.0, speed=0.5)), ((0, 8),)))
    assert torch.equal(paced.delta, done(train(Trainer(run), ((0, 8),))).delta)


def test_a_gradient_that_is_not_finite_does_not_change_the_moments(source: str) -> None:
    """After a lease on a broken model the worker trains as if that lease had never been."""
    run = run_file(source)
    trainer, untouched = Trainer(run), Trainer(run)
    start = trainer.initial()
    reported: list[tuple[int, int]] = []
    nowhere = torch.full_like(start, float("nan"))
    broken = done(train(trainer, ((0, 8),), nowhere, lambda *so_far: reported.append(so_far)))
    assert broken.delta.isnan().all()
    assert (broken.steps, broken.skipped, reported) == (2, 2, [(1, 1), (2, 2)])
    assert math.isnan(broken.loss)
    healthy, expected = (done(train(each, ((8, 16),), start)) for each in (trainer, untouched))
    assert torch.equal(healthy.delta, expected.delta)


def test_a_step_that_is_skipped_is_counted_and_is_no_part_of_the_loss(source: str) -> None:
    """The first of three batches gives a gradient that is not finite; the others are trained on."""
    run = run_file(source)
    trainer, untouched = Trainer(run), Trainer(run)
    start, loss = trainer.initial(), trainer.model.loss

    def spoilt(tokens: torch.Tensor, mixed: bool = False) -> torch.Tensor:
        trainer.model.loss = loss  # type: ignore[method-assign]
        return loss(tokens, mixed) * math.inf

    trainer.model.loss = spoilt  # type: ignore[method-assign]
    found = done(train(trainer, ((0, 12),), start))
    work = lease((4, 12), clock=8)
    expected = done(train_flat(untouched, work, start))
    assert (found.steps, found.skipped, expected.skipped) == (3, 1, 0)
    assert found.loss == expected.loss
    assert torch.equal(found.delta, expected.delta)


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "a.bin", 4000, vocabulary=300)
    with pytest.raises(ConfigError, match="token id 299, but the model knows ids from 0 to 255"):
        Trainer(run_file(f"tokens:{file}"))


def test_a_missing_accelerator_is_named(source: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ConfigError, match=r"worker\.device = 'cuda'"):
        Trainer(run_file(source, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_an_accelerator_trains_the_same_model(source: str, compiled: bool) -> None:
    """bf16 products on the one side, fp32 on the other: the same start, nearly the same losses."""
    results = []
    for device in ("cpu", "cuda"):
        trainer = Trainer(run_file(source, device=device, compile=compiled))
        results.append((trainer.initial(), done(train(trainer, ((0, 200),)))))
    (cpu_start, cpu), (cuda_start, cuda) = results
    assert torch.equal(cpu_start, cuda_start)
    assert cuda.delta.device.type == "cpu"
    assert cuda.loss == pytest.approx(cpu.loss, rel=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # The compiler itself raises them.
def test_a_model_that_cannot_be_compiled_for_want_of_room_is_trained_without(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's cache lies on a real disk that is full. The result is the same as without the compiler."""
    said: list[str] = []
    trainer = Trainer(run_file(source), tell=said.append)
    expected = done(train(Trainer(run_file(source)), ((0, 8),)))
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        fill(disk)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(disk / "cache"))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(disk / "cache" / "triton"))
        trainer.model.compile()
        found = done(train(trainer, ((0, 8),)))
    assert torch.equal(found.delta, expected.delta)
    (line,) = said
    assert line.startswith("training without torch.compile, which failed: ")
    assert "No space left" in line
    assert not trainer.model.is_compiled


def test_a_round_goes_on_from_what_the_last_one_left_and_is_rebased_between_two_steps(
    source: str,
) -> None:
    """
    1. A round of two steps from the initial parameters.
    2. A model comes after it: the next round begins from it, moved by what the first round did.
    3. Another one comes in the first step of the second round, and counts from the second step on.
    """
    run = run_file(source, batch_size=2, overlap=True)
    pieces = Manifest(Trainer(run).manifest()).chunks
    trainer, plain = Trainer(run), Trainer(run)
    start = trainer.initial()
    first = done(train(trainer, ((0, 4),), start))
    models = [start + 0.01, start - 0.02]
    trainer.rebase(Payload.of(models[0], pieces))
    told: list[int] = []

    def on_step(steps: int, skipped: int) -> None:
        told.append(steps)
        if len(told) == 1:
            trainer.rebase(Payload.of(models[1], pieces))

    second = trainer.train(lease((4, 8)), None, on_step, threading.Event())
    trainer.hand_over()
    assert done(train(plain, ((0, 4),), start)).delta.equal(first.delta)
    begun = models[0] - first.delta
    part = done(train(plain, ((4, 6),), begun))
    # The learning rate's clock goes on: a step is 8 samples of the run.
    rest = done(train_flat(plain, lease((6, 8), clock=4 + 8), models[1] - part.delta))
    expected = part.delta + rest.delta
    assert torch.allclose(done(second).delta.tensor(), expected, rtol=1e-3, atol=1e-6)
    assert told == [1, 2]
