"""A run in TensorBoard: event files beside metrics.jsonl, by `torch.utils.tensorboard`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.extras import install
from ncfmkit.reports.contact_sheet import contact_sheet
from ncfmkit.run_records import MetricsRow


def require_tensorboard() -> None:
    """Raises UserError unless the package tensorboard, which writes event files, is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(f"--log tensorboard needs the package tensorboard: {install('tensorboard')}")


class EventLog:
    """The event files of one process in a run directory.

    Args:
        folder: the run directory.
        step: the last step that the run has done; events of later steps, which an interrupted process logged after
            its last checkpoint, are purged. 0: a new run.
        labels_N: int64, of the images that :meth:`add_images` is given.
        classes: their names.
    """

    def __init__(self, folder: Path, step: int, *, labels_N: np.ndarray, classes: Sequence[str]):
        from torch.utils.tensorboard import SummaryWriter  # imports the package tensorboard

        self.labels, self.classes = labels_N, classes
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add_row(self, row: MetricsRow) -> None:
        """Logs the losses and the learning rate of a row of metrics.jsonl."""
        logged = {"loss/matching": row.matching, "loss/calibration": row.calibration, "lr": row.lr}
        for tag, value in logged.items():
            if value is not None:
                self.writer.add_scalar(tag, value, row.step)

    def add_images(self, images_NCHW: np.ndarray, step: int) -> None:
        """Logs a contact sheet of uint8 images, and writes what is logged to disk."""
        sheet = contact_sheet(images_NCHW, self.labels, self.classes).convert("RGB")
        self.writer.add_image("synthetic images", np.array(sheet), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
