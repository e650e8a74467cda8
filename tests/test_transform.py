import pytest
import torch

from captum_mfv.errors import ImageError
from captum_mfv.optvis.transform import affine, center_crop

IMAGES = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [lambda seed: center_crop(32, seed=seed), lambda seed: affine(seed=seed)])
def test_draws_follow_the_seed_alone(make):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two = make(1), make(1)
    first = one(IMAGES)
    assert torch.equal(first, two(IMAGES))
    assert not torch.equal(first, one(IMAGES))
    assert not torch.equal(first, make(2)(IMAGES))
    assert torch.equal(torch.get_rng_state(), state)


def test_each_image_of_the_batch_has_a_draw_of_its_own():
    same = IMAGES[:1].expand(4, -1, -1, -1)
    for transform in (center_crop(20, 0.3), affine()):
        moved = transform(same)
        assert all(not torch.equal(moved[0], moved[i]) for i in (1, 2, 3))


def test_the_crop_is_centre_biased_and_stays_inside():
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


def test_pasting_puts_back_what_was_cut():
    crop, images = center_crop(20), IMAGES.clone()
    windows = crop(images)
    crop.paste(images, windows)
    assert images.equal(IMAGES)
    crop.paste(images, torch.zeros_like(windows))
    assert (images == 0).flatten(1).sum(1).tolist() == [3 * 20 * 20] * 4


def test_an_affine_of_nothing_changes_nothing_and_borders_are_reflected():
    assert torch.allclose(affine(0, 0, 0)(IMAGES), IMAGES, atol=1e-5)
    bright = affine(10, 0.1, 0.1)(torch.full((2, 3, 30, 50), 0.7))
    assert torch.allclose(bright, torch.full_like(bright, 0.7), atol=1e-5)


def test_rotation_keeps_circles_round_on_wide_images():
    y, x = torch.meshgrid(torch.arange(60.0) - 29.5, torch.arange(120.0) - 59.5, indexing="ij")
    disc = ((x**2 + y**2) < 400).float()[None, None]
    turned = affine(90, 0, 0, seed=3)(disc)
    middle = slice(30, 90)  # further out, what was above or below is reflected into sight
    assert (turned - disc)[..., middle].abs().mean() < 0.01


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ImageError, match="smaller than the crop"):
        center_crop(41)(IMAGES)
    with pytest.raises(ImageError):
        center_crop(0)
    with pytest.raises(ImageError):
        affine(scale=1.0)
