"""Results as tables, as a plot, and as docs/performance.md, which `python -m benchmarks.page` writes.

The page is made of the newest result of every device in benchmarks/results/, and of nothing else.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts import PARTS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
AXIS_NAMES = {
    "ipc": "stored images per class",
    "classes": "classes",
    "real_batch": "real batch per class",
    "frequencies": "frequencies",
    "side": "side in pixels",
}

HEAD = """# Speed and memory

Generated from `benchmarks/results/` by `python -m benchmarks.page`; `python -m benchmarks --help` measures.

**plain** is METHOD's step written down once (`benchmarks/reference.py`): class by class, eager, float32, whole batches.
It is also the oracle that tests compare ncfmkit with. Both take turns in one run, each in a process of its own, on
random pixels of the shape that is named, with an untrained ConvNet of width 128. Seconds are medians, the range of the
turns in brackets; memory is the most that the process took, everything included. The **floor** is the time that the
step's floating-point operations, or the bytes that it must move, take at the rates of a large matrix product and a
large copy in the same precision on the same machine, whichever is longer. What was tried, and what did not help, is in
[experiments.md](experiments.md).
"""

NO_GPU = """
## On a GPU

Not measured yet. What will show it:

```
python -m pytest -m gpu
python -m benchmarks --device cuda --json benchmarks/results/DATE-cuda.json
python -m benchmarks --device cuda --only step --match "CIFAR-100, IPC 50" --memory-budget 512MiB
ncfmkit distill cifar10 --recipe cifar10-ipc10
python -m benchmarks.page
```

The last runs 20,000 steps with a pool of 20, and scores: the goal is 15 minutes on an H100. The other goals: at least
10 times the plain reference; CIFAR-100 at IPC 50 within 512 MiB allocated at no more than 1.5 times the unconstrained
time; 10 students together at least 4 times as fast as one after another.
"""


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The b of y ~ x^b by least squares of the logarithms; none of fewer than two points."""
    if len(x) < 2:
        return None
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1)) if min(y) < 1e-9 else np.log(y), 1)[0])


def _mib(count: float | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['median']:.3g} ({found['least']:.3g} to {found['most']:.3g})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _peak(memory: dict[str, Any]) -> int | None:
    return memory["allocated"] if memory["allocated"] is not None else memory["resident"]


def step_line(row: dict[str, Any]) -> str:
    """A row in a few words, for the progress."""
    ours = row["contenders"].get("ncfmkit", {}).get("seconds")
    text = row["setting"]["name"] + f", real batch {row['setting']['real_batch']}"
    if ours:
        text += f": {ours['median']:.3g} s a step"
    if "speedup" in row:
        text += f", {row['speedup']['median']:.2g} times as fast as plain"
    return text


def _steps(rows: list[dict[str, Any]]) -> str:
    head = ["shape", "real batch", "T", "plain s", "ncfmkit s", "times as fast", "plain MiB", "ncfmkit MiB"]
    cells, notes = [], []
    for row in rows:
        s, plain, ours = row["setting"], *(row["contenders"].get(k, {}) for k in ("plain", "ncfmkit"))
        cells.append(
            [
                s["name"],
                str(s["real_batch"]),
                str(s["frequencies"]),
                *(_seconds(c["seconds"]) if "seconds" in c else "" for c in (plain, ours)),
                _seconds(row["speedup"]) if "speedup" in row else "",
                *(_mib(_peak(c["memory"])) if "memory" in c else "" for c in (plain, ours)),
                *(_mib(c.get("held_bytes")) for c in (plain, ours)),
                f"{row['times_floor']:.1f}" if "times_floor" in row else "",
            ]
        )
        notes += [f"- {s['name']}, real batch {s['real_batch']}, T {s['frequencies']}: {n}" for n in row["notes"]]
    head += ["held by autograd: plain MiB", "ncfmkit MiB", "x of the floor"]
    text = _table(head, cells)
    return text + ("\n\n" + "\n".join(notes) if notes else "")


