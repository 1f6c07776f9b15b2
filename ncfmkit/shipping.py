"""The jobs of shipping a set: pack, unpack, verify."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ncfmkit import jobs
from ncfmkit.config import check, from_dict, to_dict
from ncfmkit.errors import CheckFailed, Interrupted, UserError
from ncfmkit.files import check_free, safe_name
from ncfmkit.formats import loading, one_file, package, pixels
from ncfmkit.formats.manifest import DIGEST_KEY
from ncfmkit.synthetic import SyntheticSet

LONGEST_LICENSE = 200  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantising:
    bits: int  # one of pixels.BITS; 8: as it is
    scale: pixels.Scale = "image"
    dither: bool = False


# ---- pack -------------------------------------------------------------------------------------------------------


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted: nothing was written") from None


@_all_or_nothing()
def pack(
    path: Path,
    *,
    packing: package.Packing,
    out: Path | None = None,
    license: str | None = None,
    quantising: Quantising | None = None,
    score: jobs.Scoring | None = None,
) -> tuple[Path, SyntheticSet]:
    """Packs a set for other people's tools, in a new folder.

    Args:
        path: the set: its file, run directory, or another package.
        out: the folder; none: named after the set and the layout, in the working directory.
        license: of the real images that the set was made from; none: as the set says.
        quantising: stores pixels in fewer bits; the score is then unknown.
        score: measures the set as it is packed, and its result becomes the promised score.

    Returns:
        The folder, and the set in it.

    Raises:
        UserError: no set there, the folder is, or the layout needs a licence.
    """
    if out is not None:
        check_free(out)
    with loading.opened(path, beside=Path() if out is None else out.parent) as result:
        if license is not None:
            result = licensed(result, license)
        if quantising is not None:
            result = quantised(result, quantising)
        out = out or Path(_folder_name(result, packing))
        package.check_writable(result, out, packing)  # before the students are trained
        if score is not None:
            result = scored(result, score)
        return out, package.write(result, out, packing)


def scored(result: SyntheticSet, score: jobs.Scoring) -> SyntheticSet:
    """The set with a measured score, and with the recipe that reached it where flags changed that."""
    used = to_dict(score.settings(result))
    recipe = {key: used[key] for key in ("student", "network", "seed")}
    promised = jobs.manifest_score(score(result)["rows"][0])
    return with_manifest(result, score=promised, settings=result.manifest["settings"] | recipe)


def _folder_name(result: SyntheticSet, packing: package.Packing) -> str:
    how = result.manifest.get("pixels")
    parts = [result.manifest["name"], f"{how['bits']}bit" if how else "", packing.layout]
    parts.append("decoded" if packing.images == "decoded" else "")
    return "-".join(safe_name(part) for part in parts if part)


def with_manifest(result: SyntheticSet, **changes: Any) -> SyntheticSet:
    """The set with keys of its manifest changed."""
    return dataclasses.replace(result, manifest=result.manifest | changes)


def licensed(result: SyntheticSet, license: str) -> SyntheticSet:
    """The set with that licence of its source.

    Raises:
        UserError: empty, not one line, or too long.
    """
    license = license.strip()
    if not license or not license.isprintable() or len(license) > LONGEST_LICENSE:
        raise UserError(
            f"--license {license!r}: expected one line of at most {LONGEST_LICENSE} characters, such as mit"
        )
    return with_manifest(result, source=result.manifest["source"] | {"license": license})


def quantised(result: SyntheticSet, how: Quantising) -> SyntheticSet:
    """The set with its pixels in fewer bits, without a score: the one it had is kept as that of the original.

    8 bits are the set as it is.

    Raises:
        UserError: another number of bits than there is, or a set that is quantised already.
    """
    if how.bits == 8 and result.levels is None:
        return result
    if result.levels is not None:
        bits = result.manifest["pixels"]["bits"]
        raise UserError(f"--bits {how.bits}: the set is in {bits} bits already: start from the one it was made from")
    images, levels = pixels.quantise(result.images.numpy(), bits=how.bits, scale=how.scale, dither=how.dither)
    original = {DIGEST_KEY: result.manifest[DIGEST_KEY], "score": result.manifest["score"]}
    described = dataclasses.asdict(how) | {"shape": list(images.shape[1:]), "original": original}
    manifest = result.manifest | {"pixels": described, "score": None}
    return dataclasses.replace(
        result, images=torch.from_numpy(images), levels=torch.from_numpy(levels), manifest=manifest
    )


# ---- unpack -----------------------------------------------------------------------------------------------------


@_all_or_nothing()
def unpack(path: Path, out: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Writes the set of a package as its one file; pictures are unpacked to disk one by one, not in memory.

    Args:
        path: a package (or any other form of a set).
        out: the file; none: named after the set, in the working directory.

    Returns:
        The file, and the manifest in it.

    Raises:
        UserError: no set there, damaged, or the file is there already.
    """
    if out is not None:
        check_free(out)
    with loading.opened(path, beside=Path() if out is None else out.parent) as result:
        out = out or Path(f"{safe_name(result.manifest['name'])}.safetensors")
        check_free(out)
        return out, one_file.save(result, out)


