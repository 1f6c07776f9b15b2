"""Coverage-guided damage to files, by atheris: what a reader refuses, and that it raises nothing else.

    pip install atheris            # Python 3.11 to 3.13, Linux
    python -m benchmarks.fuzz numpy --cases 50000

atheris mutates the small sets of tests/data by what code each change reaches. A reader may refuse a file by its own
error; any other exception, or more than `--memory` MiB, ends the run with the file that caused it.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

DATA = Path(__file__).parents[1] / "tests" / "data"


def readers() -> dict[str, tuple[Callable[[Path], object], type[Exception]]]:
    """How each kind of file is read, and the error by which it is refused."""
    from ncfmkit.errors import UserError
    from ncfmkit.sets import manifest, numpy_reader, set_file
    from ncfmkit.sets.released import torch_file

    def forged(path: Path) -> object:
        """A manifest whose digest fits whatever it says."""
        try:
            content = manifest.parsed(path.read_bytes())
            content[manifest.DIGEST_KEY] = manifest.manifest_digest(content)
            text = manifest.written(content)
        except ValueError as error:
            raise UserError(str(error)) from None
        found, problems = manifest.read_manifest(text, str(path))
        if found is None:
            raise UserError(problems[0])
        return found

    return {
        "numpy": (numpy_reader.read, numpy_reader.SetError),
        "set": (set_file.load, UserError),
        "manifest": (forged, UserError),
        "release": (lambda path: torch_file.load(path, 1 << 24), UserError),
    }


def seeds(reader: str) -> dict[str, bytes]:
    """Valid files to begin with."""
    if reader == "release":
        import torch

        content = io.BytesIO()
        torch.save([torch.rand(2, 1, 4, 4), torch.tensor([0, 1])], content)
        return {"pair.pt": content.getvalue()}
    files = {file.name: file.read_bytes() for file in DATA.glob("*.safetensors")}
    if reader == "manifest":
        headers = {name: json.loads(c[8 : 8 + int.from_bytes(c[:8], "little")]) for name, c in files.items()}
        return {name: header["__metadata__"]["ncfmkit"].encode() for name, header in headers.items()}
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reader", choices=("numpy", "set", "manifest", "release"))
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--memory", type=int, default=2048, help="MiB")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    import atheris

    with atheris.instrument_imports(include=["ncfmkit.sets"]):
        read, refused = readers()[options.reader]
    counts = {"cases": 0, "refused": 0, "accepted": 0}
    slowest, folder = 0.0, Path(tempfile.mkdtemp(prefix="ncfmkit-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for name, content in seeds(options.reader).items():
        (corpus / name).write_bytes(content)

    def one(data: bytes) -> None:
        nonlocal slowest
        path, start = folder / "case", time.perf_counter()
        path.write_bytes(data)
        counts["cases"] += 1
        try:
            read(path)
            counts["accepted"] += 1
        except refused:
            counts["refused"] += 1
        slowest = max(slowest, time.perf_counter() - start)
        if counts["cases"] % 1000 == 0:
            print(f"{counts}, slowest {slowest:.3f} s", flush=True)

    flags = [f"-runs={options.cases}", f"-rss_limit_mb={options.memory}", f"-seed={options.seed}"]
    atheris.Setup([sys.argv[0], str(corpus), "-max_len=8192", *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
