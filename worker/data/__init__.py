"""The corpus: token arrays, one global order of samples, and a digest that names both.

corpus.py       Corpus: training batches by sample number, held-out batches, digest
files.py        source files below a folder, and which of them are held out
encodings.py    from their bytes to UTF-8
file_report.py  which files were read, left out and converted
tokens.py       token files, mapped into memory; how a wrong type is noticed
layouts.py      where the ids are in a token file (raw, .npy, llm.c's, Megatron's .bin with .idx)
sources.py      open_corpus: from the run file's [data] to a corpus
"""
