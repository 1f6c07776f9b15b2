"""What the recipes that ship with the package were measured to give: `recipes/measured.json`.

`python -m benchmarks.recipes RUN` writes it from finished runs; nobody writes it by hand.
"""

import hashlib
import json
from importlib import resources
from typing import Annotated

from pydantic import Field

from ncfmkit.config import SECTIONS, recipe_table
from ncfmkit.estimate import duration
from ncfmkit.records import Record

FILE = "measured.json"
NOT_COUNTED = ("student.repeats", "student.evaluations")  # of a recipe: they change no result


class Measurement(Record):
    """A finished run of a recipe.

    Attributes:
        recipe_sha256: of the recipe as it was then, see :func:`recipe_digest`.
        mean, std, n: test accuracy of the students after the last epoch, fractions.
        best: the same of the best epoch, which peeks at the test set.
        soft_labels: whether the set has such.
        pool_seconds, distill_seconds, student_seconds: what the stages took; the pool's is 0 if it was in the cache,
            the students' is of one of them.
        device: processor and threads, precision.
        date: such as `2026-11-27`.
    """

    recipe: str
    recipe_sha256: str
    mean: Annotated[float, Field(ge=0, le=1)]
    std: Annotated[float, Field(ge=0)]
    n: Annotated[int, Field(ge=1)]
    best: Annotated[float, Field(ge=0, le=1)]
    soft_labels: bool
    seed: int
    pool_seconds: float
    distill_seconds: float
    student_seconds: float
    device: str
    commit: str
    date: str

    def describe(self) -> str:
        """`61.9 % ± 0.7 (n = 5), hard labels; pool 8:44, ...`: what it gave, what it took, and where."""
        deviation = f" ± {100 * self.std:.1f}" if self.n > 1 else ""
        labels = ", soft labels" if self.soft_labels else ""
        parts = {"pool": self.pool_seconds, "steps": self.distill_seconds, "a student": self.student_seconds}
        times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
        return f"{100 * self.mean:.1f} %{deviation} (n = {self.n}{labels}); {times}; {self.device}, {self.date}"


class Measurements(Record):
    """What `measured.json` holds: the newest measurement of each recipe."""

    recipes: dict[str, Measurement]


def recipe_digest(recipe: str) -> str:
    """sha256 of what a recipe sets, without what changes no result: a recipe that was changed has another."""
    table = recipe_table(recipe)
    content = {f"{name}.{key}": value for name in SECTIONS for key, value in table.get(name, {}).items()}
    content = {key: value for key, value in content.items() if key not in NOT_COUNTED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def measurements() -> dict[str, Measurement]:
    """By recipe; those of recipes that were changed since are left out."""
    text = (resources.files("ncfmkit.recipes") / FILE).read_text(encoding="utf-8")
    found = Measurements.model_validate_json(text).recipes
    return {name: m for name, m in found.items() if m.recipe_sha256 == recipe_digest(name)}
