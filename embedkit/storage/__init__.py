"""Reads and writes files: atomic writes, checksums, temporary files, standard streams."""
