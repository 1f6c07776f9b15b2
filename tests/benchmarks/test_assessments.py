"""What sets are good for: what is taken from assessments, and the page."""

import sys
from pathlib import Path

import pytest
from recorded import assessment

from benchmarks import assessments


def test_the_page_says_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cifar10-ipc10").mkdir()
    assessment().write(tmp_path / "cifar10-ipc10" / "assess.json")
    monkeypatch.setattr(assessments, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(assessments, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "cifar10-ipc10"), "--commit", "abc"])
    assessments.main()
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "## cifar10-ipc10\n" in text
    assert "10 stored images and 30,720 bytes per class, hard labels; cifar10, 10,000 test images" in text
    assert "commit abc" in text
    assert "Measured in 1 min 1 s." in text
    assert "| **convnet-3 width 8** | **66.0 ± 0.4** | **46.0" in text.replace("\u00a0", " ")
    assert "| vgg11 | 33.0 ± 0.4 | 23.0" in text.replace("\u00a0", " ")
    assert "/some/where" not in text + (tmp_path / "results" / "cifar10-ipc10.json").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["", "--commit", "def"])
    assessments.main()  # from the file alone
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text


def test_a_folder_without_a_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "--commit", "abc"])
    with pytest.raises(SystemExit, match=r"assess.json cannot be read"):
        assessments.main()


def test_the_page_in_the_docs_is_of_the_recorded_files() -> None:
    assert assessments.PAGE.read_text(encoding="utf-8") == assessments.render(assessments.recorded())
