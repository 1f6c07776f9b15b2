"""Neural architecture search: does the set rank networks as the whole training split does?

Many networks are trained on the set, on its rivals and on the whole split, one student each. What they are trained on
is called a proxy: a search trains on it to choose a network for the whole split.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np

from ncfmkit.assessment import Proxy, Search, SearchedNetwork, SearchRow
from ncfmkit.config import StudentSettings
from ncfmkit.errors import UserError
from ncfmkit.estimate import Stage
from ncfmkit.networks.plain import BodyNet
from ncfmkit.networks.search_space import search_net, search_space
from ncfmkit.progress import plural
from ncfmkit.rng import keyed_rng
from ncfmkit.run_records import Score
from ncfmkit.runtime import Runtime
from ncfmkit.scoring.kept_students import KeptStudents
from ncfmkit.scoring.rank_correlation import kendall, spearman, with_interval
from ncfmkit.scoring.students import RowWork, epochs_for, score, student_conditions
from ncfmkit.scoring.subject import Subject
from ncfmkit.training import StackedModels, accuracy_seconds, batch_plan, training_seconds

SAMPLE = 16  # networks: minutes for digits on a laptop, and for 32 pixels on a GPU
LARGEST = 64  # pixels: without pooling, the memory of a network grows with the size of its maps


def check(subject: Subject) -> None:
    if subject.real.size > LARGEST:
        raise UserError(
            f"images of {subject.real.size} pixels are too large for the networks of the search, of which some do not "
            f"pool: expected at most {LARGEST}"
        )
    subject.check_rows("random")


def stages(subject: Subject) -> Iterator[Stage]:
    networks, one_epoch = sample(subject), dataclasses.replace(students(subject), epochs=1)

    # each network is measured once for all rows whose batches are as large
    @cache
    def models(k: int) -> StackedModels:
        return StackedModels(_builder(subject, networks[k]), 1, _runtime(subject))

    @cache
    def step_seconds(k: int, size: int) -> float:
        return training_seconds(models(k), subject.whole, size, one_epoch)

    @cache
    def test_seconds(k: int) -> float:
        return accuracy_seconds(models(k), subject.test)

    for work in works(subject):
        left = [k for k, network in enumerate(networks) if _kept(subject, work, network).left(1)]
        if not left:
            continue
        steps, size = batch_plan(work.images, one_epoch.batch)
        seconds = sum(work.epochs * steps * step_seconds(k, size) + test_seconds(k) for k in left)
        what = f"{plural(len(left), 'network')} x {plural(work.epochs, 'epoch')}"
        yield Stage(name=f"search: {work.label}", work=what, seconds=seconds)


def measure(subject: Subject) -> Search:
    networks = sample(subject)
    rows = []
    for work in works(subject):
        scores = [_student(subject, work, network, number) for number, network in enumerate(networks, 1)]
        rows.append(_row(scores, work))
    *proxies, whole = rows
    return Search(
        space=len(_space(subject)),
        networks=tuple(networks),
        proxies=tuple(as_proxy(row, whole, subject.settings.seed) for row in proxies),
        whole=whole,
    )


def sample(subject: Subject) -> list[SearchedNetwork]:
    """Networks of the space, drawn by the seed without repeats."""
    space = _space(subject)
    order = keyed_rng(subject.settings.seed, "search").permutation(len(space))
    return [space[place] for place in order[:SAMPLE]]


def _space(subject: Subject) -> list[SearchedNetwork]:
    return search_space(width=subject.settings.network.width, size=subject.real.size)


def students(subject: Subject) -> StudentSettings:
    """Those of the set, but one of each network, as a search does."""
    return dataclasses.replace(subject.settings.student, repeats=1)


def works(subject: Subject) -> list[RowWork]:
    """The set, as many random real images, the whole split for as many steps as the set's students take, and in full.

    The third, early stopping, is left out where the whole split is not trained on for longer.
    """
    of_set, random, whole = (subject.work(name) for name in ("distilled", "random", "whole"))
    batch = subject.settings.student.batch
    epochs = epochs_for(of_set.epochs * batch_plan(of_set.images, batch)[0], whole.images, batch)
    early = dataclasses.replace(whole, name="early", label="whole training split, stopped early", epochs=epochs)
    return [of_set, random, *([early] if early.epochs < whole.epochs else []), whole]


def _kept(subject: Subject, work: RowWork, network: SearchedNetwork) -> KeptStudents:
    settings = dataclasses.replace(subject.settings, student=students(subject))
    conditions = student_conditions(work, settings) | {"searched": network.to_dict()}
    return KeptStudents(kept=subject.kept, conditions=conditions)


def _student(subject: Subject, work: RowWork, network: SearchedNetwork, number: int) -> Score:
    about = dataclasses.replace(work, label=f"{work.label}, network {number} of {SAMPLE}", network=str(network))
    return score(
        partial(subject.images, "whole" if work.name == "early" else work.name),
        subject.test,
        _builder(subject, network),
        students(subject),
        seed=subject.settings.seed,
        runtime=_runtime(subject),
        about=about,
        kept=_kept(subject, work, network),
    )


def _builder(subject: Subject, network: SearchedNetwork) -> partial[BodyNet]:
    real = subject.real
    return partial(search_net, network, channels=real.channels, classes=len(real.classes), size=real.size)


def _runtime(subject: Subject) -> Runtime:
    """Not compiled: that would take longer than most of these networks train, and be counted as training."""
    return dataclasses.replace(subject.runtime, compile=False)


def _row(scores: Sequence[Score], work: RowWork) -> SearchRow:
    steps = scores[0].steps
    assert steps is not None
    return SearchRow(
        set=work.name,
        label=work.label,
        images=work.stored,
        epochs=work.epochs,
        steps=steps,
        accuracies=tuple(s.last.mean for s in scores),
        seconds=sum(s.seconds for s in scores),
    )


def as_proxy(row: SearchRow, whole: SearchRow, seed: int) -> Proxy:
    """How well that row ranks the networks, and what the network that it chooses loses.

    It chooses the most accurate; of several, the one that was drawn first.
    """
    here_N, there_N = np.array(row.accuracies), np.array(whole.accuracies)
    chosen = int(here_N.argmax())
    return Proxy(
        **dict(row),
        spearman=with_interval(spearman, here_N, there_N, keyed_rng(seed, "search", "bootstrap")),
        kendall=with_interval(kendall, here_N, there_N, keyed_rng(seed, "search", "bootstrap")),
        chosen=chosen,
        regret=float(there_N.max() - there_N[chosen]),
    )
