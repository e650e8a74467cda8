"""Find the facets of a unit."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from torch import nn

from captum_mfv.activations.codes import CodeFn, Collection, collect
from captum_mfv.display.progress import waiting
from captum_mfv.errors import FacetError, MFVWarning
from captum_mfv.facets.facet_set import FacetSet
from captum_mfv.facets.file import LARGEST_CODE
from captum_mfv.facets.finder import FacetFinder
from captum_mfv.images import Images, InputSpec
from captum_mfv.storage.schema import check_seed
from captum_mfv.units import Code, Unit

__all__ = ["cluster", "find_facets"]


def find_facets(
    model: nn.Module,
    unit: Unit | str,
    images: Images,
    *,
    n_facets: int | Literal["auto"] = 10,
    code: Code | str | nn.Module | CodeFn | None = None,
    finder: FacetFinder | None = None,
    input_spec: InputSpec | None = None,
    seed: int = 0,
    batch_size: int = 32,
    store: str | os.PathLike[str] | None = None,
    key: str | None = None,
    progress: bool = False,
) -> FacetSet:
    """Find the facets of a unit: clusters of the codes of the images that activate the unit.

    Args:
        model: any PyTorch vision model; left as it was.
        unit: the unit, or ``"layer:index"``.
        images: the images that activate it: for a class unit, images of the class; for a hidden unit, its
            `top_images` (with their ``input_spec``).
        n_facets: number of facets; or ``"auto"``, the number of separated clusters, which may be one.
        code: the code that describes an image: a `Code`, ``"layer"`` or ``"layer:reduce"``, or a module of the model;
            by default the last layer with positions before the unit, averaged over them. Or a function from images in
            [0, 1] to codes, (N, D), which describes images by something else, such as attributions
            (`attr.AttributionCode`) or another network; centers are then in the default code's space, in which images
            can be synthesized.
        finder: clusters the codes; by default `FacetFinder(n_facets, random_state=seed)`.
        input_spec: preprocessing of images in [0, 1].
        seed: seed of the default finder, an integer from 0 to 2**32 - 1.
        batch_size: images in one forward pass.
        store: folder for activations and codes, from which an interrupted call resumes, as in `collect`.
        key: name of dataset and code function if one of them has no fingerprint, as in `collect`.
        progress: show a progress bar.

    Raises:
        UnitError: if the unit or the code isn't in the model, or is ambiguous.
        ImageError: if no image can be read.
        RunError: if the store holds something else, or ``key`` is needed.
        FacetError: if there are fewer distinct codes than facets, or codes aren't finite.
        ValueError: if the seed is not an integer from 0 to 2**32 - 1.

    Warns:
        MFVWarning: if the unit is 0 on all images.

    Example:
        >>> from captum_mfv.datasets import planted_images, planted_network
        >>> model, spec = planted_network()
        >>> images, colors = planted_images(n_each=30)
        >>> facets = find_facets(model, Unit("unit", 0), images, n_facets=4, input_spec=spec)
        >>> [len(facet) for facet in facets]
        [30, 30, 30, 30]
    """
    seed = check_seed(seed)
    is_function = callable(code) and not any(module is code for module in model.modules())
    layer, code_fn = (None, cast(CodeFn, code)) if is_function else (cast("Code | str | nn.Module | None", code), None)
    collection = collect(
        model,
        unit,
        images,
        code=layer,
        code_fn=code_fn,
        input_spec=input_spec,
        batch_size=batch_size,
        store=store,
        key=key,
        progress=progress,
    )
    with waiting("facets", progress):
        return cluster(collection, finder or FacetFinder(n_facets, random_state=seed))


def cluster(collection: Collection, finder: FacetFinder) -> FacetSet:
    """Cluster collected codes, or the codes of a function if the collection has them, into facets.

    Raises:
        FacetError: if activations or codes aren't finite, or there are fewer distinct codes than facets.
    """
    rows = collection.indices
    clustered = (collection.codes if collection.fn_codes is None else collection.fn_codes)[rows]
    activations = collection.activations[rows]
    numbers = activations[:, None], collection.codes[rows], clustered
    usable = np.all([(abs(values) <= LARGEST_CODE).all(1) for values in numbers], 0)  # False for NaN
    if not usable.all():
        raise FacetError(
            f"the activations of {collection.code.layer} or {collection.unit} aren't finite on {(~usable).sum()} of "
            f"{len(rows)} images, or beyond {LARGEST_CODE:g}; look for NaN in the weights, or use a wider dtype"
        )
    if not activations.any():
        message = (
            f"{collection.unit} is 0 on all {len(rows)} images: the unit is dead, or these images don't activate it"
        )
        warnings.warn(message, MFVWarning, stacklevel=2)
    finder = clone(finder).fit(clustered)

    def for_all_images(values: NDArray[Any], fill: float) -> NDArray[Any]:
        whole = np.full((len(collection.codes), *values.shape[1:]), fill, values.dtype)
        whole[rows] = values
        return whole

    return FacetSet(
        collection.unit,
        collection.code,
        for_all_images(finder.labels_, -1),
        for_all_images(finder.embedding_.astype(np.float32), np.nan),
        collection.codes,
        collection.activations,
        getattr(finder, "p_value_", None),
        tuple(finder.stability_.tolist()) if finder.n_bootstraps else None,
        tuple(map(tuple, finder.stability_interval_.tolist())) if finder.n_bootstraps else None,
    )
