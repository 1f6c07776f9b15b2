"""One run, many sizes: the images of a class are stored in the order of worth, however the run came to its end."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import TINY, make_folder, set_bytes, start

import ncfmkit
from ncfmkit.config import from_dict
from ncfmkit.distillation.pool import open_pool
from ncfmkit.images import labeled
from ncfmkit.jobs import distill as job
from ncfmkit.networks import network_builder
from ncfmkit.real.arguments import DataArguments
from ncfmkit.run import RunDirectory
from ncfmkit.run_records import MetricsRow
from ncfmkit.runtime import choose_runtime

IPC = 6
HOW: dict[str, Any] = {"distill__ipc": IPC, "student__repeats": 0, "distill__steps": 12}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCFMKIT_CACHE", str(folder / "cache"))
        return start(folder / "run", **HOW)


def checkpointed(run: Path) -> torch.Tensor:
    """The images of the last step, as bytes, in the order in which they were distilled."""
    state = RunDirectory.open(run).load_checkpoint()
    assert state is not None
    return state["images"].mul(255).round().to(torch.uint8)


def test_a_set_holds_the_images_of_the_last_step_in_another_order(run: Path) -> None:
    result = ncfmkit.load(run)
    assert result.manifest.order == "worth"
    moved = 0
    for got, before in zip(result.images.split(IPC), checkpointed(run).split(IPC), strict=True):
        places = [[n for n in range(IPC) if before[n].equal(image)] for image in got]
        assert sorted(n for found in places for n in found) == list(range(IPC))
        moved += places != [[n] for n in range(IPC)]
    assert moved > 5


def test_the_first_images_match_the_real_ones_better_than_the_last(run: Path) -> None:
    """By the NCFD to all real images, in numpy, on features of an extractor that the order does not come from."""
    info = RunDirectory.open(run).info()
    settings = from_dict(info.settings)
    real = DataArguments(data="digits").open(settings)
    other = dataclasses.replace(settings.pool, members=1)
    runtime = choose_runtime(settings.runtime)
    pool = open_pool(real, settings.extractors, other, seed=settings.seed + 1, runtime=runtime)
    network = network_builder(settings.extractors[0], real)()
    network.load_state_dict(pool.final[0])

    def features(images: torch.Tensor) -> np.ndarray:
        shown = (images.float() / 255 - real.mean[0]) / real.std[0]
        with torch.no_grad():
            found = network.features(shown).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    freq = np.random.default_rng(0).normal(size=(512, features(ncfmkit.load(run).images[:1]).shape[1]))

    def phi(images: torch.Tensor) -> np.ndarray:
        return np.exp(1j * features(images) @ freq.T).mean(0)

    data = labeled(real, real.train)
    of_real = [phi(torch.from_numpy(np.asarray(data.images)[data.labels.numpy() == c])) for c in range(10)]

    def distance(count: int, *, last: bool = False) -> float:
        classes = ncfmkit.load(run).images.split(IPC)
        chosen = [images[-count:] if last else images[:count] for images in classes]
        return float(np.mean([abs(a - phi(b)).mean() for a, b in zip(of_real, chosen, strict=True)]))

    for count in (1, 2, 3):
        assert distance(count) < 0.97 * distance(count, last=True)
    assert ncfmkit.load(run, ipc=2).images.equal(torch.cat([c[:2] for c in ncfmkit.load(run).images.split(IPC)]))


def test_a_resumed_run_ends_in_the_same_order(tmp_path: Path) -> None:
    """Stopped before its last step, and after it: the easiest images are not looked for again."""
    how = {**HOW, "distill__ipc": 3, "distill__easiest": 0.5}
    whole = start(tmp_path / "whole", **how)
    for step in (5, 12):

        def stop(row: MetricsRow, step: int = step) -> None:
            if row.step == step:
                raise LookupError("enough")

        out = tmp_path / f"stopped-{step}"
        overrides = TINY | {key.replace("__", "."): value for key, value in how.items()}
        with pytest.raises(LookupError, match="enough"):
            job.start(
                DataArguments(data="digits"), recipe=None, out=out, baselines=(), overrides=overrides, callback=stop
            )
        job.resume(out)
        assert set_bytes(out) == set_bytes(whole)


def grow(photos: Path, earlier: Path, out: Path) -> ncfmkit.SyntheticSet:
    """With the settings of the earlier set."""
    how = {"distill.add_to": str(earlier), "student.repeats": 0, "runtime.device": "cpu"}
    return ncfmkit.load(job.start(DataArguments(data=str(photos)), recipe=None, out=out, baselines=(), overrides=how))


def test_classes_that_are_added_are_in_order_too(tmp_path: Path) -> None:
    how: dict[str, Any] = {"distill__ipc": 3, "data__holdout": 0.2, "student__repeats": 0}
    how |= {"distill__sampler": "gaussian", "runtime__classes_per_batch": 1}  # then a class does not see the others
    photos = make_folder(tmp_path / "photos", {"cup": 30, "fork": 25})
    earlier = start(tmp_path / "earlier", str(photos), **how)
    make_folder(photos, {"plate": 28})
    before, after = ncfmkit.load(earlier), grow(photos, earlier, tmp_path / "grown")
    assert (before.manifest.order, after.manifest.order) == ("worth", "worth")
    assert after.images[:6].equal(before.images)
    whole = ncfmkit.load(start(tmp_path / "whole", str(photos), **how))
    assert after.images[6:].equal(whole.images[6:])

    # where the earlier set does not say that it is in order, the new one does not either
    unsorted = tmp_path / "unsorted.safetensors"
    ncfmkit.save(dataclasses.replace(before, manifest=before.manifest.changed(order=None)), unsorted)
    assert grow(photos, unsorted, tmp_path / "grown-unsorted").manifest.order is None

    # a part of a set grows to the size of the part
    part = tmp_path / "part.safetensors"
    ncfmkit.save(ncfmkit.load(earlier, ipc=2), part)
    small = grow(photos, part, tmp_path / "small")
    assert small.ipc == 2
    assert small.images[:4].equal(ncfmkit.load(earlier, ipc=2).images)
    assert small.manifest.part_of is None