def _parts(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        parts = row["contenders"].get("ncfmkit", {}).get("parts")
        if parts:
            total = sum(parts.values())
            s = row["setting"]
            name = f"{s['name']}, real batch {s['real_batch']}, T {s['frequencies']}"
            cells.append([name, *(f"{100 * parts[p] / total:.0f}" for p in PARTS)])
    return _table(["% of a step", *PARTS], cells)


def _growth(found: dict[str, Any]) -> str:
    head = ["", "value", "s a step", "working MiB", "held by autograd MiB", "stored images MiB", "file KiB"]
    cells = []
    for axis, axis_found in found.items():
        for row in axis_found["rows"]:
            if "seconds" not in row:
                cells.append([AXIS_NAMES[axis], str(row["value"]), row["note"], "", "", "", ""])
                continue
            cells.append(
                [
                    AXIS_NAMES[axis],
                    str(row["value"]),
                    f"{row['seconds']:.3g}",
                    _mib(row["working_bytes"]),
                    _mib(row["held_bytes"]),
                    f"{row['stored_bytes'] / 2**20:.1f}",
                    f"{row['file_bytes'] / 2**10:,.0f}",
                ]
            )
        e = axis_found["exponents"]
        shown = ["" if e[k] is None else f"**{e[k]:.2f}**" for k in ("seconds", "working_bytes", "held_bytes")]
        cells.append([AXIS_NAMES[axis], "**exponent**", *shown, "", f"**{e['file_bytes']:.2f}**"])
    return _table(head, cells)


def _training(found: dict[str, Any], extra: str, title: str, digits: str) -> str:
    cells = []
    for name, row in found.items():
        if name == "note":
            continue
        precision = f"{row['precision']}, {'compiled' if row['compiled'] else 'eager'}"
        figure = format(row[extra], digits) if extra in row else ""
        seconds = _seconds(row["seconds"]) if "seconds" in row else ""
        cells.append([name, precision, str(row["together"]), seconds, figure, _mib(_peak(row["memory"]))])
    text = _table(["", "precision", "together", "s", title, "MiB"], cells)
    return text + (f"\n\n{found['note']}" if "note" in found else "")


def tables(result: dict[str, Any]) -> str:
    """All of a result as Markdown."""
    about, rates = result["about"], result["rates"]
    v = about["versions"]
    measured = ", ".join(
        f"{p} {r['flops'] / 1e9:,.0f} GFLOP/s and {r['copy_bytes'] / 1e9:.0f} GB/s"
        for p, r in rates.items()
        if p != "plain"
    )
    budget = result["options"].get("memory_budget")
    parts = [
        f"{about['device']}; torch {v['torch']}, Python {v['python']}; commit {about['commit']}, {about['date']}. "
        f"Large product and copy: {measured}." + (f" Memory budget {budget}." if budget else "")
    ]
    if "step" in result:
        parts += ["### A step", _steps(result["step"]), _parts(result["step"])]
    if "agreement" in result:
        a = result["agreement"]
        parts.append(
            f"After {a['steps']} steps of {a['setting']['name']} (real batch {a['setting']['real_batch']}) in float32, "
            f"{'compiled' if a['compiled'] else 'eager'}, ncfmkit's images differ from the reference's by "
            f"{a['largest']:.1e} at most and {a['mean']:.1e} on average (values from 0 to 1)."
        )
    if "growth" in result:
        parts += [
            "### Growth",
            "10 classes, IPC 10, real batch 256, T 1024, 32 pixels, one of them varied. Time at the default plan. "
            "Memory in float32, eager, at one chunk of 40 images, with freed blocks given back at once: working "
            "memory is what a step adds to what stays: the stored images with gradient and moments (their column).",
            _growth(result["growth"]),
        ]
    if "pool" in result:
        title = "images a second"
        parts += [
            "### Training a pool member",
            "One epoch of 2,560 images in batches of 128.",
            _training(result["pool"], "images_per_second", title, ",.0f"),
        ]
    if "students" in result:
        parts += [
            "### Scoring",
            "CIFAR-10 at IPC 10: seconds of a student's 2 epochs, and of 10 students of 2000 epochs, with 20 tests on "
            "10,000 images each, worked out from that.",
            _training(result["students"], "ten_repeats_seconds", "10 repeats, s", ",.0f"),
        ]
    return "\n\n".join(parts)


def draw(result: dict[str, Any], path: Path) -> None:
    """Growth of time and memory by axis."""
    from matplotlib.figure import Figure

    found = result.get("growth")
    if not found:
        return
    figure = Figure(figsize=(3.2 * len(found), 5.6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharey="row")
    for column, (axis, axis_found) in enumerate(found.items()):
        rows = [r for r in axis_found["rows"] if "seconds" in r]
        values = [r["value"] for r in rows]
        top, bottom = axes[0][column], axes[1][column]
        top.loglog(values, [r["seconds"] for r in rows], "o-", color="tab:blue")
        bottom.loglog(values, [r["working_bytes"] / 2**20 for r in rows], "o-", color="tab:orange", label="working")
        bottom.loglog(values, [r["held_bytes"] / 2**20 for r in rows], "s--", color="tab:green", label="by autograd")
        for plot, key in ((top, "seconds"), (bottom, "working_bytes")):
            fitted = axis_found["exponents"][key]
            plot.set_title(f"grows as x^{fitted:.2f}" if fitted is not None else "", fontsize=10)
            plot.set_xticks(values, [str(v) for v in values])
            plot.minorticks_off()
            plot.grid(alpha=0.3)
        bottom.set_xlabel(AXIS_NAMES[axis])
    axes[0][0].set_ylabel("seconds a step")
    axes[1][0].set_ylabel("MiB beyond what stays")
    axes[1][0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def newest() -> dict[str, tuple[Path, dict[str, Any]]]:
    """The newest result by kind of device."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found["gpu" if "cuda" in result["about"]["device"] else "cpu"] = file, result
    return found


def render() -> str:
    """The text of docs/performance.md."""
    text = HEAD
    results = newest()
    for kind, title in (("cpu", "On a CPU"), ("gpu", "On a GPU")):
        if kind in results:
            file, result = results[kind]
            text += f"\n## {title}\n\n`benchmarks/results/{file.name}`: {tables(result)}\n"
    return text if "gpu" in results else text + NO_GPU


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    for _, result in newest().values():
        draw(result, PAGE.with_suffix(".png"))
