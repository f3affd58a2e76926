"""Memory of each process of a run: on its host, and on its GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pelago.cli.plan.facts import Gpu, ModelFacts
from pelago.config import models_held as held
from pelago.config.run_file import RunFile

SERVER_BYTES: Final = 180 << 20
"""A server without a model: pages of its own that Python, torch and libraries have; those of their files are not
counted, since processes share them."""
TRANSFER_BYTES: Final = 64 << 20
"""Messages on their way through a node's sockets and threads: a window each way (`Limits.window_bytes`)."""
WORKER_BYTES: Final = 300 << 20
"""A worker without a model: the above and `transformers`."""
WORKER_CUDA_BYTES: Final = 1200 << 20
"""A worker that computes on a GPU: CUDA's libraries and what torch.compile has made, too."""
MOMENTS_BYTES: Final = 256 << 20
"""What a worker copies of its moments at once, for the disk (worker/moments.py)."""
GPU_CONTEXT_BYTES: Final = 600 << 20
"""CUDA's context and the workspaces of its libraries, on the GPU."""
HALF: Final = 2
"""Bytes of a bf16 number."""
FP32: Final = 4
EVALUATION_SEQUENCES: Final = 16
"""Most sequences of a forward pass of the evaluator."""
LOGITS_WHOLE_MAX: Final = 1 << 26
"""Logits of a forward pass that are converted to fp32 all at once; of more, so many at a time (worker/models)."""


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """The most that a process holds, in bytes. ``parts``: models by what they are. ``gpu_bytes``: 0 on a CPU."""

    name: str
    place: str
    """The host, as the run file knows it: an address, or this machine."""
    host_bytes: int
    gpu_bytes: int
    parts: Mapping[str, int]


def gps(run: RunFile, facts: ModelFacts, place: str) -> ProcessMemory:
    """The GPS."""
    models = held.of_gps(run)
    total = SERVER_BYTES + TRANSFER_BYTES + models.memory * facts.bytes
    return ProcessMemory("gps", place, total, 0, {**models.state, **models.passing})


def lps(run: RunFile, region: int, facts: ModelFacts, place: str) -> ProcessMemory:
    """The LPS of a region, by its place in the run file."""
    models = held.of_lps(run, region)
    total = SERVER_BYTES + TRANSFER_BYTES + models.memory * facts.bytes
    name = f"lps-{run.region[region].name}"
    return ProcessMemory(name, place, total, 0, {**models.state, **models.passing})


def worker(
    run: RunFile, name: str, facts: ModelFacts, place: str, gpu: Gpu | None
) -> ProcessMemory:
    """A worker. ``gpu``: that it computes on, None: a CPU."""
    host = held.of_worker_host(run, gpu=gpu is not None)
    models = sum(host.values()) * facts.bytes
    if run.worker.keep_optimiser:
        models += min(MOMENTS_BYTES, held.moments(run) * facts.bytes)
    if gpu is None:
        total = WORKER_BYTES + TRANSFER_BYTES + models + step_bytes(run, facts)
        return ProcessMemory(name, place, total, 0, host)
    total = WORKER_CUDA_BYTES + TRANSFER_BYTES + models
    on_gpu = gpu_worker_bytes(run, facts, sequences_at_once(run, facts, gpu.bytes))
    return ProcessMemory(name, place, total, on_gpu, host)


def evaluator(run: RunFile, facts: ModelFacts, place: str, gpu: Gpu | None) -> ProcessMemory:
    """The evaluator: parameters, and the version that it measures."""
    sequences = min(EVALUATION_SEQUENCES, run.worker.sequences_at_once)
    forward = _logits_bytes(facts, sequences * run.data.sequence_length)
    if gpu is None:
        parts = {"model that arrives": 1, "parameters": 1}
        total = WORKER_BYTES + TRANSFER_BYTES + 2 * facts.bytes + forward
        return ProcessMemory("evaluator", place, total, 0, parts)
    total = WORKER_CUDA_BYTES + TRANSFER_BYTES + facts.bytes
    on_gpu = GPU_CONTEXT_BYTES + facts.bytes + forward
    return ProcessMemory("evaluator", place, total, on_gpu, {"model that arrives": 1})


def sequences_at_once(run: RunFile, facts: ModelFacts, room: int) -> int:
    """Sequences of one forward pass of a worker with ``room`` bytes on its GPU, which ``auto`` makes use of."""
    if run.worker.micro_batch_size != "auto":
        return run.worker.sequences_at_once
    return largest_that_fits(run, facts, room) or 1


def largest_that_fits(run: RunFile, facts: ModelFacts, room: int) -> int:
    """The largest micro-batch whose step fits into ``room`` bytes of a GPU; 0: there is none."""
    batch = run.worker.batch_size
    parts = (each for each in range(batch, 0, -1) if batch % each == 0)
    return next((each for each in parts if gpu_worker_bytes(run, facts, each) <= room), 0)


def gpu_worker_bytes(run: RunFile, facts: ModelFacts, sequences: int) -> int:
    """Memory of a GPU that a worker needs with so many sequences of a forward pass."""
    models = sum(held.of_worker_device(run, gpu=True).values()) * facts.bytes
    casts = HALF * facts.matrix_parameters
    tokens = sequences * run.data.sequence_length
    layer = layer_bytes(facts)
    if run.worker.checkpoint_activations:
        # The input of each layer, and all of the one that is computed again.
        kept = facts.layers * FP32 * facts.hidden + layer
    else:
        kept = facts.layers * layer
    logits = _logits_bytes(facts, tokens)
    return GPU_CONTEXT_BYTES + models + casts + tokens * kept + logits


def step_bytes(run: RunFile, facts: ModelFacts) -> int:
    """Activations of a step on a CPU, where everything is fp32 and nothing is compiled."""
    tokens = run.worker.sequences_at_once * run.data.sequence_length
    return tokens * 2 * facts.layers * layer_bytes(facts) + _logits_bytes(facts, tokens)


def layer_bytes(facts: ModelFacts) -> int:
    """What a layer keeps of a token until its backward pass, compiled and in bf16: the residual stream twice in fp32;
    input of the attention, queries, its output, input of the feed-forward part, keys and values; and of the
    feed-forward part gate, up and their product.
    """
    vectors = 2 * FP32 * facts.hidden + HALF * (4 * facts.hidden + 2 * facts.key_value)
    return vectors + 3 * HALF * facts.intermediate


def _logits_bytes(facts: ModelFacts, tokens: int) -> int:
    """Logits and their gradient in bf16; in fp32 themselves, their log-softmax and its gradient, or pieces of these."""
    logits = tokens * facts.vocabulary
    return 2 * HALF * logits + 3 * FP32 * min(logits, LOGITS_WHOLE_MAX)
