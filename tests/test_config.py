"""Recipes and settings: what ships, what they say, precedence, and the errors of a mistyped one."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ncfmkit.config import (
    SECTIONS,
    SETTINGS,
    Settings,
    TrainSettings,
    check,
    from_dict,
    full_key,
    load_recipe,
    override,
    recipe_description,
    recipe_names,
    recipe_text,
    settings_page,
    to_dict,
)
from ncfmkit.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
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


# how the paper trains an extractor of the pool, and a student (docs/method.md, sections 3, 6 and 8)
TRAINING: dict[str, tuple[object, object]] = {
    #              pool           student
    "optimizer": ("sgd", "adamw"),
    "lr": (0.01, 1e-3),
    "momentum": (0.9, 0.9),  # of SGD alone
    "weight_decay": (5e-4, 5e-4),  # the released students have torch's 0.01: see section 10
    "batch": (128, 128),
    "milestones": ((2 / 3, 5 / 6), (0.2, 0.4, 0.6, 0.8)),
    "gamma": (0.2, 0.5),
    "augment": ("color_crop", "color_crop_flip_scale_rotate"),
    "cutmix": (0.5, 0.5),
}


@pytest.mark.parametrize("recipe", ["default", *PAPER])
def test_training_is_that_of_the_paper(recipe: str) -> None:
    settings = Settings() if recipe == "default" else load_recipe(recipe)
    for key, (pool, student) in TRAINING.items():
        assert (getattr(settings.pool, key), getattr(settings.student, key)) == (pool, student), key
    assert (settings.pool.members, settings.student.repeats) == (20, 10)
    assert TRAINING.keys() == {f.name for f in dataclasses.fields(TrainSettings)} - {"epochs"}


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
    assert settings.pool.epochs == (80 if settings.data.size == 128 else 60)
    assert settings.student.epochs == {"tinyimagenet-ipc10": 300, "tinyimagenet-ipc50": 40}.get(recipe, 2000)
    assert (settings.network.name, settings.network.width, settings.network.depth) == ("convnet", 128, None)


# what the paper reports without soft labels, which no recipe trains with: best epoch, %, with learned frequencies
WITHOUT_SOFT_LABELS = {
    "cifar10-ipc10": 68.9,
    "cifar10-ipc50": 77.4,
    "cifar100-ipc50": 54.4,
    "tinyimagenet-ipc1": 12.0,
    "tinyimagenet-ipc10": 24.3,
    "tinyimagenet-ipc50": 26.5,
    "imagefruit-ipc10": 41.4,
    "imagemeow-ipc10": 54.4,
    "imagesquawk-ipc10": 70.8,
    "imageyellow-ipc10": 69.2,
}


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_recipe_promises_no_more_than_the_paper_reaches_in_that_way(recipe: str) -> None:
    description = recipe_description(recipe)
    of_the_paper = recipe in PAPER and not recipe.startswith(("mnist", "fashion-mnist", "svhn"))
    assert ("the paper's setting (the paper, without soft labels: " in description) == of_the_paper
    figures = [float(figure) for figure in re.findall(r"([\d.]+) ?%", description)]
    assert figures == [WITHOUT_SOFT_LABELS[name] for name in (recipe,) if name in WITHOUT_SOFT_LABELS]
    if of_the_paper:
        assert ("no figure" in description) == (recipe not in WITHOUT_SOFT_LABELS)


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
        ("[distill]\nstep = 1\n", r"mine\.toml: unknown key 'distill\.step'; did you mean 'distill\.steps'\?"),
        ("ipc = 1\n", r"unknown key 'ipc'; did you mean 'distill\.ipc'\?"),
        ("epochs = 1\n", r"unknown key 'epochs'; did you mean 'pool\.epochs' or 'student\.epochs'\?"),
        ("[distil]\n", r"unknown section \[distil\]; did you mean \[distill\]\?"),
        ("[gpu]\n", r"unknown section \[gpu\]; expected one of data, network, pool, distill, labels, student, runtime"),
        ("[distill]\nwindow = 1\n", r"unknown key 'distill\.window'; `python -m ncfmkit\.config` lists all settings"),
        ("[distill]\nipc = 1.5\n", r"mine\.toml: --ipc \(distill\.ipc\): expected a whole number, got 1\.5"),
        ("[distill]\nipc = true\n", r"--ipc \(distill\.ipc\): expected a whole number, got True"),
        ("[distill]\nlr = 'fast'\n", r"--lr \(distill\.lr\): expected a number, got 'fast'"),
        ("[data]\nclasses = 3\n", r"--classes \(data\.classes\): expected a list, got 3"),
        (
            "[data]\ncolor = 'grey'\n",
            r"--color \(data\.color\): expected one of rgb, gray, got 'grey'; did you mean 'gray'\?",
        ),
        ("description = 3\n", r"description: expected text, got 3"),
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
    with pytest.raises(
        UserError, match=r"unknown recipe '###'; `ncfmkit recipes` lists them, the path of a recipe file"
    ):
        load_recipe("###")
    with pytest.raises(UserError, match=r"recipe file not found: nowhere/mine\.toml"):
        load_recipe("nowhere/mine.toml")


def test_bare_and_dotted_keys() -> None:
    assert full_key("ipc") == full_key("distill.ipc") == "distill.ipc"
    assert full_key("seed") == "seed"
    with pytest.raises(UserError, match=r"'epochs' is ambiguous: write one of pool\.epochs, student\.epochs"):
        full_key("epochs")
    with pytest.raises(UserError, match=r"unknown setting 'icp'; did you mean 'distill\.ipc'\?"):
        full_key("icp")
    with pytest.raises(UserError, match=r"unknown setting 'distil\.ipc'; did you mean 'distill\.ipc'\?"):
        full_key("distil.ipc")
    with pytest.raises(UserError, match=r"^unknown setting 'dropout'; `python -m ncfmkit\.config` lists all settings$"):
        full_key("dropout")


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
        (
            "distill.sampler",
            "lerned",
            r"^--sampler \(distill\.sampler\): expected one of gaussian, learned, got 'lerned'; did you mean 'lea",
        ),
        ("distill.steps", "1e3", r"^--steps \(distill\.steps\): expected a whole number, got '1e3'"),
        ("distill.steps", None, r"^--steps \(distill\.steps\): expected a whole number, got None"),
        ("distill.patience", "soon", r"^distill\.patience: expected a whole number, got 'soon'"),
    ],
)
def test_errors_of_a_flag(key: str, text: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(Settings(), {key: text})


def test_the_defaults_pass() -> None:
    assert check(Settings()) == Settings()


def test_every_setting_is_described() -> None:
    fields = [f"{section}.{f.name}" for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)]
    assert list(SETTINGS) == ["seed", *fields]
    defaults = to_dict(Settings())
    for key, about in SETTINGS.items():
        assert about.help, key
        assert "{" not in f"{about.help}{about.flag}", key
        default = list(about.default) if isinstance(about.default, tuple) else about.default
        assert default == (defaults[about.section][key.split(".")[1]] if "." in key else defaults[key])
        assert (about.range is not None) == (about.kind in (int, float, tuple[float, ...])), key


def test_the_students_settings_have_the_pools_descriptions() -> None:
    pool, student = SETTINGS["pool.epochs"], SETTINGS["student.epochs"]
    assert (pool.default, student.default) == (60, 2000)
    assert (pool.flag, student.flag) == ("--pool-epochs", "--student-epochs")
    assert pool.unit == student.unit
    assert pool.help.replace("pool", "student") == student.help


# key: what is just allowed, what is just not; written down apart from the descriptions
BOUNDS: dict[str, tuple[list, list]] = {
    "seed": ([0, 2**40], [-1]),
    "data.size": ([4, None], [3]),
    "data.holdout": ([0.0, 0.999], [-0.001, 1.0]),
    "data.imbalance": ([1.0], [0.999]),
    "network.width": ([1], [0]),
    "network.depth": ([1, None], [0]),
    "pool.members": ([1], [0]),
    "distill.ipc": ([1], [0]),
    "distill.bits": ([2, 8, None], [1, 9]),
    "distill.bits_from": ([0.0, 1.0], [-0.001, 1.001]),
    "distill.factor": ([1, 64], [0, 65]),
    "distill.decoded_per_class": ([1, None], [0]),
    "distill.steps": ([0], [-1]),
    "distill.matching_weight": ([0.0], [-0.001]),
    "distill.alpha": ([0.0, 1.0], [-0.001, 1.001]),
    "distill.frequencies": ([16, 32], [0, 8, 24, -16]),
    "distill.sampler_lr": ([0.0], [-0.001]),
    "distill.sampler_momentum": ([0.0, 0.999], [-0.001, 1.0]),
    "distill.calibration_weight": ([0.0], [-0.001]),
    "distill.real_batch": ([1], [0]),
    "distill.lr": ([1e-9], [0.0]),
    "distill.easiest": ([1e-9, 1.0], [0.0, 1.001]),
    "distill.momentum": ([0.0, 0.999], [-0.001, 1.0]),
    "distill.weight_decay": ([0.0], [-0.001]),
    "distill.patience": ([1], [0]),
    "distill.warmup": ([0], [-1]),
    "distill.average": ([0.0, 0.999], [-0.001, 1.0]),
    "distill.calibration_stages": ([1, None], [0]),
    "pool.snapshots": ([0, 59], [-1]),
    "pool.extractor_width": ([1, None], [0]),
    "labels.temperature": ([1e-9], [0.0]),
    "labels.stages": ([1], [0]),
    "labels.bits": ([4, 8, 16], [0, 6, 20]),
    "labels.top": ([0], [-1]),
    "student.repeats": ([0], [-1]),
    "student.evaluations": ([1], [0]),
    "student.whole_epochs": ([1, None], [0]),
    "runtime.classes_per_batch": ([1, None], [0]),
    "runtime.rank_timeout": ([1e-9], [0.0]),
    "runtime.checkpoint_every": ([1], [0]),
}
for trained in ("pool", "student"):
    BOUNDS |= {
        f"{trained}.epochs": ([1], [0]),
        f"{trained}.batch": ([1], [0]),
        f"{trained}.lr": ([1e-9], [0.0]),
        f"{trained}.momentum": ([0.0, 0.999], [-0.001, 1.0]),
        f"{trained}.weight_decay": ([0.0], [-0.001]),
        f"{trained}.milestones": ([(), (0.001, 0.999)], [(0.0,), (0.5, 1.0)]),
        f"{trained}.gamma": ([1e-9, 2.0], [0.0]),
        f"{trained}.cutmix": ([0.0, 1.0], [-0.001, 1.001]),
    }
FLOATS = [key for key, (allowed, _) in BOUNDS.items() if isinstance(allowed[0], float)]


def test_the_bounds_are_those_of_all_numbers() -> None:
    assert set(BOUNDS) == {key for key, about in SETTINGS.items() if about.range}
    assert set(FLOATS) == {key for key, about in SETTINGS.items() if about.kind is float}


@pytest.mark.parametrize("key", BOUNDS)
def test_bounds_of_a_number(key: str) -> None:
    base = override(Settings(), {"distill.decode": "bound"})
    if key == "distill.calibration_stages":
        base = override(base, {"distill.extractor": "stages", "pool.snapshots": 1})
    allowed, refused = BOUNDS[key]
    for value in allowed:
        assert check(override(base, {key: value}))
    for value in refused:
        with pytest.raises(UserError) as caught:
            check(override(base, {key: value}))
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{SETTINGS[key].name}: expected ")
        assert line.endswith(f" got {value[-1] if isinstance(value, tuple) else value}")
        limits = SETTINGS[key].range
        assert limits is not None
        for bound in (limits.at_least, limits.at_most, limits.below):
            assert bound is None or str(bound) in line.partition("expected")[2]


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.001e30])
def test_numbers_that_float32_cannot_reckon_with(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(SETTINGS[key].name)}: expected .* got {re.escape(str(value))}$"):
        check(override(Settings(), {key: value}))


def test_the_page_of_the_docs_is_that_of_the_descriptions() -> None:
    path = ROOT / "docs" / "settings.md"
    assert path.read_text(encoding="utf-8") == settings_page(), "run `python -m ncfmkit.config > docs/settings.md`"
    command = [sys.executable, "-W", "error", "-m", "ncfmkit.config"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout == path.read_bytes()


def test_the_page_of_the_docs_says_what_is_described() -> None:
    rows = {line.split("`")[1]: line for line in settings_page().splitlines() if line.startswith("| `")}
    assert list(rows) == list(SETTINGS)
    for text in ("`--ipc`", "whole number", "`10`", "1 or more", "images per class"):
        assert text in rows["distill.ipc"]
    for text in ("`rgb`, `gray`, `none`", "`--color`"):
        assert text in rows["data.color"]
    assert all(line.count(" | ") == 6 for line in rows.values()), "a bar within a cell"


@pytest.mark.parametrize(
    ("old", "new"),
    [("distill.decoded_budget", "distill.decoded_per_class"), ("runtime.stack", "runtime.classes_per_batch")],
)
def test_settings_saved_under_an_older_name(old: str, new: str) -> None:
    saved = to_dict(override(Settings(), {new: 3}))
    section, leaf = old.split(".")
    saved[section][leaf] = saved[section].pop(new.split(".")[1])
    assert from_dict(saved) == override(Settings(), {new: 3})
    assert leaf in saved[section], "what is read is left as it was"


def test_settings_saved_with_a_setting_that_is_gone() -> None:
    saved = to_dict(Settings())
    saved["data"]["convert_color"] = True
    assert from_dict(saved) == Settings()
    assert saved["data"]["convert_color"], "what is read is left as it was"


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
        assert any(line.startswith(SETTINGS[key].name) for line in lines), key


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"init": "load"}, ["distill.init", "'load'", "distill.load"]),
        ({"load": "old.safetensors"}, ["distill.load", "--init", "distill.init", "'mix'"]),
        ({"drop_classes": ("a",)}, ["distill.drop_classes", "--add-to"]),
        ({"new_classes": ("a",)}, ["distill.new_classes", "--add-to"]),
        ({"add_to": "a", "init": "load", "load": "b"}, ["distill.add_to", "--init load"]),
        ({"decoded_per_class": 4}, ["distill.decoded_per_class", "distill.decode", "'bound'", "'single'"]),
        (
            {"metric": "mean", "sampler": "learned"},
            ["distill.sampler", "'learned'", "--metric", "distill.metric", "'ncfd'", "'mean'"],
        ),
        ({"resize": "crop"}, ["data.resize", "'crop'", "data.size"]),
        ({"size": 8, "factor": 9}, ["distill.factor", "--factor", "9", "8"]),
        ({"sampler": "learned", "frequencies": 16}, ["distill.sampler", "'learned'", "32", "16"]),
        ({"distill.lr": 1e39}, ["distill.lr", "1e+30", "float32", "1e+39"]),
        ({"student.lr": float("inf")}, ["student.lr", "finite", "inf"]),
        ({"data.classes": ("cat",)}, ["data.classes", "two", "['cat']"]),
        ({"data.classes": ("cat", "dog", "cat")}, ["data.classes", "twice", "cat"]),
        ({"pool.milestones": (0.8, 0.2)}, ["pool.milestones", "rising", "[0.8, 0.2]"]),
        ({"student.milestones": (0.8, 0.2)}, ["student.milestones", "rising", "[0.8, 0.2]"]),
        ({"pool.epochs": 8, "pool.snapshots": 8}, ["pool.snapshots", "8: expected fewer than", "8 (--pool-epochs"]),
        ({"distill.extractor": "stages"}, ["distill.extractor", "'stages' needs --snapshots"]),
        ({"distill.stage_order": "rising"}, ["distill.stage_order", "needs --extractor", "got 'blend'"]),
        ({"distill.calibration_stages": 3}, ["distill.calibration_stages", "needs --extractor", "got 'blend'"]),
        ({"labels.stages": 3, "pool.snapshots": 1}, ["labels.stages", "3: expected at most 2"]),
        ({"labels.bits": 12}, ["labels.bits", "12: expected 16, 8 or 4"]),
        ({"labels.top": 3}, ["labels.top", "needs --label-bits (labels.bits) 8 or 4"]),
        (
            {"network.name": "alexnet", "pool.extractor_width": 8},
            ["pool.extractor_width", "needs an extractor 'convnet', got alexnet"],
        ),
        ({"pool.networks": ("alexnet", "alexnet")}, ["pool.networks", "listed twice in alexnet, alexnet"]),
        ({"pool.networks": ("convnet", "alexnet"), "pool.members": 1}, ["pool.members", "expected 2 or more"]),
        (
            {"pool.networks": ("convnet", "alexnet"), "distill.sampler": "learned"},
            ["distill.sampler", "'learned' needs extractors of one width of features"],
        ),
    ],
)
def test_broken_rules(values: dict, says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(override(Settings(), values))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(SETTINGS[says[0]].name)
    assert all(text in line for text in says), line


@pytest.mark.parametrize(
    "values",
    [
        {"init": "load", "load": "old.safetensors"},
        {"decode": "bound", "decoded_per_class": 4},
        {"metric": "mean", "sampler": "gaussian"},
        {"resize": "crop", "size": 8, "factor": 8},
        {"sampler": "learned", "frequencies": 32},
        {"data.classes": ("cat", "dog")},
    ],
)
def test_settings_that_go_together(values: dict) -> None:
    assert check(override(Settings(), values))
