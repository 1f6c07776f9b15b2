"""Python code that loads one particular set, for its dataset card; it runs as a file beside the package's files.

Each snippet defines `images` float32 `[D, ch, H, W]` in [0, 1] and `labels` int64 `[D]`, the images to train on, and
`soft_labels` `[D, K]` if the set has them. The set's shape, decoding and bits are literals in the code.
"""

from dataclasses import dataclass

from ncfmkit.mosaic import decode_factors
from ncfmkit.sets.set_file import FILE_NAME
from ncfmkit.sets.synthetic import SyntheticSet


@dataclass(frozen=True)
class Facts:
    """What the snippets depend on.

    Attributes:
        kept: images per class that count, by decoding factor; factors of which none count are left out.
        bits: of quantized pixels, or none.
    """

    count: int
    classes: int
    channels: int
    side: int
    kept: dict[int, int]
    bits: int | None
    soft: bool
    mean: list[float]
    std: list[float]

    @property
    def per_class(self) -> int:
        return self.count // self.classes

    @property
    def mosaics(self) -> bool:
        """Whether stored images are anything else than the images to train on."""
        return self.kept != {1: self.per_class}

    @property
    def all_count(self) -> bool:
        return all(kept == self.per_class * f * f for f, kept in self.kept.items())

    @property
    def padded(self) -> bool:
        return any(self.side % f for f in self.kept)


def facts_of(result: SyntheticSet) -> Facts:
    how, (count, channels, side, _) = result.manifest["decode"], result.images.shape
    kept, left = {}, how["budget"] if how["budget"] is not None else result.ipc * how["factor"] ** 2
    for f in decode_factors(how["kind"], how["factor"]):
        cells = result.ipc * f * f
        kept[f] = min(left, cells) if how["kind"] == "bound" else cells
        left -= kept[f]
    return Facts(
        count=count,
        classes=len(result.classes),
        channels=channels,
        side=side,
        kept={f: k for f, k in kept.items() if k},
        bits=None if result.levels is None else result.manifest["pixels"]["bits"],
        soft=result.soft_labels is not None,
        mean=[float(value) for value in result.manifest["mean"]],
        std=[float(value) for value in result.manifest["std"]],
    )


def snippets(result: SyntheticSet, layout: str, images: str) -> dict[str, str]:
    """Source code by the library that it loads with: `numpy`, `torch` and that of the layout.

    Args:
        layout: a name of `LAYOUTS`.
        images: `stored` or `decoded`, what the layout's files hold.
    """
    facts = facts_of(result)
    library, load = LOADERS[layout]
    code = {"numpy": _numpy(facts), "torch": _torch(facts), library: load(facts, images == "stored")}
    return {name: "\n".join(lines) + "\n" for name, lines in code.items()}


def _numpy_decoding(facts: Facts) -> list[str]:
    n, c, side = facts.count, facts.channels, facts.side
    fill = f"[(0, 0), (0, 0), (0, cell * f - {side}), (0, cell * f - {side})]"
    return [
        "",
        "",
        "def cut(f):  # every image into f x f cells, each enlarged to the full side: bilinear, corners not aligned",
        f"    cell = -(-{side} // f)",
        *([f"    padded = np.pad(images, {fill}, constant_values=0.5)"] if facts.padded else []),
        f"    grid = {'padded' if facts.padded else 'images'}.reshape({n}, {c}, f, cell, f, cell)",
        f"    cells = grid.transpose(0, 2, 4, 1, 3, 5).reshape({n}, f * f, {c}, cell, cell)",
        f"    places = np.clip((np.arange({side}) + 0.5) * cell / {side} - 0.5, 0, cell - 1)",
        "    weights = np.maximum(0, 1 - abs(places[:, None] - np.arange(cell)))",
        "    return weights @ cells @ weights.T",
        "",
        *_chosen(facts, "np.concatenate({}, axis=1)", f"reshape(-1, {c}, {side}, {side})", "labels.repeat({})"),
    ]


def _torch_decoding(facts: Facts) -> list[str]:
    n, c, side = facts.count, facts.channels, facts.side
    return [
        "",
        "",
        "def cut(f):  # every image into f x f cells, each enlarged to the full side",
        f"    cell = -(-{side} // f)",
        *([f"    fill = cell * f - {side}"] if facts.padded else []),
        *(["    padded = F.pad(images, (0, fill, 0, fill), value=0.5)"] if facts.padded else []),
        f"    grid = {'padded' if facts.padded else 'images'}.reshape({n}, {c}, f, cell, f, cell)",
        "    cells = grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)",
        f'    full = F.interpolate(cells, size={side}, mode="bilinear", align_corners=False)',
        f"    return full.unflatten(0, ({n}, f * f))",
        "",
        *_chosen(facts, "torch.cat({}, dim=1)", "flatten(0, 1)", "labels.repeat_interleave({})"),
    ]


