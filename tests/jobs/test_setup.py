"""Settings from flags and files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ncfmkit import networks
from ncfmkit.config import Settings, load_recipe, override, to_dict
from ncfmkit.errors import UserError
from ncfmkit.jobs import setup
from ncfmkit.real.store import RealData

pytestmark = pytest.mark.usefixtures("one_cache")


def test_class_lists_from_files(tmp_path: Path) -> None:
    listed, empty, binary = (tmp_path / n for n in ("classes.txt", "empty.txt", "binary"))
    listed.write_text("3\n\n 5 \n")
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    assert setup.make_settings("digits", None, {"data.classes": str(listed)}).data.classes == ("3", "5")
    assert setup.make_settings("digits", None, {"classes": "a, b"}).data.classes == ("a", "b")
    long = ",".join(f"class-{i:04d}" for i in range(1000))  # longer than any file name may be
    assert len(setup.make_settings("digits", None, {"data.classes": long}).data.classes) == 1000
    with pytest.raises(UserError, match="expected one class a line, got an empty file"):
        setup.make_settings("digits", None, {"data.classes": str(empty)})
    with pytest.raises(UserError, match="expected a text file with one class a line"):
        setup.make_settings("digits", None, {"data.classes": str(binary)})


@pytest.mark.parametrize("recipe", ["digits", "cifar10-ipc10-cpu"])
def test_another_network_has_its_own_width(recipe: str) -> None:
    """And not that of the recipe's network, which the user did not ask for."""
    own = load_recipe(recipe)
    asked = setup.make_settings("digits", recipe, {"network.name": "vit"})
    assert (asked.network.width, asked.network.depth) == (Settings().network.width, Settings().network.depth)
    networks.builder(asked.network, channels=1, classes=10, size=8)()
    assert asked.extractors == (asked.network,)
    assert setup.make_settings("digits", recipe, {"network.name": "convnet"}) == own
    wide = setup.make_settings("digits", recipe, {"network.name": "vit", "network.width": 7})
    with pytest.raises(UserError, match="fixed width"):
        networks.builder(wide.network, channels=1, classes=10, size=8)()
    students_alone = {"network.name": "convnetbn", "pool.networks": "convnet"}
    assert [one.name for one in setup.make_settings("digits", recipe, students_alone).extractors] == ["convnet"]
    mixed = {"network.name": "vit", "pool.networks": "convnet"}
    assert [one.name for one in setup.make_settings("digits", recipe, mixed).extractors] == ["convnet"]


def test_a_budget_that_leaves_stored_images_without_training_is_refused() -> None:
    bound = {"distill.decode": "bound", "distill.ipc": 3, "distill.factor": 2}
    for budget in ("none", 12, 13, 15):
        assert setup.make_settings("digits", None, bound | {"distill.decoded_per_class": budget})
    for budget in (1, 11, 16):
        with pytest.raises(UserError, match=rf"distill.decoded_per_class {budget}: .* expected 12 .* to 15 "):
            setup.make_settings("digits", None, bound | {"distill.decoded_per_class": budget})


def test_a_cpu_gets_cpu_sized_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = setup.make_settings("photos/", None, {"ipc": 1, "device": "cpu"})
    assert settings == override(load_recipe("cpu"), {"distill.ipc": 1, "runtime.device": "cpu"})
    said = capsys.readouterr().err
    assert "the device is a CPU: recipe cpu (pool of 4 x 8 epochs, 350 steps, 3 x 300 epochs per score)" in said
    assert "--recipe paper selects pool of 20 x 60 epochs, 20,000 steps, 10 x 2,000 epochs per score" in said


def test_the_cpu_recipe_is_that_of_cifar10_but_for_the_data_and_what_takes_long() -> None:
    own, cifar = (to_dict(load_recipe(name)) for name in ("cpu", "cifar10-ipc10-cpu"))
    assert cifar["network"].pop("depth") == 3  # by the size of the images; any data have their own
    assert own["network"].pop("depth") is None
    assert own["network"].pop("width") == cifar["pool"].pop("extractor_width") == 64
    assert cifar["network"].pop("width") == 128  # of the students
    assert own["pool"].pop("extractor_width") is None
    assert cifar["distill"].pop("steps") == 2 * own["distill"].pop("steps")
    for table in (own, cifar):
        del table["data"], table["recipe"]
    assert own == cifar


def test_the_gpu_recipe_is_that_of_cifar10_but_for_the_data() -> None:
    own, cifar = (to_dict(load_recipe(name)) for name in ("gpu", "cifar10-ipc10-gpu"))
    assert cifar["network"].pop("depth") == 3
    assert own["network"].pop("depth") is None
    for table in (own, cifar):
        del table["data"], table["recipe"]
    assert own == cifar


def test_a_gpu_gets_gpu_sized_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert setup.make_settings("photos/", None, {}) == load_recipe("gpu")
    said = capsys.readouterr().err
    assert "the device is a GPU: recipe gpu (pool of 12 x 10 epochs, 4,000 steps, 5 x 1,000 epochs per score)" in said
    assert "--recipe paper selects pool of 20 x 60 epochs" in said
    assert setup.make_settings("photos/", "paper", {}) == override(
        Settings(recipe="paper"), {"distill.sampler": "learned"}
    )
    assert setup.make_settings("photos/", None, {"runtime.device": "cpu"}).recipe == "cpu"


def test_a_recipe_of_the_user_or_of_the_data_comes_before_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.make_settings("digits", None, {}).recipe == "digits"
    assert setup.make_settings("photos/", "paper", {}).pool.members == 20
    assert capsys.readouterr().err == ""


def test_settings_of_soft_labels_need_them() -> None:
    """A recipe may have them for a user who asks for soft labels."""
    with pytest.raises(
        UserError, match=r"^--label-bits \(labels\.bits\) applies only to soft labels: add --soft-labels"
    ):
        setup.make_settings("digits", None, {"labels.bits": 4, "labels.top": 3})
    assert setup.make_settings("digits", None, {"labels.bits": 4, "labels.soft": True}).labels.bits == 4
    assert not setup.make_settings("digits", None, {"labels.soft": False}).labels.soft


def test_soft_labels_that_no_reader_takes_are_refused_before_anything_is_trained(
    make_real: Callable[..., RealData],
) -> None:
    real = make_real((1,) * 2000, size=8, channels=1)
    few = override(Settings(), {"distill.ipc": 1, "distill.bits": 2, "labels.soft": True, "labels.bits": 4})
    assert setup.resolve(few, real).labels.bits == 4  # of all classes
    with pytest.raises(UserError, match=r"^--label-bits 4 --top 5: soft labels of 2,000 classes are 16,000 bytes"):
        setup.resolve(override(few, {"labels.top": 5}), real)
    whole = {"labels.top": 5, "distill.bits": None, "distill.decode": "single", "distill.factor": 1}
    assert setup.resolve(override(few, whole), real).labels.top == 5
