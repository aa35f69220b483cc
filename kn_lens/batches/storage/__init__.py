"""A run's folder: files that are there whole or not at all, parts with their records, the manifest, the lock."""
