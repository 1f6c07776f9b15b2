"""Classes that are added to a set: it keeps the images that it has, and the new ones are made by its settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, succeeds
from PIL import Image
from small_runs import TINY, make_folder, set_bytes

import ncfmkit
from ncfmkit.jobs import distill as job
from ncfmkit.real.arguments import DataArguments
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import MetricsRow

HOW: dict[str, Any] = TINY | {
    "distill.ipc": 2,
    "distill.factor": 2,
    "distill.sampler": "gaussian",
    "data.holdout": 0.2,
    "runtime.compile": "off",
    "runtime.classes_per_batch": 1,
}


def distilled(data: Path, out: Path, **changes: Any) -> Path:
    return job.start(DataArguments(data=str(data)), recipe=None, out=out, baselines=(), overrides=changes)


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run on three classes."""
    photos = make_folder(tmp_path / "photos", {"cup": 30, "fork": 25, "plate": 30})
    return distilled(photos, tmp_path / "earlier", **HOW)


def more(folder: Path, *names: str) -> Path:
    """Adds classes to the pictures."""
    for number, name in enumerate(names):
        (folder / name).mkdir()
        rng = np.random.default_rng(100 + number)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


def images_by_class(run: Path) -> dict[str, torch.Tensor]:
    found = ncfmkit.load(run)
    return dict(zip(found.classes, found.images.split(found.ipc), strict=True))


def test_new_classes_are_added_and_the_others_stay(tmp_path: Path, earlier: Path) -> None:
    photos = more(tmp_path / "photos", "bowl", "knife")
    grown = distilled(photos, tmp_path / "grown", **{"distill.add_to": str(earlier), "runtime.device": "cpu"})
    before, after = images_by_class(earlier), images_by_class(grown)
    assert list(after) == ["bowl", "cup", "fork", "knife", "plate"]
    assert all(after[name].equal(before[name]) for name in before)
    assert json.loads((grown / "scores.json").read_text())["rows"]

    # the new images are those of a run of all classes with the same settings: a class does not see the others
    how = {key: value for key, value in HOW.items() if key != "data.holdout"}
    whole = images_by_class(distilled(photos, tmp_path / "whole", **how, **{"data.holdout": 0.2}))
    assert all(after[name].equal(whole[name]) for name in ("bowl", "knife"))
    assert not after["cup"].equal(whole["cup"])

    # how it came is said, without a path
    result = ncfmkit.load(grown)
    d = result.manifest.settings["distill"]
    assert (d["add_to"], d["new_classes"], d["ipc"]) == ("earlier", ["bowl", "knife"], 2)
    assert str(tmp_path).encode() not in set_bytes(grown)
    packed = tmp_path / "packed"
    succeeds("pack", grown, "--to", "parquet", "--license", "mit", "--out", packed)
    card = (packed / "README.md").read_text()
    assert (
        "Added to an earlier set (earlier): bowl, knife. The images of its other classes are those of that set" in card
    )


def test_a_class_that_is_gone_is_dropped_only_if_it_is_named(tmp_path: Path, earlier: Path) -> None:
    photos = more(tmp_path / "photos", "bowl")
    shutil.rmtree(photos / "fork")
    add = ["distill", photos, "--add-to", earlier, "--device", "cpu", "--out", tmp_path / "grown"]
    refused(*add, says=r"has no images of fork: .* --drop-classes fork")
    refused(*add, "--drop-classes", "fork,cup", says=r"--drop-classes cup: expected classes .* not have \(fork\)")
    succeeds(*add, "--drop-classes", "fork")
    before, after = images_by_class(earlier), images_by_class(tmp_path / "grown")
    assert list(after) == ["bowl", "cup", "plate"]
    assert after["plate"].equal(before["plate"])
    succeeds("pack", tmp_path / "grown", "--to", "parquet", "--license", "mit", "--out", tmp_path / "packed")
    assert "Classes of the earlier set that are left out: fork." in (tmp_path / "packed" / "README.md").read_text()


