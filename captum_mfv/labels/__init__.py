"""Labels of facets: words that tell a facet's images from those of the unit's others, tested on held-out images."""

from captum_mfv.labels.appearance import APPEARANCE, REFERENCE_COLORS, AppearanceNamer
from captum_mfv.labels.contrast import Label, label_facets, labels_from_scores
from captum_mfv.labels.cosy import ConceptScores, concept_scores
from captum_mfv.labels.loading import load_namer
from captum_mfv.labels.namers import ClassifierNamer, ImageTextNamer, Namer, word_scores
from captum_mfv.labels.words import common_words, read_words

__all__ = [
    "APPEARANCE",
    "REFERENCE_COLORS",
    "AppearanceNamer",
    "ClassifierNamer",
    "ConceptScores",
    "ImageTextNamer",
    "Label",
    "Namer",
    "common_words",
    "concept_scores",
    "label_facets",
    "labels_from_scores",
    "load_namer",
    "read_words",
    "word_scores",
]
