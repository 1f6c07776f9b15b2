"""Real images as small lossy pictures: what the rivals of a set at equal bytes are stored as.

Sets are counted without manifest and header, and so are the pictures: a file's bytes that pictures of one size share
are left out. Of a JPEG file of 32 x 32 pixels these are three quarters.
"""

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ncfmkit.images import LabeledImages

QUALITY = 50  # of JPEG and WebP alike
SAMPLED = 200  # images that say how large one is


def _webp_frame(file: bytes) -> int:
    """Bytes of the VP8 frame, without its start code and the size of the picture."""
    return int.from_bytes(file[16:20], "little") - 7


def _jpeg_scan(file: bytes) -> int:
    """Bytes of the entropy-coded scan: tables (the standard ones) and headers are the same for all pictures."""
    header = file.rindex(b"\xff\xda") + 2  # never within the scan, where 00 follows every FF
    return len(file) - len(b"\xff\xd9") - header - int.from_bytes(file[header : header + 2], "big")


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A lossy format of pictures."""

    name: str  # as Pillow has it
    counted: Callable[[bytes], int]  # the bytes of a file that pictures of the same size do not share

    def file(self, image_CHW: np.ndarray) -> bytes:
        """A picture file of a uint8 image of 1 or 3 channels."""
        from PIL import Image  # which only these baselines need

        pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, self.name, quality=QUALITY)
        return out.getvalue()

    def mean_bytes(self, images_NCHW: np.ndarray) -> float:
        """Counted bytes of an image, mean over `SAMPLED` that are evenly spaced."""
        index = np.linspace(0, len(images_NCHW) - 1, min(SAMPLED, len(images_NCHW))).astype(int)
        return float(np.mean([self.counted(self.file(image)) for image in images_NCHW[index]]))

    def coded(self, data: LabeledImages) -> tuple[LabeledImages, int]:
        """The images as the format leaves them, and their counted bytes."""
        assert isinstance(data.images, np.ndarray)
        files = [self.file(image) for image in data.images]
        images = np.stack([_decoded(file, channels=data.images.shape[1]) for file in files])
        return dataclasses.replace(data, images=images), sum(map(self.counted, files))


def _decoded(file: bytes, *, channels: int) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB")
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


WEBP = Codec(name="WEBP", counted=_webp_frame)
JPEG = Codec(name="JPEG", counted=_jpeg_scan)
