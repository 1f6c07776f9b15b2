"""Results that are kept in a folder as soon as they are measured: a command that was interrupted measures the rest."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from ncfmkit.errors import UserError
from ncfmkit.files import make_folder
from ncfmkit.progress import notice
from ncfmkit.records import Record, problems

R = TypeVar("R", bound=Record)
CACHED = "students"  # in the cache: what students get right


class KeptResult(Record):
    """A file of the folder: a result, all that it depends on, and how long it took."""

    conditions: dict[str, Any]
    result: dict[str, Any]
    seconds: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A folder of results, a file for each.

    Attributes:
        folder: made when the first result is written.
        conditions: plain JSON values that every result in it depends on. The methods take those of one result.
        earlier: seconds that each result took that was read so far.
        planned: files of results that are going to be measured, see :meth:`unplanned`.
        optional: a disk that refuses a result does not end the command: that is said once.
        refused: what the disk said.
    """

    folder: Path
    conditions: dict[str, Any]
    earlier: list[float] = field(default_factory=list)
    planned: set[Path] = field(default_factory=set)
    optional: bool = False
    refused: list[str] = field(default_factory=list)

    def path(self, **conditions: Any) -> Path:
        """The file of a result: its name is a hash of all that the result depends on."""
        text = json.dumps(self.conditions | conditions, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def has(self, **conditions: Any) -> bool:
        return self.path(**conditions).is_file()

    def unplanned(self, **conditions: Any) -> bool:
        """Whether a result is neither there nor planned; it is planned from now on, so that work is counted once."""
        path = self.path(**conditions)
        new = path not in self.planned and not path.is_file()
        self.planned.add(path)
        return new

    def read(self, kind: type[R], **conditions: Any) -> R | None:
        """The result that was kept; None: there is none.

        Raises:
            UserError: the file cannot be read, or holds something else.
        """
        path = self.path(**conditions)
        if not path.is_file():
            return None
        try:
            found = KeptResult.read(path)
            result = kind.model_validate_json(json.dumps(found.result))
        except ValidationError as error:
            wrong = f"{path} is damaged: {problems(error)[0]}"
        except UserError as error:
            wrong = str(error)
        else:
            self.earlier.append(found.seconds)
            return result
        raise UserError(f"{wrong}\nremove that file, and the same command measures it again")

    def seconds(self, **conditions: Any) -> float:
        """How long a result that is kept took."""
        return KeptResult.read(self.path(**conditions)).seconds

    def measured(self, kind: type[R], measure: Callable[[], R], **conditions: Any) -> R:
        """The result that was kept, or else what `measure` gives, which is kept.

        A result may be made of others that are kept here: its time is the sum of theirs, whenever they were measured.
        """
        found = self.read(kind, **conditions)
        if found is not None:
            return found
        start, read = time.monotonic(), len(self.earlier)
        found = measure()
        self.keep(found, time.monotonic() - start + sum(self.earlier[read:]), **conditions)
        return found

    def left(self, count: int, conditions: Callable[[int], dict[str, Any]]) -> list[int]:
        """Which of `count` results are not kept, by number. Arguments as :meth:`each`."""
        return [k for k in range(count) if not self.has(**conditions(k))]

    def each(
        self,
        kind: type[R],
        count: int,
        measure: Callable[[list[int]], Iterable[tuple[int, R]]],
        conditions: Callable[[int], dict[str, Any]],
    ) -> list[R]:
        """`count` results: those that were kept, and the others, each of which is kept as soon as it is measured.

        Its seconds are those since the one before: of results that are made together, the first has them all.

        Args:
            measure: gives the results of these numbers, each with its number.
            conditions: what the result of that number depends on.
        """
        read = {k: self.read(kind, **conditions(k)) for k in range(count)}
        found = {k: result for k, result in read.items() if result is not None}
        if left := [k for k in range(count) if k not in found]:
            start = time.monotonic()
            for k, result in measure(left):
                now = time.monotonic()
                self.keep(result, now - start, **conditions(k))
                found[k], start = result, now
        return [found[k] for k in range(count)]

    def keep(self, result: Record, seconds: float, **conditions: Any) -> None:
        """Writes a result that took so long.

        Raises:
            UserError: the disk is full, or refuses, and results are not optional.
        """
        kept = KeptResult(conditions=self.conditions | conditions, result=result.to_dict(), seconds=seconds)
        self._write(self.path(**conditions), kept)

    def copy_to(self, other: "Kept") -> None:
        """Keeps all results of this folder in another one, too, under the same conditions; damaged ones are left out.

        Raises:
            UserError: as :meth:`keep`, of the other folder.
        """
        for path in sorted(self.folder.glob("*.json")):
            try:
                kept = KeptResult.read(path)
            except UserError:
                continue
            other._write(other.folder / path.name, kept)

    def _write(self, path: Path, kept: KeptResult) -> None:
        try:
            make_folder(self.folder)
            kept.write(path)
        except UserError as error:
            if not self.optional:
                raise
            if not self.refused:
                notice(f"results are not kept: {error}")
            self.refused.append(str(error))
