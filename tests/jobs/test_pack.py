"""Packing a set: what changes and what stays, and the whole way there and back by command."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, succeeds
from conftest import build_set
from promises import PROMISED, Scored, promising_set
from recorded import assessment

from ncfmkit.errors import UserError
from ncfmkit.jobs.pack import pack
from ncfmkit.sets import pixels, quantize, set_file
from ncfmkit.sets.manifest import Pixels


@pytest.fixture(autouse=True)
def _here(own_folder: None) -> None:
    """Commands run in `tmp_path`."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return promising_set(tmp_path / "small.safetensors")


def test_what_pack_changes(small: Path, tmp_path: Path) -> None:
    """The license is the only thing that packing as such changes."""
    before = set_file.load(small)
    out, packed = pack(small, to="png")
    assert out == Path("tiny-ipc2-png")
    assert packed.manifest == before.manifest
    assert set_file.load(out).manifest == before.manifest
    out, _ = pack(small, to="png", license=" cc-by-4.0 ", force=True)
    got, expected = set_file.load(out).manifest.to_dict(), before.manifest.to_dict()
    assert got["manifest_sha256"] != expected["manifest_sha256"]
    expected["source"]["license"] = "cc-by-4.0"
    assert got | {"manifest_sha256": ""} == expected | {"manifest_sha256": ""}


def test_a_license_stays_with_the_set(small: Path, tmp_path: Path) -> None:
    first, _ = pack(small, to="webdataset", license="mit")
    second, _ = pack(first, to="parquet")  # not asked for again
    assert "license: mit" in (second / "README.md").read_text()


def test_a_license_that_is_not_stated_is_said_to_be_unknown(small: Path) -> None:
    said = succeeds("pack", small, "--to", "parquet").stdout
    assert "the license of the real images is not stated: pack it with --license before you publish it\n" in said
    card = Path("tiny-ipc2-parquet/README.md").read_text()
    assert "license: unknown\n" in card
    assert "Not stated. The set is derived from the images of tiny, whose license applies" in card
    assert "not stated" not in succeeds("pack", small, "--to", "png", "--license", "mit").stdout


def test_packing_in_fewer_bits(small: Path) -> None:
    before = set_file.load(small)
    out, _ = pack(small, to="safetensors", bits=4, scale="channel")
    assert out == Path("tiny-ipc2-4bit-safetensors")
    got = set_file.load(out)
    expected, levels = quantize.quantize(before.images.numpy(), bits=4, scale="channel", dither=False)
    assert torch.equal(got.images, torch.from_numpy(expected))
    assert got.pixel_tensors is not None
    assert torch.equal(got.pixel_tensors["levels"], torch.from_numpy(levels))
    assert got.manifest.bytes == {"pixels": 6 * 96, "levels": 6, "labels": 48}
    assert got.manifest.score is None
    assert got.manifest.format == 2
    original = {"manifest_sha256": before.manifest.manifest_sha256, "score": PROMISED}
    told = {"bits": 4, "scale": "channel", "dither": False, "shape": [3, 8, 8], "original": original}
    assert got.manifest.to_dict()["pixels"] == told
    with pytest.raises(UserError, match=r"--bits 2, .*is stored in 4 bits already: "):
        pack(out, to="png", bits=2)
    _, same = pack(out, to="png", bits=8, chroma="4:4:4")  # as they are
    assert same.manifest.pixels == got.manifest.pixels
    assert torch.equal(same.images, got.images)


