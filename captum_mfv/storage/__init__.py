"""Files: atomic writes, files that anyone may have written, locks."""