def _chosen(facts: Facts, joined: str, flat: str, repeated: str) -> list[str]:
    """Lines that leave the images to train on, and their labels."""
    factors = list(facts.kept)
    parts = f"cut({factors[0]})" if len(factors) == 1 else joined.format(f"[cut(f) for f in {tuple(factors)}]")
    if facts.all_count:
        cells = sum(f * f for f in factors)
        return ["", f"images = {parts}.{flat}", f"labels = {repeated.format(cells)}"]
    library = "np" if joined.startswith("np") else "torch"
    arange = f"{library}.arange({facts.per_class} * f * f).reshape({facts.per_class}, f * f) < count"
    masks = joined.format(f"[{arange} for f, count in kept.items()]")
    every = f"np.tile(mask, ({facts.classes}, 1))" if library == "np" else f"mask.repeat({facts.classes}, 1)"
    return [
        "",
        f"kept = {facts.kept}  # the first so many cells of a class, by factor",
        f"mask = {masks}",
        f"mask = {every}",
        f"images = {joined.format('[cut(f) for f in kept]')}[mask]",
        f"labels = {repeated.format('mask.sum(1)')}",
    ]


def _code_weights(bits: int) -> list[int]:
    return [1 << place for place in reversed(range(bits))]


def _numpy(facts: Facts) -> list[str]:
    return [
        "import hashlib",
        "import json",
        "",
        "import numpy as np",
        "",
        f'with open("{FILE_NAME}", "rb") as file:',
        '    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))',
        "    data = file.read()",
        'digests = json.loads(header["__metadata__"]["ncfmkit"])["sha256"]',
        "",
        "",
        "def tensor(name, dtype):",
        '    start, stop = header[name]["data_offsets"]',
        "    if hashlib.sha256(data[start:stop]).hexdigest() != digests[name]:",
        '        raise ValueError(f"{name} is damaged")',
        '    return np.frombuffer(data[start:stop], dtype).reshape(header[name]["shape"])',
        "",
        "",
        'labels = tensor("labels", "<i8")',
        *(['soft_labels = tensor("soft_labels", "<f2")  # logits, to train on as softmax'] if facts.soft else []),
        *_numpy_pixels(facts),
        *(_numpy_decoding(facts) if facts.mosaics else []),
        'images = images.astype("float32")',
    ]


def _numpy_pixels(facts: Facts) -> list[str]:
    if facts.bits is None:
        return ['images = tensor("images", "u1") / 255']
    q, c, side = facts.bits, facts.channels, facts.side
    top = (1 << q) - 1
    return [
        f'bits = np.unpackbits(tensor("pixels", "u1"), axis=1)[:, : {c * side * side * q}]',
        f"codes = bits.reshape(-1, {c}, {side}, {side}, {q}) @ {_code_weights(q)}",
        'low, high = np.moveaxis(tensor("levels", "u1").astype(int), 2, 0)[..., None, None]',
        f"images = (low + (2 * codes * (high - low) + {top}) // {2 * top}) / 255",
    ]


def _torch(facts: Facts) -> list[str]:
    return [
        "import torch",
        *(["import torch.nn.functional as F"] if facts.mosaics else []),
        "from safetensors.torch import load_file",
        "from torch.utils.data import DataLoader, TensorDataset",
        "",
        f'tensors = load_file("{FILE_NAME}")',
        'labels = tensors["labels"]',
        *(['soft_labels = tensors["soft_labels"].float()  # logits, to train on as softmax'] if facts.soft else []),
        *_torch_pixels(facts),
        *(_torch_decoding(facts) if facts.mosaics else []),
        "",
        *_torch_dataset(facts),
    ]


