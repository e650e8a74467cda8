"""Units and codes: which number of which layer is visualized, and which numbers describe an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from captum_mfv.errors import UnitError
from captum_mfv.storage.schema import check_integer
from captum_mfv.storage.untrusted import is_file, read_array

__all__ = ["Code", "Unit", "channels_second", "first_floating_point", "is_channels_last"]

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.flatten(2).mean(-1),
    "max": lambda maps: maps.flatten(2).amax(-1),
    "center": lambda maps: maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2],
    "cls": lambda maps: maps[:, :, 0],
    "patches": lambda maps: maps.flatten(2).mean(-1),
}
_ONE_POSITION = ("center", "cls")
_LONGEST = 10**6  # weights of a direction in a file


def is_channels_last(shape: Sequence[int]) -> bool:
    """Whether an output of this shape must be (N, H, W, C): the maps of square images have equal H and W."""
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def channels_second(output: Tensor, channels: str | None = None) -> Tensor:
    """Return a layer's output, (N, C), (N, C, H, W), (N, H, W, C) or (N, tokens, C), with its channels second.

    With ``channels=None``, they are last for tokens and if `is_channels_last` is true, else first.

    Raises:
        UnitError: if the output has another number of axes.
    """
    if output.ndim not in (2, 3, 4):
        raise UnitError(f"a layer's output must be (N, C), (N, C, H, W) or (N, tokens, C), not {_shape(output)}")
    if output.ndim == 2:
        return output
    if channels is None:
        channels = "last" if output.ndim == 3 or is_channels_last(output.shape) else "first"
    return output if channels == "first" else output.movedim(-1, 1)


def _positions(of: Unit | Code, output: Tensor) -> Tensor:
    """Return (N, C, …); raise UnitError where the shape suggests channels last and ``channels`` is not given."""
    if of.channels is None and is_channels_last(output.shape):
        raise UnitError(
            f"layer {of.layer} returns {_shape(output)}, which looks like channels last, (N, H, W, C); "
            f"write channels='last', or channels='first' if it isn't"
        )
    maps = channels_second(output, of.channels)
    if maps.ndim > 2 and maps.ndim != {"center": 4, "cls": 3}.get(of.reduce, maps.ndim):
        raise UnitError(f"layer {of.layer} returns {_shape(output)}; reduce='center' reads maps, 'cls' tokens")
    return maps


def _reduced(of: Unit | Code, maps: Tensor) -> Tensor:
    """Return (N, C) of (N, C, …)."""
    if maps.ndim == 2:
        return maps
    if of.reduce == "patches" and maps.ndim == 3:
        maps = _patches(of, maps)
    return _REDUCTIONS[of.reduce](maps)


def _patches(of: Unit | Code, tokens: Tensor) -> Tensor:
    """Return tokens, (N, C, tokens), without the class and register tokens."""
    if of.n_prefix is None:
        raise UnitError(
            f"the number of class and register tokens of layer {of.layer} isn't known; give n_prefix= "
            f"(--n-prefix in the command), 0 if it has none"
        )
    if of.n_prefix >= tokens.shape[2]:
        raise UnitError(f"layer {of.layer} has {tokens.shape[2]} tokens; n_prefix must be below, not {of.n_prefix}")
    return tokens[:, :, of.n_prefix :]


@dataclass(frozen=True)
class Unit:
    """One number of a network: a channel, a neuron, a token channel, a logit, a direction of a layer, or a latent.

    A layer's output is read as (N, C), (N, C, H, W) or (N, tokens, C), the default of ``channels``. Outputs of
    token-first layers, (tokens, N, C), are recognized and read as (N, tokens, C).

    Args:
        layer: dotted name of the layer (``"features.12"``), or the module itself. Of a tuple, a list, a mapping or a
            dataclass, the first tensor is read; ``"layer[1]"`` or ``"layer[pooler_output]"`` names another.
        index: the channel, or one weight per channel for a direction in the layer's space.
        reduce: reduction over positions: ``mean``, ``max``, ``center`` (the middle of a map), ``cls`` (the first token)
            or ``patches`` (the mean over tokens other than class and register tokens); unused for layers without
            positions.
        channels: ``last`` for a layer that returns (N, H, W, C), ``first`` for one that returns (N, C, positions).
            None: as the layer and the next one show; an error asks for it if they don't.
        n_prefix: number of class and register tokens, for ``patches``. None: the number that the model declares (timm,
            torchvision, transformers, open_clip); an error asks for it otherwise.
        encoder: for a latent, such as one of a sparse autoencoder (`models.load_sae`): a module from (n, C) to (n, F),
            applied to each position of the layer's output, on the encoder's device and in the encoder's dtype. The
            index is then the latent, or one weight per latent. In a unit that was read from a file, the encoder's
            fingerprint; `FacetSet.load` takes the encoder.

    Raises:
        TypeError: if the index is neither an integer nor a vector of numbers, or the encoder is no module.
        UnitError: if the index is negative, a weight isn't finite, or ``reduce`` or ``channels`` isn't known.
    """

    layer: str | nn.Module
    index: int | tuple[float, ...]
    reduce: str = "mean"
    channels: str | None = None
    n_prefix: int | None = None
    encoder: nn.Module | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, (str, nn.Module)):
            raise TypeError(f"layer must be a dotted name or a module, not {type(self.layer).__name__}")
        if not isinstance(self.encoder, (str, nn.Module, type(None))):
            raise TypeError(f"encoder must be a module from (n, C) to (n, F), not {type(self.encoder).__name__}")
        object.__setattr__(self, "index", _index(self.index))
        _check(self, ("mean", "max", "center", "cls", "patches"))

    @classmethod
    def parse(cls, unit: str | Unit) -> Unit:
        """Return the unit that ``layer:index``, Lucent's notation, names; a `Unit` is returned as it is.

        ``layer:file.npy`` names a direction: a file that `numpy.save` wrote, of one weight per channel.

        >>> Unit.parse("features.12:37")
        Unit(layer='features.12', index=37, reduce='mean', channels=None, n_prefix=None, encoder=None)
        """
        if isinstance(unit, Unit):
            return unit
        if not isinstance(unit, str):
            raise TypeError(f"unit must be a Unit or 'LAYER:INDEX', such as 'fc:37', not a {type(unit).__name__}")
        # A file's path may begin with a drive, C:
        layer, colon, index = unit.partition(":") if unit.endswith(".npy") else unit.rpartition(":")
        if layer and index.endswith(".npy"):
            return cls(layer, _read_direction(index))
        if not (layer and colon and index.isascii() and index.isdigit() and len(index) <= 18):
            raise UnitError(f"unit {unit!r} isn't LAYER:INDEX, such as features.12:37, or LAYER:FILE.npy")
        return cls(layer, int(index))

    def __str__(self) -> str:
        index = self.index if isinstance(self.index, int) else f"direction[{len(self.index)}]"
        layer = self.layer if isinstance(self.layer, str) else type(self.layer).__name__
        return f"{layer}:{index}" if self.encoder is None else f"{layer}:latent {index}"

    @property
    def layer_name(self) -> str:
        """Dotted name of the layer; UnitError if the layer was given as a module."""
        if isinstance(self.layer, str):
            return self.layer
        raise UnitError("this unit's layer is a module without a name; give the layer's dotted name")

    def read(self, output: Tensor) -> Tensor:
        """Return the unit's activation, (N,), in its layer's output, (N, …); UnitError without such a channel."""
        return self.pick(self.read_channels(output))

    def read_positions(self, output: Tensor) -> Tensor:
        """Return all channels at each position of the layer's output, (N, C, …), or all latents, (N, F, …)."""
        return self._encoded(_positions(self, output))

    def read_channels(self, output: Tensor) -> Tensor:
        """Return all channels or latents, (N, C), of the layer's output, with the unit's reduction over positions."""
        maps = _positions(self, output)
        if self.reduce in _ONE_POSITION:
            maps = _reduced(self, maps)  # first, so that one position is encoded
        return _reduced(self, self._encoded(maps))

    def reduce_positions(self, maps: Tensor) -> Tensor:
        """Return the reduction over positions, (N, C), of channels or latents, (N, C, …)."""
        return _reduced(self, maps)

    def pick(self, channels: Tensor) -> Tensor:
        """Return the unit's channel, latent or direction of (N, C, …), as (N, …)."""
        n, index = channels.shape[1], self.index
        owner, name = (f"layer {self.layer}", "unit") if self.encoder is None else ("the encoder", "latent")
        if isinstance(index, int):
            if index >= n:
                raise UnitError(f"{owner} has {name}s 0 to {n - 1}; there is no {name} {index}")
            return channels[:, index]
        if len(index) != n:
            each = "channel" if self.encoder is None else name
            raise UnitError(f"a direction in {owner} takes {n} weights, one a {each}, not {len(index)}")
        weights = torch.tensor(index, dtype=channels.dtype, device=channels.device)
        return torch.einsum("nc...,c->n...", channels, weights)

    def _encoded(self, maps: Tensor) -> Tensor:
        """Return latents, (N, F, …), of channels, (N, C, …), in their dtype and on their device."""
        if self.encoder is None:
            return maps
        if isinstance(self.encoder, str):
            raise UnitError(
                f"{self} was read from a file, which holds only the fingerprint of the encoder; pass the encoder, as "
                f"in FacetSet.load(path, encoder=sae) or in the command's --sae"
            )
        if maps.is_meta:  # only shapes are checked
            return maps.new_empty((len(maps), _n_latents(self.encoder, maps.shape[1]), *maps.shape[2:]))
        rows = maps.movedim(1, -1)
        latents = _encode(self.encoder, rows.reshape(-1, maps.shape[1]))
        return latents.reshape(*rows.shape[:-1], -1).movedim(-1, 1)


