"""The jobs and commands of shipping: pack, unpack, verify."""

import dataclasses
import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, refused, succeeds
from conftest import build_real, build_set

from ncfmkit.config import RuntimeSettings, Settings, StudentSettings, to_dict
from ncfmkit.errors import CheckFailed, UserError
from ncfmkit.jobs.evaluate import Scoring, settings_for
from ncfmkit.jobs.pack import Quantization, pack
from ncfmkit.jobs.unpack import unpack
from ncfmkit.jobs.verify import verify
from ncfmkit.real.arguments import DataArguments
from ncfmkit.sets import loading, package, quantize, set_file
from ncfmkit.sets.package import Packing
from ncfmkit.sets.synthetic import SyntheticSet

PROMISED = {
    "network": "convnet-2 width 8",
    "epochs": 2,
    "n": 3,
    "last": {"mean": 0.6, "std": 0.05},
    "best": {"mean": 0.7, "std": 0.02},
}


@pytest.fixture(autouse=True)
def _here(own_folder: None) -> None:
    """Commands run in `tmp_path`."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    set_file.save(build_set(score=PROMISED), path)
    return path


class Scored:
    """Stands for `jobs.Scoring`: says this accuracy, and remembers what it was asked to score."""

    def __init__(self, mean: float, **overrides: Any):
        self.mean, self.overrides = mean, overrides
        self.seen: list[SyntheticSet] = []

    def __call__(self, result: SyntheticSet) -> tuple[dict[str, Any], Settings]:
        self.seen.append(result)
        row = PROMISED | {"last": {"mean": self.mean, "std": 0.01, "values": []}}
        return {"rows": [row]}, settings_for(result, self.overrides)


def test_what_pack_changes(small: Path, tmp_path: Path) -> None:
    """The license is the only thing that packing as such changes."""
    before = loading.load(small)
    out, packed = pack(small, packing=Packing(layout="png"))
    assert out == Path("tiny-ipc2-png")
    assert packed.manifest == before.manifest
    assert loading.load(out).manifest == before.manifest
    out, _ = pack(small, packing=Packing(layout="png", images="decoded"), license=" cc-by-4.0 ")
    assert out == Path("tiny-ipc2-png-decoded")
    got = loading.load(out).manifest
    assert got["source"] == before.manifest["source"] | {"license": "cc-by-4.0"}
    same = {k: v for k, v in got.items() if k not in ("source", "manifest_sha256")}
    assert same == {k: v for k, v in before.manifest.items() if k not in ("source", "manifest_sha256")}


def test_a_license_stays_with_the_set(small: Path, tmp_path: Path) -> None:
    first, _ = pack(small, packing=Packing(layout="webdataset"), license="mit")
    second, _ = pack(first, packing=Packing(layout="parquet"))  # not asked for again
    assert "license: mit" in (second / "README.md").read_text()


def test_packing_in_fewer_bits(small: Path) -> None:
    before = loading.load(small)
    how = Quantization(bits=4, scale="channel", dither=False)
    out, _ = pack(small, packing=Packing(layout="safetensors"), quantization=how)
    assert out == Path("tiny-ipc2-4bit-safetensors")
    got = loading.load(out)
    expected, levels = quantize.quantize(before.images.numpy(), bits=4, scale="channel", dither=False)
    assert torch.equal(got.images, torch.from_numpy(expected))
    assert torch.equal(got.levels, torch.from_numpy(levels))
    assert got.manifest["bytes"] == {"pixels": 6 * 96, "levels": 6, "labels": 48}
    assert got.manifest["score"] is None
    assert got.manifest["format"] == 2
    original = {"manifest_sha256": before.manifest["manifest_sha256"], "score": PROMISED}
    told = {"bits": 4, "scale": "channel", "dither": False, "shape": [3, 8, 8], "original": original}
    assert got.manifest["pixels"] == told
    with pytest.raises(UserError, match="--bits 2: the set is in 4 bits already: start from the one it was made from"):
        pack(out, packing=Packing(layout="png"), quantization=Quantization(bits=2))


def test_eight_bits_are_the_set_as_it_is(small: Path) -> None:
    out, packed = pack(small, packing=Packing(layout="png"), quantization=Quantization(bits=8))
    assert packed.manifest == loading.load(small).manifest
    assert loading.load(out).levels is None


def test_a_measured_score_is_promised(small: Path) -> None:
    measure = Scored(0.55, **{"student.epochs": 7, "runtime.compile": "off"})
    how = Quantization(bits=2)
    out, _ = pack(small, packing=Packing(layout="png"), quantization=how, score=measure)
    got = loading.load(out)
    assert got.manifest["score"] == PROMISED | {"last": {"mean": 0.55, "std": 0.01}}
    assert torch.equal(measure.seen[0].images, got.images)  # measured as it is packed
    before = loading.load(small).manifest["settings"]
    recipe = before | {"student": before["student"] | {"epochs": 7}}
    assert got.manifest["settings"] == recipe  # what reached the score, and nothing of this machine


def test_bad_input_is_found_before_students_are_trained(small: Path) -> None:
    measure = Scored(0.55)
    with pytest.raises(UserError, match="pass --license"):
        pack(small, packing=Packing(layout="parquet"), score=measure)
    Path("there").mkdir()
    with pytest.raises(UserError, match="there is there already"):
        pack(small, packing=Packing(layout="png"), out=Path("there"), score=measure)
    assert not measure.seen


@pytest.mark.parametrize("layout", ["safetensors", "webdataset", "png"])
@pytest.mark.parametrize("kind", [{}, {"soft": True}, {"bits": 3}])
def test_unpack_gives_the_same_file(tmp_path: Path, layout: str, kind: dict[str, Any]) -> None:
    path = tmp_path / "small.safetensors"
    set_file.save(build_set(score=PROMISED, **kind), path)
    out, _ = pack(path, packing=Packing(layout=layout))
    file, manifest = unpack(out)
    assert file == Path("tiny-ipc2.safetensors")
    assert file.read_bytes() == path.read_bytes()
    assert manifest == loading.load(path).manifest
    assert {p.name for p in tmp_path.iterdir()} == {"small.safetensors", out.name, "tiny-ipc2.safetensors"}


def test_unpack_overwrites_nothing_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    out, _ = pack(small, packing=Packing(layout="webdataset"))
    with pytest.raises(UserError, match=r"small.safetensors is there already: choose another --out"):
        unpack(out, small)
    with pytest.raises(UserError, match="there is no folder nowhere: make it first"):
        unpack(out, Path("nowhere/x.safetensors"))
    shard = next(out.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-700])
    with pytest.raises(UserError, match=r"is damaged: .*tar is damaged: its sha256"):
        unpack(out)
    assert {p.name for p in tmp_path.iterdir()} == {"small.safetensors", out.name}


def test_verify_says_what_it_found(small: Path) -> None:
    found = verify(small)
    assert found["problems"] == []
    assert found["manifest"]["name"] == "tiny-ipc2"
    assert "measured" not in found


def test_a_recipe_that_cannot_run_is_a_problem(tmp_path: Path) -> None:
    settings = to_dict(Settings())
    settings["student"]["epochs"] = 0
    set_file.save(build_set(settings=settings), tmp_path / "set.safetensors")
    with pytest.raises(CheckFailed, match=r"set.safetensors: 1 problem\n  its settings are not a recipe .*epochs"):
        verify(tmp_path / "set.safetensors")


@pytest.mark.parametrize(("mean", "holds"), [(0.7, True), (0.551, True), (0.549, False), (0.1, False)])
def test_the_promise_holds_within_its_deviation(small: Path, mean: float, holds: bool) -> None:
    measure = Scored(mean)
    if holds:
        found = verify(small, measure)
        assert found["promised"] == PROMISED
        assert found["measured"]["last"]["mean"] == mean
        return
    says = rf"its students reach {mean:.1%} \+- 1.0% \(n = 3\), promised are 60.0% \+- 5.0% \(n = 3\): expected 55.0%"
    with pytest.raises(CheckFailed, match=says) as failed:
        verify(small, measure)
    assert failed.value.result["measured"]["last"]["mean"] == mean


def test_there_must_be_a_promise(tmp_path: Path) -> None:
    measure = Scored(0.55)
    path = tmp_path / "set.safetensors"
    set_file.save(build_set(), path)
    with pytest.raises(
        UserError,
        match=r"promises no score to check: `ncfmkit pack .* --score --data DATA",
    ):
        verify(path, measure)
    set_file.save(build_set(score=PROMISED | {"n": 1}), path)
    with pytest.raises(UserError, match="of one student, which has no standard deviation"):
        verify(path, measure)
    assert not measure.seen


def test_the_score_is_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The students of `verify --score` are trained by the settings in the manifest, whatever the defaults."""
    recipe = StudentSettings(epochs=3, repeats=2, batch=16, evaluations=1)
    settings = to_dict(dataclasses.replace(Settings(seed=7, runtime=RuntimeSettings(compile="off")), student=recipe))
    settings["network"] = {"name": "convnet", "width": 8, "depth": 2}
    settings["distill"]["ipc"] = 2
    set_file.save(build_set(settings=settings, score=PROMISED | {"last": {"mean": 0, "std": 0}}), tmp_path / "set")
    monkeypatch.setattr(DataArguments, "open", lambda self, settings: build_real())
    arguments = DataArguments(data="tiny")
    found = verify(tmp_path / "set", Scoring(source=arguments, overrides={}))
    assert (found["measured"]["epochs"], found["measured"]["n"]) == (3, 2)
    other = verify(tmp_path / "set", Scoring(source=arguments, overrides={"student.epochs": 1}))
    assert other["measured"]["epochs"] == 1


