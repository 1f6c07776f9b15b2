"""What a set can be assessed by, in one table; `ncfmkit assess` runs its rows (docs/method.md, section 8)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ncfmkit.assessment import Architectures, Continual, Privacy, Ranking, Search
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.records import Record
from ncfmkit.scoring import architectures, continual, privacy, ranking, search
from ncfmkit.scoring.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A row of `EVALUATIONS`.

    Attributes:
        title: a few words, as the heading of a section.
        asks: the question that it answers.
        needs: what a set and its data must have, for people.
        source: where its definition is from.
        result: what it gives; a field of `Assessment` has the row's name and this type.
        check: raises UserError, before anything is trained, if the set or its data lack what it needs.
        stages: the work that is left, measured.
        measure: does it.
    """

    title: str
    asks: str
    needs: str
    source: str
    result: type[Record]
    check: Callable[[Subject], None]
    stages: Callable[[Subject], Iterator[Stage]]
    measure: Callable[[Subject], Record]


EVALUATIONS: dict[str, Evaluation] = {  # in the order in which they run: those that take longest last
    "privacy": Evaluation(
        title="Traces of the training images",
        asks="What does the set, and what do its students, tell about the images that it was made from?",
        needs="test images of every class",
        source="nearest real images in pixels; the loss-threshold attack of Yeom et al. (2018), with the true-positive "
        "rate at a small false-positive rate after Carlini et al. (2022)",
        result=Privacy,
        check=privacy.check,
        stages=privacy.stages,
        measure=privacy.measure,
    ),
    "ranking": Evaluation(
        title="DD-Ranking scores",
        asks="What are the images worth, apart from soft labels and augmentation?",
        needs="as many real images of each class as the set stores; known teachers, if it has soft labels",
        source="LRS and ARS of DD-Ranking (Li et al. 2025, arXiv 2505.13300), with w and gamma of 0.5",
        result=Ranking,
        check=ranking.check,
        stages=ranking.stages,
        measure=ranking.measure,
    ),
    "continual": Evaluation(
        title="Replay buffer",
        asks="Does the set serve as the memory of a model whose classes arrive one after the other?",
        needs="four or more classes, with test images of each",
        source="class-incremental learning by GDumb (Prabhu et al. 2020), as Zhao & Bilen (2023) use it for sets",
        result=Continual,
        check=continual.check,
        stages=continual.stages,
        measure=continual.measure,
    ),
    "search": Evaluation(
        title="Architecture search",
        asks="Does the set rank networks as the whole training split does, and which one does it choose?",
        needs="images of at most 64 pixels",
        source="Zhao, Mopuri and Bilen, ICLR 2021 (arXiv 2006.05929), on networks without batch norm",
        result=Search,
        check=search.check,
        stages=search.stages,
        measure=search.measure,
    ),
    "architectures": Evaluation(
        title="Other networks",
        asks="Does the set train networks of other architectures than the one that it was made with?",
        needs="images that more than one network of the table takes",
        source="accuracy on the real test images, as the literature's cross-architecture tables",
        result=Architectures,
        check=architectures.check,
        stages=architectures.stages,
        measure=architectures.measure,
    ),
}


def parse_evaluations(text: str) -> tuple[str, ...]:
    """Names of evaluations from a comma-separated list; none for `all`.

    Raises:
        UserError: an unknown one, or none.
    """
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    if names == ("all",):
        return ()
    unknown = [n for n in names if n not in EVALUATIONS]
    if unknown or not names:
        wrong = f"unknown evaluation {unknown[0]!r}" if unknown else "--only names no evaluation"
        raise UserError(f"{wrong}: known: {', '.join(EVALUATIONS)}, all")
    return names
