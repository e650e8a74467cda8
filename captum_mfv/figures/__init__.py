"""Figures of facets for papers, on matplotlib axes of yours or in a new figure.

A new figure is ``axes[0].figure`` (for a single axis, ``axis.figure``), and ``width`` is its width in inches: 6.75 is
the text of a two-column paper, 3.25 one column. Fonts follow ``matplotlib.rcParams``. A facet has the same color and
marker in all figures. Pyplot's state doesn't change.
"""

from captum_mfv.figures.attributions import overlay_png, plot_attributions
from captum_mfv.figures.embedding import plot_embedding
from captum_mfv.figures.history import plot_history
from captum_mfv.figures.renderings import plot_facets

__all__ = ["overlay_png", "plot_attributions", "plot_embedding", "plot_facets", "plot_history"]
