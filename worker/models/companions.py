"""Small files of a model beside its weights, which are copied into an export."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pelago.core.errors import CheckpointError, ConfigError, first_line
from worker.models.weights import require_no_pointer

TOKENIZER: Final = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|.*\.model"
    r"|.*\.tiktoken|chat_template.*|spiece.*|sentencepiece.*|bpe\.codes|normalizer\.json|dict\.txt"
    r"|tekken\.json|emoji\.json|word_(shape|pronunciation)\.json|.*\.spm|.*_vocab\.json"
    r"|prophetnet\.tokenizer"
)
TEMPLATES: Final = "additional_chat_templates"
GENERATION: Final = re.compile(r"generation_config\.json")
LICENCE: Final = re.compile(
    r"(licen[cs]e|notice|copying|use_policy|acceptable_use)([-_. ].*)?", re.IGNORECASE
)
CODE: Final = (".py", ".pyc", ".so")
FILE_BYTES_MAX: Final = 1 << 26
"""Larger files are not of these kinds; the largest known vocabulary takes 40 MB."""


@dataclass(frozen=True, slots=True)
class Companions:
    """Contents by path; a path may name one folder below."""

    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def has_tokenizer(self) -> bool:
        """Whether files of a tokenizer are among them."""
        return any(TOKENIZER.fullmatch(Path(name).name) for name in self.files)

    def write(self, folder: Path) -> None:
        """Write them into a folder. A tokenizer that was saved there already is only completed.

        Raises `OSError`.
        """
        for name, content in self.files.items():
            path = folder / name
            if path.exists() and TOKENIZER.fullmatch(path.name):
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def of_model(folder: Path, *, tokenizer: bool) -> Companions:
    """The files of a model: generation config, licence and, if asked for, its tokenizer.

    Raises `ConfigError` for a file that is there and cannot be read.
    """
    kinds = [GENERATION, LICENCE] + ([TOKENIZER] if tokenizer else [])
    return Companions(_read(folder, kinds, f"model.preset = '{folder}'"))


def of_tokenizer(folder: Path) -> Companions:
    """The files of the tokenizer of a corpus. Raises `ConfigError`."""
    return Companions(_read(folder, [TOKENIZER, LICENCE], f"data.tokenizer = '{folder}'"))


def joined(model: Companions, tokenizer: Companions) -> Companions:
    """The files of both; if a file differs, such as the licence, both are kept."""
    files = dict(model.files)
    for name, content in tokenizer.files.items():
        other = files.get(name, content) != content
        files[f"{name}.tokenizer" if other else name] = content
    return Companions(files)


def require_tokenizer(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """Raises `CheckpointError` if the tokenizer of an exported folder does not open, or has other ids."""
    import transformers

    try:
        opened = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # The library may raise any exception of its parsers.
        why = first_line(error)
        raise CheckpointError(f"the exported tokenizer in {folder} does not open: {why}") from None
    if opened.get_vocab() != vocabulary:
        raise CheckpointError(f"the exported tokenizer in {folder} has other ids than the corpus's")


def _read(folder: Path, kinds: list[re.Pattern[str]], key: str) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    paths = [each for each in folder.iterdir() if any(kind.fullmatch(each.name) for kind in kinds)]
    if TOKENIZER in kinds:
        paths += (folder / TEMPLATES).glob("*.jinja")
    files = {}
    for path in sorted(paths):
        if path.suffix in CODE or (path.exists() and not path.is_file()):
            continue  # Code is never copied; folders and pipes are no such files.
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                continue
            require_no_pointer(path, key)
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{key}: cannot read {path.name}: {error.strerror}") from None
    return files