@pytest.mark.parametrize("bits", [None, 3])
def test_packing_with_half_the_color(small: Path, bits: int | None) -> None:
    before, flags = set_file.load(small), () if bits is None else ("--bits", bits)
    said = succeeds("pack", small, "--to", "parquet", "--chroma", "4:2:0", *flags, "--license", "mit").stdout
    assert "its score is unknown" in said
    folder = Path(f"tiny-ipc2-{bits or 8}bit-420-parquet")
    got = set_file.load(folder)
    how = Pixels(bits=bits or 8, scale="image", dither=False, shape=(3, 8, 8), chroma="4:2:0")
    expected, stored, _ = pixels.stored(before.images, how)
    assert torch.equal(got.images, expected)
    assert not torch.equal(got.images, before.images)
    assert got.pixel_tensors is not None
    assert torch.equal(got.pixel_tensors["pixels"], stored["pixels"])
    assert got.manifest.format == 4
    assert got.manifest.score is None
    card = (folder / "README.md").read_text()
    assert "Not scored with its pixels as stored. The 8-bit set that it was made from reached 60.0% ± 5.0." in card
    assert ("Pixels are stored in 3 bits instead of 8, between the levels of each image and channel." in card) == (
        bits == 3
    )
    assert "Color has half the resolution (4:2:0): luma of each pixel and two color differences of each 2 x 2" in card
    told = " ".join(succeeds("inspect", folder).stdout.split())
    assert f"kept in {bits or 8} bits, color 4:2:0, a range per image" in told
    succeeds("verify", folder)

    # the whole, and its first images, once more: by the same codes
    again, packed = pack(folder, to="safetensors", license="cc0-1.0")
    assert torch.equal(packed.images, expected)
    part = set_file.load(again, ipc=1)
    assert torch.equal(part.images, expected[::2])
    assert repr(part) == f"SyntheticSet(3 classes x 1 image of 3x8x8, factor 2, {bits or 8} bits, color 4:2:0)"
    refused("pack", folder, "--to", "png", "--bits", 2, says="is stored in . bits, color 4:2:0 already: start from the")
    refused(
        "pack", folder, "--to", "png", "--chroma", "4:2:0", says="--chroma 4:2:0: the set is stored in . bits, color"
    )


def test_color_that_cannot_be_halved_is_refused(small: Path, tmp_path: Path) -> None:
    call = ("pack", small, "--to", "png")
    refused(*call, "--chroma", "4:2:2", says="--chroma 4:2:2: expected 4:4:4 or 4:2:0")
    refused(*call, "--chroma", "4:2:0", "--bits", 3, "--dither", says="--dither is for the pixels of whole images")
    gray = tmp_path / "gray.safetensors"
    set_file.save(build_set(channels=1), gray)
    says = "--chroma 4:2:0: expected three channels and a side that is a multiple of 4, got 1 and 8"
    refused("pack", gray, "--to", "png", "--chroma", "4:2:0", says=says)
    set_file.save(build_set(size=10), gray, force=True)
    refused("pack", gray, "--to", "png", "--chroma", "4:2:0", says="a side that is a multiple of 4, got 3 and 10")
    assert not list(Path().glob("*-png"))


@pytest.fixture
def ordered() -> Path:
    whole = build_set("multi", 2, ipc=4, soft=True, score=PROMISED, order="worth")
    set_file.save(whole, "ordered.safetensors")
    return Path("ordered.safetensors")


def test_packing_the_first_images(ordered: Path) -> None:
    said = succeeds("pack", ordered, "--to", "parquet", "--ipc", 3, "--license", "mit")
    assert "its score is unknown: pack it with --score --data DATA to measure it" in (said.stdout)
    assert "order of worth" not in said.stderr
    folder = Path("tiny-ipc3-parquet")
    got, whole = set_file.load(folder), set_file.load(ordered, ipc=3)
    assert got.images.equal(whole.images)
    assert got.manifest.part_of == whole.manifest.part_of
    card = (folder / "README.md").read_text()
    assert "Not scored. The set of 4 images per class that it is a part of reached 60.0% ± 5.0." in card
    assert "These are the first stored images of each class of a set of 4 per class." in card
    assert "The stored images of a class are in the order of worth: the first of each class are a smaller set" in card
    digest = set_file.load(ordered).manifest.manifest_sha256
    told = " ".join(succeeds("inspect", folder).stdout.split())
    assert "3 stored, 15 decoded, in the order of worth; the first of 4 of" in told
    assert digest[:20] in told
    succeeds("verify", folder)


def test_packing_the_first_images_in_fewer_bits(ordered: Path) -> None:
    out, _ = pack(ordered, to="safetensors", ipc=2, bits=4)
    assert out == Path("tiny-ipc2-4bit-safetensors")
    part, got = set_file.load(ordered, ipc=2), set_file.load(out)
    expected, _ = quantize.quantize(part.images.numpy(), bits=4, scale="image", dither=False)
    assert torch.equal(got.images, torch.from_numpy(expected))
    assert got.manifest.pixels is not None
    assert got.manifest.pixels.original is not None
    assert got.manifest.pixels.original.manifest_sha256 == part.manifest.manifest_sha256
    assert got.manifest.part_of == part.manifest.part_of
    # a part of that, which cannot be quantized again
    with pytest.raises(UserError, match=r"--bits 2, .*is stored in 4 bits already: start from the original set"):
        pack(out, to="safetensors", ipc=1, bits=2)


