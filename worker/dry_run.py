"""What a run would train, said before it begins, and one step of it, as far as this machine allows.

Who checks a run may sit at a laptop, and the model be one for a server: what there is no room or no time
for here is left out, and that is said.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from pelago.config.run_file import RunFile
from pelago.core.errors import ConfigError
from pelago.core.prng import derive
from worker import device as devices
from worker import memory
from worker.data import Corpus, open_corpus
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.models import LanguageModel, weights
from worker.models.architecture import architecture, first_line, named
from worker.models.build import FAULTS, skeleton
from worker.models.presets import PRESETS

PROGRESS: Final = "progress"
"""First word of the lines in which this says how far it is."""
MODEL_BYTES: Final = "model_bytes"
"""And of the line in which it says how large an update is."""

OPERATIONS_MAX: Final = 4 * 10**12
"""Products of a step that a CPU is asked for: about a minute of a few cores."""
BUILD_BYTES: Final = 9
"""A parameter takes four bytes in the library's module, four in the flat tensor, while a model is built."""
GRADIENT_BYTES: Final = 4
TOKEN_COPIES: Final = 24
"""Vectors of the width of the model, in fp32, that a layer keeps of a token for its backward pass, about."""
LOGIT_COPIES: Final = 4
SCORE_COPIES: Final = 3
"""Likewise of the logits, and of the scores of an attention that keeps them (all but sdpa)."""


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """What a model asks of a machine, about. ``sequence_bytes``: of activations, a sequence."""

    parameters: int
    sequence_bytes: int
    sequence_operations: int

    @property
    def build_bytes(self) -> int:
        """To have the model at all."""
        return BUILD_BYTES * self.parameters

    def step_bytes(self, sequences: int) -> int:
        """More than that, for one step."""
        return GRADIENT_BYTES * self.parameters + sequences * self.sequence_bytes


def describe(run: RunFile, *, step: bool) -> Iterator[str]:
    """Lines for `pelago check`, the first of them about the model. Raises `ConfigError`.

    Reads the whole corpus; how far it is it says on stderr, once a second. ``step``: try a step.
    """
    corpus = open_corpus(run.data, run.run.seed)
    settings = architecture(run.model, corpus.vocabulary)
    try:
        demand = demand_of(settings, run.data.sequence_length)
    except FAULTS as error:
        raise ConfigError(f"{named(run.model)}: cannot be built: {first_line(error)}") from None
    free = devices.free_bytes()
    source = None
    if free is None or demand.build_bytes <= free:
        source = HeldOutLoss(run, corpus)
    else:
        corpus.limit_vocabulary(settings.get_text_config().vocab_size)
    print(f"{MODEL_BYTES} {4 * demand.parameters}", file=sys.stderr, flush=True)
    highest = corpus.scan(_Progress())
    size = 4 * demand.parameters / 1e6
    yield (
        f"{run.model.preset}, {demand.parameters:,} parameters ({size:,.1f} MB an update);"
        f" corpus {run.data.source}, {len(corpus.train):,} tokens to train on,"
        f" {len(corpus.validation):,} held out"
    )
    if source is None:
        assert free is not None
        lack = f"that takes {_gb(demand.build_bytes)}, and {_gb(free)} are free here"
        yield f"weights    {_found(run, settings)}; not built: {lack}"
        yield "step       not tried, for want of memory"
    else:
        yield f"weights    {source.model.origin}"
        unused = run.data.tokenizer == "bytes" and run.data.source.partition(":")[0] != "tokens"
        if unused and source.companions.has_tokenizer:
            yield "weights    their own tokenizer is not used: data.tokenizer = 'bytes'"
    for line in corpus.account:
        yield f"corpus     {line}"
    for doubt in corpus.doubts:
        yield f"beware     {doubt}"
    vocabulary = settings.get_text_config().vocab_size
    yield f"corpus     largest id {highest:,}; the model knows {vocabulary:,}"
    yield f"devices    with `pelago local` here: {devices.spread(run.slots, run.worker.device)}"
    if source is not None:
        yield f"step       {_step(run, source.model, corpus, demand) if step else 'not tried (--no-step)'}"