# ---- verify -----------------------------------------------------------------------------------------------------


def verify(path: Path, score: jobs.Scoring | None = None) -> dict[str, Any]:
    """Checks what can be checked of a set: checksums, shapes, ranges, labels, its recipe, its score.

    Args:
        path: a set's file, run directory or package.
        score: measures the set; the promised accuracy must be reached within its standard deviation.

    Returns:
        `path`, `problems` (empty), `manifest`, and with `score` also `promised` and `measured`.

    Raises:
        UserError: nothing there, not a set, or no score to check.
        CheckFailed: something is wrong; all of it is in the message, and `problems` in the result.
    """
    result, problems = loading.read(path)
    found: dict[str, Any] = {"path": str(path), "problems": problems, "manifest": result and result.manifest}
    if result is not None:
        problems += _recipe_problems(result)
    if result is not None and score is not None and not problems:
        found |= _measured(path, result, score)
        problems += _score_problems(found["promised"], found["measured"])
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise CheckFailed(f"{path}: {count}\n{one_file.listed(problems)}", found)
    return found


def _recipe_problems(result: SyntheticSet) -> list[str]:
    try:
        distill = check(from_dict(result.manifest["settings"])).distill
    except UserError as error:
        return [f"its settings are not a recipe that this ncfmkit can run: {error}"]
    how, stored = result.manifest["decode"], result.ipc
    said = (distill.ipc, distill.factor, distill.decode, distill.decoded_budget)
    if said != (stored, how["factor"], how["kind"], how["budget"]):
        return ["its settings speak of another number of images, or another decoding, than its manifest"]
    return []


def _promise(path: Path) -> str:
    return f"`ncfmkit pack {path} --to safetensors --score --data DATA --repeats 5 --out NEW`"


def _measured(path: Path, result: SyntheticSet, score: jobs.Scoring) -> dict[str, Any]:
    promised = result.manifest["score"]
    if promised is None:
        raise UserError(f"{path} promises no score to check: {_promise(path)} measures and records one")
    if promised["n"] < 2:
        raise UserError(
            f"the score of {path} is of one student, which has no standard deviation to check within: {_promise(path)} "
            "measures and records a better one"
        )
    return {"promised": promised, "measured": jobs.manifest_score(score(result)["rows"][0])}


def _score_problems(promised: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    least = promised["last"]["mean"] - promised["last"]["std"]
    if measured["last"]["mean"] >= least:
        return []
    return [
        f"its students reach {figure(measured)}, promised are {figure(promised)}: expected {least:.1%} or more "
        "(one standard deviation below)"
    ]


def figure(score: dict[str, Any]) -> str:
    """`61.9% +- 0.7% (n = 3)`; one student has no deviation."""
    deviation = f" +- {score['last']['std']:.1%}" if score["n"] > 1 else ""
    return f"{score['last']['mean']:.1%}{deviation} (n = {score['n']})"