def test_what_does_not_fit_is_refused(tmp_path: Path, earlier: Path) -> None:
    add = ["distill", tmp_path / "photos", "--device", "cpu", "--out", tmp_path / "grown", "--add-to"]
    refused(*add, earlier, says="it has all classes of photos, so that none is new")
    more(tmp_path / "photos", "bowl")
    refused(*add, earlier, "--ipc", "3", says="its images have --ipc 2, not 3: leave --ipc and --recipe out")
    refused(*add, earlier, "--size", "16", "--resize", "crop", says=r"its images are of shape \(1, 8, 8\), those of")
    refused(*add, earlier, "--bytes", "1KB", says="as many images as the set has: leave --bytes out")
    says = "sets in 3 bits cannot grow, because they would be rounded again: pass --bits 8 --chroma 4:4:4"
    refused(*add, earlier, "--bits", "3", says=says)
    refused(*add, tmp_path / "nothing", says="nothing")
    refused("distill", "digits", "--drop-classes", "a", says="needs --add-to SET")
    in_place = ["distill", tmp_path / "photos", "--add-to", earlier, "--device", "cpu", "--out", earlier, "--force"]
    refused(*in_place, says="holds the set of --add-to, ")
    (tmp_path / "alias").symlink_to(tmp_path)
    through_a_link = [*in_place[:3], tmp_path / "alias" / "earlier", *in_place[4:]]
    refused(*through_a_link, says="holds the set of --add-to, ")
    from_it = ["--ipc", "2", "--init", "load", "--load", earlier, "--device", "cpu", "--out", earlier, "--force"]
    refused("distill", tmp_path / "photos", *from_it, says="holds the set of --load, ")
    packed = tmp_path / "packed"
    succeeds("pack", earlier, "--to", "safetensors", "--bits", "3", "--out", packed)
    refused(*add, packed, says="sets in 3 bits cannot grow, because they would be rounded again")
    assert not (tmp_path / "grown").exists()


def test_old_classes_may_have_few_images(tmp_path: Path, earlier: Path) -> None:
    """Fewer than are stored: nothing of theirs is drawn."""
    photos = more(tmp_path / "photos", "bowl")
    for picture in sorted((photos / "cup").iterdir())[3:]:
        picture.unlink()
    how = {"distill.add_to": str(earlier), "runtime.device": "cpu", "student.repeats": 0, "data.holdout": 0.5}
    after, before = images_by_class(distilled(photos, tmp_path / "grown", **how)), images_by_class(earlier)
    assert after["cup"].equal(before["cup"])
    assert after["bowl"].float().std() > 1


def test_an_interrupted_run_goes_on_with_the_same_earlier_set(tmp_path: Path, earlier: Path) -> None:
    photos, how = more(tmp_path / "photos", "bowl"), {"distill.add_to": str(earlier), "runtime.device": "cpu"}
    whole = distilled(photos, tmp_path / "whole", **how)

    def stop(row: MetricsRow) -> None:
        if row.step == 6:
            raise LookupError("enough")

    source = DataArguments(data=str(photos))
    with pytest.raises(LookupError):
        job.start(source, recipe=None, out=tmp_path / "cut", baselines=(), overrides=how, callback=stop)
    kept = (earlier / "synthetic.safetensors").read_bytes()
    shutil.copy(distilled(photos, tmp_path / "other", **HOW, seed=3) / "synthetic.safetensors", earlier)
    refused("distill", "--resume", tmp_path / "cut", says=r"the set .*earlier has changed since .*cut was started")
    (earlier / "synthetic.safetensors").write_bytes(kept)
    succeeds("distill", "--resume", tmp_path / "cut")
    assert set_bytes(tmp_path / "cut") == set_bytes(whole)


def test_new_classes_are_distilled_in_shards_too(tmp_path: Path, earlier: Path) -> None:
    photos = more(tmp_path / "photos", "bowl", "knife")
    how = {"distill.add_to": str(earlier), "runtime.device": "cpu", "distill.schedule": "cosine"}
    whole = distilled(photos, tmp_path / "whole", **how)
    parts = [distilled(photos, tmp_path / f"{k}", **how, **{"distill.shard": f"{k}/2"}) for k in (1, 2)]
    ncfmkit.merge(parts, out=tmp_path / "joined")
    assert set_bytes(tmp_path / "joined") == set_bytes(whole)
    assert RunDirectory(tmp_path / "joined").info().status == "done"
