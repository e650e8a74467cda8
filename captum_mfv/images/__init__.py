"""Image files, datasets of images and the preprocessing that turns images into a model's input."""

from captum_mfv.images.datasets import Images, batches, check_batch_size, check_range, image_at, stack
from captum_mfv.images.files import ImageFolder, from_pil, open_image, read_image, to_pil, to_tensor
from captum_mfv.images.input_spec import InputSpec, first_floating_point, resize

__all__ = [
    "ImageFolder",
    "Images",
    "InputSpec",
    "batches",
    "check_batch_size",
    "check_range",
    "first_floating_point",
    "from_pil",
    "image_at",
    "open_image",
    "read_image",
    "resize",
    "stack",
    "to_pil",
    "to_tensor",
]
