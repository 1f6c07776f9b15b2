"""Recipes and settings: what ships, what they say, precedence, and the errors of a mistyped one."""

import dataclasses
import json
from pathlib import Path

import pytest

from ncfmkit.config import (
    Settings,
    check,
    from_dict,
    full_key,
    load_recipe,
    override,
    recipe_description,
    recipe_names,
    recipe_text,
    to_dict,
)
from ncfmkit.errors import UserError

SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imagemeow", "imagesquawk", "imageyellow")
PAPER = (
    [f"{data}-ipc{ipc}" for data in ("cifar10", "cifar100", "tinyimagenet") for ipc in (1, 10, 50)]
    + [f"{data}-ipc{ipc}" for data in SUBSETS for ipc in (1, 10)]
    + [f"{data}-ipc{ipc}" for data in ("mnist", "fashion-mnist", "svhn") for ipc in (1, 10)]
)


@pytest.fixture
def recipe_file(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("recipe", recipe_names())
def test_shipped_recipe_loads_and_passes_the_checks(recipe: str) -> None:
    settings = check(load_recipe(recipe))
    assert settings.recipe == recipe
    assert recipe_text(recipe).startswith('description = "')
    assert recipe_description(recipe)
    assert "\n" not in recipe_description(recipe)


@pytest.mark.parametrize("recipe", recipe_names())
def test_settings_survive_json(recipe: str) -> None:
    settings = load_recipe(recipe)
    assert from_dict(json.loads(json.dumps(to_dict(settings)))) == settings


def test_every_setting_of_the_paper_ships() -> None:
    assert set(PAPER) <= set(recipe_names())


@pytest.mark.parametrize("recipe", PAPER)
def test_what_all_settings_of_the_paper_share(recipe: str) -> None:
    settings = load_recipe(recipe)
    distill = settings.distill
    assert distill.ipc == int(recipe.rpartition("ipc")[2])
    assert (distill.frequencies, distill.steps, distill.real_batch) == (1024, 20_000, 1024)
    assert (distill.factor, distill.decode, distill.init) == (2, "single", "mix")
    assert (distill.sampler, distill.sampler_lr, distill.sampler_momentum) == ("learned", 1e-3, 0.5)
    assert (distill.alpha, distill.matching_weight, distill.calibration_weight) == (0.5, 300.0, 1.0)
    assert (distill.patience, distill.augment) == (500, "color_crop_cutout")
    if recipe == "cifar100-ipc10":
        assert (distill.optimizer, distill.lr, distill.momentum) == ("sgd", 0.01, 0.5)
    else:
        assert (distill.optimizer, distill.lr, distill.weight_decay) == ("adamw", 1e-3, 5e-4)
    pool = settings.pool
    assert (pool.members, pool.lr, pool.momentum, pool.batch) == (20, 0.01, 0.9, 128)
    assert pool.epochs == (80 if settings.data.size == 128 else 60)
    student = settings.student
    assert student.epochs == {"tinyimagenet-ipc10": 300, "tinyimagenet-ipc50": 40}.get(recipe, 2000)
    assert (student.optimizer, student.lr, student.batch, student.repeats) == ("adamw", 1e-3, 128, 10)
    assert (settings.network.name, settings.network.width, settings.network.depth) == ("convnet", 128, None)


@pytest.mark.parametrize(
    ("recipe", "size", "color"),
    [
        ("cifar10-ipc1", 32, "rgb"),
        ("cifar100-ipc50", 32, "rgb"),
        ("tinyimagenet-ipc1", 64, "rgb"),
        ("mnist-ipc1", 28, "gray"),
        ("fashion-mnist-ipc10", 28, "gray"),
        ("svhn-ipc10", 32, "rgb"),
    ],
)
def test_images_of_a_setting(recipe: str, size: int, color: str) -> None:
    data = load_recipe(recipe).data
    assert (data.size, data.color, data.resize, data.classes) == (size, color, "none", ())


@pytest.mark.parametrize(
    ("subset", "first", "last"),  # WordNet ids, in label order
    [
        ("imagenette", "n01440764", "n03888257"),
        ("imagewoof", "n02096294", "n02105641"),
        ("imagefruit", "n07753275", "n07760859"),
        ("imagemeow", "n02123045", "n02127052"),
        ("imagesquawk", "n01806143", "n01819313"),
        ("imageyellow", "n02206856", "n01531178"),
    ],
)
def test_imagenet_subsets(subset: str, first: str, last: str) -> None:
    one, ten = (load_recipe(f"{subset}-ipc{ipc}").data for ipc in (1, 10))
    assert one == ten
    assert (one.size, one.color, one.resize) == (128, "rgb", "crop")
    assert len(set(one.classes)) == 10
    assert (one.classes[0], one.classes[-1]) == (first, last)


def test_own_file(recipe_file) -> None:
    path = recipe_file('description = "ours"\nseed = 5\n[distill]\nipc = 3\nlr = 1\n[data]\nclasses = [3, "cat"]\n')
    settings = load_recipe(path)
    assert (settings.recipe, settings.seed, settings.distill.ipc) == ("mine", 5, 3)
    assert settings.data.classes == ("3", "cat")
    assert type(settings.distill.lr) is float
    assert recipe_description(path) == "ours"


def test_precedence(recipe_file) -> None:
    path = recipe_file("[distill]\nipc = 3\nsteps = 7\n")
    recipe = load_recipe(path)
    assert (recipe.distill.ipc, recipe.distill.steps, recipe.distill.factor) == (3, 7, 2)
    flagged = override(recipe, {"distill.steps": "9"})
    assert (flagged.distill.ipc, flagged.distill.steps, flagged.distill.factor) == (3, 9, 2)
    assert recipe.distill.steps == 7, "settings do not change once made"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[distill]\nstep = 1\n", r"mine\.toml: unknown key 'distill\.step': did you mean 'distill\.steps'\?"),
        ("ipc = 1\n", r"unknown key 'ipc': did you mean 'distill\.ipc'\?"),
        ("epochs = 1\n", r"unknown key 'epochs': did you mean 'pool\.epochs' or 'student\.epochs'\?"),
        ("[distil]\n", r"unknown section \[distil\]: did you mean \[distill\]\?"),
        ("[distill]\nipc = 1.5\n", r"mine\.toml: distill\.ipc: expected int, got 1\.5"),
        ("[distill]\nipc = true\n", r"distill\.ipc: expected int, got True"),
        ("[distill]\nlr = 'fast'\n", r"distill\.lr: expected float, got 'fast'"),
        ("[data]\nclasses = 3\n", r"data\.classes: expected a list, got 3"),
        ("[data]\ncolor = 'grey'\n", r"data\.color: expected one of rgb, gray, got 'grey'; did you mean 'gray'\?"),
        ("description = 3\n", r"description: expected str, got 3"),
        ("[distill\n", r"recipe .*mine\.toml is not valid TOML: .*line 1"),
    ],
)
def test_errors_of_a_recipe(recipe_file, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file(text))