def test_images_in_no_order_are_noticed(small: Path) -> None:
    said = succeeds("pack", small, "--to", "png", "--ipc", 1).stderr
    assert "tiny-ipc2 does not say that its images are in the order of worth: the first of a class are any of" in said
    assert "in the order of" not in succeeds("pack", small, "--to", "png", "--ipc", 2, "--force").stderr
    refused("pack", small, "--to", "png", "--ipc", 3, says="--ipc 3: expected 1 to 2, the images per class that")


def test_eight_bits_are_the_set_as_it_is(small: Path) -> None:
    out, packed = pack(small, to="png", bits=8)
    assert packed.manifest == set_file.load(small).manifest
    assert set_file.load(out).pixel_tensors is None


def test_an_assessment_goes_into_the_card(small: Path) -> None:
    Path("found").mkdir()
    assessment(set_file.load(small).manifest.manifest_sha256).write(Path("found/assess.json"))
    out, _ = pack(small, to="png", assessment="found", license="mit")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "## What else was measured\n\n### Other networks\n" in card
    assert "| vgg11 | 33.0 ± 0.4 | 23.0" in card.replace("\u00a0", " ")
    assert "### The students\n\nUnless a section says otherwise: convnet" in card
    assert "What else" not in (pack(small, to="parquet")[0] / "README.md").read_text(encoding="utf-8")
    out, _ = pack(small, to="png", assessment="found", license="mit", ipc=2, bits=8, force=True)  # which change nothing
    assert (out / "README.md").read_text(encoding="utf-8") == card
    changes: tuple[dict[str, Any], ...] = ({"ipc": 1}, {"bits": 2}, {"chroma": "4:2:0"})
    for how in changes:
        with pytest.raises(
            UserError, match="--assessment is of the set as it is, which --ipc, --bits and --chroma change"
        ):
            pack(small, to="png", assessment="found", out="other", **how)
    assessment().write(Path("found/assess.json"))
    with pytest.raises(UserError, match="--assessment found is of another set, /some/where/ten"):
        pack(small, to="png", assessment="found", out="other")
    with pytest.raises(UserError, match="--assessment nowhere: expected a folder of `ncfmkit assess`"):
        pack(small, to="png", assessment="nowhere", out="other")
    assert not Path("other").exists()


