"""Terms of an objective: losses of layers' outputs, one loss per image of the batch.

What depends on the facet is a constant with one row per image, so that one batch holds images of facets of any units
of a layer. Losses are minimized and normalized: one weight serves all units, layers, models and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import softplus

from captum_mfv.errors import FacetError, RecipeError, UnitError
from captum_mfv.facets.facet_set import Facet
from captum_mfv.models.sae import SparseEncoder
from captum_mfv.optvis.arguments import check_same_layers
from captum_mfv.storage.schema import suggest
from captum_mfv.units import Unit

__all__ = [
    "ACTIVATION",
    "INPUT",
    "TERMS",
    "Tensors",
    "Term",
    "activation_term",
    "boundary_term",
    "check_term",
    "code_term",
    "gray_term",
    "make_term",
    "probability_term",
    "total_variation_term",
    "unit_term",
]

INPUT = "input"
"""Lucent's name of the image itself, in [0, 1], among the layers."""

ACTIVATION = ".activation"
"""Name of the units' activations among the layers, where the render loop has computed them; no module has this name."""

_SHARPNESS = 10.0  # of the soft maximum over the other facets' cosines
_KNEE = 0.1  # width of the bend at the cap, as a share of the cap
_CAP = 1.5  # the cap in recipes, in largest activations on real images

Tensors: TypeAlias = Mapping[str, Tensor]
"""Activations or constants by name."""


@dataclass(frozen=True, eq=False)
class Term:
    """A loss per image of the batch.

    Args:
        layers: dotted names of the layers that the loss reads; `INPUT` is the image.
        loss: function of the layers' outputs and of ``constants``, both by name, to (B,) losses.
        constants: tensors by name with one row per image of the batch, such as each facet's center.
    """

    layers: tuple[str, ...]
    loss: Callable[[Tensors, Tensors], Tensor]
    constants: Tensors = field(default_factory=dict)

    def rows(self, rows: Sequence[int], device: torch.device | None = None) -> Term:
        """Return the term of some rows, in any order and repeated where wanted, on a device."""
        constants = {name: values[list(rows)].to(device) for name, values in self.constants.items()}
        return replace(self, constants=constants)

    def __call__(self, outputs: Tensors) -> Tensor:
        """Return (B,) losses of the layers' outputs."""
        return self.loss(outputs, self.constants)


def activation_term(facets: Sequence[Facet]) -> Term:
    """Return the activation of each image's own unit, without a sign or a scale.

    A latent of a sparse autoencoder that is 0 has the gradient of its pre-activation.

    Raises:
        FacetError: if the facets' units or codes read different layers.
        UnitError: when called, if the layer's channels don't match the units.
    """
    check_same_layers(facets)
    unit, picks = _last_unit(facets), _picks([item.unit for item in facets])
    linear, places = _linear(unit, picks)

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        if ACTIVATION in outputs:  # encoding latents again would take as long as the first time
            return outputs[ACTIVATION]
        output = outputs[unit.layer_name]
        activation = _selected(unit, unit.read_channels(output), constants["units"])
        if linear is None:
            return activation
        slope = _selected(linear, linear.read_channels(output), constants["places"])
        return activation + torch.where(activation == 0, slope - slope.detach(), 0)

    return Term((unit.layer_name,), loss, {"units": picks, "places": places})


def _linear(unit: Unit, picks: Tensor) -> tuple[Unit | None, Tensor]:
    """Return a unit that reads the pre-activations of the picked latents, and picks among these; or None."""
    if not isinstance(unit.encoder, SparseEncoder):
        return None, picks
    if picks.ndim == 2:
        return replace(unit, encoder=unit.encoder.linear()), picks
    latents, places = torch.unique(picks, return_inverse=True)
    return replace(unit, index=len(latents) - 1, encoder=unit.encoder.linear(latents.tolist())), places


def _last_unit(facets: Sequence[Facet]) -> Unit:
    """Return the unit with the largest index, which exists in a layer if all do."""
    return max((item.unit for item in facets), key=lambda unit: unit.index if isinstance(unit.index, int) else -1)


def _selected(last: Unit, channels: Tensor, picks: Tensor) -> Tensor:
    """Return each image's own unit, (N,), of all channels or latents, (N, C)."""
    if picks.ndim == 2:
        if picks.shape[1] != channels.shape[1]:
            raise UnitError(f"layer {last.layer} has {channels.shape[1]} channels, not {picks.shape[1]}")
        return (channels * picks.to(channels)).sum(1)
    last.pick(channels)  # raises UnitError if the layer has no such channel
    return channels.gather(1, picks.expand(len(channels))[:, None])[:, 0]


def _picks(units: Sequence[Unit]) -> Tensor:
    """(n,) indices of the units' channels; with a direction among the units, (n, C) weights of the channels."""
    if all(isinstance(unit.index, int) for unit in units):
        return torch.tensor([unit.index for unit in units])
    n_channels = max(len(unit.index) for unit in units if not isinstance(unit.index, int))
    return torch.stack([unit.pick(torch.eye(n_channels)) for unit in units])


