"""The report of a run: pictures, scores, settings and provenance in one self-contained HTML file.

Everything here reads plain arrays and JSON files; nothing needs torch.

Shape letters: N images, C channels, H and W pixels.
"""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ncfmkit.config import Settings, to_dict
from ncfmkit.errors import UserError
from ncfmkit.files import write_atomic
from ncfmkit.progress import plural
from ncfmkit.reports.scores import (
    ABSENT,
    TEXT_COLUMNS,
    counted,
    mean_accuracy,
    percent,
    score_cells,
    score_columns,
    share_of_whole,
)
from ncfmkit.run import read_metrics


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
    template = Template((resources.files("ncfmkit.reports") / "page.html").read_text(encoding="utf-8"))
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
    return next((r for r in rows if r.get("set") == "distilled" and mean_accuracy(r, "last") is not None), None)


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
    figure = f"<strong>{escaped(percent(row, 'last'))}%</strong> test accuracy"
    share = share_of_whole(row, rows)
    whole = next((r for r in rows if r.get("set") == "whole" and r.get("network") == row.get("network")), None)
    if share is not None and whole is not None:
        figure += f", {100 * share:.1f}% of the accuracy with the whole set ({escaped(percent(whole, 'last'))}%)"
    students = "one student" if row.get("n") == 1 else f"{counted(row.get('n'))} students"
    how = (
        f"{row.get('network') or 'unknown network'}, {students}, after the last of {counted(row.get('epochs'))} epochs"
    )
    return "\n".join([*parts, f'<p class="score">{figure}</p>', f'<p class="soft">{escaped(how)}</p>'])


def _scores_html(run: dict[str, Any], scores: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    test = (run.get("data") or {}).get("test")
    columns, networks = score_columns(rows)
    caption = (
        f"Accuracy on {'the' if test is None else counted(test)} test images in percent, mean ± standard deviation of "
        f"n students{networks}. The last epoch is the result. The best epoch is selected on the test set; it is shown "
        "for comparison with papers that report it."
    )
    if scores.get("device"):
        caption += f" Measured on {scores['device']}."
    kind = {key: "text" if key in TEXT_COLUMNS else key for key in columns}
    head = "".join(f'<th scope="col" class="{kind[key]}">{escaped(label)}</th>' for key, label in columns.items())
    lines = []
    for row, cells in zip(rows, score_cells(rows), strict=True):
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
    return f"<h2>{escaped(title)}</h2>\n{figure_html(path.read_bytes(), kind, caption)}" if path.is_file() else ""


def figure_html(png: bytes, kind: str, caption: str) -> str:
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
    return f"{value:.3g}" if isinstance(value, float) else counted(value)


def _pool_html(pool: dict[str, Any]) -> str:
    accuracies = pool.get("accuracies") or []
    known = [a for a in accuracies if a is not None]
    if not accuracies:
        return ""
    text = plural(len(accuracies), "extractor")
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