def test_a_measured_score_is_promised(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Scored(monkeypatch, 0.55, **{"student.epochs": 7, "runtime.compile": "off"})
    out, _ = pack(small, to="png", bits=2, score=True, data="digits")
    got = set_file.load(out)
    assert got.manifest.score is not None
    assert got.manifest.score.last.to_dict() == {"mean": 0.55, "std": 0.01}
    assert torch.equal(measure.seen[0].images, got.images)  # measured as it is packed
    before, after = set_file.load(small).manifest, got.manifest
    assert after.training.student == before.training.student | {"epochs": 7}  # what reached the score
    assert after.training.runtime == {"precision": "auto", "compile": "off"}  # and nothing of this machine
    assert after.settings == before.settings  # those of the run that made it


def test_bad_input_is_found_before_students_are_trained(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Scored(monkeypatch, 0.55)
    Path("there").mkdir()
    with pytest.raises(UserError, match="there already exists: pass --force"):
        pack(small, to="png", out=Path("there"), score=True, data="digits")
    assert not measure.seen


def test_a_folder_with_a_space_is_quoted_in_the_command_that_checks_it(small: Path) -> None:
    said = succeeds("pack", small, "--to", "png", "--out", "\u72d7 dogs").stdout
    assert "check it with `ncfmkit verify '\u72d7 dogs'`, or" in said


def test_pack_verify_unpack_by_command(small: Path, tmp_path: Path) -> None:
    said = succeeds("pack", small, "--to", "parquet", "--license", "mit", "--out", "shipped").stdout
    assert re.match(r"shipped: parquet, 8 files, [\d.]+ KiB\ncheck it with `ncfmkit verify shipped`, or with", said)
    assert succeeds("verify", "shipped").stdout == (
        "shipped: tiny-ipc2 is intact; checked: SHA256SUMS, manifest, images, labels, recipe, view\n"
    )
    assert "tiny-ipc2" in succeeds("inspect", "shipped").stdout
    said = succeeds("unpack", "shipped").stdout
    assert said.startswith("tiny-ipc2.safetensors: tiny-ipc2, 6 images, ")
    told = json.loads(succeeds("pack", small, "--to", "png", "--json").stdout)
    assert told["folder"] == "tiny-ipc2-png"
    assert told["bytes"] == sum(told["files"].values())
    assert json.loads(succeeds("verify", "shipped", "--json").stdout)["problems"] == []
    assert json.loads(succeeds("unpack", "shipped", "--out", "x", "--json").stdout)["set"] == "x"


def test_pack_in_bits_says_that_the_score_is_gone(small: Path) -> None:
    said = succeeds("pack", small, "--to", "safetensors", "--bits", "3", "--dither").stdout
    assert "its score is unknown: pack it with --score --data DATA" in said
    told = succeeds("inspect", "tiny-ipc2-3bit-safetensors").stdout
    assert "package tiny-ipc2-3bit-safetensors" in told
    assert "3 bits, a range per image, dithered" in told
    said = json.loads(succeeds("inspect", "tiny-ipc2-3bit-safetensors", "--json").stdout)
    assert said["package"] == {"layout": "safetensors", "encoding": None}


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_an_interruption_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    succeeds("pack", small, "--to", "png", "--out", "shipped")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = sorted(p.name for p in Path().iterdir())
    monkeypatch.setattr(f"ncfmkit.{'jobs.unpack' if command == 'unpack' else 'sets.package'}.write_atomic", interrupted)
    arguments = ["pack", small, "--to", "webdataset"] if command == "pack" else ["unpack", "shipped"]
    refused(*arguments, says="interrupted: nothing was written", code=130)
    assert sorted(p.name for p in Path().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pack", "SET", "--to", "zip"], "--to zip: expected one of safetensors, webdataset, parquet, png"),
        (["pack", "SET", "--to", "png", "--license", " "], "--license ''"),
        (["pack", "SET", "--to", "png", "--license", "a\nb"], "expected one line"),
        (["pack", "SET", "--to", "png", "--bits", "7"], "--bits 7: expected one of 8, 6, 5, 4, 3, 2"),
        (["pack", "SET", "--to", "png", "--bits", "4", "--scale", "pixel"], "--scale pixel: expected one of"),
        (["pack", "SET", "--to", "png", "--dither"], "need --bits below 8"),
        (["pack", "SET", "--to", "png", "--dither", "--bits", "8"], "need --bits below 8"),
        (["pack", "SET", "--to", "png", "--encoding", "jpeg"], "--encoding jpeg: expected one of png, webp"),
        (["pack", "SET", "--to", "safetensors", "--encoding", "png"], "has no pictures"),
        (["pack", "SET", "--to", "png", "--shard-size", "1MiB"], "--to png has no shards: leave --shard-size out"),
        (["pack", "SET", "--to", "webdataset", "--shard-size", "many"], "--shard-size 'many' is not a size"),
        (["pack", "SET", "--to", "webdataset", "--shard-size", "0"], "--shard-size 0: expected 1 byte or more"),
        (["pack", "SET", "--to", "png", "--score"], "--score needs --data"),
        (["pack", "SET", "--to", "png", "--data", "digits"], "pass --score, or leave them out"),
        (["pack", "nowhere", "--to", "png"], "no synthetic set at nowhere"),
        (["unpack", "nowhere"], "no synthetic set at nowhere"),
        (["verify", "nowhere"], "no synthetic set at nowhere"),
        (["verify", "."], "no synthetic set at ."),
        (["verify", "SET", "--score"], "--score needs --data"),
        (["verify", "SET", "--compile", "off"], "pass --score, or leave them out"),
        (["verify", "SET", "--score", "--data", "digits"], "the set has the classes class 0, class 1, class 2"),
    ],
)
def test_bad_input(small: Path, arguments: list[str], says: str) -> None:
    before = sorted(Path().iterdir())
    message = refused(*[small if a == "SET" else a for a in arguments], says=re.escape(says))
    assert message.count("\n") == 1
    assert sorted(p for p in Path().iterdir() if p.name != "cache") == [p for p in before if p.name != "cache"]
