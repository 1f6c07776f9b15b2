"""The dataset card of a package, README.md: what the set is, its accuracy, how it was made, how to load it.

Names in a manifest are untrusted text and are escaped, so that they are displayed and not interpreted. Settings and
conversion records may have any type: values that should be numbers and are not are shown as text.
"""

import html
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from ncfmkit.config import SECTIONS, DistillSettings, NetworkSettings, Settings, StudentSettings, known_names
from ncfmkit.files import format_bytes
from ncfmkit.mosaic import decode_factors
from ncfmkit.progress import plural, printable
from ncfmkit.reports.sections import Section
from ncfmkit.sets.manifest import BY_WORTH, Converted, Figure, Manifest, ManifestScore
from ncfmkit.sets.set_file import FILE_NAME
from ncfmkit.sets.synthetic import SyntheticSet
from ncfmkit.sets.views.records import View
from ncfmkit.sets.views.table import Layout

PAPER = "[Wang et al., CVPR 2025](https://arxiv.org/abs/2502.20653)"
MOST_CLASSES = 50  # names that are listed
LONGEST = 200  # characters of a name
LONGEST_SECTION = 5_000  # characters of what was measured
LARGEST = 1e15  # of a number that is formatted
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
# what the Hub knows of data and code licenses; others go by their name
KNOWN_LICENSES = {
    *(
        "apache-2.0",
        "mit",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "zlib",
        "unlicense",
        "wtfpl",
        "ncsa",
        "afl-3.0",
    ),
    *(
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "agpl-3.0",
        "gfdl",
        "mpl-2.0",
        "epl-2.0",
        "eupl-1.2",
    ),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0"),
    *("cdla-permissive-2.0", "odc-by", "odbl", "pddl", "etalab-2.0", "c-uda", "unknown", "other"),
}
PARTS = {"pixels": "pixels, packed", "levels": "levels of the pixels", "soft_labels": "soft labels"}
STARTS = {
    "mix": "mosaics of real images",
    "random": "real images",
    "noise": "noise",
    "load": "an earlier distilled set",
}
EXTRACTORS = {
    "blend": "each step draws one and blends it with its own initial weights",
    "stages": "each step draws one, at a stage of its training",
}
LAYOUT_FILES = {"parquet": "`data/train-*.parquet`", "webdataset": "`*.tar`", "png": "`train/`"}
FILES = {
    FILE_NAME: "the set, in one file",
    "read_set.py": "reads that file with numpy alone",
    "README.md": "this page",
    "preview.png": "the first stored images of every class",
    "ncfmkit.json": "the layout of this folder",
    "croissant.json": "this page for machines, in the Croissant format",
    "SHA256SUMS": "checksums of all files",
    "classes.txt": "class names, in label order",
}
LOAD_FILE = f"""from read_set import decoded, read

stored = read("{FILE_NAME}")  # checks every digest
images, labels = decoded(stored)
"""
LOAD_TORCH = f"""import torch
from read_set import normalized, read
from torch.utils.data import DataLoader, TensorDataset

stored = read("{FILE_NAME}")
images, labels = map(torch.from_numpy, normalized(stored))
loader = DataLoader(TensorDataset(images, labels), batch_size=128, shuffle=True)
"""
LOAD_VIEW = {  # by the library that a layout is for
    "datasets": """from pathlib import Path

from datasets import load_dataset

# of a repository on the Hub: its name instead of the path
rows = load_dataset(str(Path.cwd()), split="train").with_format("torch")[:]
images, labels = rows["image"]{one_channel}.float() / 255, rows["label"]
""",
    "webdataset": """import glob

import torch
import webdataset as wds

shards = wds.WebDataset(sorted(glob.glob("*.tar")), shardshuffle=False)
rows = list(shards.decode("torchrgb8").to_tuple("{encoding}", "cls"))
images = torch.stack([row[0] for row in rows]){one_channel}.float() / 255
labels = torch.tensor([row[1] for row in rows])
""",
    "torchvision": """import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

rows = ImageFolder("train", transform=pil_to_tensor)
images = torch.stack([image for image, _ in rows]){one_channel}.float() / 255
labels = torch.tensor(rows.targets)
""",
}
SOFT_LABELS = {
    "read_set": "`stored.soft_labels`",
    "datasets": '`rows["soft_labels"]`',
    "webdataset": "the `npy` of each sample",
    "torchvision": "the column `soft_labels` of `train/metadata.parquet`",
}


