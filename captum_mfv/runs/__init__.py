"""A run on disk: its settings, manifest and folder, and the images of its facets.

`RunFolder` reads a run, `RunWriter` fills it; both use the names and formats in ``folder`` and ``records``. The modules
are imported by name, because ``settings`` must load quickly for the command's help.
"""
