"""The discrepancy against naive references in float64, and its streamed gradient at every chunking.

Float32 is judged by the naive formula in float32 (`rounding.py`).
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import EPS, SPARE, allowed, off

from ncfmkit.distillation import ncfd
from ncfmkit.distillation.ncfd import Chunk, characteristic_function, streamed_backward, streamed_statistic

DATA = Path(__file__).resolve().parents[1] / "data"
GOLDEN = json.loads((DATA / "ncfd_golden.json").read_text())
ALPHAS = (0.0, 0.1, 0.37, 0.5, 0.8, 1.0)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape)).to(dtype)


def unit(feat_ND: torch.Tensor) -> torch.Tensor:
    return feat_ND / feat_ND.norm(dim=1, keepdim=True)


def uniform(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.full((1, count), 1 / count, dtype=dtype)


def numpy_ncfd(real_ND: np.ndarray, syn_ND: np.ndarray, freq_TD: np.ndarray, alpha: float) -> float:
    """Eq. 8 as it is written, with complex exponentials."""
    real_T, syn_T = (np.exp(1j * feat @ freq_TD.T).mean(0) for feat in (real_ND, syn_ND))
    a, b, p = np.abs(real_T), np.abs(syn_T), (real_T * syn_T.conj()).real
    return float(np.sqrt(alpha * (a - b) ** 2 + (1 - alpha) * 2 * (a * b - p)).mean())


def torch_ncfd(real_ND: torch.Tensor, syn_ND: torch.Tensor, freq_TD: torch.Tensor, alpha: float) -> torch.Tensor:
    """The same, differentiable by autograd through complex numbers."""
    real_T, syn_T = (torch.exp(1j * (feat @ freq_TD.T)).mean(0) for feat in (real_ND, syn_ND))
    a, b, p = real_T.abs(), syn_T.abs(), (real_T * syn_T.conj()).real
    return (alpha * (a - b) ** 2 + (1 - alpha) * 2 * (a * b - p)).sqrt().mean()


def library_ncfd(
    real_ND: torch.Tensor, syn_ND: torch.Tensor, freq_TD: torch.Tensor, alpha: float, block: int = 1024
) -> torch.Tensor:
    real, syn = (characteristic_function(f, freq_TD, uniform(len(f), f.dtype), block=block) for f in (real_ND, syn_ND))
    return ncfd.ncfd(real, syn, alpha=alpha).sum()


def golden_inputs() -> list[torch.Tensor]:
    """Features not yet normalized, and frequencies."""
    return [torch.tensor(GOLDEN[k], dtype=torch.float64) for k in ("real_ND", "syn_MD", "freq_TD")]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"alpha{case['alpha']}")
def test_golden_values_and_gradients(case: dict) -> None:
    metric = ncfd.metric("ncfd", alpha=case["alpha"])
    real, syn, freq = golden_inputs()
    syn.requires_grad_()
    freq.requires_grad_()
    stats = [metric.statistic(metric.features(f), freq, uniform(len(f))) for f in (real, syn)]
    value = metric.discrepancy(*stats).sum()
    syn_grad, freq_grad = torch.autograd.grad(value, (syn, freq))
    # the floor under the roots, 1e-14, is 1e-10 of the smallest amplitude term here
    assert value.item() == pytest.approx(case["ncfd"], rel=1e-9)
    np.testing.assert_allclose(syn_grad.numpy(), case["grad_syn_MD"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(freq_grad.numpy(), case["grad_freq_TD"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("alpha", "name"), [(1.0, "amplitude_T"), (0.0, "phase_T")])
def test_golden_terms(alpha: float, name: str) -> None:
    real, syn, freq = golden_inputs()
    terms = [library_ncfd(unit(real), unit(syn), freq[t : t + 1], alpha).item() ** 2 for t in range(len(freq))]
    np.testing.assert_allclose(terms, GOLDEN[name], rtol=1e-9)


def test_the_golden_file_is_what_its_script_makes() -> None:
    """The script checks its gradients against central differences before it prints them."""
    done = subprocess.run(
        [sys.executable, DATA / "make_ncfd_golden.py"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made.keys() == GOLDEN.keys()
    for name in made.keys() - {"note", "cases"}:
        np.testing.assert_allclose(made[name], GOLDEN[name], rtol=1e-12, err_msg=name)
    for one, other in zip(made["cases"], GOLDEN["cases"], strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("n", "m", "dim", "count"), [(9, 4, 5, 7), (3, 11, 2, 16), (1, 1, 6, 3)])
def test_equals_the_naive_reference(n: int, m: int, dim: int, count: int, alpha: float) -> None:
    real, syn, freq = unit(draw(n, dim, seed=1)), unit(draw(m, dim, seed=2)), draw(count, dim, seed=3)
    expected = numpy_ncfd(real.numpy(), syn.numpy(), freq.numpy(), alpha)
    # where N = M = 1 the amplitudes are equal, and the floor under the root shows
    tolerance = 1e-6 if n == m == 1 and alpha == 1 else 1e-10
    assert library_ncfd(real, syn, freq, alpha).item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("block", [1, 3, 7, 1000])
def test_gradients_equal_the_naive_reference(alpha: float, block: int) -> None:
    real, syn, freq = unit(draw(9, 5, seed=1)), unit(draw(4, 5, seed=2)), draw(7, 5, seed=3)
    leaves = [x.requires_grad_() for x in (real, syn, freq)]
    expected = torch.autograd.grad(torch_ncfd(real, syn, freq, alpha), leaves)
    got = torch.autograd.grad(library_ncfd(real, syn, freq, alpha, block=block), leaves)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("block", [1, 2, 5, 64])
def test_gradcheck_of_the_characteristic_function(block: int) -> None:
    feat, freq = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    weight = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.25, 0.5, 0.0]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda f, t: characteristic_function(f, t, weight, block=block), (feat, freq))
    torch.autograd.gradcheck(lambda f: characteristic_function(f, freq.detach(), weight, block=block), (feat,))
    torch.autograd.gradcheck(lambda t: characteristic_function(feat.detach(), t, weight, block=block), (freq,))


def test_characteristic_function_of_several_classes() -> None:
    counts, freq = (4, 1, 7), draw(6, 3, seed=9)
    feats = [draw(n, 3, seed=n) for n in counts]
    weight = torch.block_diag(*(uniform(n) for n in counts))
    phi = characteristic_function(torch.cat(feats), freq, weight, block=4)
    assert phi.shape == (2, 3, 6)
    for c, feat in enumerate(feats):
        expected = np.exp(1j * feat.numpy() @ freq.numpy().T).mean(0)
        np.testing.assert_allclose(phi[0, c], expected.real, atol=1e-14)
        np.testing.assert_allclose(phi[1, c], expected.imag, atol=1e-14)


def test_stacked_classes_with_uneven_counts_equal_class_by_class() -> None:
    real_counts, syn_counts, freq = (9, 2, 5), (3, 4, 1), draw(8, 4, seed=9)
    real = [unit(draw(n, 4, seed=1)) for n in real_counts]
    syn = [unit(draw(n, 4, seed=2)).requires_grad_() for n in syn_counts]
    real_phi = characteristic_function(torch.cat(real), freq, torch.block_diag(*map(uniform, real_counts)))
    syn_phi = characteristic_function(torch.cat(syn), freq, torch.block_diag(*map(uniform, syn_counts)))
    loss_C = ncfd.ncfd(real_phi, syn_phi, alpha=0.3)
    got = torch.autograd.grad(loss_C.sum(), syn)
    for c in range(3):
        expected = torch_ncfd(real[c], syn[c], freq, 0.3)
        assert loss_C[c].item() == pytest.approx(expected.item(), abs=1e-10)
        torch.testing.assert_close(got[c], torch.autograd.grad(expected, syn[c])[0], rtol=1e-6, atol=1e-9)


def test_amplitude_and_phase_terms_add_up_to_the_squared_distance() -> None:
    """Eq. 7."""
    real, syn, freq = unit(draw(6, 4, seed=1)), unit(draw(3, 4, seed=2)), draw(20, 4, seed=3)
    for t in range(len(freq)):
        amplitude, phase = (library_ncfd(real, syn, freq[t : t + 1], alpha).item() ** 2 for alpha in (1.0, 0.0))
        real_phi, syn_phi = (np.exp(1j * f.numpy() @ freq[t].numpy()).mean() for f in (real, syn))
        assert amplitude + phase == pytest.approx(abs(real_phi - syn_phi) ** 2, abs=1e-12)


def test_half_alpha_is_continuous_with_the_general_formula() -> None:
    real, syn, freq = unit(draw(6, 4, seed=1)), unit(draw(3, 4, seed=2)).requires_grad_(), draw(20, 4, seed=3)
    at_half = library_ncfd(real, syn, freq, 0.5)
    (grad,) = torch.autograd.grad(at_half, syn)
    for alpha in (0.5 - 1e-9, 0.5 + 1e-9):
        near = library_ncfd(real, syn, freq, alpha)
        assert near.item() == pytest.approx(at_half.item(), abs=1e-8)
        torch.testing.assert_close(torch.autograd.grad(near, syn)[0], grad, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_features_have_no_discrepancy_and_a_finite_gradient(alpha: float, dtype: torch.dtype) -> None:
    real, freq = unit(draw(5, 4)).to(dtype), draw(9, 4).to(dtype).requires_grad_()
    syn = real.clone().requires_grad_()
    value = library_ncfd(real, syn, freq, alpha)
    syn_grad, freq_grad = torch.autograd.grad(value, (syn, freq))
    assert value.item() < 1e-6
    assert syn_grad.isfinite().all()
    assert freq_grad.isfinite().all()
    assert syn_grad.abs().max() < 10


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("zero", ["syn", "real", "both"])
def test_all_zero_features_give_a_finite_gradient(alpha: float, zero: str) -> None:
    metric, freq = ncfd.metric("ncfd", alpha=alpha), draw(9, 4, dtype=torch.float32)
    real, syn = draw(5, 4, seed=1, dtype=torch.float32), draw(3, 4, seed=2, dtype=torch.float32)
    real, syn = real * (zero == "syn"), (syn * (zero == "real")).requires_grad_()
    stats = [metric.statistic(metric.features(f), freq, uniform(len(f), torch.float32)) for f in (real, syn)]
    value = metric.discrepancy(*stats).sum()
    (grad,) = torch.autograd.grad(value, syn)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert value.item() < 1e-6 if zero == "both" else value.item() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ncfd", "mean"])
def test_half_precision_features_are_handled_in_float32(name: str, dtype: torch.dtype) -> None:
    metric, freq = ncfd.metric(name), draw(16, 8, dtype=torch.float32)
    # 300 squared overflows float16: the norm must be taken in float32
    real, syn = (300 * draw(9, 8, seed=9)).to(dtype), (300 * draw(4, 8, seed=4)).to(dtype).requires_grad_()
    feats = [metric.features(f) for f in (real, syn)]
    assert {f.dtype for f in feats} == {torch.float32}
    stats = [metric.statistic(f, freq, uniform(len(f), torch.float32)) for f in feats]
    value = metric.discrepancy(*stats).sum()
    (grad,) = torch.autograd.grad(value, syn)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert grad.isfinite().all()
    wide_real, wide_syn = real.double().numpy(), syn.detach().double().numpy()
    if name == "mean":
        expected = ((wide_real.mean(0) - wide_syn.mean(0)) ** 2).sum()
    else:
        wide_real, wide_syn = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (wide_real, wide_syn))
        expected = numpy_ncfd(wide_real, wide_syn, freq.double().numpy(), 0.5)
    # phases of up to about 8 are rounded by 8 * EPS; the rest is a few roundings more
    assert value.item() == pytest.approx(expected, rel=SPARE * 8 * EPS)


def test_float64_features_stay_float64() -> None:
    assert ncfd.metric("ncfd").features(draw(3, 2)).dtype == torch.float64


def test_features_are_normalized_for_the_ncfd_alone() -> None:
    feat = draw(5, 3)
    np.testing.assert_allclose(ncfd.metric("ncfd").features(feat).norm(dim=1), 1, rtol=1e-12)
    assert torch.equal(ncfd.metric("mean").features(feat), feat)


REAL_COUNTS, SYN_COUNTS = (7, 3, 11), (4, 4, 4)
PARTS = 2  # images that the extractor makes of each stacked one, as decoding does


def make_chunks(counts: tuple[int, ...], size: int, dtype: torch.dtype, parts: int = 1) -> list[Chunk]:
    """Chunks of `size` stacked images each; the last repeats its last image, with weight 0, to be as long."""
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    chunks = []
    for start in range(0, len(labels), size):
        index = [min(i, len(labels) - 1) for i in range(start, start + size)]
        low, high = labels[index[0]], labels[index[-1]] + 1
        weight = torch.zeros(high - low, size * parts, dtype=dtype)
        for column in range(size * parts):
            row, position = labels[index[column // parts]], start + column // parts
            share = share_of(column % parts, parts)
            weight[row - low, column] = share / counts[row] if position < len(labels) else 0.0
        rows, label = np.array(index), torch.tensor([labels[i] for i in index])
        chunks.append(Chunk(rows, torch.from_numpy(rows), label, slice(low, high), weight))
    return chunks


def share_of(part: int, parts: int) -> float:
    """Unequal shares, so that a wrong order of the parts shows."""
    return (part + 1) / (parts * (parts + 1) / 2)


SHARE_P = torch.tensor([share_of(p, PARTS) for p in range(PARTS)], dtype=torch.float64)


class Extractor:
    """A small non-linear network with `parts` outputs per image, and how often it ran with and without a graph."""

    def __init__(self, images: torch.Tensor, parts: int = 1):
        self.images, self.parts, self.with_graph, self.without = images, parts, 0, 0
        self.first = draw(images.shape[1], 6, seed=21).float().to(images)
        self.second = draw(6, parts * 5, seed=22).float().to(images)

    def __call__(self, chunk: Chunk) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.with_graph += 1
        else:
            self.without += 1
        return self.all(self.images[chunk.index_N])

    def all(self, images: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(images @ self.first) @ self.second).view(-1, 5)


class Streamed:
    """A problem of three classes with uneven counts, and its naive, unstreamed value and gradients in float64.

    Inputs are float32 numbers in either dtype, so that float32 and float64 differ by rounding alone.
    """

    def __init__(self, dtype: torch.dtype, alpha: float = 0.3):
        self.dtype, self.alpha = dtype, alpha
        self.freq = draw(10, 5, seed=5).float().to(dtype)
        self.real = Extractor(draw(sum(REAL_COUNTS), 4, seed=6).float().to(dtype))
        self.syn = Extractor(draw(sum(SYN_COUNTS), 4, seed=7).float().to(dtype).requires_grad_(), parts=PARTS)
        self.loss_C, self.grad, self.freq_grad = self._naive(torch.float64)
        # in float64 the library's floor under the roots shows first: 1e-14 of squares that are 1e-6 and more
        self.allowed = {"value": 1e-8, "images": 1e-8, "frequencies": 1e-8}
        if dtype == torch.float32:
            plain = self._naive(dtype)
            exact = self.loss_C, self.grad, self.freq_grad
            self.allowed = {k: allowed(p, e) for k, p, e in zip(self.allowed, plain, exact, strict=True)}

    def _naive(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of each class, and the gradients of their sum: of the synthetic images, and of the frequencies."""
        freq = self.freq.detach().to(dtype, copy=True).requires_grad_()
        leaf = self.syn.images.detach().to(dtype, copy=True).requires_grad_()
        real_images, losses = self.real.images.to(dtype), []
        for c in range(len(REAL_COUNTS)):
            real = Extractor(real_images).all(real_images[sum(REAL_COUNTS[:c]) : sum(REAL_COUNTS[: c + 1])])
            syn = Extractor(leaf, PARTS).all(leaf[sum(SYN_COUNTS[:c]) : sum(SYN_COUNTS[: c + 1])])
            share = SHARE_P.to(dtype).repeat(SYN_COUNTS[c]) / SYN_COUNTS[c]
            real_T = torch.exp(1j * (unit(real) @ freq.T)).mean(0)
            syn_T = (torch.exp(1j * (unit(syn) @ freq.T)) * share[:, None]).sum(0)
            a, b, p = real_T.abs(), syn_T.abs(), (real_T * syn_T.conj()).real
            losses.append((self.alpha * (a - b) ** 2 + (1 - self.alpha) * 2 * (a * b - p)).sqrt().mean())
        loss_C = torch.stack(losses)
        grad, freq_grad = torch.autograd.grad(loss_C.sum(), [leaf, freq])
        return loss_C.detach(), grad, freq_grad

    def take_gradient(self) -> torch.Tensor:
        """What was added to the synthetic images' gradient; from now on they have none."""
        grad, self.syn.images.grad = self.syn.images.grad, None
        assert grad is not None
        return grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [1, 3, 10, 1024])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 12, 13])
