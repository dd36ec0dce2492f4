"""Describes a run: recipe and fingerprint, shards, and the files plan.json, commits/*.json and manifest.json."""
