"""Presents an architecture search: how a set and its rivals rank networks, and what their choices lose."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ncfmkit.assessment import Correlation, Proxy, Search, SearchedNetwork
from ncfmkit.reports.layout import SERIES, Draw
from ncfmkit.reports.scores import ABSENT
from ncfmkit.reports.sections import Section, SectionPlot, SectionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"distilled": "the set", "random": "random real", "early": "early stopping", "whole": "whole split"}


def section(found: Search) -> Section:
    """A row for the set and each rival, a row for each network, and a dot for each network."""
    of_set, whole = found.proxies[0], found.whole
    proxies = SectionTable(
        columns=["trained on", "gradient steps", "Spearman", "Kendall", "regret, points", "seconds"],
        rows=[
            *(
                [
                    NAMES[row.set],
                    f"{row.steps:,}",
                    _correlation(row.spearman),
                    _correlation(row.kendall),
                    f"{100 * row.regret:.1f}",
                    _seconds(row.seconds),
                ]
                for row in found.proxies
            ),
            [NAMES["whole"], f"{whole.steps:,}", ABSENT, ABSENT, ABSENT, _seconds(whole.seconds)],
        ],
        caption=f"Rank correlations of the accuracies of {len(found.networks)} networks with those on the whole split, "
        "with bootstrap intervals of 95%: of other networks of this space, with one student each. Regret: accuracy on "
        "the whole split of the best of these networks, minus that of the one that is the best here. Seconds: all "
        f"networks trained, and tested once. Random real images are as many as the set stores, {of_set.images:,}; "
        "early stopping trains on the whole split for as many steps as the set's students take.",
        strong=[0],
    )
    best_first = sorted(range(len(found.networks)), key=lambda k: -whole.accuracies[k])
    rows = [*found.proxies, whole]
    names = [_name(network) + (" (chosen)" if k == of_set.chosen else "") for k, network in enumerate(found.networks)]
    networks = SectionTable(
        columns=["network", *(NAMES[row.set] for row in rows)],
        rows=[[names[k], *(f"{100 * row.accuracies[k]:.1f}" for row in rows)] for k in best_first],
        caption=f"Test accuracy in percent, one student each, of networks drawn from a space of {found.space}: depth x "
        "width, activation, norm, pooling. The set chooses the network whose student on it is the most accurate.",
        strong=[best_first.index(of_set.chosen)],
    )
    label = "; ".join(
        f"{network}: {100 * here:.1f}% on the set, {100 * there:.1f}% on the whole split"
        for network, here, there in zip(found.networks, of_set.accuracies, whole.accuracies, strict=True)
    )
    dots = SectionPlot(
        draw=_dots(found), label=f"Each network by its accuracy. {label}", caption="A dot is a network, one student."
    )
    return Section(sentences=_sentences(found), tables=[proxies, networks], plots=[dots])


def _sentences(found: Search) -> list[str]:
    of_set, whole = found.proxies[0], found.whole
    best = max(range(len(found.networks)), key=lambda k: whole.accuracies[k])
    top, mean = whole.accuracies[best], sum(whole.accuracies) / len(whole.accuracies)
    chosen = f"Of {len(found.networks)} networks, the set chooses {_name(found.networks[of_set.chosen])}"
    if of_set.regret:
        said = (
            f"{chosen}, which reaches {100 * whole.accuracies[of_set.chosen]:.1f}% on the whole split. The best, "
            f"{_name(found.networks[best])}, reaches {100 * top:.1f}%: a regret of {100 * of_set.regret:.1f} points."
        )
    else:
        said = f"{chosen}, which none surpasses on the whole split: {100 * top:.1f}%, a regret of 0."
    sentences = [f"{said} One that is drawn blindly has a regret of {100 * (top - mean):.1f} points on average."]
    sentences.append(_ranking(found))
    here, there = (f"{_seconds(row.seconds)}\u00a0s" for row in (of_set, whole))
    factor = whole.seconds / of_set.seconds
    times = f"{factor:.1f} times as long" if factor > 1 else "no longer"
    sentences.append(f"Training all of them on the set takes {here}, on the whole split {there}: {times}.")
    if all(row.set != "early" for row in found.proxies):
        sentences.append(
            "The set's students take as many gradient steps as those of the whole split, so that there is no early "
            "stopping: --student-epochs asks for fewer."
        )
    return sentences


def _ranking(found: Search) -> str:
    of_set, others = found.proxies[0], found.proxies[1:]
    if of_set.spearman is None:
        return "All networks are equally accurate on the set, or on the whole split: it does not rank them."
    value = of_set.spearman
    ahead = [row for row in others if row.spearman is not None and row.spearman.value >= value.value]
    behind = [row for row in others if row not in ahead]
    said = [f"It ranks them with Spearman's correlation {_correlation(value)} to their ranks on the whole split"]
    if ahead:
        said.append(f"as well or better: {_rivals(ahead)}")
    if behind:
        said.append(f"worse: {_rivals(behind)}")
    return f"{'; '.join(said)}."


def _rivals(rows: Sequence[Proxy]) -> str:
    names = {"random": "random real images", "early": "early stopping on the whole split"}
    values = (ABSENT if row.spearman is None else _number(row.spearman.value) for row in rows)
    return ", ".join(f"{names[row.set]} ({value})" for row, value in zip(rows, values, strict=True))


def _name(network: SearchedNetwork) -> str:
    """Its depth and width are never broken across lines."""
    return str(network).replace(" x ", "\u00a0x\u00a0")


def _correlation(found: Correlation | None) -> str:
    """`0.71 (0.32 to 0.91)`, never broken across lines."""
    if found is None:
        return ABSENT
    return f"{_number(found.value)} ({_number(found.low)} to {_number(found.high)})".replace(" ", "\u00a0")


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 9.95 else f"{seconds:.1f}"


def _dots(found: Search) -> Draw:
    of_set, whole = found.proxies[0], found.whole

    def draw(figure: "Figure", narrow: bool) -> None:
        figure.set_figheight(3.6)
        axis = figure.subplots()
        x_N, y_N = ([100 * value for value in row.accuracies] for row in (of_set, whole))
        axis.scatter(x_N, y_N, s=22, color=SERIES[0], alpha=0.8, linewidths=0, clip_on=False, zorder=3)
        best = max(range(len(y_N)), key=y_N.__getitem__)
        rings = ((of_set.chosen, SERIES[1], 90, "chosen by the set"), (best, SERIES[2], 180, "best on the whole split"))
        for k, color, area, what in rings:
            axis.scatter(
                [x_N[k]],
                [y_N[k]],
                s=area,
                facecolors="none",
                edgecolors=color,
                linewidths=1.6,
                label=what,
                clip_on=False,
                zorder=4,
            )
        axis.set_xlabel("test accuracy %, trained on the set")
        axis.set_ylabel("trained on the whole split")
        figure.legend(loc="outside lower left" if narrow else "outside right upper", ncols=1)

    return draw
