"""What a run shows people: the contact sheet, the curves, the score table and one self-contained HTML page.

Everything here reads plain arrays and JSON files; nothing needs torch.

Shape letters: N images, C channels, H and W pixels.
"""

import base64
import html
import io
import itertools
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table
from rich.text import Text

from ncfmkit.config import Settings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.files import write_atomic

MAX_CLASS_ROWS = 100  # rows of a contact sheet
MIN_SHOWN = 64  # pixels: smaller images are enlarged by the least whole factor that reaches this
MAX_SHOWN = 192  # pixels: larger images are averaged down by a whole factor to below this
MAX_NAME = 180  # pixels of a class name in a contact sheet, longer ones end in an ellipsis
GAP = 4  # pixels between the images of a contact sheet
MAX_LR_MARKS = 40  # an lr that changes more often is a schedule, not a series of events
ABSENT = "–"


# ---- contact sheet ----------------------------------------------------------------------------------------------


def contact_sheet(
    images_NCHW: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], *, per_class: int = 10
) -> Image.Image:
    """One row per class, its name at the left, its first `per_class` images in the order given.

    Small images are enlarged by a whole factor, pixel by pixel; those of `MAX_SHOWN` pixels or more are averaged down.
    Classes after the first `MAX_CLASS_ROWS` are counted in a line below.

    Args:
        images_NCHW: uint8, 1 or 3 channels.
        labels_N: integers, places in `classes`.

    Raises:
        ValueError: other shapes, types or labels.
    """
    _check_images(images_NCHW, labels_N, classes, per_class)
    shown = [np.flatnonzero(labels_N == c)[:per_class] for c in range(min(len(classes), MAX_CLASS_ROWS))]
    columns = max((len(row) for row in shown), default=0)
    most = int(np.bincount(labels_N.astype(np.int64), minlength=1).max()) if len(labels_N) else 0
    cell_h, cell_w = _cell_size(*images_NCHW.shape[2:])
    font = _font(13)
    names = [_fit(name, font) for name in classes[: len(shown)]]
    left = GAP + max((math.ceil(font.getlength(name)) for name in names), default=0) + 2 * GAP
    notes = []
    if most > columns:
        notes.append(f"the first {columns} of up to {most:,} images per class")
    if len(classes) > len(shown):
        notes.append(f"{len(classes) - len(shown):,} more classes are not shown")

    note = "; ".join(notes)
    width = max(left + columns * (cell_w + GAP), GAP * 2 + math.ceil(font.getlength(note)))
    height = GAP + len(shown) * (cell_h + GAP) + (24 if note else 0)
    gray = images_NCHW.shape[1] == 1
    sheet = Image.new("L" if gray else "RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (name, row) in enumerate(zip(names, shown, strict=True)):
        top = GAP + r * (cell_h + GAP)
        draw.text((GAP, top + cell_h / 2), name, fill="#444444", font=font, anchor="lm")
        for c, index in enumerate(row):
            sheet.paste(_cell(images_NCHW[index]), (left + c * (cell_w + GAP), top))
    if note:
        draw.text((GAP, height - 12), note, fill="#444444", font=font, anchor="lm")
    return sheet


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


def _check_images(images_NCHW: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], per_class: int) -> None:
    shape = images_NCHW.shape
    if images_NCHW.dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"a contact sheet expects uint8 images [N, 1 or 3, H, W], got {images_NCHW.dtype} {shape}")
    if labels_N.shape != shape[:1]:
        raise ValueError(f"a contact sheet expects one label per image, got {labels_N.shape} for {shape[0]} images")
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < len(classes):
        raise ValueError(f"labels {labels_N.min()}..{labels_N.max()} do not fit {len(classes)} class names")
    if per_class < 1:
        raise ValueError(f"per_class: expected 1 or more, got {per_class}")


