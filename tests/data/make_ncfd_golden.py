"""Prints `ncfd_golden.json`: the discrepancy and its gradients in float64, by its formulas alone.

    python tests/data/make_ncfd_golden.py > tests/data/ncfd_golden.json

Imports nothing of ncfmkit and no automatic differentiation: the gradients are worked out by hand below, and each is
checked against central differences before anything is printed. The formulas are those of docs/method.md, section 1.
Axes: N real images, M synthetic images, D features, T frequencies.
"""

import json

import numpy as np

ALPHAS = (0.5, 0.2, 0.9)
STEP = 1e-6  # of the central differences, whose error is about STEP**2


def unit(raw: np.ndarray) -> np.ndarray:
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def terms(real_ND: np.ndarray, syn_MD: np.ndarray, freq_TD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude and phase term of every frequency."""
    real_T, syn_T = (np.exp(1j * unit(raw) @ freq_TD.T).mean(0) for raw in (real_ND, syn_MD))
    a_T, b_T = np.abs(real_T), np.abs(syn_T)
    return (a_T - b_T) ** 2, 2 * (a_T * b_T - (real_T * syn_T.conj()).real)


def value(real_ND: np.ndarray, syn_MD: np.ndarray, freq_TD: np.ndarray, alpha: float) -> float:
    amplitude_T, phase_T = terms(real_ND, syn_MD, freq_TD)
    return float(np.sqrt(alpha * amplitude_T + (1 - alpha) * phase_T).mean())


def gradients(
    real_ND: np.ndarray, syn_MD: np.ndarray, freq_TD: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """With respect to the synthetic features before normalization, and to the frequencies."""
    real, syn = unit(real_ND), unit(syn_MD)
    real_NT, syn_MT = np.exp(1j * real @ freq_TD.T), np.exp(1j * syn @ freq_TD.T)
    real_T, syn_T = real_NT.mean(0), syn_MT.mean(0)
    a_T, b_T = np.abs(real_T), np.abs(syn_T)
    amplitude_T, phase_T = terms(real_ND, syn_MD, freq_TD)
    outer_T = 1 / (2 * len(freq_TD) * np.sqrt(alpha * amplitude_T + (1 - alpha) * phase_T))
    # a complex gradient g of a real function means d = Re(conj(g) dPhi); that of |Phi| is Phi / |Phi|
    by_syn_T = outer_T * (2 * alpha * (b_T - a_T) * syn_T / b_T + 2 * (1 - alpha) * (a_T * syn_T / b_T - real_T))
    by_real_T = outer_T * (2 * alpha * (a_T - b_T) * real_T / a_T + 2 * (1 - alpha) * (b_T * real_T / a_T - syn_T))
    # d Phi / d phase of one image is i exp(i phase) / images
    by_phase_MT = (by_syn_T.conj() * 1j * syn_MT).real / len(syn)
    by_phase_NT = (by_real_T.conj() * 1j * real_NT).real / len(real)
    by_unit_MD = by_phase_MT @ freq_TD
    along_M1 = (by_unit_MD * syn).sum(1, keepdims=True)  # normalization lets nothing through along the feature itself
    by_syn_MD = (by_unit_MD - along_M1 * syn) / np.linalg.norm(syn_MD, axis=1, keepdims=True)
    return by_syn_MD, by_phase_MT.T @ syn + by_phase_NT.T @ real


def check(real_ND: np.ndarray, syn_MD: np.ndarray, freq_TD: np.ndarray, alpha: float) -> None:
    """Raises AssertionError where a gradient differs from central differences."""
    for name, leaf, grad in zip(
        ("syn", "freq"), (syn_MD, freq_TD), gradients(real_ND, syn_MD, freq_TD, alpha), strict=True
    ):
        for place in np.ndindex(leaf.shape):
            sides = []
            for step in (STEP, -STEP):
                moved = leaf.copy()
                moved[place] += step
                syn, freq = (moved, freq_TD) if name == "syn" else (syn_MD, moved)
                sides.append(value(real_ND, syn, freq, alpha))
            numeric = (sides[0] - sides[1]) / (2 * STEP)
            assert abs(numeric - grad[place]) < 1e-8, (name, place, numeric, grad[place])


def main() -> None:
    rng = np.random.default_rng(11)
    real_ND, syn_MD, freq_TD = (rng.normal(mean, 1, (n, 4)).round(2) for mean, n in ((0.3, 5), (-0.2, 3), (0, 6)))
    amplitude_T, phase_T = terms(real_ND, syn_MD, freq_TD)
    cases = []
    for alpha in ALPHAS:
        check(real_ND, syn_MD, freq_TD, alpha)
        by_syn_MD, by_freq_TD = gradients(real_ND, syn_MD, freq_TD, alpha)
        cases.append(
            {
                "alpha": alpha,
                "ncfd": value(real_ND, syn_MD, freq_TD, alpha),
                "grad_syn_MD": by_syn_MD.tolist(),
                "grad_freq_TD": by_freq_TD.tolist(),
            }
        )
    golden = {
        "note": "made by make_ncfd_golden.py, which lies beside this file; features are not yet normalized",
        "real_ND": real_ND.tolist(),
        "syn_MD": syn_MD.tolist(),
        "freq_TD": freq_TD.tolist(),
        "amplitude_T": amplitude_T.tolist(),
        "phase_T": phase_T.tolist(),
        "cases": cases,
    }
    print(json.dumps(golden, indent=1))


if __name__ == "__main__":
    main()
