"""Language models of Hugging Face `transformers`, behind a thin adapter over one flat fp32 tensor.

presets.py   named architectures
build.py     build: from the run file's [model] to a LanguageModel
language.py  LanguageModel: manifest, load_flat, read_flat, loss, export
"""

from worker.models.build import build
from worker.models.language import LanguageModel

__all__ = ["LanguageModel", "build"]
