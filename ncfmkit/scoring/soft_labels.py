"""Soft labels: what trained extractors say of an image, to train on in place of its class (docs/method.md, 8)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ncfmkit.config import NetworkSettings
from ncfmkit.files import format_bytes
from ncfmkit.images import LabeledImages
from ncfmkit.networks import network_builder
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime
from ncfmkit.training import StackedModels, Weights, logits_of

CERTAIN = 30.0  # logit by which a hard label stands out: all other classes together have a probability below 1e-12 each


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Labels of images, and what the teachers know of them.

    Attributes:
        logits: float16 `[N, K]`; their softmax are the labels.
        wrong: images whose likeliest class is another than their own, by the teachers: they keep their hard label.
        certainty: mean probability of the images' own classes, a fraction.
    """

    logits: torch.Tensor
    wrong: int
    certainty: float

    def describe(self, size: int) -> str:
        """One line that says what the labels are like; `size` is the bytes that they are stored in."""
        return (
            f"soft labels: {len(self.logits):,} images, mean probability of their class {self.certainty:.1%}, "
            f"{self.wrong:,} hard because the extractors were wrong, {format_bytes(size)}"
        )


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """Trained networks that label images: what each is, and its weights."""

    states: Sequence[tuple[NetworkSettings, Weights]]
    real: RealData
    temperature: float
    runtime: Runtime

    @torch.no_grad()
    def teach(self, data: LabeledImages) -> Taught:
        """The mean log-probability over all teachers, of images as they are, without augmentation.

        The logits are divided by the temperature before. An image whose likeliest class is wrong keeps its hard label.
        """
        runtime = dataclasses.replace(self.runtime, compile=False)  # there are too few images for it to pay
        mean_NK = torch.zeros(len(data), data.classes)
        for settings, state in self.states:
            models = StackedModels(network_builder(settings, self.real), 1, runtime)
            models.load([state])
            logits_NK = torch.cat([logits_RBK[0] for _, logits_RBK in logits_of(models, data)])
            mean_NK += (logits_NK / self.temperature).log_softmax(1).cpu() / len(self.states)
        wrong_N = mean_NK.argmax(1) != data.labels
        own_N = mean_NK.softmax(1).gather(1, data.labels[:, None])[:, 0]
        hard_NK = torch.full_like(mean_NK, -CERTAIN).scatter_(1, data.labels[:, None], 0.0)
        mean_NK = torch.where(wrong_N[:, None], hard_NK, mean_NK.clamp(min=-CERTAIN))
        return Taught(logits=mean_NK.half(), wrong=int(wrong_N.sum()), certainty=float(own_N.mean()))
