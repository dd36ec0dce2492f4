"""Tokens of one text to one vector, and hidden states of several layers to one.

Small pure functions of (hidden_states, mask), and one table of their names. Knows nothing of
tokenizers, batches or files. `names` can be imported without torch.
"""