def _torch_pixels(facts: Facts) -> list[str]:
    if facts.bits is None:
        return ['images = tensors["images"].float() / 255']
    q, c, side = facts.bits, facts.channels, facts.side
    top = (1 << q) - 1
    return [
        'bits = (tensors["pixels"][:, :, None] >> torch.arange(7, -1, -1)) & 1',
        f"bits = bits.flatten(1)[:, : {c * side * side * q}].reshape(-1, {c}, {side}, {side}, {q})",
        f"codes = (bits * torch.tensor({_code_weights(q)})).sum(-1)",
        'low, high = tensors["levels"].long()[..., None, None].movedim(2, 0)',
        f"images = (low + (2 * codes * (high - low) + {top}) // {2 * top}).float() / 255",
    ]


def _torch_dataset(facts: Facts) -> list[str]:
    """Normalized as networks expect it."""
    c = facts.channels
    soft = ", soft_labels" if facts.soft else ""
    return [
        f"mean = torch.tensor({facts.mean}).view({c}, 1, 1)",
        f"std = torch.tensor({facts.std}).clamp(min=1e-6).view({c}, 1, 1)",
        f"dataset = TensorDataset((images - mean) / std, labels{soft})",
        "loader = DataLoader(dataset, batch_size=128, shuffle=True)",
    ]


def _ncfmkit(facts: Facts, stored: bool) -> list[str]:
    return [
        "import ncfmkit",
        "",
        'small = ncfmkit.load(".")  # checks every digest',
        "images, labels = small.decoded()",
        *(["soft_labels = small.soft_labels  # logits, to train on as softmax"] if facts.soft else []),
        "dataset = small.as_dataset()  # a torch dataset, normalized",
    ]


def _datasets(facts: Facts, stored: bool) -> list[str]:
    decoding = _torch_decoding(facts) if stored and facts.mosaics else []
    # of a stored image its decoded ones' logits, of which there may be none
    soft = 'torch.cat([part for part in rows["soft_labels"] if len(part)])' if stored else 'rows["soft_labels"]'
    lines = [
        "",
        "# of a repository on the Hub: its name instead of the path",
        'rows = load_dataset(str(Path.cwd()), split="train").with_format("torch")[:]',
        f'images = rows["image"][:, :{facts.channels}].float() / 255',
        'labels = rows["label"]',
        *([f"soft_labels = {soft}  # logits, to train on as softmax"] if facts.soft else []),
        *decoding,
    ]
    torch = any(" torch." in line for line in lines)
    imports = [*(["import torch"] if torch else []), *(["import torch.nn.functional as F"] if decoding else [])]
    return ["from pathlib import Path", "", *imports, "from datasets import load_dataset", *lines]


def _webdataset(facts: Facts, stored: bool) -> list[str]:
    decoding = _torch_decoding(facts) if stored and facts.mosaics else []
    names = "png;webp cls npy" if facts.soft else "png;webp cls"
    soft = f"torch.{'cat' if stored else 'stack'}([torch.from_numpy(row[2]) for row in rows])"
    return [
        "import glob",
        "",
        "import torch",
        *(["import torch.nn.functional as F"] if decoding else []),
        "import webdataset as wds",
        "",
        'shards = wds.WebDataset(sorted(glob.glob("*.tar")), shardshuffle=False)',
        f'rows = list(shards.decode("torchrgb8").to_tuple("{names}"))',
        f"images = torch.stack([row[0] for row in rows])[:, :{facts.channels}].float() / 255",
        "labels = torch.tensor([row[1] for row in rows])",
        *([f"soft_labels = {soft}  # logits, to train on as softmax"] if facts.soft else []),
        *decoding,
    ]


def _torchvision(facts: Facts, stored: bool) -> list[str]:
    decoding = _torch_decoding(facts) if stored and facts.mosaics else []
    return [
        *(["import numpy as np"] if facts.soft else []),
        "import torch",
        *(["import torch.nn.functional as F"] if decoding else []),
        "from torchvision.datasets import ImageFolder",
        "from torchvision.transforms.functional import pil_to_tensor",
        "",
        'rows = ImageFolder(".", transform=pil_to_tensor)  # of a git clone: without its folder .git',
        f"images = torch.stack([image for image, _ in rows])[:, :{facts.channels}].float() / 255",
        "labels = torch.tensor(rows.targets)",
        *(['soft_labels = torch.from_numpy(np.load("soft_labels.npy"))  # logits, as above'] if facts.soft else []),
        *decoding,
    ]


LOADERS = {  # layout -> the library that it is meant for, and its snippet
    "safetensors": ("ncfmkit", _ncfmkit),
    "webdataset": ("webdataset", _webdataset),
    "parquet": ("datasets", _datasets),
    "png": ("torchvision", _torchvision),
}
