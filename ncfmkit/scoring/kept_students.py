"""Students of a score that are kept one by one: a command that was interrupted, or wants more, trains the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.kept import Kept
from ncfmkit.progress import notice
from ncfmkit.records import Record
from ncfmkit.run_records import Count, Seconds


class StudentResult(Record):
    """What a student gets right.

    Attributes:
        hits: test images of each class, after each epoch in which it is tested: `[E][K]`.
        seconds: of its training and its tests; of students side by side, the share of one.
    """

    hits: tuple[tuple[Count, ...], ...]
    seconds: Seconds

    @classmethod
    def of(cls, hits_EK: np.ndarray, seconds: float) -> Self:
        return cls(hits=tuple(map(tuple, hits_EK.tolist())), seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class KeptStudents:
    """What the students of a row get right, kept of each one as soon as it is trained.

    Attributes:
        kept: where, and the conditions of all that is there.
        conditions: plain JSON values that the students of this row depend on, apart from their number.
    """

    kept: Kept
    conditions: dict[str, Any]

    def left(self, repeats: int) -> list[int]:
        """Those that are not kept."""
        return self.kept.left(repeats, self._of)

    def unplanned(self, repeats: int) -> int:
        """How many of them are neither kept nor planned; they are planned from now on."""
        return sum(self.kept.unplanned(**self._of(k)) for k in range(repeats))

    def read(self, repeats: int, *, tests: int, images_K: Sequence[int]) -> dict[int, StudentResult]:
        """Those that are kept; a damaged file is named in a notice, and its student counts as missing.

        Args:
            tests: how often each is tested.
            images_K: test images of each class.
        """
        found = {}
        for k in range(repeats):
            try:
                result = self.kept.read(StudentResult, **self._of(k))
                if result is not None and not _fits(result, tests, images_K):
                    raise UserError("its hits do not fit the test images")
            except UserError:
                notice(f"{self.kept.path(**self._of(k))} is damaged: its student is trained again")
                continue
            if result is not None:
                found[k] = result
        return found

    def keep(self, k: int, result: StudentResult) -> None:
        """Raises UserError as :meth:`ncfmkit.kept.Kept.keep`."""
        self.kept.keep(result, result.seconds, **self._of(k))

    def _of(self, k: int) -> dict[str, Any]:
        return self.conditions | {"repeat": k}


def _fits(result: StudentResult, tests: int, images_K: Sequence[int]) -> bool:
    of_epochs = result.hits
    return len(of_epochs) == tests and all(
        len(hits_K) == len(images_K) and all(hits <= images for hits, images in zip(hits_K, images_K, strict=True))
        for hits_K in of_epochs
    )
