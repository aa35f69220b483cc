"""Batches that lose nothing: a method of the package over many prompts, from one file, piece by piece."""
