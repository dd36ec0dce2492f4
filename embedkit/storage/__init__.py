"""Reads and writes files: the file system seam, atomic writes, checksums, standard streams."""