def _scale(height: int, width: int) -> tuple[int, int]:
    """Whole factors to enlarge and to shrink by."""
    side = max(height, width)
    return max(1, math.ceil(MIN_SHOWN / side)), side // (MAX_SHOWN // 2) if side >= MAX_SHOWN else 1


def _cell_size(height: int, width: int) -> tuple[int, int]:
    up, down = _scale(height, width)
    return math.ceil(height * up / down), math.ceil(width * up / down)


def _cell(image_CHW: np.ndarray) -> Image.Image:
    up, down = _scale(*image_CHW.shape[1:])
    enlarged = image_CHW.repeat(up, axis=1).repeat(up, axis=2)
    picture = Image.fromarray(enlarged[0] if len(enlarged) == 1 else enlarged.transpose(1, 2, 0).copy())
    return picture.reduce(down) if down > 1 else picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: unlike Pillow's own font it has Greek, Cyrillic and accents."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _fit(name: str, font: ImageFont.FreeTypeFont) -> str:
    """`name` on one line and at most `MAX_NAME` pixels wide."""
    name = "".join(c if c.isprintable() else " " for c in name[:200])
    if font.getlength(name) <= MAX_NAME:
        return name
    while font.getlength(name + "…") > MAX_NAME:
        name = name[:-1]
    return name.rstrip() + "…"


