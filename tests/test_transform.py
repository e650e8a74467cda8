import numpy as np
import pytest
import torch

from captum_mfv.errors import ImageError, RecipeError
from captum_mfv.optvis.transform import (
    affine,
    center_crop,
    compose,
    gradient_mask,
    jitter,
    make_transform,
    noise,
    random_crop,
)

IMAGES = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))


RANDOM = {
    "center_crop": lambda **options: center_crop(20, 0.3, **options),
    "affine": affine,
    "jitter": lambda **options: jitter(0.2, **options),
    "noise": noise,
    "random_crop": random_crop,
}


@pytest.mark.parametrize("make", [lambda seed, make=make: make(seed=seed) for make in RANDOM.values()], ids=RANDOM)
def test_draws_depend_only_on_the_seed(make):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = make(1), make(1)
    first = one(IMAGES)
    assert torch.equal(first, two(IMAGES))
    assert not torch.equal(first, one(IMAGES))
    assert not torch.equal(first, make(2)(IMAGES))
    assert torch.equal(torch.get_rng_state(), state)


def test_each_image_of_the_batch_has_a_separate_draw():
    same = IMAGES[:1].expand(4, -1, -1, -1)
    for make in RANDOM.values():
        moved = make()(same)
        assert all(not torch.equal(moved[0], moved[i]) for i in (1, 2, 3))


@pytest.mark.parametrize("name", RANDOM)
def test_an_image_with_its_generator_is_transformed_the_same_in_any_batch(name):
    def own(i):
        return torch.Generator().manual_seed(i)

    together = RANDOM[name](generator=[own(i) for i in range(4)])(IMAGES)
    alone = RANDOM[name](generator=[own(2)])(IMAGES[2:3])
    assert torch.allclose(together[2], alone[0], atol=1e-6)


def test_the_crop_is_center_biased_and_stays_inside():
    crop = center_crop(27, window=0.3)
    tops = []
    for _ in range(300):
        crop(IMAGES)
        tops += [top for top, _ in crop.offsets]
    tops = torch.tensor(tops).float()
    assert (tops.min(), tops.max()) == (0, 13)
    assert abs(tops.mean() - 6.0) < 0.4  # N(6.5, 3.9) clipped to [0, 13], then cut to int
    assert center_crop(40)(IMAGES).equal(IMAGES)
    assert center_crop(20, 0)(IMAGES).equal(IMAGES[..., 10:30, 10:30])


def test_pasting_restores_the_crop():
    crop, images = center_crop(20), IMAGES.clone()
    windows = crop(images)
    crop.paste(images, windows)
    assert images.equal(IMAGES)
    crop.paste(images, torch.zeros_like(windows))
    assert (images == 0).flatten(1).sum(1).tolist() == [3 * 20 * 20] * 4


def test_an_identity_affine_changes_nothing_and_borders_are_reflected():
    assert torch.allclose(affine(0, 0, 0)(IMAGES), IMAGES, atol=1e-5)
    bright = affine(10, 0.1, 0.1)(torch.full((2, 3, 30, 50), 0.7))
    assert torch.allclose(bright, torch.full_like(bright, 0.7), atol=1e-5)


def test_rotation_keeps_circles_round_on_wide_images():
    y, x = torch.meshgrid(torch.arange(60.0) - 29.5, torch.arange(120.0) - 59.5, indexing="ij")
    disc = ((x**2 + y**2) < 400).float()[None, None]
    turned = affine(90, 0, 0, seed=3)(disc)
    middle = slice(30, 90)  # further out, reflected rows are visible
    assert (turned - disc)[..., middle].abs().mean() < 0.01


def test_jitter_shifts_by_whole_pixels_and_leaves_them_sharp():
    shifted = jitter(0.2, seed=1)(IMAGES)
    padded = torch.nn.functional.pad(IMAGES, (8, 8, 8, 8), mode="reflect")
    for image, around in zip(shifted, padded, strict=True):
        windows = around.unfold(1, 40, 1).unfold(2, 40, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows == image).flatten(1).all(1).any()
    assert jitter(0)(IMAGES).equal(IMAGES)


def test_a_random_crop_shows_a_window_of_the_image_at_its_size():
    slope = torch.arange(64.0).expand(200, 1, 64, 64) / 63
    seen = random_crop(0.25, 0, seed=0)(slope)
    assert seen.shape == slope.shape
    widths = seen[:, 0, 0, -1] - seen[:, 0, 0, 0]
    assert torch.allclose(widths, torch.tensor(0.25), atol=0.02)
    assert seen.min() < 0.02
    assert seen.max() > 0.98


def test_noise_has_the_requested_standard_deviation():
    added = noise(0.08)(torch.full((4, 3, 64, 64), 0.5)) - 0.5
    assert added.std().item() == pytest.approx(0.08, rel=0.02)
    assert abs(added.mean().item()) < 1e-3


def test_a_gradient_mask_changes_no_pixel_and_passes_gradients_of_the_center():
    images = IMAGES.clone().requires_grad_()
    masked = gradient_mask(0.25)(images)
    assert masked.equal(images)
    masked.sum().backward()
    assert images.grad[..., 10:30, 10:30].eq(1).all()
    assert images.grad.sum() == 4 * 3 * 20 * 20


def test_transforms_are_created_from_the_names_in_recipes():
    own = torch.Generator().manual_seed(3)
    both = compose([make_transform("jitter", {"shift": 0.1}, 32, own), make_transform("center_crop", {}, 32, own)])
    assert both(IMAGES).shape == (4, 3, 32, 32)
    with pytest.raises(RecipeError, match="no transform 'blur'; there are affine, center_crop"):
        make_transform("blur", {}, 32, own)
    with pytest.raises(RecipeError, match=r"transform jitter: .*'size'"):
        make_transform("jitter", {"size": 3}, 32, own)


def test_arguments_of_transforms_out_of_range_are_an_error():
    with pytest.raises(ImageError, match="smaller than the crop"):
        center_crop(41)(IMAGES)
    with pytest.raises(ImageError):
        center_crop(0)
    with pytest.raises(ImageError):
        affine(scale=1.0)
    for make, wrong in ((jitter, 1.0), (noise, -1), (gradient_mask, 0.5), (random_crop, 0)):
        with pytest.raises(ImageError):
            make(wrong)


def test_seeds_can_be_numpy_integers_and_nothing_but_integers():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert noise(seed=np.int64(4))(images).equal(noise(seed=4)(images))
    for make in (noise, jitter, affine, random_crop):
        with pytest.raises(TypeError, match="seed must be an integer, not '4'"):
            make(seed="4")
