"""How the fp32 elements of a chunk are written as bytes for their way between nodes.

encoding.py     what an encoding is
plain.py        fp32 as it is, and bf16
blockwise.py    int8 and int4, with a scale for each block of elements
counter.py      random bits that follow from a key and an element's index
registry.py     the encodings by name
"""