def test_streaming_is_exact_at_any_chunking(size: int, block: int, dtype: torch.dtype) -> None:
    problem = Streamed(dtype)
    metric = ncfd.metric("ncfd", alpha=problem.alpha, block=block)
    syn_chunks = make_chunks(SYN_COUNTS, size, dtype, PARTS)
    real_stat, _ = streamed_statistic(metric, problem.real, make_chunks(REAL_COUNTS, size, dtype), problem.freq)
    assert not real_stat.requires_grad
    whole = [make_chunks(counts, sum(counts), dtype, p) for counts, p in ((REAL_COUNTS, 1), (SYN_COUNTS, PARTS))]
    unstreamed, _ = streamed_statistic(metric, problem.real, whole[0], problem.freq)
    # a sum of some 20 shares of at most 1, in another order
    assert (real_stat - unstreamed).abs().max() <= 20 * torch.finfo(dtype).eps

    (chunk,) = whole[1]
    feat = metric.features(problem.syn.all(problem.syn.images))
    loss_C = metric.discrepancy(unstreamed, metric.statistic(feat, problem.freq, chunk.weight_CN))
    (full,) = torch.autograd.grad(loss_C.sum(), problem.syn.images)
    assert off(loss_C, problem.loss_C) <= problem.allowed["value"]
    assert off(full, problem.grad) <= problem.allowed["images"]

    for retain in range(len(syn_chunks) + 1):
        value, real_grad = streamed_backward(
            metric, problem.syn, syn_chunks, problem.freq, real_stat, weight=1.0, retain=retain
        )
        grad = problem.take_gradient()
        assert off(value, problem.loss_C) <= problem.allowed["value"]
        assert off(grad, problem.grad) <= problem.allowed["images"]
        if dtype == torch.float64:  # here only the order of sums differs: far below the floor under the roots
            torch.testing.assert_close(value, loss_C.detach(), rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(grad, full, rtol=1e-12, atol=1e-14)
        assert not value.requires_grad
        assert not real_grad.requires_grad


@pytest.mark.parametrize("retain", [0, 1, 3, 4])
def test_retained_chunks_run_once_and_the_others_twice(retain: int) -> None:
    problem, metric = Streamed(torch.float64), ncfd.metric("ncfd")
    chunks = make_chunks(SYN_COUNTS, 3, torch.float64, PARTS)
    real_stat, _ = streamed_statistic(metric, problem.real, make_chunks(REAL_COUNTS, 5, torch.float64), problem.freq)
    streamed_backward(metric, problem.syn, chunks, problem.freq, real_stat, weight=1.0, retain=retain)
    assert problem.syn.with_graph == len(chunks) == 4
    assert problem.syn.without == len(chunks) - retain
    assert problem.real.with_graph == 0


def test_the_weight_scales_the_gradient_only() -> None:
    metric, results = ncfd.metric("ncfd"), []
    for weight in (1.0, 300.0):
        problem = Streamed(torch.float64)
        real_stat, _ = streamed_statistic(
            metric, problem.real, make_chunks(REAL_COUNTS, 5, torch.float64), problem.freq
        )
        chunks = make_chunks(SYN_COUNTS, 5, torch.float64, PARTS)
        value, _ = streamed_backward(metric, problem.syn, chunks, problem.freq, real_stat, weight=weight, retain=1)
        results.append((value, problem.take_gradient()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=0)
    torch.testing.assert_close(results[1][1], 300 * results[0][1], rtol=1e-12, atol=0)


def test_the_gradient_is_added_to_what_is_there() -> None:
    metric, problem = ncfd.metric("ncfd", alpha=0.3), Streamed(torch.float64)
    problem.syn.images.grad = torch.ones_like(problem.syn.images)
    real_stat, _ = streamed_statistic(metric, problem.real, make_chunks(REAL_COUNTS, 5, torch.float64), problem.freq)
    chunks = make_chunks(SYN_COUNTS, 5, torch.float64, PARTS)
    streamed_backward(metric, problem.syn, chunks, problem.freq, real_stat, weight=1.0, retain=0)
    assert off(problem.syn.images.grad - 1, problem.grad) <= problem.allowed["images"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1, 5, 12])
@pytest.mark.parametrize("block", [3, 1024])
def test_frequency_gradient_equals_autograd_through_everything(size: int, block: int, dtype: torch.dtype) -> None:
    problem = Streamed(dtype)
    metric, freq = ncfd.metric("ncfd", alpha=problem.alpha, block=block), problem.freq.detach().requires_grad_()
    real_chunks, syn_chunks = make_chunks(REAL_COUNTS, size, dtype), make_chunks(SYN_COUNTS, size, dtype, PARTS)
    real_stat, parts = streamed_statistic(metric, problem.real, real_chunks, freq)
    _, real_grad = streamed_backward(metric, problem.syn, syn_chunks, freq, real_stat, weight=300.0, retain=1)
    for part, chunk in zip(parts, real_chunks, strict=True):
        part.backward(real_grad[:, chunk.classes])
    assert problem.real.with_graph == 0
    assert freq.grad is not None
    assert off(freq.grad.double() / 300, problem.freq_grad) <= problem.allowed["frequencies"]


@pytest.mark.parametrize("size", [1, 5, 12])
def test_mean_matching_equals_the_naive_reference(size: int) -> None:
    problem, metric = Streamed(torch.float64), ncfd.metric("mean")
    leaf, expected = problem.syn.images.detach().clone().requires_grad_(), []
    for c in range(3):
        real = problem.real.all(problem.real.images[sum(REAL_COUNTS[:c]) : sum(REAL_COUNTS[: c + 1])])
        syn = problem.syn.all(leaf[4 * c : 4 * c + 4]).view(4, PARTS, 5)
        expected.append(((real.mean(0) - (syn * SHARE_P[None, :, None]).sum(1).mean(0)) ** 2).sum())
    (grad,) = torch.autograd.grad(torch.stack(expected).sum(), leaf)
    real_stat, _ = streamed_statistic(metric, problem.real, make_chunks(REAL_COUNTS, size, torch.float64), None)
    chunks = make_chunks(SYN_COUNTS, size, torch.float64, PARTS)
    value, _ = streamed_backward(metric, problem.syn, chunks, None, real_stat, weight=2.0, retain=1)
    np.testing.assert_allclose(value, [e.item() for e in expected], rtol=1e-12)
    torch.testing.assert_close(problem.syn.images.grad, 2 * grad, rtol=1e-10, atol=1e-13)


def test_one_frequency_by_hand() -> None:
    """One image a side, one frequency: |exp(ia) - exp(ib)| / sqrt(2) = sqrt(2) |sin((a - b) / 2)|."""
    real, syn, freq = (torch.tensor([[x]], dtype=torch.float64) for x in (1.0, 0.2, 1.5))
    expected = math.sqrt(2) * abs(math.sin((1.5 - 0.3) / 2))
    assert library_ncfd(real, syn, freq, 0.5).item() == pytest.approx(expected, abs=1e-12)
