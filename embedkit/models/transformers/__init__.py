"""Runs models by the code of the transformers library."""
