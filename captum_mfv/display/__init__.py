"""Display: colors and markers of facets, notebook tables, progress, text for terminals."""
