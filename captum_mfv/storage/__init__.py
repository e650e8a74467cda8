"""What stored results need: fingerprints, atomic writes, validated reads, locks.

- `identity`: fingerprints of weights, datasets, codes and settings, by which stored results are recognized.
- `files`: atomic writes of files, deterministic safetensors files.
- `untrusted`: paths inside a folder, size limits, and JSON from files that anyone may have written.
- `schema`: declarations by which such JSON is validated.
- `checkpoint`: files from which interrupted work resumes.
- `lock`: one process at a time in a folder.
"""