def card(
    result: SyntheticSet,
    view: View,
    layout: Layout,
    file_sizes: Mapping[str, int],
    assessed: Sequence[tuple[str, Section]] = (),
) -> str:
    """README.md of a package: YAML for the Hub and for `datasets`, then Markdown.

    Args:
        result: with the manifest of its file, in which sizes and digests are.
        view: the view of it in the package.
        layout: of the package.
        file_sizes: bytes of the package's files, by name.
        assessed: what `ncfmkit assess` found, each with its title; pictures, which may show real images, stay out.
    """
    sections = [
        _front_matter(result, view, layout),
        *_what(result),
        *_score(result.manifest),
        *_assessed(assessed),
        *_loading(result, view, layout),
        *_making(result),
        *_provenance(result.manifest),
        *_sizes(result),
        *_files(layout, view.encoding, file_sizes),
        *_limits(result.manifest),
        *_license(result.manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _text(value: Any, longest: int = LONGEST) -> str:
    """Somebody's text as Markdown that shows it in one line: no links, markup, HTML or formulas."""
    shown = printable(str(value)) or "(empty)"
    shown = html.escape(shown if len(shown) <= longest else shown[:longest] + "...", quote=False)
    shown = re.sub(r"([\\`*_\[\]{}()#!|~$@])", r"\\\1", shown).replace("://", r"\://")
    return re.sub(r"(?i)(www)\.", r"\1\\.", shown)


def _number(value: Any, spec: str = "") -> str:
    """As `spec` has it; text where a manifest holds no number, or a huge one."""
    is_number = type(value) in (int, float) and abs(value) < LARGEST
    return format(value, spec) if is_number else _text(value)


def _percent(score: ManifestScore, figure: Figure) -> str:
    """`61.9% ± 0.7`; one student has no deviation."""
    deviation = f" ± {figure.std * 100:.1f}" if score.n > 1 else ""
    return f"{figure.mean:.1%}{deviation}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _front_matter(result: SyntheticSet, view: View, layout: Layout) -> str:
    m = result.manifest
    rows = len(result) if layout.module is None else len(view)
    facts: dict[str, Any] = {"pretty_name": printable(m.name)}
    if m.source.license is None:
        facts["license"] = "unknown"
    else:
        slug = re.sub(r"[^a-z0-9.]+", "-", m.source.license.lower()).strip("-")
        facts |= {"license": slug} if slug in KNOWN_LICENSES else {"license": "other", "license_name": slug or "other"}
    facts |= {
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>10M")],
        "tags": ["dataset-distillation", "synthetic", "ncfmkit"],
    }
    if layout.module is not None:  # only the view is data, not the preview nor any JSON
        files = [{"split": "train", "path": layout.data_files()}]
        facts["configs"] = [{"config_name": "default", "data_files": files}]
        columns = layout.features(view)
        facts |= {} if columns is None else {"dataset_info": {"config_name": "default", "features": columns}}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---"


def _what(result: SyntheticSet) -> Iterator[str]:
    m = result.manifest
    count, channels, height, width = result.images.shape
    yield f"# {_text(m.name)}"
    yield (
        f"{count:,} synthetic images of {len(m.classes)} classes, {height} x {width} pixels, "
        f"{'gray' if channels == 1 else 'color'}, which stand for the {m.source.train_images:,} training images of "
        f"{_text(m.source.name)}. They were made by dataset distillation, so that a classifier trained only on them "
        "comes as close as possible to the accuracy of one trained on the real images. They are for training, not "
        "for viewing."
        + (f" {_mosaic_text(m)}" if _are_mosaics(m) else "")
        + (f" {_soft_text(m)}" if _is_soft(result) else "")
    )
    yield "![preview](preview.png)"
    yield f"Classes, in label order: {_class_list(m.classes)}."


def _are_mosaics(m: Manifest) -> bool:
    """Whether stored images are anything else than the images to train on."""
    return m.ipc.decoded != m.ipc.stored or m.decode.factor > 1


def _mosaic_text(m: Manifest) -> str:
    cuts = " and ".join(f"{f} x {f}" for f in decode_factors(m.decode.kind, m.decode.factor))
    return (
        f"The stored images, in `{FILE_NAME}`, are mosaics: {m.ipc.stored:,} per class are cut {cuts} and enlarged to "
        f"{m.ipc.decoded:,} per class to train on. All other files and the code below hold or give those."
    )


def _soft_text(m: Manifest) -> str:
    text = "Every training image has logits to train on instead of its label"
    labels, members = m.training.labels, m.training.pool.get("members")
    if not labels.get("soft"):
        return f"{text}.{_label_bits(m)}"
    return (
        f"{text}: the mean log-probability of {_number(members)} networks that were trained on the real images, at "
        f"temperature {_number(labels.get('temperature'), 'g')}.{_label_bits(m)}"
    )


def _label_bits(m: Manifest) -> str:
    if m.labels is None:
        return ""
    kept = f", those of the top {m.labels.top:,} classes and the mean of the others" if m.labels.top else ""
    return f" They are stored in {m.labels.bits} bits{kept}."


def _is_soft(result: SyntheticSet) -> bool:
    return result.soft_labels is not None


def _class_list(classes: tuple[str, ...]) -> str:
    shown = ", ".join(_text(name) for name in classes[:MOST_CLASSES])
    left = len(classes) - MOST_CLASSES
    return f"{shown} and {left:,} more (in the manifest)" if left > 0 else shown


def _score(m: Manifest) -> Iterator[str]:
    yield "## How good it is"
    score = m.score
    if score is None:
        original = m.pixels and m.pixels.original and m.pixels.original.score
        if original:
            reached = _percent(original, original.last)
            yield f"Not scored with its pixels as stored. The 8-bit set that it was made from reached {reached}."
        elif m.part_of and m.part_of.score:
            reached = _percent(m.part_of.score, m.part_of.score.last)
            yield f"Not scored. The set of {m.part_of.ipc:,} images per class that it is a part of reached {reached}."
        else:
            yield "Not scored."
        yield (
            "To score it, run `ncfmkit evaluate . --data DATA` with the real images: it trains students on the set and "
            "tests them on the real test images."
        )
        return
    head = ("test accuracy, last epoch", "best epoch", "students", "network", "epochs")
    row = (_percent(score, score.last), _percent(score, score.best), str(score.n), _text(score.network))
    yield _table(head, [(*row, f"{score.epochs:,}")])
    yield (
        f"{_students(score.n)}, trained only on this set, tested on real images. The last epoch is the score. The "
        "best epoch is selected on the test set; it is listed because published tables often have it."
    )


def _assessed(found: Sequence[tuple[str, Section]]) -> Iterator[str]:
    if found:
        yield "## What else was measured"
    for title, section in found:
        yield f"### {_text(title)}"
        yield _section_text(" ".join(section.sentences))
        for table in section.tables:
            yield _table(map(_section_text, table.columns), (map(_section_text, row) for row in table.rows))
            if table.caption:
                yield _section_text(table.caption)


def _section_text(text: str) -> str:
    return _text(text.replace("\u00a0", " "), LONGEST_SECTION) if text else ""


def _students(n: int) -> str:
    return f"Mean ± standard deviation over {n} students" if n > 1 else "One student"


def _loading(result: SyntheticSet, view: View, layout: Layout) -> Iterator[str]:
    m = result.manifest
    yield "## Loading it"
    yield (
        "Run inside this folder. Each snippet gives the training images, `images` in [0, 1], and their `labels`. "
        f"Networks expect images normalized with mean {_numbers(m.mean)} and standard deviation {_numbers(m.std)}."
    )
    sources = {"read_set": "with numpy"}
    if layout.module is not None:
        sources[layout.library] = f"with {layout.library}"
    yield "With numpy alone:"
    yield f"```python\n{LOAD_FILE}```"
    yield "With torch, normalized, as a `DataLoader`:"
    yield f"```python\n{LOAD_TORCH}```"
    if layout.module is not None:
        one_channel = "[:, :1]" if view.shape[0] == 1 else ""  # WebP and some readers make three of it
        code = LOAD_VIEW[layout.library].replace("{one_channel}", one_channel).replace("{encoding}", view.encoding)
        yield f"With {layout.library}:"
        yield f"```python\n{code}```"
    if _is_soft(result):
        places = "; ".join(f"{how}, {SOFT_LABELS[library]}" for library, how in sources.items())
        yield f"Soft labels, the logits of every training image: {places}."
    yield '`ncfmkit.load(".").decoded()` gives the same, and checks every digest.'


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _making(result: SyntheticSet) -> Iterator[str]:
    m = result.manifest
    converted, trained = m.source.converted, _known(m.settings | m.training.to_dict())
    yield "## How it was made"
    how = _distillation(_known(m.settings)) if converted is None else _conversion(converted)
    recipe = "Its training recipe" if converted is None else "ncfmkit's training recipe for it"
    yield _list([*how, *_pixels(m), _decoding(m), *_order(m), f"{recipe}: {_student(trained.student)}"])


def _known(kept: dict[str, Any]) -> Settings:
    """The settings of a manifest that are known here, of whatever types; those that are missing are the default."""
    sections, table = {}, known_names(kept)
    for section, kind in SECTIONS.items():
        sections[section] = kind(**table.get(section, {}))
    return Settings(**{key: table[key] for key in ("recipe", "seed") if key in table}, **sections)


def _conversion(converted: Converted) -> Iterator[str]:
    yield (
        f"Released by another project as {_text(converted.file)} (sha256 {_text(converted.sha256)}) and "
        f"converted by ncfmkit ({_text(converted.kind)}, values: {_text(converted.values)}). How it was "
        "distilled is not recorded here."
    )
    if converted.clipped.share:
        yield f"Values outside [0, 1] were clipped: {_number(converted.clipped.share, '.2%')} of them."


def _distillation(settings: Settings) -> Iterator[str]:
    d, p = settings.distill, settings.pool
    if d.add_to is not None:
        yield (
            f"Added to an earlier set ({_text(d.add_to)}): {_names(d.new_classes)}. The images of its other classes "
            "are those of that set; what follows is how the added ones were made."
        )
    if d.drop_classes:
        yield f"Classes of the earlier set that are left out: {_names(d.drop_classes)}."
    yield _method(d)
    yield (
        f"{_number(d.steps, ',')} steps with {_text(d.optimizer)}, lr {_number(d.lr, 'g')}, up to "
        f"{_number(d.real_batch, ',')} real images per class per step"
        + ("." if d.easiest == 1 else f", of the easiest {_number(d.easiest, '.0%')} of each class.")
    )
    yield (
        f"Features: {_number(p.members)} networks ({_networks(settings)}), trained on the real images for "
        f"{_number(p.epochs)} epochs; {EXTRACTORS.get(str(d.extractor), _text(d.extractor))}."
    )
    start = STARTS.get(str(d.init), _text(d.init))
    yield f"Started from {start}. Recipe {_text(settings.recipe)}, seed {_number(settings.seed)}."


def _method(d: DistillSettings) -> str:
    if d.metric == "mean":
        return (
            "Distribution matching: for each class, the mean features of synthetic images match those of real images."
        )
    if d.metric != "ncfd":
        return f"Matching by {_text(d.metric)}, which this version of ncfmkit does not know."
    drawn = "sampled by a network that learns where they differ most" if d.sampler == "learned" else "drawn at random"
    calibrated = (
        "; a calibration loss keeps the images recognizable to a trained network" if d.calibration_weight else ""
    )
    return (
        f"Neural characteristic function matching ({PAPER}): for each class, the characteristic functions of the "
        f"features of synthetic and real images are matched at {_number(d.frequencies, ',')} frequencies per step, "
        f"{drawn}{calibrated}."
    )


def _names(names: Any) -> str:
    """Some classes, of a manifest that may hold anything."""
    return ", ".join(map(_text, names[:MOST_CLASSES])) if isinstance(names, list | tuple) else _text(names)


def _networks(settings: Settings) -> str:
    """The extractors' architectures, of a manifest that may hold anything."""
    try:
        return ", ".join(map(_network, settings.extractors))
    except (TypeError, AttributeError):
        return _text(settings.pool.networks)


def _network(n: NetworkSettings) -> str:
    depth = "" if n.depth is None else f"-{_number(n.depth)}"
    return f"{_text(n.name)}{depth}" + (f" width {_number(n.width)}" if n.name in ("convnet", "convnetbn") else "")


def _pixels(m: Manifest) -> Iterator[str]:
    if m.pixels is not None:
        per = "each image and channel" if m.pixels.scale == "image" else "each channel"
        dithered = ", dithered" if m.pixels.dither else ""
        if m.pixels.bits < 8:
            yield f"Pixels are stored in {m.pixels.bits} bits instead of 8, between the levels of {per}{dithered}."
        if m.pixels.chroma is not None:
            yield (
                f"Color has half the resolution ({m.pixels.chroma}): luma of each pixel and two color differences of "
                "each 2 x 2 are stored."
            )


def _decoding(m: Manifest) -> str:
    if not _are_mosaics(m):
        return f"{m.ipc.stored:,} images per class, used for training without decoding."
    return (
        f"{m.ipc.stored:,} stored images per class are decoded to {m.ipc.decoded:,}: kind {m.decode.kind}, factor "
        f"{m.decode.factor}, bilinear."
    )


def _order(m: Manifest) -> Iterator[str]:
    if m.part_of is not None:
        yield f"These are the first stored images of each class of a set of {m.part_of.ipc:,} per class."
    if m.order == BY_WORTH and m.ipc.stored > 1:
        yield (
            "The stored images of a class are in the order of worth: the first of each class are a smaller set, which "
            "`ncfmkit pack . --to safetensors --ipc N` packs."
        )


def _student(s: StudentSettings) -> str:
    cutmix = f", CutMix in {_number(s.cutmix, '.0%')} of the batches" if s.cutmix else ""
    milestones = s.milestones if isinstance(s.milestones, list | tuple) else (s.milestones,)
    marks = ", ".join(_number(mark, ".0%") for mark in milestones)
    steps = f" (x {_number(s.gamma, 'g')} after {marks} of the run)" if s.milestones else ""
    return (
        f"{_number(s.epochs, ',')} epochs, batches of {_number(s.batch, ',')}, "
        f"{_text(s.optimizer)}, lr {_number(s.lr, 'g')}{steps}, weight decay {_number(s.weight_decay, 'g')}, "
        f"augmentation {_text(s.augment)}{cutmix}."
    )


def _provenance(m: Manifest) -> Iterator[str]:
    yield "## Where it comes from"
    rows = [
        ("source", _text(m.source.name)),
        ("training images", f"{m.source.train_images:,}"),
        ("fingerprint of the source", _text(m.source.fingerprint)),
        ("made by" if m.source.converted is None else "converted by", _text(m.tool)),
        ("sha256 of the manifest", m.manifest_sha256),
    ]
    yield _table(("", ""), rows)


def _sizes(result: SyntheticSet) -> Iterator[str]:
    m = result.manifest
    total = sum(m.bytes.values())
    raw = m.source.train_images * math.prod(result.images.shape[1:])
    yield "## How large it is"
    rows = [(PARTS.get(name, _text(name)), f"{size:,}") for name, size in sorted(m.bytes.items())]
    yield _table((f"part of `{FILE_NAME}`", "bytes"), [*rows, ("together", f"{total:,}")])
    yield f"Pixels and soft labels take {result.content_bytes / len(result.classes):,.0f} bytes per class."
    if raw:
        times = f"{raw / total:,.0f}" if raw >= 10 * total else f"{raw / total:.1f}"
        yield f"The source's training images are {format_bytes(raw)} as raw pixels of the same size, {times}x as much."


def _files(layout: Layout, encoding: str, file_sizes: Mapping[str, int]) -> Iterator[str]:
    yield "## What is in this folder"
    later = ("README.md", "croissant.json", "SHA256SUMS")  # this page, and what is written after it
    there = [name for name in FILES if name in file_sizes or name in later]
    rows = [(f"`{name}`", FILES[name], format_bytes(file_sizes[name]) if name in file_sizes else "") for name in there]
    others = [size for name, size in file_sizes.items() if name not in FILES]
    if others:
        what = f"images to train on as {encoding}"
        rows.append((LAYOUT_FILES[layout.name], what, f"{format_bytes(sum(others))}, {plural(len(others), 'file')}"))
    yield _table(("files", "what", "size"), rows)
    yield (
        "`sha256sum -c SHA256SUMS` checks every file; `ncfmkit verify .` also checks their content. No file is a "
        "pickle, and loading executes no code from them."
    )


def _limits(m: Manifest) -> Iterator[str]:
    yield "## What to keep in mind"
    figure = (
        f"The score is for one network ({_text(m.score.network)}) on one test set. Others may be less accurate."
        if m.score
        else "The accuracy of networks trained on this set has not been measured."
    )
    yield _list(
        [
            figure,
            "A classifier trained on it is usually less accurate than one trained on the real images.",
            "Bias, label errors and gaps of the source are in this set too, and can be stronger.",
            "It was made from real images and does not anonymize them: parts may be recognizable. Do not use it to "
            "circumvent restrictions on the use of the source, or to identify people.",
        ]
    )


def _license(m: Manifest) -> Iterator[str]:
    yield "## License"
    if m.source.license is None:
        yield (
            f"Not stated. The set is derived from the images of {_text(m.source.name)}, whose license applies: find it "
            "out before you use or share this set."
        )
        return
    yield (
        f"{_text(m.source.license)}: the license of the source, {_text(m.source.name)}, as stated when "
        "this set was packed. The set is derived from its images."
    )
