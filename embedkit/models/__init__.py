"""Finding, loading and running encoders."""