def unit_term(facets: Sequence[Facet], cap: float | None = None) -> Term:
    """Return minus the unit's activation, in units of its mean magnitude on each facet's images.

    With a cap, what is maximized falls again beyond this many times the unit's largest activation on any real image,
    since images that drive a unit far beyond real ones become unnatural, and other terms would drive it further. A unit
    that no real image activates is not capped.
    """
    read = activation_term(facets)
    mean = torch.tensor([float(abs(item.activations).mean()) for item in facets]).clamp_min(1e-6)
    constants = {**read.constants, "mean": mean}
    if cap is not None:
        peaks = [item.peak for item in facets]
        constants["capped"] = torch.tensor([peak > 0 for peak in peaks])
        constants["high"] = torch.tensor([cap * peak if peak > 0 else 1.0 for peak in peaks])
        constants["knee"] = torch.tensor([_KNEE * cap * peak if peak > 0 else 1.0 for peak in peaks])

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        activation = read.loss(outputs, constants).float()
        if cap is not None:
            high, knee = constants["high"].to(activation), constants["knee"].to(activation)
            beyond = (activation - high) / knee
            leveled = high - knee * (softplus(beyond) + softplus(-beyond))
            activation = torch.where(constants["capped"], leveled, activation)
        return -activation / constants["mean"].to(activation)

    return Term(read.layers, loss, constants)


def probability_term(facets: Sequence[Facet]) -> Term:
    """Return minus the logarithm of the unit's share in its layer's softmax; RecipeError if a unit is a direction."""
    if not all(isinstance(item.unit.index, int) for item in facets):
        raise RecipeError("the probability of a direction isn't defined; use a recipe without it")
    unit, read = _last_unit(facets), activation_term(facets)

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        activations = unit.read_channels(outputs[unit.layer_name]).float()
        return activations.logsumexp(1) - read.loss(outputs, constants)

    return Term(read.layers, loss, read.constants)


def code_term(facets: Sequence[Facet], contrast: float = 0.0) -> Term:
    """Return minus the cosine between the image's code and its facet's center, both minus the mean code.

    The largest cosine (a soft maximum) to the other centers of the facet's own set is added, times ``contrast``.
    """
    check_same_layers(facets)
    code = facets[0].code
    origins = torch.stack([torch.from_numpy(item.origin) for item in facets])
    centers = [torch.from_numpy(item.centers) - origin for item, origin in zip(facets, origins, strict=True)]
    directions = torch.stack([own[item.index] for item, own in zip(facets, centers, strict=True)])
    constants = {"origins": origins, "directions": directions}
    if contrast and max(map(len, centers)) > 1:
        rivals = [own[torch.arange(len(own)) != item.index] for item, own in zip(facets, centers, strict=True)]
        constants |= _padded(rivals)

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        codes = code.read(outputs[code.layer]).float()
        codes = codes - constants["origins"].to(codes)
        own = torch.cosine_similarity(codes, constants["directions"].to(codes), dim=1)
        if "others" not in constants:
            return -own
        cosines = torch.cosine_similarity(codes[:, None], constants["others"].to(codes), dim=2)
        cosines = cosines.masked_fill(constants["padding"], -torch.inf)
        return contrast * (_SHARPNESS * cosines).logsumexp(1) / _SHARPNESS - own

    return Term((code.layer,), loss, constants)


def _padded(others: Sequence[Tensor]) -> dict[str, Tensor]:
    """Pad to one tensor and mark the padding; a facet without others keeps one center of zeros, of cosine 0."""
    padded = torch.nn.utils.rnn.pad_sequence(list(others), batch_first=True)
    counts = torch.tensor([max(1, len(its)) for its in others])
    return {"others": padded, "padding": torch.arange(padded.shape[1]) >= counts[:, None]}


def total_variation_term() -> Term:
    """Return how often a line across the image changes from black to white, a mean over rows, columns, channels."""

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        images = outputs[INPUT].float()
        swings = [images.diff(dim=axis).abs().flatten(1).mean(1) * (images.shape[axis] - 1) for axis in (2, 3)]
        return torch.stack(swings).mean(0)

    return Term((INPUT,), loss)


def boundary_term(width: float = 0.1) -> Term:
    """Return the mean square difference of a border from the image's mean color, to center what matters."""

    def loss(outputs: Tensors, constants: Tensors) -> Tensor:
        images = outputs[INPUT].float()
        top, left = (max(1, round(width * side)) for side in images.shape[2:])
        border = torch.ones_like(images[0, 0])
        border[top:-top, left:-left] = 0
        squares = (images - images.mean(dim=(2, 3), keepdim=True)).square().mean(1)
        return (squares * border).sum(dim=(1, 2)) / border.sum()

    return Term((INPUT,), loss)


def gray_term() -> Term:
    """Return the mean square difference from mid-gray, which keeps colors from saturating."""
    return Term((INPUT,), lambda outputs, constants: (outputs[INPUT].float() - 0.5).square().flatten(1).mean(1))


_TERMS: Mapping[str, Callable[[Sequence[Facet]], Term]] = {
    "unit": unit_term,
    "capped_unit": lambda facets: unit_term(facets, cap=_CAP),
    "probability": probability_term,
    "code": code_term,
    "contrastive_code": lambda facets: code_term(facets, contrast=1.0),
    "total_variation": lambda facets: total_variation_term(),
    "boundary": lambda facets: boundary_term(),
    "gray": lambda facets: gray_term(),
}

TERMS: tuple[str, ...] = (*_TERMS, "distribution", "probe")
"""Names of the terms, as recipes use them."""


def check_term(name: str) -> str:
    """Return a term's name, or raise RecipeError if no term has that name."""
    if name not in TERMS:
        raise RecipeError(f"no objective {name!r}; there are {', '.join(TERMS)}{suggest(name, TERMS)}")
    return name


def make_term(name: str, facets: Sequence[Facet]) -> Term:
    """Return a term by its name in recipes, made from the facets alone.

    Raises:
        RecipeError: if no term has that name.
        FacetError: if the term needs a measurement (`reference.measure_terms`), or the facets read different layers.
    """
    if check_term(name) not in _TERMS:
        raise FacetError(f"the {name} of a facet is measured on its images; give what was measured")
    return _TERMS[name](facets)
