"""Results as tables, as a plot, and as docs/performance.md, which `python -m benchmarks.page` writes.

The page is made of the newest whole result of every kind of device in benchmarks/results/, of newer results of the step
alone, and of nothing else.
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

{}Generated from `benchmarks/results/` by `python -m benchmarks.page`; `python -m benchmarks --help` measures.

**plain** is a straightforward implementation of one step of [the method](method.md) (`benchmarks/reference.py`): class
by class, eager, float32, whole batches; tests also compare ncfmkit with it. ncfmkit runs in the precision that it
chooses for the device, and compiled if possible; the tables name both. Both take turns in one run, each in its own
process, on random pixels of the given shape, with an untrained ConvNet of width 128. Seconds are medians, with the
range of the turns in parentheses. Memory is the peak of the process: resident memory on a CPU, including libraries and
mapped images; memory allocated by torch on a GPU. The **roofline** bound of a step is the longer of two times: its
floating-point operations (of direct convolutions) at the rate of a large matrix product, and its bytes (input and
output of every convolution, once) at the rate of a large copy, in the same precision on the same machine. No
convolution reaches the rate of a large product: **convolutions** is the time of a step's convolutions alone, each
measured in the layout and the batch that suit it best. What was tried, including what did not help, is in
[experiments.md](experiments.md).
"""

