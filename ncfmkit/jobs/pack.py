"""`ncfmkit pack`: a set for other people's tools."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from ncfmkit.assessment import Assessment
from ncfmkit.chroma import SUBSAMPLED, WHOLE, check
from ncfmkit.config import to_dict
from ncfmkit.errors import UserError
from ncfmkit.files import check_free_folder, parse_bytes, safe_name
from ncfmkit.jobs.assess import HEADINGS, RESULT_FILE
from ncfmkit.jobs.evaluate import Scoring, requested_scoring
from ncfmkit.progress import notice
from ncfmkit.reports.assessment import recipe_words, sections
from ncfmkit.reports.sections import Section
from ncfmkit.sets import package, pixels, quantize, set_file
from ncfmkit.sets.manifest import BY_WORTH, Original, Pixels, Training, manifest_score
from ncfmkit.sets.subset import first_images
from ncfmkit.sets.synthetic import SyntheticSet

LONGEST_LICENSE = 200  # characters


def pack(
    path: str | os.PathLike[str],
    *,
    to: str,
    out: str | os.PathLike[str] | None = None,
    license: str | None = None,
    encoding: str | None = None,
    shard_size: str | None = None,
    ipc: int | None = None,
    bits: int | None = None,
    scale: str = "image",
    dither: bool = False,
    chroma: str | None = None,
    assessment: str | os.PathLike[str] | None = None,
    score: bool = False,
    data: Any = None,
    force: bool = False,
    **overrides: Any,
) -> tuple[Path, SyntheticSet]:
    """Packs a set to ship it: a folder with its one file, a view for other tools, a dataset card and checksums.

    Args:
        path: a set's file, its run directory or another package, or `hf://OWNER/NAME` of one on the Hub.
        to: the layout: `safetensors`, `webdataset`, `parquet` or `png`.
        out: the folder; None: named after the set and the layout, in the working directory.
        license: of the real images that the set was made from; None: as the set says. Publishing needs one.
        encoding: of pictures, `png` or lossless `webp`; None: png.
        shard_size: the largest size of a shard, such as `"256MiB"` (webdataset, parquet).
        ipc: pack only the first so many stored images of each class; the recorded score is then dropped. None: all.
        bits: store each pixel in 6, 5, 4, 3 or 2 bits; the recorded score is then dropped. None or 8: as they are.
        scale: with `bits`: quantize within the range of each `image`, or of each `channel` over the whole set.
        dither: with `bits`: Floyd-Steinberg dithering.
        chroma: `4:2:0` stores color at half the resolution, in whatever bits; the recorded score is then dropped. None
            or `4:4:4`: as it is.
        assessment: a folder of :func:`ncfmkit.assess`, of this set: its tables go into the card, its pictures do not.
        score: train students on the packed set and record their accuracy; needs `data`.
        data: with `score`: the real data to test on, as in :func:`ncfmkit.distill`.
        force: replace an existing package.
        overrides: with `score`: settings by name that replace the set's own, such as `repeats=5`; and `data_root`,
            `download`, `skip_bad` as in :func:`ncfmkit.distill`.

    Returns:
        The folder, and the set in it.

    Raises:
        UserError: no set there, or `out` exists or cannot be written.

    Example:
        >>> folder, packed = ncfmkit.pack("runs/digits-ipc1", to="parquet", license="bsd-3-clause")
    """
    out = None if out is None else Path(out)
    if chroma not in (None, WHOLE, SUBSAMPLED):
        raise UserError(f"--chroma {chroma}: expected {WHOLE} or {SUBSAMPLED}")
    if dither and chroma == SUBSAMPLED:
        raise UserError(f"--dither is for the pixels of whole images, not for --chroma {chroma}: leave one of them out")
    if bits in (None, 8) and (dither or scale != "image"):
        raise UserError("--scale and --dither need --bits below 8")
    packing = package.Packing(
        layout=to,
        encoding=encoding,
        shard_bytes=None if shard_size is None else parse_bytes(shard_size, "--shard-size"),
    )
    scoring = requested_scoring(score, data, overrides)
    file = set_file.find(path)
    if out is not None:
        check_free_folder(out, force=force, foreign=package.foreign_files, made_by="pack", replaced=True)
    result = set_file.load(file, mapped=True)
    if ipc is not None and ipc < result.ipc and result.manifest.order != BY_WORTH:
        name = result.manifest.name
        notice(f"{name} does not say that its images are in the order of worth: the first of a class are any of them")
    whole = result
    result = result if ipc is None else first_images(result, ipc)
    if bits not in (None, 8) or chroma == SUBSAMPLED:
        result = quantized(result, bits or 8, scale, dither, chroma or WHOLE)  # type: ignore[arg-type]
    assessed = () if assessment is None else _assessed(Path(assessment), whole, changed=result is not whole)
    if license is not None:
        result = licensed(result, license)
    out = out or Path(_folder_name(result, packing))
    package.check_writable(result, out, packing, force=force)  # before the students are trained
    if scoring is not None:
        result = scored(result, scoring)
    return out, package.write(result, out, packing, assessed=assessed, force=force)


def _assessed(folder: Path, result: SyntheticSet, *, changed: bool) -> list[tuple[str, Section]]:
    """The sections of an assessment of the set, each with its title.

    Raises:
        UserError: there is none, or it is of another set.
    """
    if changed:
        raise UserError(
            "--assessment is of the set as it is, which --ipc, --bits and --chroma change: assess the packed set"
        )
    if not (folder / RESULT_FILE).is_file():
        raise UserError(f"--assessment {folder}: expected a folder of `ncfmkit assess`, which holds {RESULT_FILE}")
    found = Assessment.read(folder / RESULT_FILE)
    if found.set.manifest_sha256 != result.manifest.manifest_sha256:
        raise UserError(f"--assessment {folder} is of another set, {found.set.path}: run `ncfmkit assess` on this one")
    students = Section(sentences=[f"Unless a section says otherwise: {recipe_words(found)}."])
    return [*((HEADINGS[name].title, section) for name, section in sections(found)), ("The students", students)]


def scored(result: SyntheticSet, score: Scoring) -> SyntheticSet:
    """The set with a measured score, and with the recipe that reached it where flags changed that."""
    scores, settings = score(result)
    return with_manifest(result, score=manifest_score(scores.rows[0]), training=Training.of(to_dict(settings)))


def _folder_name(result: SyntheticSet, packing: package.Packing) -> str:
    how = result.manifest.pixels
    parts = [result.manifest.name, f"{how.bits}bit" if how else "", "420" if how and how.chroma else "", packing.layout]
    return "-".join(safe_name(part) for part in parts if part)


def with_manifest(result: SyntheticSet, **changes: Any) -> SyntheticSet:
    """The set with keys of its manifest changed."""
    return dataclasses.replace(result, manifest=result.manifest.changed(**changes))


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
    return with_manifest(result, source=result.manifest.source.model_copy(update={"license": license}))


def quantized(
    result: SyntheticSet, bits: int, scale: quantize.Scale, dither: bool, chroma: str = WHOLE
) -> SyntheticSet:
    """The set with its pixels in fewer bytes, without a score: the one it had is kept as that of the original.

    Raises:
        UserError: another number of bits than there is, a set that is quantized already, or images whose color cannot
            be stored so.
    """
    subsampled = chroma == SUBSAMPLED
    how = result.manifest.pixels
    if how is not None:
        advice = "start from the original set" if how.original else "it was distilled so, leave --bits and --chroma out"
        raise UserError(f"--bits {bits}, --chroma {chroma}: the set is stored in {how.describe()} already: {advice}")
    quantize.check(bits, scale)
    _, channels, height, width = result.images.shape
    if subsampled:
        check(channels, height)
    original = Original(manifest_sha256=result.manifest.manifest_sha256, score=result.manifest.score)
    how = Pixels(
        bits=bits,
        scale=scale,
        dither=dither,
        shape=(channels, height, width),
        chroma=SUBSAMPLED if subsampled else None,
        original=original,
    )
    images, stored, how = pixels.stored(result.images, how)
    return with_manifest(dataclasses.replace(result, images=images, pixel_tensors=stored), pixels=how, score=None)
