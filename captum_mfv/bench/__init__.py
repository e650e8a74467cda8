"""A benchmark of methods that render the facets of units: suites of units, scores, results and their table.

``suite`` declares the units, ``scene`` loads one, ``methods`` finds what renders its facets, ``scores`` evaluates the
images, ``runner`` computes the ``results`` that are missing, and ``table`` compares the methods.
"""

from captum_mfv.bench.methods import Method, Rendered, find_method, method_names
from captum_mfv.bench.results import Result, ResultFolder, join
from captum_mfv.bench.runner import run
from captum_mfv.bench.scene import Scene, Scenes
from captum_mfv.bench.scores import SCORES, CellScores, image_scores, real_scores
from captum_mfv.bench.suite import SUITES, Cell, HiddenUnit, ImageClass, Network, Suite, get_suite
from captum_mfv.bench.table import Compared, Row, Table, make_table

__all__ = [
    "SCORES",
    "SUITES",
    "Cell",
    "CellScores",
    "Compared",
    "HiddenUnit",
    "ImageClass",
    "Method",
    "Network",
    "Rendered",
    "Result",
    "ResultFolder",
    "Row",
    "Scene",
    "Scenes",
    "Suite",
    "Table",
    "find_method",
    "get_suite",
    "image_scores",
    "join",
    "make_table",
    "method_names",
    "real_scores",
    "run",
]
