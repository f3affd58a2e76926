"""Held-out loss of the global model, and its export."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from pelago import atomic_files
from pelago.config.run_file import RunFile
from pelago.core.errors import CheckpointError
from pelago.wire.messages import TensorSpec
from worker import device as devices
from worker import memory
from worker.data.corpus import Corpus
from worker.data.sources import load_tokenizer, open_corpus
from worker.models import companions
from worker.models.build import FAULTS, build, build_empty
from worker.models.language import LanguageModel
from worker.models.presets import PRESETS

EVALUATION_BATCH: int = 16
"""Sequences per forward pass, unless the run file's micro-batch is smaller."""


class HeldOutLoss:
    """Measures versions of the model on one held-out set. Not thread-safe: one call at a time."""

    def __init__(
        self, run: RunFile, corpus: Corpus | None = None, *, slot: int = 0, empty: bool = False
    ) -> None:
        """Open the corpus, unless it is open, and build the model. Raises `ConfigError`. ``empty``: the parameters
        come from a server, and none are made here."""
        device = devices.choose(run.worker.device, slot)
        self.corpus: Corpus = corpus or open_corpus(run.data, run.run.seed)
        made = build_empty if empty else build
        self.model: LanguageModel = made(
            run.model, self.corpus.vocabulary, run.run.seed, device, run.data.sequence_length
        )
        self.corpus.limit_vocabulary(self.model.vocabulary)
        # Read now: the folders may be gone when the run ends.
        self._tokenizer = (
            None if run.data.tokenizer == "bytes" else load_tokenizer(run.data.tokenizer)
        )
        self.companions = export_companions(run)
        self._samples = run.data.validation_samples
        self.memory_step = memory.Step.of(run, device, EVALUATION_BATCH)
        self._batch_size = self.memory_step.sequences

    def manifest(self) -> tuple[TensorSpec, ...]:
        """Names and shapes of the model's tensors, in the order of the flat tensors."""
        return self.model.manifest()

    def initial(self) -> torch.Tensor:
        """A copy of the parameters as they are now; before any other call, the run's initial ones.
        fp32, CPU.
        """
        out = torch.empty(self.model.elements)
        self.model.read_flat(out)
        return out

    @memory.explaining
    def validate(
        self, pieces: Iterable[torch.Tensor], on_batch: Callable[[int], None] = lambda _: None
    ) -> tuple[float, int]:
        """Mean held-out loss in nats per token, in fp32, and the number of tokens that it is a mean of. Calls
        ``on_batch(batches)``, the number so far, after each batch.

        ``pieces``: the flat parameters, fp32, in pieces, one after the other. The result depends on nothing else: not
        on the seed of the run and not on what was measured before.
        """
        devices.use(self.model.device)
        self.model.load(pieces)
        return _mean_loss(self.model, self.corpus, self._samples, self._batch_size, on_batch)

    def export(self, pieces: Iterable[torch.Tensor], directory: Path) -> None:
        """Write the parameters, given as to `validate`, as a Hugging Face model folder, with the tokenizer, generation
        config and licence of the model or the corpus. It is opened again for a check before it replaces an
        older one, atomically.

        Raises `CheckpointError` if it cannot be written, or if what ``from_pretrained`` reads from
        it is not the same model to the bit.
        """
        try:
            self.model.load(pieces)
            with atomic_files.replacing(directory) as new:
                self.model.export(new)
                if self._tokenizer is not None:
                    # This adds the tokenizer's class to its configuration. Without a class there, it would be
                    # opened as the kind that belongs to the model.
                    self._tokenizer.save_pretrained(new)
                self.companions.write(new)
                check_export(self.model, new)
                if self._tokenizer is not None:
                    companions.require_tokenizer(new, self._tokenizer.get_vocab())
        except CheckpointError:
            raise
        except Exception as error:  # The library that writes it may raise anything.
            why = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"cannot write the model to {directory}: {why}") from None


def export_companions(run: RunFile) -> companions.Companions:
    """The files that an export holds beside the model. With a tokenizer of the corpus, the model's own is left
    out.
    """
    own = run.data.tokenizer == "bytes"
    model = companions.Companions()
    if run.model.preset not in PRESETS:
        model = companions.of_model(Path(run.model.preset), tokenizer=own)
    if own:
        return model
    return companions.joined(model, companions.of_tokenizer(Path(run.data.tokenizer)))


def check_export(model: LanguageModel, directory: Path) -> None:
    """Reopen an exported folder and compare every parameter. Raises `CheckpointError`."""
    import transformers

    try:
        reopened = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
        )
    except FAULTS as error:
        raise CheckpointError(f"the exported model in {directory} does not open: {error}") from None
    read = dict(reopened.named_parameters())
    for name, parameter in model.module.named_parameters():
        if name not in read or not torch.equal(read[name].data, parameter.data.cpu()):
            raise CheckpointError(f"the exported model in {directory} differs in {name}")


def _mean_loss(
    model: LanguageModel,
    corpus: Corpus,
    samples: int,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> tuple[float, int]:
    total, tokens = 0.0, 0
    with torch.no_grad(), model.evaluating():
        batches = corpus.validation_batches(samples, batch_size)
        for number, batch in enumerate(batches, start=1):
            count = batch.shape[0] * corpus.sequence_length
            total += float(model.loss(batch)) * count
            tokens += count
            on_batch(number)
    return total / tokens, tokens
