"""Pools hidden states of tokens to vectors of texts, units and groups of rows."""
