"""BERT and its kin, computed by embedkit itself: torch alone, no model code of transformers.

shape.py        config.json → what the model looks like, or why it is left to transformers
checkpoint.py   the weights, by the names that each kind of model gives them
dense.py        linear layers, in fp32 and in int8
layer.py        one encoder layer over texts that lie end to end
fused.py        the same with compiled kernels between the matrix products
kernels.py      these kernels, held against torch when they are loaded
kernels.cpp     their source
building.py     the compiler that makes a library of it, and the cache that keeps that
team.py         threads, each with some texts of a batch
encoder.py      all of it: token ids → hidden states, layer by layer
device.py       the same on a GPU, in 16 bits
compiled.py     what of it torch compiles, and when

Nothing is guessed: a setting or a weight that is not understood leaves the model to transformers.
"""
