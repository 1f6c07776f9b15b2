"""The page and its numbers."""

import pytest

from benchmarks import page


def test_exponents() -> None:
    assert page.exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert page.exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert page.exponent([1, 2, 4], [7, 7, 7]) == pytest.approx(0)
    assert page.exponent([1], [7]) is None
    assert page.exponent([1, 2], [0, 7]) is None


def test_the_page_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render()
