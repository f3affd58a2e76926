"""The `lm` problem: a Llama in each worker, trained for real, many workers in one batch."""

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Final

import numpy as np
import torch

from convergence.lm.graphs import Graphs
from convergence.lm.heap import keep_freed_memory
from convergence.lm.optimiser import Moments, StackedOptimiser
from convergence.lm.samples import Integers, Samples
from convergence.lm.shape import check_layout, shape_of
from convergence.lm.stacked import Stacked
from convergence.problems import tensors
from convergence.problems.problem import Job
from pelago.config.fields import InFlight
from pelago.config.run_file import RunFile
from pelago.config.servers import ServerSection
from pelago.config.training import DataSection, ModelSection
from pelago.core.ports import Payload, TensorPort
from pelago.sim.planes import Round
from pelago.tensor.manifest import Manifest
from worker import device as devices
from worker.data.corpus import Corpus
from worker.data.sources import open_corpus
from worker.models.architecture import architecture
from worker.models.build import build
from worker.models.language import LanguageModel
from worker.schedule import learning_rate

ACTIVATION_BYTES_MAX: Final = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Memory for activations; what does not fit is trained in turn. More is no faster on a CPU, and on a
GPU many processes may share the memory."""
ROW_BYTES_MAX: Final = 16 << 30
"""Memory for the parameters, gradients and scratch of the replicas that are trained at once."""
_BUILDING: Final = threading.Lock()
"""The import of `transformers` is not made for several threads at once."""
_GRAPHS: Final[dict[Hashable, Graphs]] = {}
RESIDENT_BYTES_MAX: Final = 1 << 30
"""A corpus up to this size is copied to the device whole."""
ROW_COPIES: Final = 8
"""Flat vectors that a replica in training needs beside its optimiser state, about."""


class LanguageModelling:
    """Replicas of one Llama on the daemons' corpus, optimiser settings and schedule.

    The inner loop is that of `worker.trainer.Trainer`: the same samples, clock, clipping and step, in
    fp32 (on CUDA with TF32 products). Moments stay with a replica from job to job.
    """

    validates = True

    def __init__(self, run: RunFile, replicas: int) -> None:
        """Open the corpus, build the model. Raises `ConfigError`, also for what is no plain Llama."""
        with _BUILDING:
            self._build(run, replicas)

    def _build(self, run: RunFile, replicas: int) -> None:
        assert run.simulation is not None
        self._settings = run.worker
        self._device = devices.choose(run.worker.device)
        if self._device.type == "cpu":
            keep_freed_memory()
        if self._device.type == "cuda":
            # Ten bits of mantissa, more than the bf16 that the daemons' workers use there.
            torch.set_float32_matmul_precision("high")
        data = run.data.model_dump_json()
        self._corpus = _opened(data, 0)
        self._shape = shape_of(run.model, architecture(run.model, self._corpus.vocabulary))
        self._corpus.limit_vocabulary(self._shape.vocabulary)
        model = _built(run.model.model_dump_json(), self._corpus.vocabulary, run.run.seed)
        check_layout(run.model, self._shape, model.manifest())
        self._initial = model.flat.clone()
        self._manifest = Manifest(model.manifest())
        self.specs = self._manifest.specs
        self.fingerprint = self._manifest.fingerprint
        self._samples = Samples(
            self._corpus, run.run.seed, run.simulation.heterogeneity, len(run.region)
        )
        self._stacked = Stacked(self._shape, self._corpus.sequence_length, self._device)
        self._optimiser = StackedOptimiser(run.worker, self._shape, replicas, self._device)
        self._graphs = self._recorded(data)
        self._replicas = replicas
        self._tokens_max = max(
            self._corpus.sequence_length,
            ACTIVATION_BYTES_MAX[self._device.type] // self._stacked.token_bytes(),
        )
        batches = self._corpus.validation_batches(run.data.validation_samples, 1)
        self._held_out = torch.cat(list(batches)).to(self._device)

    def _recorded(self, data: str) -> Graphs | None:
        """The graphs of this model on a GPU, which all problems with this batch key share; None on the CPU."""
        tokens = _on_device(data, str(self._device)) if self._device.type == "cuda" else None
        if tokens is None:
            return None
        key = (*self._inner(), data)
        if key not in _GRAPHS:
            length = self._corpus.sequence_length
            _GRAPHS[key] = Graphs(self._stacked, self._optimiser, tokens, length)
        return _GRAPHS[key]

    def server_plane(self, server: ServerSection, in_flight: InFlight | None) -> TensorPort:
        """The daemons' plane, with the run's initial parameters in it."""
        return tensors.server_plane(self._manifest, server, in_flight, self._initial)

    def client_plane(self) -> TensorPort:
        """Payloads only."""
        return tensors.client_plane(self._manifest, torch.float32)

    @property
    def batch_key(self) -> Hashable:
        """Equal for problems with the same model, device and inner optimiser, except for rates and schedule."""
        return (*self._inner(), str(self._device), id(self._graphs))

    def _inner(self) -> tuple[Hashable, ...]:
        """The settings that a step depends on, besides its rates."""
        settings = self._settings
        betas = (settings.beta1, settings.beta2, settings.epsilon)
        rest = (settings.weight_decay, settings.clip_norm, settings.sequences_at_once)
        return (self._shape, self._corpus.sequence_length, settings.optimiser, betas, rest)

    def train(self, jobs: Sequence[Job]) -> list[Round]:
        """Rounds of different replicas, step by step together, in the order of the jobs.

        Raises `ConfigError` for token ids that the model does not know.
        """
        return self.train_together([(self, jobs)])[0]

    def train_together(
        self, requests: Sequence[tuple["LanguageModelling", Sequence[Job]]]
    ) -> list[list[Round]]:
        """`train` for problems with this one's batch key."""
        for problem, jobs in requests:
            replicas = [job.replica for job in jobs]
            assert len(set(replicas)) == len(jobs), "a replica has one job at a time"
            assert all(0 <= replica < problem._replicas for replica in replicas)
        rows = [_Row(problem, job) for problem, jobs in requests for job in jobs]
        # Longest first, so that those still under way are the first rows of every tensor.
        order = sorted(rows, key=lambda row: (row.job.batch, -row.job.steps))
        for batch, members in groupby(order, key=lambda row: row.job.batch):
            same = list(members)
            micro, at_once = self._sizes(batch)
            for first in range(0, len(same), at_once):
                self._train_chunk(same[first : first + at_once], micro)
        found = iter(rows)
        return [[next(found).round() for _ in jobs] for _, jobs in requests]

    def validate(self, payload: Payload) -> tuple[float, int]:
        """Mean held-out loss in nats per token, and over how many tokens."""
        assert isinstance(payload, torch.Tensor)
        flat = payload.to(self._device).unsqueeze(0)
        size = max(1, self._tokens_max // self._corpus.sequence_length)
        losses = [
            self._stacked.loss(flat, part.unsqueeze(0)) * len(part)
            for part in torch.split(self._held_out, size)
        ]
        count = self._held_out.shape[0]
        return float(torch.cat(losses).sum()) / count, count * self._corpus.sequence_length

    def value(self, plane: TensorPort) -> float | None:
        """None: the model has more than one parameter."""
        return None

    def _sizes(self, batch: int) -> tuple[int, int]:
        """Sequences of a replica per pass, and replicas per pass."""
        sequences = max(1, self._tokens_max // self._corpus.sequence_length)
        micro = min(self._settings.sequences_at_once, batch, sequences)
        row_bytes = ROW_COPIES * 4 * self._shape.elements
        return micro, max(1, min(sequences // micro, ROW_BYTES_MAX // row_bytes))

    def _train_chunk(self, rows: Sequence["_Row"], micro: int) -> None:
        """Jobs of one batch size, longest first, all at once."""
        flat = torch.stack([_tensor(row.job.start) for row in rows]).to(self._device)
        start = flat.clone()
        moments = Moments.take([row.problem._optimiser.rows(row.job.replica) for row in rows])
        windows = _padded([row.problem._windows(row.job) for row in rows])
        rates = _rates(rows).to(self._device)
        if self._graphs is None:
            losses = self._train_eagerly(rows, flat, moments, windows, rates, micro)
        else:
            counts = torch.tensor([row.job.steps for row in rows])
            alive = torch.arange(len(windows)).view(-1, 1) < counts
            losses = self._graphs.train(
                flat,
                moments,
                torch.from_numpy(windows).to(self._device),
                rates,
                alive.unsqueeze(2).to(self._device),
                micro,
            )
        moments.put()
        # Only here does the host wait for the device.
        deltas = start.sub_(flat).cpu()
        for row, delta, loss in zip(rows, deltas, losses.sum(0).tolist(), strict=True):
            row.found = (delta, loss / row.job.steps)

    def _train_eagerly(
        self,
        rows: Sequence["_Row"],
        flat: torch.Tensor,
        moments: Moments,
        windows: Integers,
        rates: torch.Tensor,
        micro: int,
    ) -> torch.Tensor:
        """All steps of a chunk, ``flat`` and ``moments`` in place; the losses, [steps, rows]."""
        grad = torch.empty_like(flat)
        losses = torch.zeros(len(windows), len(rows), device=self._device)
        for step, chosen in enumerate(windows):
            active = sum(row.job.steps > step for row in rows)
            tokens = self._tokens(rows[:active], chosen[:active])
            losses[step, :active] = self._stacked.gradient(
                flat[:active], tokens, micro, grad[:active]
            )
            self._optimiser.step(flat[:active], grad[:active], moments, rates[step, :active])
        return losses

    def _windows(self, job: Job) -> Integers:
        """The training windows of a job, [steps, batch]."""
        samples = np.concatenate([np.arange(*span) for span in job.spans])
        shape = (job.steps, job.batch)
        assert samples.size == job.steps * job.batch, "a job has its steps' samples, no more"
        regions = np.repeat([p.region for p in job.parts], [p.samples for p in job.parts])
        return self._samples.windows(samples.reshape(shape), np.broadcast_to(regions, shape))

    def _tokens(self, rows: Sequence["_Row"], windows: Integers) -> torch.Tensor:
        """Windows of rows, [r, batch], as tokens on the device, int64, [r, batch, length + 1]."""
        vocabulary = self._shape.vocabulary
        parts = [
            row.problem._samples.tokens(each, vocabulary)
            for row, each in zip(rows, windows, strict=True)
        ]
        return torch.from_numpy(np.stack(parts)).to(self._device)


@dataclass(slots=True)
class _Row:
    """A job of one of several problems that train together."""

    problem: LanguageModelling
    job: Job
    found: tuple[torch.Tensor, float] | None = None
    """The job's delta and its mean loss."""

    def round(self) -> Round:
        assert self.found is not None
        delta, loss = self.found
        tokens = self.job.steps * self.job.batch * self.problem._corpus.sequence_length
        return Round(delta, tokens, loss)


def _tensor(payload: Payload) -> torch.Tensor:
    assert isinstance(payload, torch.Tensor)
    return payload


def _padded(windows: Sequence[Integers]) -> Integers:
    """Windows of all rows, [steps, rows, batch], with zeros behind the end of the shorter ones."""
    found = np.zeros((len(windows[0]), len(windows), windows[0].shape[1]), dtype=np.int64)
    for column, each in enumerate(windows):
        found[: len(each), column] = each
    return found


def _rates(rows: Sequence[_Row]) -> torch.Tensor:
    """Learning rates, [steps, rows, 1]; the clock counts samples handed out in the whole run."""
    rates = np.zeros((rows[0].job.steps, len(rows), 1), dtype=np.float32)
    for column, row in enumerate(rows):
        settings = row.problem._settings
        clock = row.job.clock // settings.global_batch_size
        for step in range(row.job.steps):
            rates[step, column] = learning_rate(settings, clock + step + 1)
    return torch.from_numpy(rates)


@lru_cache(maxsize=4)
def _opened(data: str, seed: int) -> Corpus:
    """Corpora stay open, since runs of one study read the same ones."""
    return open_corpus(DataSection.model_validate_json(data), seed)


@lru_cache(maxsize=4)
def _on_device(data: str, device: str) -> torch.Tensor | None:
    """All training tokens on the device, if they are so few and their ids are known to be right."""
    corpus = _opened(data, 0)
    if not corpus.vocabulary or corpus.train.nbytes > RESIDENT_BYTES_MAX:
        return None
    dtype = np.uint8 if corpus.train.dtype == np.uint8 else np.int32
    return torch.from_numpy(np.array(corpus.train, dtype=dtype)).to(device)


@lru_cache(maxsize=16)
def _built(model: str, vocabulary: int, seed: int) -> LanguageModel:
    """The model on the CPU, with the run's initial parameters."""
    settings = ModelSection.model_validate_json(model)
    return build(settings, vocabulary, seed, torch.device("cpu"))
