"""Frequencies: Gaussian draws, and the sampling network psi against its description in docs/method.md, section 2."""

import numpy as np
import pytest
import torch
from rounding import EPS, allowed, off

from ncfmkit.distillation import ncfd
from ncfmkit.distillation.frequencies import SamplingNetwork, gaussian, noise
from ncfmkit.rng import torch_generator

DIM = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def psi() -> SamplingNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return SamplingNetwork(DIM)


def scales(psi: SamplingNetwork, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The noise that went into psi's layers, the scales that came out, and the frequencies."""
    seen = []
    handle = psi.layers.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        freq_TD = psi(*noise(count, DIM, generator(seed)))
    handle.remove()
    ((eps_GD, sigma_GD),) = seen
    return eps_GD.numpy(), sigma_GD.numpy(), freq_TD.numpy()


def test_gaussian_moments() -> None:
    freq_TD = gaussian(20_000, 5, generator()).numpy()
    assert freq_TD.shape == (20_000, 5)
    assert freq_TD.dtype == np.float32
    np.testing.assert_allclose(freq_TD.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(freq_TD.T), np.eye(5), atol=0.05)
    np.testing.assert_allclose((freq_TD**4).mean(0), 3, atol=0.3)


def test_draws_are_keyed(psi: SamplingNetwork) -> None:
    def draw(step: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                gaussian(32, DIM, torch_generator("cpu", 3, "frequencies", step)),
                psi(*noise(32, DIM, torch_generator("cpu", 3, "frequencies", step))),
            ]

    first, again, other = draw(7), draw(7), draw(8)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.isclose(a, c).all(dim=1).any()


@pytest.mark.parametrize("count", [32, 64, 256])
def test_every_learned_frequency_is_distinct(psi: SamplingNetwork, count: int) -> None:
    """The released code repeats 4 vectors, whatever T is."""
    freq_TD = psi(*noise(count, DIM, generator())).detach()
    assert freq_TD.shape == (count, DIM)
    assert len(torch.unique(freq_TD, dim=0)) == count
    directions = torch.nn.functional.normalize(freq_TD.double(), dim=1)
    close = (directions @ directions.T).abs() > 1 - 1e-9  # no two are multiples of one another either
    assert int(close.sum()) == count


def test_sixteen_frequencies_share_one_scale(psi: SamplingNetwork) -> None:
    """With the same noise z and another network, every frequency changes by the ratio of two scales."""
    count = 64
    first = psi(*noise(count, DIM, generator())).detach()
    with torch.no_grad():
        for parameter in psi.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(5)))
    ratio_G16D = (psi(*noise(count, DIM, generator())).detach() / first).view(count // 16, 16, DIM)
    # each is two products and a quotient of the same two scales: three roundings, on either side
    torch.testing.assert_close(ratio_G16D, ratio_G16D[:, :1].expand_as(ratio_G16D), rtol=4 * EPS, atol=0)
    ratio_GD = ratio_G16D[:, 0]
    assert (ratio_GD[1:] - ratio_GD[:-1]).abs().min() > 1e-6  # the components differ in every dimension


def test_frequencies_are_a_scale_times_a_standard_normal(psi: SamplingNetwork) -> None:
    eps_GD, sigma_GD, freq_TD = scales(psi, 16 * 600)
    assert eps_GD.shape == sigma_GD.shape == (600, DIM)
    assert np.abs(sigma_GD).max() < 1
    assert (sigma_GD < 0).any()
    z_TD = freq_TD.astype(np.float64) / np.repeat(sigma_GD, 16, axis=0)
    for draws in (eps_GD, z_TD):
        np.testing.assert_allclose(draws.mean(0), 0, atol=0.15)
        np.testing.assert_allclose(draws.var(0), 1, atol=0.2)
    assert np.abs(np.corrcoef(z_TD[::16].T)[~np.eye(DIM, dtype=bool)]).max() < 0.2


def described(psi: SamplingNetwork, eps_GD: np.ndarray, dtype: type[np.floating]) -> torch.Tensor:
    """The scales, as docs/method.md, section 2, has them."""
    values = [p.detach().numpy().astype(dtype) for p in psi.parameters()]
    assert len(values) == 12
    x_GD = eps_GD.astype(dtype)
    for layer in range(3):
        weight, bias, gain, offset = values[4 * layer : 4 * layer + 4]
        assert weight.shape == (DIM, DIM)
        x_GD = x_GD @ weight.T + bias
        x_GD = (x_GD - x_GD.mean(0)) / np.sqrt(x_GD.var(0) + dtype(1e-5)) * gain + offset
        x_GD = np.tanh(x_GD) if layer == 2 else np.where(x_GD > 0, x_GD, dtype(0.2) * x_GD)
    return torch.from_numpy(x_GD)


def test_the_scales_follow_the_described_network(psi: SamplingNetwork) -> None:
    """Three linear layers, batch norm of the draw after each, LeakyReLU 0.2 after the first two, tanh at the end."""
    with torch.no_grad():
        for parameter in psi.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(5)))
    eps_GD, sigma_GD, _ = scales(psi, 16 * 9)
    plain, exact = (described(psi, eps_GD, dtype) for dtype in (np.float32, np.float64))
    assert off(torch.from_numpy(sigma_GD), exact) <= allowed(plain, exact)


def test_batch_norm_never_uses_running_statistics(psi: SamplingNetwork) -> None:
    assert not list(psi.buffers())
    first = psi(*noise(64, DIM, generator(1))).detach()
    for seed in range(2, 6):
        psi(*noise(64, DIM, generator(seed)))
    assert torch.equal(psi(*noise(64, DIM, generator(1))), first)
    assert torch.equal(psi.eval()(*noise(64, DIM, generator(1))), first)


def test_ascent_raises_the_discrepancy(psi: SamplingNetwork) -> None:
    rng = np.random.default_rng(0)
    real, syn = (
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(m, 1, (40, DIM))).float()) for m in (0.5, -0.2)
    )

    def discrepancy(seed: int) -> torch.Tensor:
        freq_TD = psi(*noise(256, DIM, generator(seed)))
        phis = [ncfd.characteristic_function(f, freq_TD, torch.full((1, len(f)), 1 / len(f))) for f in (real, syn)]
        return ncfd.ncfd(*phis).sum()

    with torch.no_grad():
        before = sum(discrepancy(seed).item() for seed in range(100, 105)) / 5
    optimizer = torch.optim.SGD(psi.parameters(), lr=0.1, momentum=0.5, maximize=True)
    for step in range(60):
        optimizer.zero_grad()
        discrepancy(step).backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(discrepancy(seed).item() for seed in range(100, 105)) / 5
    assert after > before * 1.1
