"""Results that are kept in a folder as soon as they are measured: a command that was interrupted measures the rest."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ncfmkit.errors import UserError
from ncfmkit.records import Record, problems

R = TypeVar("R", bound=Record)


class KeptResult(Record):
    """A file of the folder: a result, and all that it depends on."""

    conditions: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A folder of results, a file for each.

    Attributes:
        folder: made when the first result is written.
        conditions: plain JSON values that every result in it depends on. The methods take those of one result.
    """

    folder: Path
    conditions: dict[str, Any]

    def path(self, **conditions: Any) -> Path:
        """The file of a result: its name is a hash of all that the result depends on."""
        text = json.dumps(self.conditions | conditions, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def has(self, **conditions: Any) -> bool:
        return self.path(**conditions).is_file()

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
            return kind.model_validate_json(json.dumps(found.result))
        except ValidationError as error:
            wrong = f"{path} is damaged: {problems(error)[0]}"
        except UserError as error:
            wrong = str(error)
        raise UserError(f"{wrong}\nremove that file, and the same command measures it again")

    def write(self, result: Record, **conditions: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        KeptResult(conditions=self.conditions | conditions, result=result.to_dict()).write(self.path(**conditions))

    def measured(self, kind: type[R], measure: Callable[[], R], **conditions: Any) -> R:
        """The result that was kept, or else what `measure` gives, which is kept."""
        found = self.read(kind, **conditions)
        if found is None:
            found = measure()
            self.write(found, **conditions)
        return found