def demand_of(settings: Any, length: int) -> ResourceEstimate:
    """From a configuration of `transformers`, without building the model."""
    text = settings.get_text_config()
    parameters = sum(each.numel() for each in skeleton(settings).parameters())
    layers = getattr(text, "num_hidden_layers", 1)
    hidden = getattr(text, "hidden_size", 1)
    heads = getattr(text, "num_attention_heads", 0) or 0
    elements = layers * TOKEN_COPIES * hidden + LOGIT_COPIES * text.vocab_size
    scores = SCORE_COPIES * layers * heads * length
    return ResourceEstimate(parameters, 4 * length * (elements + scores), 6 * parameters * length)


def affordable(run: RunFile, demand: ResourceEstimate, free: int | None) -> tuple[int, str]:
    """Sequences of a micro-batch that a CPU can be asked for: all, one or none, and why not all."""
    wanted = run.worker.micro_batch_size or run.worker.batch_size
    why = ""
    for sequences in (wanted, 1):
        if free is not None and demand.step_bytes(sequences) > free:
            why = f"{sequences} would take {_gb(demand.step_bytes(sequences))}, and {_gb(free)} are free here"
        elif sequences * demand.sequence_operations > OPERATIONS_MAX:
            why = f"{sequences} would take this CPU long"
        else:
            return sequences, why
    return 0, why


def _step(run: RunFile, model: LanguageModel, corpus: Corpus, demand: ResourceEstimate) -> str:
    """One micro-batch forward and backward. Raises `ConfigError` if that cannot be."""
    cuda = model.device.type == "cuda"
    wanted = run.worker.micro_batch_size or run.worker.batch_size
    sequences, why = (wanted, "") if cuda else affordable(run, demand, devices.free_bytes())
    length = run.data.sequence_length
    if not sequences:
        return f"not tried: of {wanted} sequences of {length} tokens, {why}"
    threads = torch.get_num_threads()
    if not cuda:
        # What is tried here is whether it can be done; no bit of it is kept.
        torch.set_num_threads(devices.cores())
    started_s = time.perf_counter()
    try:
        with (
            memory.explained(replace(memory.Step.of(run, model.device), sequences=sequences)),
            model.training(),
        ):
            model.draw_from(derive("dropout", run.run.seed, 0))
            loss = float(model.backward(corpus.batch(range(sequences)), 1.0, mixed=cuda))
    finally:
        torch.set_num_threads(threads)
    took_s = time.perf_counter() - started_s
    if not math.isfinite(loss) or not bool(model.gradient().isfinite().all()):
        raise ConfigError(
            f"model.preset = {run.model.preset!r}: loss or gradient of the first batch is not finite"
        )
    part = f" (of {wanted}: {why})" if why else ""
    return (
        f"{sequences} sequences{part} of {length} tokens, forward and backward on {model.device}:"
        f" {took_s:.2f} s, loss {loss:.3f}"
    )


def _found(run: RunFile, settings: Any) -> str:
    """Where the parameters of a model that is not built would be from."""
    if run.model.preset in PRESETS:
        return f"random, drawn from seed {run.run.seed}"
    key = f"model.preset = {run.model.preset!r}"
    found = weights.find(Path(run.model.preset), key)
    if found is None:
        return f"random, drawn from seed {run.run.seed}"
    held = weights.read(found, key)
    weights.require_plain(held, skeleton(settings), key)
    return f"{len(held.tensors)} tensors in {found.described}"


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


class _Progress:
    """Tells `pelago check` once a second what part was read, which shows it."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()

    def __call__(self, part: float) -> None:
        if time.monotonic() - self._told_s >= 1:
            self._told_s = time.monotonic()
            print(f"{PROGRESS} {part:.4f}", file=sys.stderr, flush=True)
