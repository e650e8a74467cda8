"""Objectives, parameterizations, transforms and optimizers for Lucent's render loop, and a render loop for facets."""

from captum_mfv.optvis import initializer, objectives, optimizers, param, recipes, reference, render, terms, transform

__all__ = ["initializer", "objectives", "optimizers", "param", "recipes", "reference", "render", "terms", "transform"]
