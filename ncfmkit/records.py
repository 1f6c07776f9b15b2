"""Typed records of the JSON that ncfmkit writes and reads back: manifests, run.json, scores.json, validation.json."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ncfmkit.errors import UserError
from ncfmkit.files import write_json

LONGEST_SHOWN = 100  # characters of a wrong value in a message


class Record(BaseModel):
    """A record with checked types: a number is no text, numbers are finite, arrays become tuples.

    Keys that are not known here are kept, and written again: a newer version of ncfmkit may have added them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by name."""
        return self.model_dump(mode="json")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a JSON file.

        Raises:
            UserError: the file cannot be read, is not JSON, or holds something else; all that is wrong is named.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except ValidationError as error:
            wrong = problems(error)
            said = wrong[0] if len(wrong) == 1 else "\n  ".join([f"{len(wrong)} problems", *wrong])
            raise UserError(f"{path} is damaged: {said}") from None

    def write(self, path: Path) -> None:
        """Writes the record as JSON, whole or not at all."""
        write_json(path, self.to_dict())


class SparseRecord(Record):
    """A record whose keys may be absent: a key that was not given is not written, whatever its default."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by their names in JSON."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


def at_most(count: int) -> BeforeValidator:
    """For the type of an object in JSON: the most entries that it may have.

    Counted before the entries are checked, since a message for each of a million would take the memory.
    """

    def few(table: Any) -> Any:
        if isinstance(table, dict) and len(table) > count:
            raise ValueError(f"{len(table):,} entries, expected at most {count:,}")
        return table

    return BeforeValidator(few)


def problems(error: ValidationError) -> list[str]:
    """One line for each thing that is wrong: where, what was expected, what is there."""
    return [
        f"{'.'.join(map(str, wrong['loc'])) or 'all of it'}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}, "
        f"got {shortened(wrong['input'])}"
        for wrong in error.errors(include_url=False)
    ]


def shortened(value: object) -> str:
    """A value in a message, at most `LONGEST_SHOWN` characters of it."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."
