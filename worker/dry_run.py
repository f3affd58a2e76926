"""A dry run: describes the model and the corpus of a run file, and tries one training step.

`pelago check` may run on a laptop while the model is meant for a server. So what needs more memory or time
than this machine has is left out, and the description says so.
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
from worker.data.corpus import Corpus
from worker.data.sources import open_corpus
from worker.evaluator.held_out_loss import HeldOutLoss
from worker.models import weights
from worker.models.architecture import architecture, named, summary
from worker.models.build import FAULTS, skeleton
from worker.models.language import LanguageModel
from worker.models.presets import PRESETS

PROGRESS: Final = "progress"
"""First word of the lines on stderr that report the progress, a number from 0 to 1."""
MODEL_BYTES: Final = "model_bytes"
"""First word of the line on stderr that reports the size of an update."""

OPERATIONS_MAX: Final = 4 * 10**12
"""Most multiplications of a step that is tried on a CPU: about a minute on a few cores."""
BUILD_BYTES: Final = 9
"""Bytes per parameter while a model is built: four in the library's module, four in the flat tensor, and some more."""
GRADIENT_BYTES: Final = 4
TOKEN_COPIES: Final = 24
"""Estimate: hidden vectors, in fp32, that a layer keeps for each token until its backward pass."""
LOGIT_COPIES: Final = 4
"""Estimate: copies of the logits, in fp32."""
SCORE_COPIES: Final = 3
"""Estimate: copies of the attention scores, for attentions that keep them (all but sdpa)."""


@dataclass(frozen=True, slots=True)
class ResourceEstimate:
    """Roughly how much memory and time a model needs."""

    parameters: int
    sequence_bytes: int
    """Bytes of the activations of one sequence."""
    sequence_operations: int
    """Multiplications of one sequence, forward and backward."""

    @property
    def build_bytes(self) -> int:
        """Memory that building the model takes."""
        return BUILD_BYTES * self.parameters

    def step_bytes(self, sequences: int) -> int:
        """Memory that one step takes, beside the model."""
        return GRADIENT_BYTES * self.parameters + sequences * self.sequence_bytes


def describe(run: RunFile, *, step: bool) -> Iterator[str]:
    """Lines for `pelago check`, the first of them about the model. Raises `ConfigError`.

    Reads the whole corpus, and prints its progress on stderr once a second. ``step``: try a step.
    """
    corpus = open_corpus(run.data, run.run.seed)
    settings = architecture(run.model, corpus.vocabulary)
    try:
        needs = estimate(settings, run.data.sequence_length)
    except FAULTS as error:
        raise ConfigError(f"{named(run.model)}: cannot be built: {summary(error)}") from None
    free = devices.free_bytes()
    source = None
    if free is None or needs.build_bytes <= free:
        source = HeldOutLoss(run, corpus)
    else:
        corpus.limit_vocabulary(settings.get_text_config().vocab_size)
    print(f"{MODEL_BYTES} {4 * needs.parameters}", file=sys.stderr, flush=True)
    highest = corpus.scan(_Progress())
    size = 4 * needs.parameters / 1e6
    yield (
        f"{run.model.preset}, {needs.parameters:,} parameters ({size:,.1f} MB an update);"
        f" corpus {run.data.source}, {len(corpus.train):,} tokens to train on,"
        f" {len(corpus.validation):,} held out"
    )
    if source is None:
        assert free is not None
        need = f"that takes {_gb(needs.build_bytes)}, and {_gb(free)} are free here"
        yield f"weights    {_found(run, settings)}; not built: {need}"
        yield "step       not tried, for want of memory"
    else:
        yield f"weights    {source.model.origin}"
        unused = run.data.tokenizer == "bytes" and run.data.source.partition(":")[0] != "tokens"
        if unused and source.companions.has_tokenizer:
            yield "weights    their own tokenizer is not used: data.tokenizer = 'bytes'"
    for line in corpus.report:
        yield f"corpus     {line}"
    for warning in corpus.warnings:
        yield f"beware     {warning}"
    vocabulary = settings.get_text_config().vocab_size
    yield f"corpus     largest id {highest:,}; the model knows {vocabulary:,}"
    yield f"devices    with `pelago local` here: {devices.spread(run.slots, run.worker.device)}"
    if source is not None:
        yield f"step       {_step(run, source.model, corpus, needs) if step else 'not tried (--no-step)'}"


def estimate(settings: Any, length: int) -> ResourceEstimate:
    """Estimate from a configuration of `transformers`, without building the model; ``length`` in tokens."""
    text = settings.get_text_config()
    parameters = sum(each.numel() for each in skeleton(settings).parameters())
    layers = getattr(text, "num_hidden_layers", 1)
    hidden = getattr(text, "hidden_size", 1)
    heads = getattr(text, "num_attention_heads", 0) or 0
    elements = layers * TOKEN_COPIES * hidden + LOGIT_COPIES * text.vocab_size
    scores = SCORE_COPIES * layers * heads * length
    return ResourceEstimate(parameters, 4 * length * (elements + scores), 6 * parameters * length)


def affordable(run: RunFile, needs: ResourceEstimate, free: int | None) -> tuple[int, str]:
    """How many sequences of a micro-batch a CPU can process: all, one or none; and why not all.

    ``free``: bytes of free memory, None if unknown.
    """
    wanted = run.worker.sequences_at_once
    why = ""
    for sequences in (wanted, 1):
        if free is not None and needs.step_bytes(sequences) > free:
            why = f"{sequences} would take {_gb(needs.step_bytes(sequences))}, and {_gb(free)} are free here"
        elif sequences * needs.sequence_operations > OPERATIONS_MAX:
            why = f"{sequences} would take this CPU long"
        else:
            return sequences, why
    return 0, why


def _step(run: RunFile, model: LanguageModel, corpus: Corpus, needs: ResourceEstimate) -> str:
    """Try one micro-batch forward and backward. Raises `ConfigError` if it fails."""
    cuda = model.device.type == "cuda"
    wanted = run.worker.sequences_at_once
    sequences, why = (wanted, "") if cuda else affordable(run, needs, devices.free_bytes())
    length = run.data.sequence_length
    if not sequences:
        return f"not tried: of {wanted} sequences of {length} tokens, {why}"
    threads = torch.get_num_threads()
    if not cuda:
        # The result is not kept, so its bits need not be those of one thread.
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
    """Where the parameters of a model that is not built would come from."""
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
    """Prints once a second which part of the corpus was read, for `pelago check` to show."""

    def __init__(self) -> None:
        self._printed_s = time.monotonic()

    def __call__(self, part: float) -> None:
        if time.monotonic() - self._printed_s >= 1:
            self._printed_s = time.monotonic()
            print(f"{PROGRESS} {part:.4f}", file=sys.stderr, flush=True)