@dataclass(frozen=True)
class Code:
    """Which numbers describe an image: a layer's output, pooled or flattened.

    Args:
        layer: name of the layer, as in `Unit`.
        reduce: ``mean``, ``max``, ``cls`` or ``patches`` as in `Unit`, or ``flatten``.
        channels, n_prefix: as in `Unit`.
    """

    layer: str
    reduce: str = "mean"
    channels: str | None = None
    n_prefix: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str):
            raise TypeError(f"a code's layer must be a dotted name, not a {type(self.layer).__name__}")
        _check(self, ("mean", "max", "cls", "patches", "flatten"))

    @classmethod
    def parse(cls, code: str | Code | None) -> Code | None:
        """Return the code that ``layer`` or ``layer:reduce`` names, a `Code` as it is, and None, the default, for "".

        >>> Code.parse("features.12:max")
        Code(layer='features.12', reduce='max', channels=None, n_prefix=None)
        """
        if isinstance(code, Code):
            return code
        if code is not None and not isinstance(code, str):
            raise TypeError(f"code must be a Code, 'LAYER' or 'LAYER:REDUCE', not a {type(code).__name__}")
        layer, _, reduce = (code or "").partition(":")
        return cls(layer, reduce or "mean") if layer else None

    def read(self, output: Tensor) -> Tensor:
        """Return the code, (N, D), in the layer's output, (N, …)."""
        return output.flatten(1) if self.reduce == "flatten" else _reduced(self, _positions(self, output))


