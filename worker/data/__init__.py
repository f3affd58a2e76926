"""The corpus: token arrays, one global order of samples, and a digest that names both.

corpus.py   Corpus: training batches by sample number, held-out batches, digest
files.py    source files below a folder, and which of them are held out
encodings.py  their bytes to UTF-8
account.py  what was read, left out and converted
tokens.py   token files, mapped; what shows that one is misread
layouts.py  where the ids lie in a token file (raw, .npy, llm.c's, Megatron's .bin with .idx)
sources.py  open_corpus: what the run file's [data] names
"""

from worker.data.corpus import Corpus
from worker.data.sources import open_corpus

__all__ = ["Corpus", "open_corpus"]
