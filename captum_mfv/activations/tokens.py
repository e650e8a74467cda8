"""Class and register tokens, which precede the patches: how many there are, as libraries declare it."""

from __future__ import annotations

from torch import nn

__all__ = ["declared_prefix"]

# By the class of torchvision and open_clip, or the model_type of a transformers config without its register tokens
_N_PREFIX = {
    "torchvision.models.vision_transformer.VisionTransformer": 1,
    "open_clip.transformer.VisionTransformer": 1,
    **dict.fromkeys(("siglip_vision_model", "ijepa", "swin", "swinv2"), 0),
    **dict.fromkeys(("vit", "vit_msn", "beit", "data2vec-vision"), 1),
    **dict.fromkeys(("clip_vision_model", "chinese_clip_vision_model", "blip_vision_model"), 1),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit"), 1),
    "deit": 2,
}


def declared_prefix(model: nn.Module, layer: str) -> int | None:
    """Return how many tokens precede the patches in the network around a layer, by the innermost declaration.

    Networks of timm declare ``num_prefix_tokens``; those of torchvision, open_clip and transformers are known by name.

    Returns:
        The number of class, distillation and register tokens, or None for other networks.
    """
    parts = layer.split(".")
    around = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    return next((count for count in map(_declared, around) if count is not None), None)


def _declared(module: nn.Module) -> int | None:
    if isinstance(count := getattr(module, "num_prefix_tokens", None), int):
        return count
    config = getattr(module, "config", None)
    names = [f"{base.__module__}.{base.__qualname__}" for base in type(module).__mro__]
    names.append(str(getattr(config, "model_type", None)))
    known = next((_N_PREFIX[name] for name in names if name in _N_PREFIX), None)
    return None if known is None else known + int(getattr(config, "num_register_tokens", 0))
