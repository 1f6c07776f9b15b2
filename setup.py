"""What pyproject.toml cannot say: the links that an sdist needs, and the README as a package index shows it."""

import re
from collections.abc import Sequence
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent


def readme(text: str) -> str:
    """The README without pictures and links that lead into the repository: a package index has no such files."""
    text = re.sub(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n?", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?://)[^)]*\)", r"\1", text)


class SdistWithLinks(sdist):
    """An sdist whose tests run where it is unpacked: `ncfmkit/cli` and `ncfmkit/exporters` are links there, too."""

    def make_release_tree(self, base_dir: str, files: Sequence[str]) -> None:
        super().make_release_tree(base_dir, files)
        for link in (p for p in (ROOT / "ncfmkit").iterdir() if p.is_symlink()):
            Path(base_dir, "ncfmkit", link.name).symlink_to(link.readlink())


setup(
    cmdclass={"sdist": SdistWithLinks},
    long_description=readme((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
