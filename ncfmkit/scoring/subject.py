"""A set that is assessed, with all that an evaluation of it takes, and students of it whose scores are kept."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ncfmkit.config import NetworkSettings, Settings
from ncfmkit.estimate import Stage
from ncfmkit.images import LabeledImages, labeled
from ncfmkit.kept import Kept
from ncfmkit.networks import network_builder
from ncfmkit.real.store import RealData
from ncfmkit.run_records import Score
from ncfmkit.runtime import Runtime
from ncfmkit.scoring.baselines import SetSize, check_baselines, random_subset
from ncfmkit.scoring.kept_students import KeptStudents, StudentResult
from ncfmkit.scoring.students import RowWork, row_work, score, student_conditions, student_stages


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A set that is assessed.

    Attributes:
        stored: uint8 `[N, C, H, W]`, the stored images, sorted by class.
        stored_labels: int64 `[N]`.
        distilled: the set, decoded: what its students are trained on.
        factor: cells along the side of a stored image.
        initial: what its images began as, `mix`, `random` or `noise`; None: not known.
        beginnings: places in the training split of the real images that its images began as, of each class; None: they
            did not begin as real images, or it is not known as which.
        size: how large it is, per class.
        real: the real data.
        settings: `network` and `student` are those of the students, which are tested once; `seed` of all draws.
        mosaics: gives mosaics of random real images like the set's own, decoded, for the repeat of that number.
        soften: gives images the soft labels of the set's teachers, stored as the set's are; None: the set has none, or
            of teachers that are not known. What it gives depends on the set alone.
        teachers: the training that `soften` begins with: those teachers that are not in the cache, measured.
        herding: the work of `herded`, measured, and of the extractor that chooses, if it is not in the cache.
        herded: gives the herded subset of that many real images per class, selected once, which depends on
            `settings.pool`.
        kept: the scores and other results that are measured already. The set, the real data, the seed, the device and
            the versions are in its conditions; all else that a result depends on, whoever keeps it says.
    """

    stored: np.ndarray
    stored_labels: np.ndarray
    distilled: LabeledImages
    factor: int
    initial: str | None
    beginnings: Sequence[np.ndarray] | None
    size: SetSize
    real: RealData
    settings: Settings
    runtime: Runtime
    mosaics: Callable[[int], LabeledImages]
    herding: Callable[[int], Iterator[Stage]]
    herded: Callable[[int], LabeledImages]
    soften: Callable[[LabeledImages], LabeledImages] | None
    teachers: Callable[[], Iterator[Stage]]
    kept: Kept

    @property
    def test(self) -> LabeledImages:
        """The real test images."""
        return labeled(self.real, self.real.test_split())

    @cached_property
    def whole(self) -> LabeledImages:
        """The whole training split: one object, of which students side by side share a copy on the device."""
        return labeled(self.real, self.real.train)

    def check_rows(self, *names: str) -> None:
        """Raises UserError if a class has too few real images for one of these rows of `BASELINES`."""
        check_baselines(self.real, names, self.size, advice="")

    def images(self, name: str, repeat: int) -> LabeledImages:
        """What the student of that repeat is trained on: `distilled`, `random`, `mosaic` or `whole`."""
        if name == "mosaic":
            return self.mosaics(repeat)
        if name == "random":
            return random_subset(self.real, self.size.stored, self.settings.seed, repeat)
        return {"distilled": self.distilled, "whole": self.whole}[name]

    def work(self, name: str, network: NetworkSettings | None = None) -> RowWork:
        """The work of students of `distilled` or of a row of `BASELINES`, of the set's network or another one."""
        return row_work(name, self.real, self._with(network), self.size)

    def _with(self, network: NetworkSettings | None) -> Settings:
        return self.settings if network is None else dataclasses.replace(self.settings, network=network)

    def students(
        self,
        work: RowWork,
        images: Callable[[int], LabeledImages],
        *,
        network: NetworkSettings | None = None,
        **conditions: Any,
    ) -> Score:
        """The score of `student.repeats` students, each of which is kept.

        Args:
            work: the row that they are of; its `epochs` are theirs.
            images: gives what the student of that repeat is trained on; asked only of those that are not kept.
            network: of the students; None: the set's.
            conditions: plain JSON values that the images depend on, apart from `work.name` and the set.
        """
        settings = self._with(network)
        return score(
            images,
            self.test,
            network_builder(settings.network, self.real),
            settings.student,
            seed=settings.seed,
            runtime=self.runtime,
            about=work,
            kept=self._kept(work, network, conditions),
            prefix="" if network is None else f"{network.name}: ",
        )

    def keep_student(self, work: RowWork, repeat: int, result: StudentResult) -> None:
        """Keeps what a student gets right that an evaluation trained itself; :meth:`students` then reads it.

        One that is kept already stays: beside other students it is rounded otherwise.
        """
        kept = self._kept(work, None, {})
        if repeat in kept.left(self.settings.student.repeats):
            kept.keep(repeat, result)

    def student_stages(self, works: Sequence[RowWork], network: NetworkSettings) -> Iterator[Stage]:
        """The students of that network, of those rows, that are neither kept nor planned, measured."""
        left = {work: count for work in works if (count := self.plan_students(work, network=network))}
        yield from student_stages(left, self.real, self._with(network), self.runtime)

    def plan_students(self, work: RowWork, *, network: NetworkSettings | None = None, **conditions: Any) -> int:
        """How many students of that score are neither kept nor planned, as they are from now on.

        Another evaluation that needs them does not count them again. Arguments as :meth:`students`.
        """
        return self._kept(work, network, conditions).unplanned(self.settings.student.repeats)

    def _kept(self, work: RowWork, network: NetworkSettings | None, conditions: dict[str, Any]) -> KeptStudents:
        return KeptStudents(kept=self.kept, conditions=student_conditions(work, self._with(network)) | conditions)
