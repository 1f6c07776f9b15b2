"""`ncfmkit verify`: is a set intact, and as good as it says?"""

import math
import os
from pathlib import Path
from typing import Any

from ncfmkit.config import check, from_dict
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs.evaluate import Scoring, requested_scoring
from ncfmkit.sets import loading, set_file
from ncfmkit.sets.manifest import format_score, manifest_score
from ncfmkit.sets.synthetic import SyntheticSet

LEVEL = 0.01  # of sets that are as good as they promise, the share that is refused by chance


def verify(path: str | os.PathLike[str], *, score: bool = False, data: Any = None, **overrides: Any) -> dict[str, Any]:
    """Checks what can be checked of a set: checksums, shapes, ranges, labels, its recipe, its score.

    Args:
        path: a set's file, its run directory or a package.
        score: train students by the set's recipe; the set is refused where they are worse than promised by more than
            chance explains (a one-sided t-test at the 1% level).
        data: with `score`: the real data to test on, as in :func:`ncfmkit.distill`.
        overrides: with `score`: settings by name, such as `device="cuda"`; and `data_root`, `download`, `skip_bad` as
            in :func:`ncfmkit.distill`.

    Returns:
        `path`, `problems` (empty), `manifest`, and with `score` also `promised` and `measured`.

    Raises:
        UserError: nothing there, not a set, or no score to check.
        CheckFailed: something is wrong; all of it is in the message, and `problems` in its `result`.

    Example:
        >>> ncfmkit.verify("digits-ipc1-parquet")["problems"]
        []
    """
    path = Path(path)
    scoring = requested_scoring(score, data, overrides)
    result, problems = loading.read(path)
    found: dict[str, Any] = {"path": str(path), "problems": problems, "manifest": result and result.manifest}
    if result is not None:
        problems += _recipe_problems(result)
    if result is not None and scoring is not None and not problems:
        found |= _measured(path, result, scoring)
        problems += _score_problems(found["promised"], found["measured"])
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CheckFailed(f"{path}: {count}\n{set_file.listed(problems)}", found)
    return found


def _recipe_problems(result: SyntheticSet) -> list[str]:
    try:
        distill = check(from_dict(result.manifest["settings"])).distill
    except UserError as error:
        return [f"its settings are not a recipe that this ncfmkit can run: {error}"]
    how, stored = result.manifest["decode"], result.ipc
    said = (distill.ipc, distill.factor, distill.decode, distill.decoded_per_class)
    if said != (stored, how["factor"], how["kind"], how["budget"]):
        return ["its settings speak of another number of images, or another decoding, than its manifest"]
    return []


def _promise(path: Path) -> str:
    return f"`ncfmkit pack {path} --to safetensors --score --data DATA --repeats 5 --out NEW`"


def _measured(path: Path, result: SyntheticSet, score: Scoring) -> dict[str, Any]:
    promised = result.manifest["score"]
    if promised is None:
        raise UserError(f"{path} promises no score to check: {_promise(path)} measures and records one")
    if promised["n"] < 2:
        raise UserError(
            f"the score of {path} is of one student, which has no standard deviation to compare with: {_promise(path)} "
            "measures and records a better one"
        )
    scores, _ = score(result)
    return {"promised": promised, "measured": manifest_score(scores.rows[0].to_dict())}


def _score_problems(promised: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    error, allowed = least_difference(promised, measured)
    below = promised["last"]["mean"] - measured["last"]["mean"]
    if below <= allowed:
        return []
    return [
        f"its students reach {format_score(measured)}, promised are {format_score(promised)}: they are "
        f"{100 * below:.2f} points worse, with a standard error of {100 * error:.2f} points; expected at most "
        f"{100 * allowed:.2f} (one-sided t-test at the {LEVEL:.0%} level)"
    ]


def least_difference(promised: dict[str, Any], measured: dict[str, Any]) -> tuple[float, float]:
    """How far below the promised mean the measured one may be, by a one-sided t-test at `LEVEL`.

    Both are accuracies of students that were trained in the same way, so one variance is estimated from both (Student's
    test): the share of good sets that is refused is then `LEVEL` at any number of students. Welch's test, which
    estimates two, misses half of what this one finds at two students.

    Returns:
        The standard error of the difference of the means, and the difference that is allowed; fractions.
    """
    from scipy.special import stdtrit  # here, because verifying files alone does not need it

    n, m = promised["n"], measured["n"]
    squares = (n - 1) * promised["last"]["std"] ** 2 + (m - 1) * measured["last"]["std"] ** 2
    error = math.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))
    return error, error * float(stdtrit(n + m - 2, 1 - LEVEL))
