"""The code in dataset cards: every snippet of every kind of set is run in its package and compared with the library."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_set
from other_libraries import import_torchvision, offline_datasets

from ncfmkit.sets import package
from ncfmkit.sets.package import Packing
from ncfmkit.sets.snippets import snippets
from ncfmkit.sets.views.table import LAYOUTS

LICENSED: dict[str, Any] = {"source": {"name": "tiny", "fingerprint": "tiny-0", "train_images": 21, "license": "mit"}}
SETS: dict[str, dict[str, Any]] = {
    "no mosaics": {"factor": 1},
    "single, factor 2": {"factor": 2},
    "single, factor 3, side 8": {"factor": 3},
    "multi, factor 3, gray": {"kind": "multi", "factor": 3, "channels": 1},
    "bound, whole": {"kind": "bound", "factor": 2},
    "bound, a part of two factors": {"kind": "bound", "factor": 3, "budget": 21, "soft": True},
    "bound, some images without any": {"kind": "bound", "factor": 2, "budget": 3, "soft": True, "size": 7},
    "bound, all factors": {"kind": "bound", "factor": 2, "budget": 99},
    "3 bits, per image": {"bits": 3, "scale": "image", "size": 7},
    "3 bits, per channel, gray, soft": {"bits": 3, "scale": "channel", "channels": 1, "soft": True, "factor": 1},
    "5 bits, multi, soft": {"bits": 5, "scale": "channel", "kind": "multi", "soft": True},
}
PICTURES = [name for name, row in LAYOUTS.items() if row.module is not None]
# every set in every layout, stored and decoded; the encodings take turns
CASES = [(which, "safetensors", "stored", None) for which in SETS] + [
    (which, layout, images, ("png", "webp")[(i + j + k) % 2])
    for i, which in enumerate(SETS)
    for j, layout in enumerate(PICTURES)
    for k, images in enumerate(("stored", "decoded"))
]


def blocks(card: str) -> list[str]:
    """The fenced Python code of a card."""
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs code inside a package and gives its names."""
    offline_datasets(tmp_path / "hub", monkeypatch)
    import_torchvision()

    def execute(code: str, folder: Path) -> dict[str, Any]:
        monkeypatch.chdir(folder)
        names: dict[str, Any] = {"__name__": "snippet"}
        exec(compile(code, "README.md", "exec"), names)
        return names

    return execute


# webdataset leaves shards open until they are collected
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO.*tar:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("which", "layout", "images", "encoding"), CASES)
def test_every_snippet_gives_the_images_to_train_on(
    tmp_path: Path, run: Any, which: str, layout: str, encoding: str | None, images: str
) -> None:
    synthetic = build_set(**SETS[which], **LICENSED)
    expected_images, expected_labels = synthetic.decoded()
    folder = tmp_path / "packed"
    package.write(synthetic, folder, Packing(layout=layout, images=images, encoding=encoding))
    code = snippets(synthetic, layout, images)
    assert blocks((folder / "README.md").read_text()) == list(code.values())
    for library, source in code.items():
        names = run(source, folder)
        rounded = images == "decoded" and library not in ("numpy", "torch")
        assert tuple(names["images"].shape) == tuple(expected_images.shape), library
        assert str(names["images"].dtype).endswith("float32")
        np.testing.assert_allclose(names["images"], expected_images, rtol=0, atol=0.51 / 255 if rounded else 1e-6)
        assert np.asarray(names["labels"]).tolist() == expected_labels.tolist(), library
        if synthetic.soft_labels is not None:
            assert np.array_equal(np.asarray(names["soft_labels"], np.float16), synthetic.soft_labels), library
        assert ("soft_labels" in names) == (synthetic.soft_labels is not None)


@pytest.mark.parametrize("std", [[0.2, 0.25, 0.3], [0.0, 1.0, 1e-9], [0, 1, 1]])
def test_the_torch_snippet_normalizes(tmp_path: Path, run: Any, std: list[float]) -> None:
    synthetic = build_set(soft=True, std=std, **LICENSED)
    folder = tmp_path / "packed"
    package.write(synthetic, folder, Packing(layout="safetensors"))
    names = run(snippets(synthetic, "safetensors", "stored")["torch"], folder)
    for got, expected in zip(names["dataset"].tensors, synthetic.as_dataset().tensors, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 if min(std) > 0.1 else 1)
    assert names["dataset"].tensors[0].isfinite().all()
    assert next(iter(names["loader"]))[0].shape == (24, 3, 8, 8)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_the_numpy_snippet_finds_damage(tmp_path: Path, run: Any, name: str) -> None:
    synthetic = build_set(**LICENSED)
    folder = tmp_path / "packed"
    package.write(synthetic, folder, Packing(layout="safetensors"))
    file = folder / "synthetic.safetensors"
    content = bytearray(file.read_bytes())
    content[-1 if name == "images" else -synthetic.images.nbytes - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        run(snippets(synthetic, "safetensors", "stored")["numpy"], folder)


def test_the_numpy_snippet_needs_numpy_alone_and_is_short() -> None:
    for which in SETS.values():
        code = snippets(build_set(**which), "png", "stored")["numpy"]
        imports = {line.split()[1] for line in code.splitlines() if line.startswith(("import", "from"))}
        assert imports == {"hashlib", "json", "numpy"}
        assert max(map(len, code.splitlines())) <= 120
    short = snippets(build_set(factor=2), "png", "stored")["numpy"]
    assert len([line for line in short.splitlines() if line]) < 25


def test_snippets_are_clean_code(tmp_path: Path) -> None:
    """As an editor or a linter would have it: it compiles, and names nothing that it does not use."""
    for number, which in enumerate(SETS.values()):
        for layout in LAYOUTS:
            for images in ("stored", "decoded"):
                for library, code in snippets(build_set(**which), layout, images).items():
                    (tmp_path / f"{number}_{layout}_{images}_{library}.py").write_text(code)
    rules = ["--isolated", "--preview", "--select", "F,E,W,I", "--line-length", "120"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *rules, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