def terminal_preview(images_NCHW: np.ndarray, labels_N: np.ndarray, *, columns: int = 80) -> Text:
    """The first image of as many classes as fit on one line, two pixels to a character, in 24-bit colour.

    Args:
        images_NCHW: uint8, 1 or 3 channels; images above 32 pixels are reduced.
        columns: width of the terminal in characters.
    """
    first = [images_NCHW[np.flatnonzero(labels_N == label)[0]] for label in np.unique(labels_N)]
    step = max(1, -(-images_NCHW.shape[-1] // 32))
    shown = [np.broadcast_to(image, (3, *image.shape[1:]))[:, ::step, ::step] for image in first]
    fit = max(1, columns // (shown[0].shape[-1] + 1))
    picture = Text(no_wrap=True)
    for top in range(0, shown[0].shape[1], 2):
        for image in shown[:fit]:
            for x in range(image.shape[2]):
                upper, lower = image[:, top, x], image[:, min(top + 1, image.shape[1] - 1), x]
                colors = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (upper, lower)]
                picture.append("\u2580", style=f"{colors[0]} on {colors[1]}")
            picture.append(" ")
        picture.append("\n")
    return picture


# ---- metrics and curves -----------------------------------------------------------------------------------------


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a last line cut short by a crash is passed over, no file means no rows.

    Raises:
        UserError: a line before the last is not a JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError:
            if number == len(lines):
                break
            raise UserError(
                f"{path} line {number}: expected a JSON object, got {line[:60]!r}: mend or delete it"
            ) from None
        rows.append(row)
    return rows


def curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draws the losses of `metrics` against the step: thin the values, thick their running mean, dotted a change of lr.

    The calibration panel is left out where no row has a calibration loss; no rows give a picture that says so.
    """
    # matplotlib takes a third of a second to import, and commands that only print a table need none of it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("matching", "matching loss"), ("calibration", "calibration loss")]
    panels = [p for p in panels if any(row.get(p[0]) is not None for row in metrics)]
    figure = Figure(figsize=(8, 0.7 + 2.3 * max(len(panels), 1)), dpi=160, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    if panels:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (key, label) in zip(axes, panels, strict=True):
            _draw_loss(axis, metrics, key, label)
        _mark_lr(axes, metrics)
        axes[-1].set_xlabel("step", fontsize=9, color="#444444")
    else:
        figure.text(0.5, 0.5, "no steps were run", ha="center", va="center", fontsize=12, color="#444444")
    png = io.BytesIO()
    canvas.print_png(png)
    write_atomic(path, png.getvalue())


def _draw_loss(axis: Any, metrics: list[dict[str, Any]], key: str, label: str) -> None:
    points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None and math.isfinite(row[key])]
    axis.set_ylabel(label, fontsize=9, color="#444444")
    axis.tick_params(which="both", labelsize=8, color="#999999", labelcolor="#444444")
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    if not points:
        axis.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=axis.transAxes, fontsize=9)
        return
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    single = {"marker": "o", "markersize": 4} if len(values) == 1 else {}
    axis.plot(steps, values, color="#8fb3d9", linewidth=0.6)
    axis.plot(steps, _smooth(values), color="#1f5a99", linewidth=1.6, **single)
    if values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")


def _smooth(values_N: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the run; the window is cut off at the ends, not padded."""
    half = len(values_N) // 40
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    low = np.maximum(np.arange(len(values_N)) - half, 0)
    high = np.minimum(np.arange(len(values_N)) + half + 1, len(values_N))
    return (sums[high] - sums[low]) / (high - low)


def _mark_lr(axes: Any, metrics: list[dict[str, Any]]) -> None:
    rates = [(row["step"], row["lr"]) for row in metrics if row.get("lr") is not None]
    if not rates:
        return
    first, last = rates[0], rates[-1]
    changes = [now for before, now in itertools.pairwise(rates) if now[1] != before[1]]
    title = f"lr {first[1]:.3g} throughout"
    if changes:
        title = f"lr {first[1]:.3g} at first, {last[1]:.3g} at last"
    axes[0].set_title(title, fontsize=8, color="#666666", loc="left")
    if len(changes) > MAX_LR_MARKS:
        return
    labelled = -math.inf
    for step, rate in changes:
        for axis in axes:
            axis.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        if step - labelled > 0.025 * (last[0] - first[0]):
            labelled = step
            axes[0].annotate(
                f"lr {rate:.3g}",
                (step, 1),
                (2, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                ha="left",
                va="top",
                fontsize=7,
                color="#666666",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )


# ---- scores -----------------------------------------------------------------------------------------------------

SCORE_COLUMNS = {
    "set": "set",
    "network": "network",
    "epochs": "epochs",
    "images": "images stored",
    "decoded": "trained on",
    "last": "accuracy %, last epoch",
    "share": "% of whole set",
    "n": "n",
    "best": "best epoch (peeks at the test set)",
}
SHORT_COLUMNS = {  # for a terminal of 80 columns; the caption says what they are
    "images": "stored",
    "decoded": "trained on",
    "last": "last",
    "share": "% of whole",
    "best": "best*",
}
TEXT_COLUMNS = ("set", "network")


def score_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `scores.json` for a terminal. Accuracies are percent, mean ± standard deviation of n students."""
    columns, networks = _score_columns(rows)
    caption = (
        f"last: test accuracy in percent after the last epoch, mean ± standard deviation of n students{networks}\n"
        "best*: the same of the best epoch (peeks at the test set)"
    )
    all_cells = _score_cells(rows)
    if "network" in columns:  # below the label: a column of its own would leave too little to both
        all_cells = [cells | {"set": f"{cells['set']}\n{cells['network']}"} for cells in all_cells]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
    table.caption, table.caption_justify = Text(f"\n{caption}"), "left"
    shown = {key: SHORT_COLUMNS.get(key, header) for key, header in columns.items() if key != "network"}
    for key, header in shown.items():
        if key in TEXT_COLUMNS:
            table.add_column(header)
        else:  # figures are never broken, so that a narrow terminal wraps the labels
            width = max(map(len, [*header.split(), *(cells[key] for cells in all_cells)]))
            table.add_column(textwrap.fill(header, width), justify="right", no_wrap=True)
    for row, cells in zip(rows, all_cells, strict=True):
        table.add_row(*(Text(cells[key]) for key in shown), style="bold" if row.get("set") == "distilled" else "")
    return table


def _score_columns(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, str], str]:
    """The columns to show, and what the caption says of a network that all rows share: it needs no column."""
    networks = {row.get("network") for row in rows}
    if len(networks) != 1:
        return SCORE_COLUMNS, ""
    (network,) = networks
    return {k: v for k, v in SCORE_COLUMNS.items() if k != "network"}, f", {network}" if network else ""


def _score_cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "set": str(row.get("label") or row.get("set") or ABSENT),
            "network": str(row.get("network") or ABSENT),
            "epochs": _count(row.get("epochs")),
            "images": _count(row.get("images")),
            "decoded": _count(row.get("decoded")),
            "last": _accuracy(row, "last"),
            "share": "" if (share := _share(row, rows)) is None else f"{100 * share:.1f}",
            "n": _count(row.get("n")),
            "best": _accuracy(row, "best"),
        }
        for row in rows
    ]


def _share(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> float | None:
    """Accuracy over that of the same network trained on the whole set; none where there is no such row."""
    whole = [r for r in rows if r.get("set") == "whole" and r.get("network") == row.get("network")]
    part, of = _mean(row, "last"), _mean(whole[0], "last") if whole else None
    return part / of if row.get("set") != "whole" and part is not None and of else None


def _mean(row: dict[str, Any], epoch: str) -> float | None:
    mean = (row.get(epoch) or {}).get("mean")
    return mean if mean is not None and math.isfinite(mean) else None


def _accuracy(row: dict[str, Any], epoch: str) -> str:
    """`89.3 ± 0.4`, never broken across lines; a single student has no deviation."""
    mean, std, n = _mean(row, epoch), (row.get(epoch) or {}).get("std"), row.get("n")
    if mean is None:
        return ABSENT
    if n == 1 or std is None or not math.isfinite(std):
        return f"{100 * mean:.1f}"
    return f"{100 * mean:.1f}\u00a0±\u00a0{100 * std:.1f}"


def _count(value: Any) -> str:
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else str(value)


# ---- the page ---------------------------------------------------------------------------------------------------


def write_report(folder: Path) -> Path:
    """Writes `folder/report.html` from the run's other files and returns its path.

    One file without scripts or external addresses. Only `run.json` must exist; what a run has not made yet is left out.

    Raises:
        UserError: no `run.json`, or a file that is not the JSON it should be.
    """
    run = _read_json(folder / "run.json")
    if run is None:
        raise UserError(f"{folder} has no run.json: expected a directory that `ncfmkit distill` wrote")
    scores = _read_json(folder / "scores.json") or {}
    metrics = read_metrics(folder / "metrics.jsonl")
    rows = scores.get("rows") or []
    title = _title(run, rows)
    body = [
        f"<h1>{escaped(title)}</h1>",
        _headline(run, rows),
        _scores_html(run, scores, rows),
        _picture(folder / "preview.png", "preview", "The set", "One row per class, images as they are stored"),
        _picture(folder / "curves.png", "curves", "Losses", _losses(metrics)),
        _settings_html(run.get("settings")),
        _pool_html(run.get("pool") or {}),
        _provenance_html(run, scores, rows),
    ]
    return write_page(folder / "report.html", title, body)


def write_page(path: Path, title: str, body: Sequence[str]) -> Path:
    """Writes one self-contained page; `body` are pieces of HTML, empty ones are left out."""
    template = Template((resources.files("ncfmkit") / "report.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escaped(title), body="\n".join(part for part in body if part))
    write_atomic(path, page.encode())
    return path


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def escaped(value: Any) -> str:
    """As text of a page."""
    return html.escape(str(value))


def _distilled(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next((r for r in rows if r.get("set") == "distilled" and _mean(r, "last") is not None), None)


def _title(run: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """`digits: 10 images stand for 1,347`, or as much of it as is known."""
    data = run.get("data") or {}
    name = data.get("name") or "distillation run"
    ipc = ((run.get("settings") or {}).get("distill") or {}).get("ipc")
    images = (_distilled(rows) or {}).get("images")
    if images is None and ipc and data.get("classes"):
        images = ipc * len(data["classes"])
    if images is None or data.get("train") is None:
        return str(name)
    return f"{name}: {images:,} image{'s stand' if images != 1 else ' stands'} for {data['train']:,}"


def _headline(run: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    parts = []
    if run.get("status") not in (None, "done"):
        parts.append(f'<p class="notice">This run is not finished (status: {escaped(run["status"])}).</p>')
    row = _distilled(rows)
    if row is None:
        return "\n".join([*parts, '<p class="soft">Not scored yet.</p>'])
    figure = f"<strong>{escaped(_accuracy(row, 'last'))}%</strong> test accuracy"
    share = _share(row, rows)
    whole = next((r for r in rows if r.get("set") == "whole" and r.get("network") == row.get("network")), None)
    if share is not None and whole is not None:
        figure += f", {100 * share:.1f}% of what the whole set reaches ({escaped(_accuracy(whole, 'last'))}%)"
    students = "one student" if row.get("n") == 1 else f"{_count(row.get('n'))} students"
    how = f"{row.get('network') or 'unknown network'}, {students}, after the last of {_count(row.get('epochs'))} epochs"
    return "\n".join([*parts, f'<p class="score">{figure}</p>', f'<p class="soft">{escaped(how)}</p>'])


def _scores_html(run: dict[str, Any], scores: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    test = (run.get("data") or {}).get("test")
    columns, networks = _score_columns(rows)
    caption = (
        f"Accuracy on {'the' if test is None else _count(test)} test images in percent, mean ± standard deviation of n "
        f"students{networks}. The last epoch is the result. The best epoch was picked by looking at the test set: it "
        "only serves to compare with papers that report it."
    )
    if scores.get("device"):
        caption += f" Measured on {scores['device']}."
    kind = {key: "text" if key in TEXT_COLUMNS else key for key in columns}
    head = "".join(f'<th scope="col" class="{kind[key]}">{escaped(label)}</th>' for key, label in columns.items())
    lines = []
    for row, cells in zip(rows, _score_cells(rows), strict=True):
        tr = '<tr class="distilled">' if row.get("set") == "distilled" else "<tr>"
        tds = (
            f'<td class="{kind[key]}" data-label="{escaped(label)}">{escaped(cells[key])}</td>'
            for key, label in columns.items()
        )
        lines.append(f"{tr}{''.join(tds)}</tr>")
    return (
        f'<h2>Scores</h2>\n<table class="scores"><caption>{escaped(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody></table>"
    )


def _picture(path: Path, kind: str, title: str, caption: str) -> str:
    return f"<h2>{escaped(title)}</h2>\n{figure(path.read_bytes(), kind, caption)}" if path.is_file() else ""


def figure(png: bytes, kind: str, caption: str) -> str:
    """A picture inside the page; `kind` is its class there, `preview` or `curves`."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="{kind}"><img alt="{escaped(caption)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escaped(caption)}</figcaption></figure>'
    )


def _losses(metrics: Sequence[dict[str, Any]]) -> str:
    if not metrics:
        return "No steps were run"
    first, last = metrics[0], metrics[-1]
    parts = [
        f"{key} loss {first[key]:.4g} at step {first['step']:,}, {last[key]:.4g} at step {last['step']:,}"
        for key in ("matching", "calibration")
        if first.get(key) is not None and last.get(key) is not None
    ]
    return "Thin: as logged; thick: running mean over a twentieth of the run. " + "; ".join(parts).capitalize()


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _settings_html(settings: dict[str, Any] | None) -> str:
    if not settings:
        return ""
    used, default = _flat(settings), _flat(to_dict(Settings()))
    changed = {key: value for key, value in used.items() if key not in default or default[key] != value}
    rest = {key: value for key, value in used.items() if key not in changed}
    parts = ["<h2>Settings</h2>"]
    if changed:
        rows = "\n".join(
            f"<tr><td>{escaped(key)}</td><td>{escaped(_setting(value))}</td>"
            f"<td>{escaped(_setting(default[key]) if key in default else ABSENT)}</td></tr>"
            for key, value in changed.items()
        )
        head = "".join(f'<th scope="col">{name}</th>' for name in ("changed setting", "value", "default"))
        parts.append(f'<table class="settings"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>')
    if rest:
        rows = "\n".join(f"<tr><td>{escaped(k)}</td><td>{escaped(_setting(v))}</td></tr>" for k, v in rest.items())
        parts.append(
            f"<details><summary>{len(rest)} settings at their defaults</summary>\n"
            f'<table class="settings"><tbody>\n{rows}\n</tbody></table></details>'
        )
    return "\n".join(parts)


def _setting(value: Any) -> str:
    """A value as people read it: `none`, `0.667, 0.833`."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_setting, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else _count(value)


def _pool_html(pool: dict[str, Any]) -> str:
    accuracies = pool.get("accuracies") or []
    known = [a for a in accuracies if a is not None]
    if not accuracies:
        return ""
    text = f"{len(accuracies)} extractor{'s' if len(accuracies) != 1 else ''}"
    if known:
        text += f", test accuracy {100 * sum(known) / len(known):.1f}% on average"
    if len(known) > 1:
        text += f", from {100 * min(known):.1f}% to {100 * max(known):.1f}%"
    members = " · ".join(ABSENT if a is None else f"{100 * a:.1f}" for a in accuracies)
    return f'<h2>Extractor pool</h2>\n<p>{text}</p>\n<p class="soft">{members}</p>'


def _provenance_html(run: dict[str, Any], scores: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    data, pool, timings = run.get("data") or {}, run.get("pool") or {}, run.get("timings") or {}
    versions = {"ncfmkit": run.get("ncfmkit")} | (run.get("versions") or {})
    distilling = None
    if timings.get("distill_seconds") is not None:
        distilling = _duration(timings["distill_seconds"])
        if timings.get("steps"):
            each = 1000 * timings["distill_seconds"] / timings["steps"]
            distilling += f" for {timings['steps']:,} steps, {each:.3g} ms each"
    scoring = sum(row.get("seconds") or 0 for row in rows)
    facts = {
        "Data": _data(data),
        "Classes": ", ".join(map(str, data.get("classes") or [])),
        "Fingerprint": data.get("fingerprint"),
        "Command": run.get("command"),
        "Seed": run.get("seed"),
        "Device": run.get("device"),
        "Precision": run.get("precision"),
        "Compiled": None
        if run.get("compile") is None
        else "yes"
        if run["compile"] is True
        else _setting(run["compile"]),
        "Pool": pool.get("key"),
        "Pretraining": None if pool.get("seconds") is None else _duration(pool["seconds"]),
        "Distilling": distilling,
        "Scoring": f"{_duration(scoring)} on {scores.get('device') or 'an unnamed device'}" if scoring else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    return facts_html("Provenance", facts, code=("Fingerprint", "Command", "Pool"))


def facts_html(title: str, facts: dict[str, Any], *, code: Sequence[str]) -> str:
    """A heading and facts by name, those in `code` set as code; without the empty ones, and nothing if all are."""
    items = "\n".join(
        f"<dt>{escaped(name)}</dt><dd>{f'<code>{escaped(value)}</code>' if name in code else escaped(value)}</dd>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<h2>{escaped(title)}</h2>\n<dl>\n{items}\n</dl>" if items else ""


def _data(data: dict[str, Any]) -> str:
    parts = [str(data["name"])] if data.get("name") else []
    if data.get("train") is not None:
        parts.append(f"{data['train']:,} training images")
    if data.get("test") is not None:
        parts.append(f"{data['test']:,} test images")
    if data.get("size"):
        parts.append(f"{data['size']} × {data['size']} pixels")
    if data.get("channels"):
        parts.append({1: "gray", 3: "RGB"}.get(data["channels"], f"{data['channels']} channels"))
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
    )
