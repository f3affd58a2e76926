"""The `lm` problem: many small Llama models, each with its own optimiser, trained in one batch.

shape.py       Shape: sizes of a plain Llama, and where each tensor lies in its flat vector
stacked.py     Stacked: loss and gradient of many replicas at once
attention.py   causal attention of the stack, forward and backward
optimiser.py   Optimiser: AdamW or Muon of many replicas at once
samples.py     Samples: from sample numbers to tokens, with regional data if wanted
heap.py        memory that is kept between steps, on a CPU
problem.py     LanguageModelling: the problem that the simulator sees
"""
