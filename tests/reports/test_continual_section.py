"""What the section about replay buffers says."""

from rich.console import Console

from ncfmkit.assessment import Continual, ContinualBuffer, ContinualStage
from ncfmkit.reports import layout
from ncfmkit.reports.continual_section import section
from ncfmkit.reports.sections import for_terminal
from ncfmkit.run_records import Accuracy


def accuracy(*values: float) -> Accuracy:
    return Accuracy(mean=sum(values) / len(values), std=0.01 if len(values) > 1 else 0.0, values=values)


def found(*, n: int) -> Continual:
    def buffer(name: str, first: float, last: float, steps: int, size: float) -> ContinualBuffer:
        stages = tuple(
            ContinualStage(seen=seen, steps=steps + seen, bytes_per_class=size, accuracy=accuracy(*[value] * n))
            for seen, value in ((2, first), (4, last))
        )
        average = accuracy(*[(first + last) / 2] * n)
        return ContinualBuffer(set=name, label=name, per_class=3, stages=stages, average=average)

    return Continual(
        network="convnet-2 width 8",
        n=n,
        orders=((2, 0, 1, 3),) * n,
        buffers=(
            buffer("distilled", 0.9, 0.7, 1000, 1536.0),
            buffer("random", 0.8, 0.4, 1000, 1536.0),
            buffer("webp", 0.85, 0.5, 1001, 1540.4),
            buffer("herding", 0.8, 0.6, 1000, 1536.0),
        ),
    )


def test_it_says_the_final_accuracies_first() -> None:
    said = section(found(n=2))
    assert said.sentences[0] == (
        "As a replay buffer the set reaches 70.0% when all 4 classes have arrived; buffers of real images reach "
        "40.0% (random real), 50.0% (random real as WebP), 60.0% (herding)."
    )
    buffers, stages = said.tables
    assert list(buffers.rows[2]) == [
        "random real as WebP",
        "3",
        "1,540",
        "67.5\u00a0±\u00a01.0",
        "50.0\u00a0±\u00a01.0",
    ]
    assert list(stages.rows[0]) == [
        "2 classes",
        *(f"{value}\u00a0±\u00a01.0" for value in ("90.0", "80.0", "85.0", "80.0")),
        "50.0",
        "1,002–1,003",
    ]


def test_a_single_repeat_has_no_deviation_and_is_drawn() -> None:
    said = section(found(n=1))
    assert list(said.tables[1].rows[1])[:5] == ["4 classes", "70.0", "40.0", "50.0", "60.0"]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(for_terminal(said))
    assert "incremental" in shown.get()
    (of_plot,) = said.plots
    plot = layout.plot(of_plot.draw, name="continual", label=of_plot.label)
    assert "classes seen" in plot.wide
    assert "chance" in plot.narrow
