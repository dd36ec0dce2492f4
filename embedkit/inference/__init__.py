"""Turns texts into vectors: model specification, building, batching, scheduling, and `Encoder`."""
