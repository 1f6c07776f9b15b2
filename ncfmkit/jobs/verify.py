"""`ncfmkit verify`: is a set intact, and as good as it says?"""

import math
import os
from typing import Any

from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs.evaluate import Scoring, requested_scoring
from ncfmkit.progress import plural
from ncfmkit.records import Record
from ncfmkit.sets import package, set_file
from ncfmkit.sets.compare import view_problems
from ncfmkit.sets.hub import local
from ncfmkit.sets.manifest import OPTIONAL, Manifest, ManifestScore, format_score, manifest_score
from ncfmkit.sets.synthetic import SyntheticSet

LEVEL = 0.01  # of sets that are as good as they promise, the share that is refused by chance


class Verification(Record):
    """What was checked of a set: `problems` is empty where nothing is wrong; `promised` and `measured` are scores.

    Of a `package`, checksums and view were checked, too.
    """

    path: str
    package: bool
    problems: tuple[str, ...]
    manifest: Manifest | None
    promised: ManifestScore | None = OPTIONAL
    measured: ManifestScore | None = OPTIONAL


def verify(path: str | os.PathLike[str], *, score: bool = False, data: Any = None, **overrides: Any) -> Verification:
    """Checks what can be checked of a set: checksums, shapes, ranges, labels, a package's view, its score.

    Args:
        path: a set's file, its run directory or a package, or `hf://OWNER/NAME` of a package on the Hub.
        score: train students by the set's recipe; the set is refused where they are worse than promised by more than
            chance explains (a one-sided t-test at the 1% level).
        data: with `score`: the real data to test on, as in :func:`ncfmkit.distill`.
        overrides: with `score`: settings by name, such as `device="cuda"`; and `data_root`, `download`, `skip_bad` as
            in :func:`ncfmkit.distill`.

    Returns:
        `path`, `package`, `problems` (empty), `manifest`, and with `score` also `promised` and `measured`.

    Raises:
        UserError: nothing there, not a set, or no score to check.
        CheckFailed: something is wrong; all of it is in the message, and in its `result`.

    Example:
        >>> ncfmkit.verify("digits-ipc1-parquet").problems
        ()
    """
    scoring = requested_scoring(score, data, overrides)
    name, path = os.fspath(path), local(path, whole=True)
    packed = path.is_dir() and package.is_package(path)
    problems = package.sum_problems(path) if packed else []
    result, scores = None, dict[str, ManifestScore]()
    if not problems:
        result, problems = set_file.read(set_file.find(path), mapped=True)
    manifest = None if result is None else result.manifest
    if result is not None:
        problems = _training_problems(result.manifest)
        problems += view_problems(path, result) if packed else []
    if result is not None and scoring is not None and not problems:
        scores = _measured(name, result, scoring)
        problems = _score_problems(**scores)
    found = Verification(path=name, package=packed, problems=tuple(problems), manifest=manifest, **scores)
    if problems:
        raise CheckFailed(f"{name}: {plural(len(problems), 'problem')}\n{set_file.listed(problems)}", found.to_dict())
    return found


def _training_problems(manifest: Manifest) -> list[str]:
    try:
        manifest.training.settings()
    except UserError as error:
        return [f"its training record is not one that this ncfmkit can follow: {error}"]
    return []


def _promise(path: str) -> str:
    return f"`ncfmkit pack {path} --to safetensors --score --data DATA --repeats 5 --out NEW`"


def _measured(path: str, result: SyntheticSet, score: Scoring) -> dict[str, ManifestScore]:
    promised = result.manifest.score
    if promised is None:
        raise UserError(f"{path} promises no score to check: {_promise(path)} measures and records one")
    if promised.n < 2:
        raise UserError(
            f"the score of {path} is of one student, which has no standard deviation to compare with: {_promise(path)} "
            "measures and records a better one"
        )
    scores, _ = score(result)
    return {"promised": promised, "measured": manifest_score(scores.rows[0])}


def _score_problems(promised: ManifestScore, measured: ManifestScore) -> list[str]:
    error, allowed = least_difference(promised, measured)
    below = promised.last.mean - measured.last.mean
    if below <= allowed:
        return []
    return [
        f"its students reach {format_score(measured)}, promised are {format_score(promised)}: they are "
        f"{100 * below:.2f} points worse, with a standard error of {100 * error:.2f} points; expected at most "
        f"{100 * allowed:.2f} (one-sided t-test at the {LEVEL:.0%} level)"
    ]


def least_difference(promised: ManifestScore, measured: ManifestScore) -> tuple[float, float]:
    """How far below the promised mean the measured one may be, by a one-sided t-test at `LEVEL`.

    Both are accuracies of students that were trained in the same way, so one variance is estimated from both (Student's
    test): the share of good sets that is refused is then `LEVEL` at any number of students. Welch's test, which
    estimates two, misses half of what this one finds at two students.

    Returns:
        The standard error of the difference of the means, and the difference that is allowed; fractions.
    """
    from scipy.special import stdtrit  # here, because verifying files alone does not need it

    n, m = promised.n, measured.n
    squares = (n - 1) * promised.last.std**2 + (m - 1) * measured.last.std**2
    error = math.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))
    return error, error * float(stdtrit(n + m - 2, 1 - LEVEL))
