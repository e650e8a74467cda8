"""Stored results: fingerprints, atomic writes, checkpoints, locks, and reading files that anyone may have written."""