def test_pack_verify_unpack_by_command(small: Path, tmp_path: Path) -> None:
    said = succeeds("pack", small, "--to", "parquet", "--license", "mit", "--out", "shipped").stdout
    assert re.match(r"shipped: parquet, 6 files, [\d.]+ KiB\ncheck it with `ncfmkit verify shipped`, or with", said)
    assert succeeds("verify", "shipped").stdout == (
        "shipped: tiny-ipc2 is intact; checked: SHA256SUMS, manifest, images, labels, recipe\n"
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
    assert "its score is unknown, since its pixels changed: pack it anew with --score --data DATA" in said
    told = succeeds("inspect", "tiny-ipc2-3bit-safetensors").stdout
    assert "package tiny-ipc2-3bit-safetensors" in told
    assert "safetensors, stored images" in told
    assert "3 bits, a range per image, dithered" in told
    said = json.loads(succeeds("inspect", "tiny-ipc2-3bit-safetensors", "--json").stdout)
    assert said["package"] == {"layout": "safetensors", "images": "stored", "encoding": None}


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_an_interruption_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    succeeds("pack", small, "--to", "png", "--out", "shipped")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = sorted(p.name for p in Path().iterdir())
    monkeypatch.setattr(set_file if command == "unpack" else package, "write_atomic", interrupted)
    arguments = ["pack", small, "--to", "webdataset"] if command == "pack" else ["unpack", "shipped"]
    refused(*arguments, says="interrupted: nothing was written", code=130)
    assert sorted(p.name for p in Path().iterdir()) == before


def test_verify_lists_all_and_exits_with_1(small: Path) -> None:
    succeeds("pack", small, "--to", "png", "--out", "shipped")
    folder = Path("shipped")
    (folder / "class 0" / "00000.png").write_bytes(b"broken")
    (folder / "class 1" / "00001.png").unlink()
    result = call("verify", folder)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "ncfmkit: shipped: 2 problems\n"
        "  class 1/00001.png is missing\n"
        "  class 0/00000.png is damaged: its sha256 is not that in SHA256SUMS\n"
    )
    result = call("verify", folder, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["problems"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pack", "SET", "--to", "zip"], "--to zip: expected one of safetensors, webdataset, parquet, png"),
        (["pack", "SET", "--to", "parquet"], "pass --license, such as --license mit"),
        (["pack", "SET", "--to", "png", "--license", " "], "--license ''"),
        (["pack", "SET", "--to", "png", "--license", "a\nb"], "expected one line"),
        (["pack", "SET", "--to", "png", "--bits", "7"], "--bits 7: expected one of 8, 6, 5, 4, 3, 2"),
        (["pack", "SET", "--to", "png", "--bits", "4", "--scale", "pixel"], "--scale pixel: expected one of"),
        (["pack", "SET", "--to", "png", "--dither"], "pass --bits below 8"),
        (["pack", "SET", "--to", "png", "--dither", "--bits", "8"], "pass --bits below 8"),
        (["pack", "SET", "--to", "png", "--encoding", "jpeg"], "--encoding jpeg: expected one of png, webp"),
        (["pack", "SET", "--to", "safetensors", "--decoded"], "--to safetensors has no pictures: leave --decoded"),
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


def test_a_full_disk_while_unpacking(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = pack(small, packing=Packing(layout="png"))
    before = {p.name for p in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loading, "_gathered", full)
    with pytest.raises(UserError, match=r"tiny-ipc2-png cannot be unpacked in \.: No space left on device"):
        unpack(out)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_loaded_set_does_not_change_with_its_file(small: Path) -> None:
    """A file that is mapped and gets shorter would end the process."""
    result = loading.load(small)
    images = result.images.clone()
    with open(small, "r+b") as file:
        file.truncate(100)
    assert torch.equal(result.images, images)
