"""Students of a score that are kept one by one: a command that was interrupted, or wants more, trains the others."""

from dataclasses import dataclass
from typing import Any

from ncfmkit.kept import Kept
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
        return [k for k in range(repeats) if not self.kept.has(**self._of(k))]

    def unplanned(self, repeats: int) -> int:
        """How many of them are neither kept nor planned; they are planned from now on."""
        return sum(self.kept.unplanned(**self._of(k)) for k in range(repeats))

    def read(self, repeats: int, shape: tuple[int, int]) -> dict[int, StudentResult]:
        """Those that are kept; `shape` is `[E, K]`.

        Raises:
            UserError: a file is damaged.
        """
        found = {}
        for k in range(repeats):
            result = self.kept.read(StudentResult, **self._of(k))
            if result is not None:
                if [len(of_epoch) for of_epoch in result.hits] != [shape[1]] * shape[0]:
                    raise self.kept.damaged("its hits have another shape", **self._of(k))
                found[k] = result
        return found

    def keep(self, k: int, result: StudentResult) -> None:
        """Raises UserError if the disk refuses."""
        self.kept.keep(result, result.seconds, **self._of(k))

    def _of(self, k: int) -> dict[str, Any]:
        return self.conditions | {"repeat": k}