def _n_latents(encoder: nn.Module, n_channels: int) -> int:
    """Return the number of latents; raise UnitError if the encoder doesn't encode so many channels."""
    try:
        return _encode(encoder, torch.zeros(1, n_channels)).shape[1]
    except UnitError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UnitError(f"{type(encoder).__name__} doesn't encode {n_channels} channels: {error}") from error


def first_floating_point(model: nn.Module) -> Tensor | None:
    """Return the model's first floating-point parameter, else its first such buffer, else None."""
    return next((value for value in chain(model.parameters(), model.buffers()) if value.is_floating_point()), None)


def _encode(encoder: nn.Module, rows: Tensor) -> Tensor:
    """Return latents, (n, F), of channels, (n, C), in evaluation mode; the encoder's own mode is restored."""
    weight = first_floating_point(encoder)
    like = rows if weight is None else weight
    modes = [(module, module.training) for module in encoder.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.set_grad_enabled(torch.is_grad_enabled() and rows.requires_grad):  # else of the weights alone
            latents = encoder(rows.to(like))
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(latents, Tensor) or latents.ndim != 2 or len(latents) != len(rows):
        found = tuple(latents.shape) if isinstance(latents, Tensor) else f"a {type(latents).__name__}"
        raise UnitError(f"{type(encoder).__name__} must return a tensor (n, F) for (n, C), as an encoder, not {found}")
    return latents.to(rows)


def _read_direction(path: str) -> tuple[float, ...]:
    """Return the weights in a file of NumPy; UnitError if the file holds anything but one vector of numbers."""
    if not is_file(path):
        raise UnitError(f"there is no file {path!r} of a direction's weights")
    try:
        weights = read_array(path, _LONGEST)
        if weights.ndim != 1:
            raise ValueError(f"it holds {weights.dtype} {weights.shape}, not a vector of numbers")
    except ValueError as error:
        raise UnitError(f"{path} isn't a direction: {error}") from error
    return tuple(weights.astype(float).tolist())


def _check(of: Unit | Code, reductions: tuple[str, ...]) -> None:
    if of.reduce not in reductions:
        raise UnitError(f"reduce must be one of {', '.join(reductions)}, not {of.reduce!r}")
    if of.n_prefix is not None:
        object.__setattr__(of, "n_prefix", check_integer(of.n_prefix, "n_prefix", 0, UnitError))
    if of.channels not in (None, "first", "last"):
        raise UnitError(f"channels must be first, last or None, not {of.channels!r}")


def _shape(output: Tensor) -> str:
    return f"({', '.join(['N', *map(str, output.shape[1:])])})"


def _index(index: object) -> int | tuple[float, ...]:
    """Return an integer of any type as int, a vector of any type as a tuple of floats."""
    values = np.asarray(index.tolist() if isinstance(index, Tensor) else index)
    if values.ndim > 1 or values.dtype.kind not in ("iuf" if values.ndim else "iu"):
        raise TypeError(f"index must be an integer or a vector of weights, not {index!r}")
    if not values.ndim:
        if values < 0:
            raise UnitError(f"index must be 0 or more, not {values}")
        return int(values)
    if not values.size or not np.isfinite(values).all():
        raise UnitError("a direction must have at least one weight, and finite ones")
    return tuple(values.astype(float).tolist())
