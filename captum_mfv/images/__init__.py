"""Images in [0, 1]: preprocessing for a model, image files and folders, datasets and their batches."""

from captum_mfv.images.files import read_image, to_pil
from captum_mfv.images.folder import ImageArchives, ImageFolder, open_images
from captum_mfv.images.loading import Images, batches, image_at, stack
from captum_mfv.images.preprocessing import InputSpec

__all__ = [
    "ImageArchives",
    "ImageFolder",
    "Images",
    "InputSpec",
    "batches",
    "image_at",
    "open_images",
    "read_image",
    "stack",
    "to_pil",
]