def test_description_of_a_broken_recipe_is_a_users_error(recipe_file) -> None:
    with pytest.raises(UserError, match="is not valid TOML"):
        recipe_description(recipe_file("="))


def test_recipe_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"bytes\.toml is not UTF-8 text"):
        load_recipe(str(path))


def test_unknown_recipes() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'cifar10-ipc5'; did you mean 'cifar10-ipc"):
        load_recipe("cifar10-ipc5")
    with pytest.raises(UserError, match=r"unknown recipe '###'; `ncfmkit recipes` lists them, a path ends in \.toml"):
        load_recipe("###")
    with pytest.raises(UserError, match=r"recipe file not found: nowhere/mine\.toml"):
        load_recipe("nowhere/mine.toml")


def test_bare_and_dotted_keys() -> None:
    assert full_key("ipc") == full_key("distill.ipc") == "distill.ipc"
    assert full_key("seed") == "seed"
    with pytest.raises(UserError, match=r"'epochs' is ambiguous: write one of pool\.epochs, student\.epochs"):
        full_key("epochs")
    with pytest.raises(UserError, match=r"unknown setting 'icp': did you mean 'ipc'\?"):
        full_key("icp")
    with pytest.raises(UserError, match=r"unknown setting 'distil\.ipc': did you mean 'distill\.ipc'\?"):
        full_key("distil.ipc")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "3", 3),
        ("distill.steps", "20_000", 20_000),
        ("distill.lr", "5e-4", 5e-4),
        ("data.size", "none", None),
        ("data.size", "64", 64),
        ("data.color", "gray", "gray"),
        ("data.color", "none", None),
        ("data.classes", "3, cat", ("3", "cat")),
        ("data.classes", "", ()),
        ("student.milestones", "0.5,0.75", (0.5, 0.75)),
        ("data.convert_color", "True", True),
        ("runtime.memory_budget", "2GiB", "2GiB"),
    ],
)
def test_flags_are_text_of_the_settings_type(key: str, text: str, value: object) -> None:
    settings = override(Settings(), {key: text})
    section, _, leaf = key.rpartition(".")
    assert getattr(getattr(settings, section) if section else settings, leaf) == value
    assert check(settings)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("distill.sampler", "lerned", r"expected one of gaussian, learned, got 'lerned'; did you mean 'learned'\?"),
        ("distill.steps", "1e3", r"distill\.steps: expected int, got '1e3'"),
        ("distill.steps", None, r"distill\.steps: expected int, got None"),
        ("data.convert_color", "yes", r"data\.convert_color: expected bool, got 'yes'"),
    ],
)
def test_errors_of_a_flag(key: str, text: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(Settings(), {key: text})


def test_the_defaults_pass() -> None:
    assert check(Settings()) == Settings()


def test_all_broken_rules_are_reported_at_once() -> None:
    broken = {
        "distill.ipc": 0,
        "distill.frequencies": 40,
        "distill.init": "load",
        "distill.lr": float("inf"),
        "data.resize": "crop",
        "data.classes": ("cat", "cat"),
        "network.depth": 0,
        "pool.cutmix": 2,
        "student.milestones": (0.8, 0.2),
    }
    with pytest.raises(UserError) as caught:
        check(override(Settings(), broken))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(broken)
    for key in broken:
        assert any(line.startswith(key) for line in lines), key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"load": "old.safetensors"}, r"distill\.load is given but distill\.init is 'mix'"),
        ({"decoded_per_class": 4}, r"distill\.decoded_per_class needs distill\.decode = 'bound', got 'single'"),
        ({"metric": "mean", "sampler": "learned"}, "'mean' has no frequencies to learn"),
        ({"size": 8, "factor": 9}, r"distill\.factor 9 is above the image side 8"),
        ({"holdout": 1.0}, r"data\.holdout: expected a fraction in \[0, 1\), got 1\.0"),
        ({"sampler": "learned", "frequencies": 16}, r"distill\.sampler 'learned' needs 32 frequencies or .* got 16"),
        ({"alpha": float("nan")}, r"distill\.alpha: expected a value in \[0, 1\], got nan"),
        ({"distill.lr": 1e39}, r"^distill\.lr: expected at most 1e\+30, .* float32 .*, got 1e\+39$"),
        ({"pool.weight_decay": 1e300}, r"^pool\.weight_decay: expected at most 1e\+30"),
        ({"student.lr": float("inf")}, r"^student\.lr: expected a finite number, got inf$"),
        ({"data.classes": ("cat",)}, r"^data\.classes: expected two classes or more .*, got \['cat'\]$"),
    ],
)
def test_rules_across_fields(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(override(Settings(), values))
