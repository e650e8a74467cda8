"""How values are shown: colors and shapes of facets, notebook tables, progress, terminal text."""
