"""Describes a run: its recipe and fingerprint, and how its input is cut into shards."""
