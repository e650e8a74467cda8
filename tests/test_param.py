import pytest
import torch

from captum_mfv.errors import ImageError
from captum_mfv.optvis.param import fft_image_from, pixel_image_from


@pytest.mark.parametrize("param", [fft_image_from, pixel_image_from])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 33, 47), (3, 1, 20, 31), (1, 3, 1, 5), (1, 4, 8, 8)])
def test_images_come_back_exactly_at_the_start(param, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    images[0, 0] = 0
    images[-1, -1] = 1
    params, image_f = param(images)()
    assert (image_f() - images).abs().max() < 1e-3
    assert [p.is_leaf and p.requires_grad for p in params] == [True]


@pytest.mark.parametrize("param", [fft_image_from, pixel_image_from])
def test_each_call_starts_anew_and_gradients_reach_the_parameters(param):
    param_f = param(torch.full((1, 3, 8, 8), 0.4))
    (params,), image_f = param_f()
    image_f().square().sum().backward()
    assert params.grad.abs().sum() > 0
    with torch.no_grad():
        params -= params.grad
    assert not torch.allclose(image_f(), param_f()[1]())


def test_images_stay_in_range_whatever_the_parameters():
    for param in (fft_image_from, pixel_image_from):
        (params,), image_f = param(torch.rand(1, 3, 8, 8))()
        with torch.no_grad():
            params += 100 * torch.randn(params.shape, generator=torch.Generator().manual_seed(0))
        assert 0 <= image_f().min() <= image_f().max() <= 1


@pytest.mark.parametrize(
    ("images", "error"),
    [(torch.rand(3, 8, 8), ImageError), (torch.rand(1, 3, 8, 8) * 255, ImageError), ([[0.5]], TypeError)],
)
def test_what_is_no_batch_of_images_is_refused(images, error):
    for param in (fft_image_from, pixel_image_from):
        with pytest.raises(error):
            param(images)


def test_the_parameterization_is_lucents():
    from lucent.optvis.param.color import color_correlation_normalized

    from captum_mfv.optvis.param import _mix

    assert torch.allclose(_mix(torch.zeros(1, 3, 1, 1), None), torch.tensor(color_correlation_normalized))
