import pytest
import scipy.fft
import torch

from flcourse.attacks.basis import (
    dct,
    dct_matrix,
    fourier_noise,
    learn_spectrum,
    make_basis,
    natural_spectrum,
    opponent_colours,
    pixels,
)
from flcourse.data import load_dataset

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 16, 24), (2, 7, 5)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [1, 5, 32])
def test_the_cosine_matrix_is_scipys_transform(size):
    signal = torch.randn(size, generator=rng(), dtype=torch.float64)
    theirs = scipy.fft.dct(signal.numpy(), norm="ortho")
    assert (dct_matrix(size) @ signal).numpy() == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["dct", "pixels"])
def test_encode_undoes_decode(shape, name):
    basis = make_basis(name, shape)
    pictures = torch.rand(2, *shape, generator=rng(), dtype=torch.float64)
    assert torch.allclose(basis.decode(basis.encode(pictures)), pictures, atol=1e-10)
    assert basis.shape == shape
    zero = torch.zeros(shape, dtype=torch.float64)
    assert torch.allclose(basis.decode(zero), torch.full(shape, 0.5).double())


@pytest.mark.parametrize("shape", SHAPES)
def test_without_weights_the_basis_is_orthonormal(shape):
    basis = dct(shape, torch.ones(shape))
    one, two = torch.randn(2, *shape, generator=rng(), dtype=torch.float64)
    inner = ((basis.decode(one) - 0.5) * (basis.decode(two) - 0.5)).sum()
    assert float(inner) == pytest.approx(float((one * two).sum()), abs=1e-9)


def test_the_basis_agrees_with_scipy_on_a_colour_picture():
    picture = torch.rand(3, 8, 12, generator=rng(), dtype=torch.float64)
    brightness = (picture - 0.5).sum(dim=0) / 3**0.5
    theirs = scipy.fft.dctn(brightness.numpy(), norm="ortho")
    ours = dct((3, 8, 12), torch.ones(3, 8, 12)).encode(picture)[0]
    assert ours.numpy() == pytest.approx(theirs, abs=1e-12)


def test_grey_has_no_colour():
    mixed = opponent_colours() @ torch.ones(3, dtype=torch.float64)
    assert mixed.tolist() == pytest.approx([3**0.5, 0, 0], abs=1e-12)
    assert torch.allclose(opponent_colours() @ opponent_colours().T, torch.eye(3).double())


def test_the_natural_spectrum_is_about_that_of_photos():
    """The unknowns of real pictures are of order one, at every band and colour."""
    photos = load_dataset("photos").train.inputs.double()
    unknown = dct((3, 32, 32)).encode(photos)
    for colour in range(3):
        for band in (slice(0, 4), slice(4, 12), slice(12, 32)):
            size = float(unknown[:, colour, band, band].square().mean().sqrt())
            assert 0.3 < size < 3, f"colour {colour}, band {band}: {size:.2f}"


def test_a_learnt_spectrum_is_the_size_of_the_coefficients():
    true = natural_spectrum((1, 8, 8)) * (1 + torch.rand(1, 8, 8, generator=rng()))
    basis = dct((1, 8, 8), true)
    waves = torch.randn(4000, 1, 8, 8, generator=rng(1), dtype=torch.float64)
    learnt = learn_spectrum(basis.decode(waves))
    assert torch.allclose(learnt, true, rtol=0.1)


def test_a_learnt_spectrum_is_never_zero():
    flat = torch.full((4, 3, 8, 8), 0.7)
    assert (learn_spectrum(flat) > 0).all()


def test_fourier_noise_is_seeded_and_smoother_than_white_noise():
    one, two = (fourier_noise((3, 32, 32), rng(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert float((one[:, 1:] - one[:, :-1]).std()) < 0.6 * float(one.std())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_basis("wavelet", (3, 8, 8)), "basis='wavelet' is unknown"),
        (lambda: dct((30,)), "use basis='pixels'"),
        (lambda: dct((3, 8, 8), torch.ones(3, 8, 9)), r"does not fit pictures \[3, 8, 8\]"),
        (lambda: dct((1, 2, 2), torch.zeros(1, 2, 2)), "positive"),
        (lambda: learn_spectrum(torch.rand(1, 3, 8, 8)), "at least 2"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_tables_have_a_basis_of_single_features():
    assert pixels((30,)).decode(torch.zeros(4, 30)).shape == (4, 30)
