"""Language models of Hugging Face `transformers`, behind a thin adapter over one flat fp32 tensor.

presets.py       named architectures
architecture.py  from the run file's [model] to a configuration
weights.py       which weights a folder holds, and whether they are usable
build.py         build: from the run file's [model] to a LanguageModel
probe.py         what can only be found out by running a model
companions.py    tokenizer, generation config and licence, which travel into an export
language.py      LanguageModel: manifest, load, read_flat, loss, export
"""
