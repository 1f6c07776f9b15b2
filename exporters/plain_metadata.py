"""What other programs read of an exported model: texts under the keys that they know, and a description.

`names`, `imgsz` and `task` are spelled as Ultralytics' exporter writes them, since that is what readers of ONNX
classifiers parse. Netron shows these texts, and the description above them.
"""

from ncfmkit.exporters.contract import LAYOUTS, ModelMetadata, format_shape
from ncfmkit.progress import printable

LONGEST_NAMES = 1 << 20  # characters; a longer table of class names is left out
LONGEST_PART = 200  # characters of a name or license


def plain_metadata(about: ModelMetadata) -> dict[str, str]:
    """Texts by key.

    `names` is a dict of class names by index and `imgsz` a list of height and width, both as Python literals;
    `license` is there if the set states that of the real images.
    """
    found = {"task": "classify", "imgsz": str([about.input.size, about.input.size])}
    names = str(dict(enumerate(about.classes)))
    if len(names) <= LONGEST_NAMES:
        found["names"] = names
    origin = about.trained_on
    if origin.license is not None:
        found["license"] = f"{_part(origin.license)} (of the real images: {_part(origin.source or 'not named')})"
    return found


def description(about: ModelMetadata) -> str:
    """A few sentences: what the model is, takes and gives, and where it comes from."""
    taken, network, origin = about.input, about.student.network, about.trained_on
    shape = format_shape((taken.channels or 0, taken.size or 0, taken.size or 0))
    color = "gray" if taken.channels == 1 else "RGB"
    parts = [
        f"{_part(network.name) if network else 'Image'} classifier of {len(about.classes):,} classes.",
        f"Takes {shape} {color} images, {LAYOUTS[taken.layout].summary}, not normalized; gives {about.output.kind}.",
    ]
    if origin.name is not None:
        source = "" if origin.source is None else f", distilled from {_part(origin.source)}"
        parts.append(f"Trained on the synthetic set {_part(origin.name)}{source}.")
    if about.student.test_accuracy is not None:
        parts.append(f"Test accuracy of the student that it was exported from: {about.student.test_accuracy:.2%}.")
    return " ".join(parts)


def _part(text: str) -> str:
    """A text of somebody else's in one line of bounded length."""
    shown = printable(text)
    return shown if len(shown) <= LONGEST_PART else shown[:LONGEST_PART] + "..."
