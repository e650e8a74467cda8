"""A run on disk: its settings, manifest and folder, and the images of its facets.

`RunFolder` reads a run, `RunWriter` fills it; both use the names and formats in ``files`` and ``manifest``. The modules
are imported by name, because ``settings`` must load quickly for the command's help.
"""
