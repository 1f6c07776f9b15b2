"""Mosaics decoded by plain loops."""

import math

import numpy as np


def naive_enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Bilinear with half-pixel centers, edges repeated."""
    cell, out = image.shape[-1], np.zeros((image.shape[0], side, side))
    places = [max(0.0, (i + 0.5) * cell / side - 0.5) for i in range(side)]
    for r, row in enumerate(places):
        for c, column in enumerate(places):
            r0, c0 = int(row), int(column)
            r1, c1 = min(r0 + 1, cell - 1), min(c0 + 1, cell - 1)
            top = (1 - (column - c0)) * image[:, r0, c0] + (column - c0) * image[:, r0, c1]
            bottom = (1 - (column - c0)) * image[:, r1, c0] + (column - c0) * image[:, r1, c1]
            out[:, r, c] = (1 - (row - r0)) * top + (row - r0) * bottom
    return out


def naive_decode(image: np.ndarray, factor: int) -> list[np.ndarray]:
    side = image.shape[-1]
    if factor == 1:
        return [image]
    cell = math.ceil(side / factor)
    padded = np.full((image.shape[0], cell * factor, cell * factor), 0.5)
    padded[:, :side, :side] = image
    return [
        naive_enlarge(padded[:, r * cell : (r + 1) * cell, c * cell : (c + 1) * cell], side)
        for r in range(factor)
        for c in range(factor)
    ]
