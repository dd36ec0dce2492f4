"""Writes vectors as shards or single files, commits them, and reads them back."""
