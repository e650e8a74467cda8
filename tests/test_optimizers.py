import numpy as np
import pytest
import torch
from skimage.restoration import denoise_tv_bregman

from captum_mfv.errors import RenderError
from captum_mfv.optvis.optimizers import DampedAdam, TVAscent, denoise_tv
from captum_mfv.optvis.transform import center_crop, gradient_mask


def noisy(shape=(61, 74)):
    """Return a scene of edges and slopes with noise, 0 to 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    scene = 90 + 70 * ((x - 30) ** 2 + (y - 25) ** 2 < 300) + 0.5 * x
    return np.clip(scene + rng.normal(0, 30, shape), 0, 255)


@pytest.mark.parametrize("weight", [0.001, 0.05, 0.4, 2.0])
def test_the_denoiser_is_within_two_gray_levels_of_scikit_images(weight):
    planes = np.stack([noisy(), noisy()[::-1], 255 - noisy()])
    ours = denoise_tv(torch.from_numpy(planes).float()[None], weight)[0].numpy()
    for mine, plane in zip(ours, planes, strict=True):
        theirs = denoise_tv_bregman(plane, weight=weight, max_num_iter=100, eps=1e-3, isotropic=True)
        assert np.abs(mine - theirs).max() < 2
        assert np.abs(mine - theirs).mean() < 0.1


def test_smaller_weights_smooth_more_and_images_of_a_batch_are_independent():
    image = torch.from_numpy(noisy()).float().expand(1, 3, -1, -1)
    spreads = [denoise_tv(image, weight).std().item() for weight in (0.001, 0.01, 0.1, 1.0)]
    assert spreads == sorted(spreads)
    both = denoise_tv(torch.cat([image, 255 - image]), 0.05)
    assert torch.allclose(both[0], denoise_tv(image, 0.05)[0], atol=1e-4)


def test_a_step_is_lr_gray_levels_where_the_gradient_is_of_mean_size():
    pixels = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    optimizer = TVAscent([pixels], lr=2.0)
    pixels.grad = torch.ones_like(pixels) * torch.tensor([7.0, -1e-5])[:, None, None, None]
    optimizer.step()
    assert torch.allclose(pixels[0], torch.tensor(0.5 - 2 / 255))
    assert torch.allclose(pixels[1], torch.tensor(0.5 + 2 / 255))


def test_the_margin_stays_and_lengthens_the_step_inside():
    pixels = torch.full((1, 1, 227, 227), 0.5, requires_grad=True)
    gradient_mask(50 / 227)(pixels).sum().backward()
    TVAscent([pixels], lr=1.0).step()
    moved = (0.5 - pixels.detach()) * 255
    assert moved[..., :50, :].abs().max() == 0
    assert moved[0, 0, 113, 113] == pytest.approx(3.2, abs=0.01)  # 31.3 % of the area is kept


def test_only_the_window_that_was_cut_changes():
    pixels = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = pixels.detach().clone()
    crop = center_crop(24, seed=1)
    crop(pixels).sum().backward()
    TVAscent([pixels], lr=5.0, tv_weight=0.1, crop=crop).step()
    changed = (pixels.detach() != before).any(1)
    for image, (top, left) in zip(changed, crop.offsets, strict=True):
        assert image[top : top + 24, left : left + 24].float().mean() > 0.99
        assert image.sum() <= 24 * 24


def test_pixels_stay_in_range_and_a_closure_gives_its_loss():
    pixels = torch.rand(1, 3, 8, 8, requires_grad=True)
    optimizer = TVAscent([pixels], lr=300.0)

    def closure():
        optimizer.zero_grad()
        loss = pixels.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert pixels.min() == 0


def test_settings_out_of_range_are_an_error():
    for wrong in ({"lr": -1}, {"tv_weight": 0}):
        with pytest.raises(RenderError):
            TVAscent([torch.rand(1, 3, 8, 8, requires_grad=True)], **wrong)


def test_damped_adam_follows_the_gradient_and_adam_amplifies_what_is_small():
    sizes = torch.tensor([1.0, 1.0, 1.0, 1e-4])
    moved = {}
    for make in (torch.optim.Adam, DampedAdam):
        param = torch.zeros(1, 4, requires_grad=True)
        optimizer = make([param], lr=0.1)
        for _ in range(10):
            param.grad = sizes[None].clone()
            optimizer.step()
        moved[make] = -param.detach()[0]
    assert torch.allclose(moved[torch.optim.Adam], torch.tensor(1.0), atol=1e-3)
    rms = sizes.square().mean().sqrt()
    assert torch.allclose(moved[DampedAdam], 10 * 0.1 * sizes / (sizes + rms), rtol=1e-4)


def test_damped_adam_steps_each_image_alone_and_ignores_the_scale_of_its_loss():
    gradients = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))

    def moved(rows, factor=1.0):
        param = torch.zeros(len(rows), 3, 4, requires_grad=True)
        optimizer = DampedAdam([param])
        for gradient in gradients:
            param.grad = factor * gradient[rows]
            optimizer.step()
        return param.detach()

    both = moved([0, 1])
    assert torch.equal(both[1:], moved([1]))
    assert torch.allclose(both, moved([0, 1], 1e-9), rtol=1e-4)
    assert not moved([0, 1], 0.0).any()


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (0.9, 1.0)}])
def test_damped_adam_refuses_what_it_cannot_use(wrong):
    with pytest.raises(RenderError, match=next(iter(wrong))):
        DampedAdam([torch.zeros(1, 2, requires_grad=True)], **wrong)
