import pytest
import torch

from captum_mfv.errors import ImageError
from captum_mfv.optvis.param import (
    Transparency,
    color_matrix,
    fft_image_from,
    maco_image_from,
    mean_magnitudes,
    pixel_image_from,
)


@pytest.mark.parametrize("param", [fft_image_from, pixel_image_from])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 33, 47), (3, 1, 20, 31), (1, 3, 1, 5), (1, 4, 8, 8)])
def test_parameterizations_return_the_start_images_exactly(param, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    images[0, 0] = 0
    images[-1, -1] = 1
    params, image_f = param(images)()
    assert (image_f() - images).abs().max() < 1e-3
    assert [p.is_leaf and p.requires_grad for p in params] == [True]


@pytest.mark.parametrize("param", [fft_image_from, pixel_image_from])
def test_each_call_returns_new_parameters_with_gradients(param):
    param_f = param(torch.full((1, 3, 8, 8), 0.4))
    (params,), image_f = param_f()
    image_f().square().sum().backward()
    assert params.grad.abs().sum() > 0
    with torch.no_grad():
        params -= params.grad
    assert not torch.allclose(image_f(), param_f()[1]())


def test_images_stay_in_range_for_any_parameters():
    for param in (fft_image_from, pixel_image_from):
        (params,), image_f = param(torch.rand(1, 3, 8, 8))()
        with torch.no_grad():
            params += 100 * torch.randn(params.shape, generator=torch.Generator().manual_seed(0))
        assert 0 <= image_f().min() <= image_f().max() <= 1


@pytest.mark.parametrize(
    ("images", "error"),
    [(torch.rand(3, 8, 8), ImageError), (torch.rand(1, 3, 8, 8) * 255, ImageError), ([[0.5]], TypeError)],
)
def test_wrong_batches_of_images_are_an_error(images, error):
    for param in (fft_image_from, pixel_image_from):
        with pytest.raises(error):
            param(images)


def test_the_parameterization_equals_lucents():
    from lucent.optvis.param.color import color_correlation_normalized

    from captum_mfv.optvis.param import _mix

    assert torch.allclose(_mix(torch.zeros(1, 3, 1, 1), None), torch.tensor(color_correlation_normalized))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 33, 47), (2, 1, 20, 31)])
def test_maco_keeps_the_magnitudes_for_any_phases(shape):
    images = 0.2 + 0.6 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    magnitudes = mean_magnitudes(images)
    (phases,), image_f = maco_image_from(images, magnitudes)()
    assert phases.shape == (*shape[:3], shape[3] // 2 + 1)
    with torch.no_grad():
        phases += torch.randn(phases.shape, generator=torch.Generator().manual_seed(1))
        phases[..., 0, 0] = 0
    inner = (slice(None), slice(1, shape[2] // 2), slice(1, shape[3] // 2))  # away from the real frequencies
    for image in image_f().detach():
        assert torch.allclose(mean_magnitudes(image[None])[inner], magnitudes[inner], rtol=0.15, atol=0.05)


def test_maco_of_one_image_under_its_own_magnitudes_is_that_image():
    image = 0.1 + 0.8 * torch.rand(1, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    _, image_f = maco_image_from(image, mean_magnitudes(image))()
    assert torch.allclose(image_f(), image, atol=1e-4)
    with pytest.raises(ImageError, match=r"must be \(C, H, W // 2 \+ 1\), not \(3, 24, 30\)"):
        maco_image_from(image, image[0])


def test_colors_are_decorrelated_as_measured():
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[0.2, 0.05, 0.0], [0.2, -0.03, 0.02], [0.18, 0.0, -0.04]])
    pixels = torch.einsum("ij,njhw->nihw", root, torch.randn(8, 3, 40, 40, generator=generator) * 0.5)
    images = (pixels + 0.5).clamp(0, 1)
    mix = color_matrix(images)
    plain = torch.einsum("ij,njhw->nihw", torch.linalg.inv(mix), images).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(plain) - torch.eye(3)
    assert correlation.abs().max() < 0.01
    assert torch.linalg.vector_norm(mix, dim=0).max() == pytest.approx(1)
    _, image_f = fft_image_from(images, colors=mix)()
    assert (image_f() - images).abs().max() < 1e-3


def test_colors_of_gray_and_of_odd_images():
    gray = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1)
    _, image_f = fft_image_from(gray, colors=color_matrix(gray))()
    assert (image_f() - gray).abs().max() < 1e-3
    with pytest.raises(ImageError, match="more than one pixel"):
        color_matrix(torch.rand(1, 3, 1, 1))
    with pytest.raises(ImageError, match=r"must be \(3, 3\), not \(4, 4\)"):
        fft_image_from(gray, colors=torch.eye(4))


def test_transparency_sums_gradients_and_is_reset_by_each_call():
    watched = Transparency(pixel_image_from(torch.full((2, 3, 8, 8), 0.5)))
    for _ in range(2):
        _, image_f = watched()
        weights = torch.zeros(2, 3, 8, 8)
        weights[0, :, 2], weights[1, :, 5] = 1, -2
        for _ in range(3):
            (image_f() * weights).sum().backward()
        assert watched.total[0, 2].tolist() == [9.0] * 8
        assert watched.total[1, 5].tolist() == [18.0] * 8
        assert watched.total.sum() == 8 * 27
    assert watched.alpha.amax(dim=(1, 2)).tolist() == [1, 1]
