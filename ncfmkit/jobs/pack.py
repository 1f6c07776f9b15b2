"""`ncfmkit pack`: a set for other people's tools."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ncfmkit.config import to_dict
from ncfmkit.errors import UserError
from ncfmkit.files import check_free_folder, safe_name
from ncfmkit.jobs.evaluate import Scoring
from ncfmkit.sets import loading, package, quantize
from ncfmkit.sets.manifest import DIGEST_KEY, manifest_score
from ncfmkit.sets.synthetic import SyntheticSet

LONGEST_LICENSE = 200  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    bits: int  # one of quantize.BITS; 8: as it is
    scale: quantize.Scale = "image"
    dither: bool = False


def pack(
    path: Path,
    *,
    packing: package.Packing,
    out: Path | None = None,
    license: str | None = None,
    quantization: Quantization | None = None,
    score: Scoring | None = None,
    force: bool = False,
) -> tuple[Path, SyntheticSet]:
    """Packs a set for other people's tools, in a folder that appears whole.

    Args:
        path: the set: its file, run directory, or another package.
        out: the folder; none: named after the set and the layout, in the working directory.
        license: of the real images that the set was made from; none: as the set says.
        quantization: stores pixels in fewer bits; the score is then unknown.
        score: measures the set as it is packed, and its result becomes the promised score.
        force: replace an existing package.

    Returns:
        The folder, and the set in it.

    Raises:
        UserError: no set there, the layout needs a license, or the folder exists or cannot be written.
    """
    loading.check_exists(path)
    if out is not None:
        check_free_folder(out, force=force, foreign=package.foreign_files, made_by="pack")
    with loading.opened(path, beside=Path() if out is None else out.parent) as result:
        if license is not None:
            result = licensed(result, license)
        if quantization is not None:
            result = quantized(result, quantization)
        out = out or Path(_folder_name(result, packing))
        package.check_writable(result, out, packing, force=force)  # before the students are trained
        if score is not None:
            result = scored(result, score)
        return out, package.write(result, out, packing, force=force)


def scored(result: SyntheticSet, score: Scoring) -> SyntheticSet:
    """The set with a measured score, and with the recipe that reached it where flags changed that."""
    scores, settings = score(result)
    used = to_dict(settings)
    recipe = {key: used[key] for key in ("student", "network", "seed")}
    promised = manifest_score(scores["rows"][0])
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
    """The set with that license of its source.

    Raises:
        UserError: empty, not one line, or too long.
    """
    license = license.strip()
    if not license or not license.isprintable() or len(license) > LONGEST_LICENSE:
        raise UserError(
            f"--license {license!r}: expected one line of at most {LONGEST_LICENSE} characters, such as mit"
        )
    return with_manifest(result, source=result.manifest["source"] | {"license": license})


def quantized(result: SyntheticSet, how: Quantization) -> SyntheticSet:
    """The set with its pixels in fewer bits, without a score: the one it had is kept as that of the original.

    8 bits are the set as it is.

    Raises:
        UserError: another number of bits than there is, or a set that is quantized already.
    """
    if how.bits == 8 and result.levels is None:
        return result
    if result.levels is not None:
        bits = result.manifest["pixels"]["bits"]
        raise UserError(f"--bits {how.bits}: the set is in {bits} bits already: start from the one it was made from")
    images, levels = quantize.quantize(result.images.numpy(), bits=how.bits, scale=how.scale, dither=how.dither)
    original = {DIGEST_KEY: result.manifest[DIGEST_KEY], "score": result.manifest["score"]}
    described = dataclasses.asdict(how) | {"shape": list(images.shape[1:]), "original": original}
    manifest = result.manifest | {"pixels": described, "score": None}
    return dataclasses.replace(
        result, images=torch.from_numpy(images), levels=torch.from_numpy(levels), manifest=manifest
    )
