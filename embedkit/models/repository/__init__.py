"""Finds a model by name, folder or hub id, and reads its small files; loads no weights."""
