"""Layer outputs of a model on images: capture, scans of a dataset, codes and top images."""

from captum_mfv.activations.capture import capture, guard, layer_name
from captum_mfv.activations.codes import Collection, collect
from captum_mfv.activations.layers import LayerCall, trace
from captum_mfv.activations.peaks import peak_patches
from captum_mfv.activations.top_k import TopImages, top_images

__all__ = [
    "Collection",
    "LayerCall",
    "TopImages",
    "capture",
    "collect",
    "guard",
    "layer_name",
    "peak_patches",
    "top_images",
    "trace",
]
