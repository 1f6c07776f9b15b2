"""A trained student as input of the exporters: its file, opened and described like a model."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ncfmkit.exporters.contract import INPUT_NAME, Contract
from ncfmkit.exporters.preprocessing import Deployed
from ncfmkit.files import sha256_of
from ncfmkit.scoring import student_file
from ncfmkit.scoring.student_manifest import StudentManifest


@dataclass(frozen=True, kw_only=True)
class Student:
    path: Path
    network: nn.Module  # on normalized float32 images [N, C, H, W]; in eval mode, on the CPU
    manifest: StudentManifest

    def sha256(self) -> str:
        """Of the file."""
        return sha256_of(self.path)

    def contract(self, *, layout: str, output: str) -> Contract:
        """What this student takes and gives as a model with that layout (a row of `LAYOUTS`) and output."""
        classes = self.manifest.classes
        return Contract(
            input_name=INPUT_NAME,
            layout=layout,
            channels=self.manifest.channels,
            size=self.manifest.size,
            output_name=output,
            output=output,
            classes=classes,
            class_count=len(classes),
            metadata=None,
        )

    def deployed(self, *, layout: str, output: str, half: bool = False, lowered: bool = False) -> Deployed:
        """The network with its preprocessing inside; arguments as :class:`Deployed` has them."""
        return Deployed(
            self.network,
            mean=self.manifest.mean,
            std=self.manifest.std,
            layout=layout,
            output=output,
            half=half,
            lowered=lowered,
        )


def load_student(path: Path) -> Student:
    """The student in a file that `ncfmkit train` wrote.

    Raises:
        UserError: no such file, not a student, or damaged.
    """
    network, manifest = student_file.load(path)
    return Student(path=path, network=network, manifest=manifest)