NO_GPU = """
## On a GPU

The benchmark has not run on a GPU yet. The [short checks](../benchmarks/gpu/README.md) have, on an H200: their
figures are in [experiments.md](experiments.md#on-a-gpu). The first command repeats them, the others have yet to run:

```
python -m benchmarks.gpu --data path/to/cifar10
python -m benchmarks --device cuda --json benchmarks/results/DATE-cuda.json --plot docs/performance-gpu.png
python -m benchmarks --device cuda --only step --match "CIFAR-100, IPC 50" --memory-budget 512MiB
python -m benchmarks.page
ncfmkit distill cifar10 --recipe cifar10-ipc10
```

The goals there: at least 10 times the plain reference; CIFAR-100 at IPC 50 within 512 MiB allocated (third command) at
no more than 1.5 times the unconstrained time; 10 students together at least 4 times as fast as one after another; the
last command, 20,000 steps with a pool of 20 and scores, in 15 minutes on an H100.
"""


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The b of y ~ x^b by least squares of the logarithms; None for a single point, or if one is not above 0."""
    if len(x) < 2 or any(v is None or v <= 0 for v in y):
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _mib(count: float | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['median']:.3g} ({found['least']:.3g} to {found['most']:.3g})"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _peak(row: dict[str, Any]) -> str:
    memory = row.get("memory") or {}
    return _mib(memory.get("resident") if memory.get("allocated") is None else memory["allocated"])


def step_line(row: dict[str, Any]) -> str:
    """A row in a few words, for the progress."""
    ours = row["contenders"].get("ncfmkit", {}).get("seconds")
    text = row["setting"]["name"] + f", real batch {row['setting']['real_batch']}"
    if ours:
        text += f": {ours['median']:.3g} s per step"
    if "speedup" in row:
        text += f", {row['speedup']['median']:.2g}x as fast as plain, in {row['contenders']['ncfmkit']['precision']}"
    return text


def _title(s: dict[str, Any]) -> str:
    """A setting in a few words."""
    return f"{s['name']}, real batch {_used(s)}, T {s['frequencies']}"


def _how(contender: dict[str, Any]) -> str:
    return f"{contender['precision']}, {'compiled' if contender['compiled'] else 'eager'}"


def _used(s: dict[str, Any]) -> int:
    return min(s["real_batch"], s["per_class"])


def _steps(rows: list[dict[str, Any]]) -> str:
    head = ["shape", "real batch", "T", "plain runs in", "ncfmkit runs in"]
    head += ["plain s", "ncfmkit s", "speedup", "plain MiB", "ncfmkit MiB"]
    head += [
        "held by autograd: plain MiB",
        "ncfmkit MiB",
        "roofline s",
        "x roofline",
        "convolutions s",
        "x convolutions",
    ]
    cells, notes = [], []
    for row in rows:
        s, both = row["setting"], [row["contenders"].get(k, {}) for k in ("plain", "ncfmkit")]
        cells.append(
            [
                s["name"],
                str(_used(s)),
                str(s["frequencies"]),
                *(_how(c) if "precision" in c else "" for c in both),
                *(_seconds(c["seconds"]) if "seconds" in c else "" for c in both),
                _seconds(row["speedup"]) if "speedup" in row else "",
                *map(_peak, both),
                *(_mib((c.get("held") or {}).get("bytes")) for c in both),
                f"{row['floor_seconds']:.3g}" if "floor_seconds" in row else "",
                f"{row['times_floor']:.1f}" if "times_floor" in row else "",
                *_convolutions(row),
            ]
        )
        notes += [f"- {_title(s)}: {note}" for note in row["notes"]]
    if not any(row["contenders"].get("ncfmkit", {}).get("precision") == "fp32" for row in rows):
        notes.append("- ncfmkit in float32 against plain: missing, because this result is older than that row")
    return markdown_table(head, cells) + ("\n\n" + "\n".join(notes) if notes else "")


def _convolutions(row: dict[str, Any]) -> list[str]:
    seconds = row.get("convolution_seconds")  # older results have none
    if seconds is None:
        return ["", ""]
    return [f"{seconds:.3g}", f"{row['contenders']['ncfmkit']['seconds']['median'] / seconds:.1f}"]


def _parts(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        parts = row["contenders"].get("ncfmkit", {}).get("parts")
        if parts:
            total = sum(parts.values())
            cells.append([_title(row["setting"]), *(f"{100 * parts[p] / total:.0f}" for p in PARTS)])
    return markdown_table(["% of one step", *PARTS], cells)


def _growth(found: dict[str, Any]) -> str:
    head = ["", "value", "s per step", "working MiB", "held by autograd MiB", "stored images MiB", "file KiB"]
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
    return markdown_table(head, cells)


def _training(found: dict[str, Any], figure: str, title: str) -> str:
    cells = []
    for name, row in found["rows"].items():
        seconds = _seconds(row["seconds"]) if "seconds" in row else ""
        value = f"{row[figure]:,.0f}" if figure in row else ""
        cells.append([name, _how(row), str(row["together"]), seconds, value, _peak(row)])
    table = markdown_table(["", "precision", "together", "s", title, "MiB"], cells)
    return "\n\n".join([table, *(f"- {note}" for note in found["notes"])])


def tables(result: dict[str, Any]) -> str:
    """All of a result as Markdown."""
    about, rates = result["about"], result["rates"]
    v = about["versions"]
    measured = ", ".join(
        f"{p} {r['flops'] / 1e9:,.0f} GFLOP/s and {r['copy_bytes'] / 1e9:.0f} GB/s" for p, r in rates.items()
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
            f"{a['largest']:.1e} at most and {a['mean']:.1e} on average (values from 0 to 1); {a['share_above']:.2%} "
            "of the values differ by more than 1e-4."
        )
    if "growth" in result:
        parts += [
            "### Growth",
            "10 classes, IPC 10, real batch 256, T 1024, 32 pixels, one of them varied; the network gets deeper with "
            "the side (2, 3 and 4 blocks). Time with the default plan, in the precision of the table above. Memory in "
            "float32, eager, with chunks of 40 images and freed blocks returned at once. Working memory is what a step "
            "needs in addition to the stored images with gradient and moments, which have their own column.",
            _growth(result["growth"]),
        ]
    if "pool" in result:
        parts += [
            "### Training a pool member",
            "One epoch of 2,560 images in batches of 128.",
            _training(result["pool"], "images_per_second", "images/s"),
        ]
    if "students" in result:
        parts += [
            "### Scoring",
            "CIFAR-10 at IPC 10: seconds for 2 epochs of a student and, extrapolated from that, for 10 students of "
            "2000 epochs with 20 tests on 10,000 images each.",
            _training(result["students"], "ten_repeats_seconds", "10 repeats, s"),
        ]
    return "\n\n".join(parts)


def draw(result: dict[str, Any], path: Path) -> None:
    """Growth of time and memory by axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

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
            plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plot.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            plot.grid(alpha=0.3)
        bottom.set_xlabel(AXIS_NAMES[axis])
    axes[0][0].set_ylabel("seconds per step")
    axes[1][0].set_ylabel("working memory, MiB")
    axes[1][0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def newest() -> dict[str, tuple[Path, dict[str, Any]]]:
    """The newest whole result by kind of device: everything was measured, without a memory budget."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        whole = all(k in result for k in ("step", "growth", "pool", "students", "agreement"))
        if whole and not result["options"]["memory_budget"] and not result["options"]["match"]:
            found["gpu" if "cuda" in result["about"]["device"] else "cpu"] = file, result
    return found


def steps_since(kind: str, date: str) -> list[tuple[Path, dict[str, Any]]]:
    """Results of the step alone, of a kind of device, that are newer than a whole one of that date."""
    read = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(RESULTS.glob("*.json"))]
    return [
        (file, result)
        for file, result in read
        if result["options"]["only"] == "step"
        and result["about"]["date"] > date
        and ("cuda" in result["about"]["device"]) == (kind == "gpu")
    ]


def render() -> str:
    """The text of docs/performance.md."""
    results = newest()
    text = HEAD.format("" if "gpu" in results else "**On a GPU only short checks have run.** ")
    for kind, title in (("cpu", "On a CPU"), ("gpu", "On a GPU")):
        if kind in results:
            file, result = results[kind]
            plot = f"![growth of time and memory](performance-{kind}.png)"
            text += f"\n## {title}\n\n`benchmarks/results/{file.name}`: {tables(result)}\n\n{plot}\n"
            for newer, step in steps_since(kind, result["about"]["date"]):
                text += f"\n### Measured since\n\n`benchmarks/results/{newer.name}`: {tables(step)}\n"
    return text if "gpu" in results else text + NO_GPU


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    for kind, (_, result) in newest().items():
        draw(result, PAGE.with_name(f"performance-{kind}.png"))
