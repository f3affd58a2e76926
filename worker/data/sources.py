"""From the run file's [data] to a corpus."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from pelago.config.training import DataSection
from pelago.core.errors import ConfigError, first_line
from worker.data.corpus import Corpus, CorpusContent
from worker.data.file_report import counted, shown
from worker.data.files import SourceFile, folder_files, held_out, stdlib_files
from worker.data.tokens import Tokens, open_tokens, sampled_digest, split_tail
from worker.git_lfs import is_pointer

BYTE_VOCABULARY: Final = 256
UNKNOWN_SHARE_MAX: Final = 0.01
"""The user is warned if a larger share of the tokens is the unknown token."""
FILE_SEPARATOR: Final = 0
"""The byte between two files: it occurs in no text, so the model can learn that a file ended."""


def open_corpus(data: DataSection, seed: int) -> Corpus:
    """Open what ``data.source`` names; ``seed`` fixes the global order of samples.

    Texts are tokenised into memory (for corpora beyond some GB tokenise once and use
    tokens:FILE.bin). Raises `ConfigError` naming the key, its value and what would be right.
    """
    kind, _, place = data.source.partition(":")
    if kind != "text" and data.tokenizer != "bytes":
        raise ConfigError(
            f"data.tokenizer = {data.tokenizer!r} is only read with data.source = 'text:DIR'; "
            f"with {data.source!r} leave it at 'bytes'"
        )
    match kind:
        case "stdlib":
            return _from_files(data, stdlib_files(), seed, ())
        case "text":
            files, report = folder_files(place)
            return _from_files(data, files, seed, report.lines())
        case "tokens":
            return _from_tokens(data, place, seed)
        case _:
            raise ConfigError(
                f"data.source = {data.source!r}: must be 'stdlib', 'text:DIR' or 'tokens:FILE.bin'"
            )


def _from_files(
    data: DataSection, files: list[SourceFile], seed: int, report: tuple[str, ...]
) -> Corpus:
    encoder = _encoder(data.tokenizer)
    encode, vocabulary = encoder.encode, encoder.vocabulary
    out = held_out(files, data.validation_fraction)
    train = _joined([encode(file) for file in files if file.path not in out], vocabulary)
    validation = _joined([encode(file) for file in files if file.path in out], vocabulary)
    if len(validation) <= data.sequence_length:
        everything = _joined([encode(file) for file in files], vocabulary)
        train, validation = split_tail(everything, data.validation_fraction)
    content = (
        hashlib.sha256(train.tobytes()).digest() + hashlib.sha256(validation.tobytes()).digest()
    )
    found = CorpusContent(
        name=data.source,
        train=train,
        validation=validation,
        vocabulary=vocabulary,
        digest=_digest(train, validation, vocabulary, content),
        report=report + encoder.report + _replaced(encoder.broken) + encoder.unknown.lines(),
        warnings=encoder.unknown.warnings(data.tokenizer),
    )
    return Corpus(found, data.sequence_length, seed)


def _from_tokens(data: DataSection, place: str, seed: int) -> Corpus:
    file = open_tokens(place, data.token_dtype)
    train, validation = split_tail(file.tokens, data.validation_fraction)
    content = sampled_digest(train) + sampled_digest(validation)
    layout = file.layout
    found = CorpusContent(
        name=data.source,
        train=train,
        validation=validation,
        vocabulary=0,
        digest=_digest(train, validation, 0, content),
        file=file,
        report=(f"read: {layout.tokens:,} ids of {layout.dtype.name}, by {layout.said_by}",),
    )
    return Corpus(found, data.sequence_length, seed)


def _digest(train: Tokens, validation: Tokens, vocabulary: int, content: bytes) -> str:
    sizes = b"%d %d %d " % (vocabulary, len(train), len(validation))
    return hashlib.sha256(sizes + content).hexdigest()


def _joined(parts: list[Tokens], vocabulary: int) -> Tokens:
    dtype = np.uint8 if vocabulary <= 1 << 8 else np.uint16 if vocabulary <= 1 << 16 else np.uint32
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


@dataclass(slots=True)
class _Unknown:
    """How many of the tokens are ``token``, the unknown token of the tokenizer."""

    token: str = ""
    count: int = 0
    total: int = 0

    def lines(self) -> tuple[str, ...]:
        return (f"tokenizer: {self._share()}",) if self.count else ()

    def warnings(self, place: str) -> tuple[str, ...]:
        if self.count <= UNKNOWN_SHARE_MAX * self.total:
            return ()
        return (
            f"data.tokenizer = {place!r}: {self._share()}; what stood there is lost to the model: is it the"
            " tokenizer of these texts?",
        )

    def _share(self) -> str:
        share = f"{100 * self.count / self.total:.3g} %"
        return f"{share} of the tokens are {self.token!r}, which stands for what it does not know"


@dataclass(frozen=True, slots=True)
class _Encoder:
    """``encode``: from a file to its tokens, the separator included. ``vocabulary``: one more than the
    largest id. ``report``: lines for the user. ``broken``: paths of the files that are not UTF-8.
    ``unknown``: counts the unknown tokens.
    """

    encode: Callable[[SourceFile], Tokens]
    vocabulary: int
    report: tuple[str, ...] = ()
    broken: set[str] = field(default_factory=set)
    unknown: _Unknown = field(default_factory=_Unknown)


def _replaced(names: set[str]) -> tuple[str, ...]:
    if not names:
        return ()
    why = "with bytes that are no UTF-8, which a tokenizer reads as U+FFFD"
    return (counted(why, sorted(names), "encoding"),)


def _encoder(place: str) -> _Encoder:
    if place == "bytes":
        separator = bytes([FILE_SEPARATOR])
        return _Encoder(
            lambda file: np.frombuffer(file.content + separator, dtype=np.uint8), BYTE_VOCABULARY
        )
    tokenizer = load_tokenizer(place)
    vocabulary = _ids(tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    endless = (
        "tokenizer: has no end-of-text token (eos_token), so that nothing stands between two files"
    )

    broken: set[str] = set()
    # If the library's wrapper does not name the unknown token, the tokenizer inside it may.
    inner = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    unknown = _Unknown(tokenizer.unk_token or getattr(inner, "unk_token", None) or "")
    unknown_id = tokenizer.convert_tokens_to_ids(unknown.token) if unknown.token else None

    def encode(file: SourceFile) -> Tokens:
        try:
            text = file.content.decode()
        except UnicodeDecodeError:
            text = file.content.decode(errors="replace")
            broken.add(file.path)
        try:
            ids = tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:
            # The library may raise any exception of its parts.
            raise ConfigError(
                f"data.tokenizer = {place!r}: cannot encode {shown(file.path)}: {first_line(error)}"
            ) from None
        unknown.count += ids.count(unknown_id)
        unknown.total += len(ids)
        return np.asarray(ids + end, dtype=np.int64)

    return _Encoder(encode, vocabulary, () if end else (endless,), broken, unknown)


def vocabulary(data: DataSection) -> int:
    """Number of token ids of a corpus, which is not read; 0: unknown. Raises `ConfigError` for a tokenizer that
    is not there.
    """
    if data.source.startswith("tokens:"):
        return 0
    return BYTE_VOCABULARY if data.tokenizer == "bytes" else _ids(load_tokenizer(data.tokenizer))


def _ids(tokenizer: Any) -> int:
    """Some tokenizers leave ids unused between the ordinary tokens and the added ones."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def load_tokenizer(place: str) -> Any:
    """A Hugging Face tokenizer from a folder on this machine. Raises `ConfigError`; asks no
    network.
    """
    if not Path(place).is_dir():
        raise ConfigError(
            f"data.tokenizer = {place!r}: must be 'bytes' or a folder with a Hugging Face "
            f"tokenizer; there is no folder {place!r} (seen from {Path.cwd()})"
        )
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return transformers.AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # The library may raise any exception of its parsers; the user needs the place and the first line.
        pointers = [
            each.name
            for each in sorted(Path(place).iterdir())
            if each.is_file() and is_pointer(each)
        ]
        if pointers:
            raise ConfigError(
                f"data.tokenizer = {place!r}: {pointers[0]} is a git-lfs pointer, not the file itself: run"
                " `git lfs pull` where it was cloned"
            ) from None
        raise ConfigError(
            f"data.tokenizer = {place!r}: no readable Hugging Face tokenizer there: {first_line(error)}"
        ) from None
