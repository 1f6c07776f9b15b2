"""Ctrl-C on the command line: each script here is a process of its own, which a signal ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTHING = "ncfmkit: interrupted: nothing was written\n"
START = """
import os, signal, sys
from pathlib import Path
from ncfmkit import interrupts
interrupts.install()
def ctrl_c(number=signal.SIGINT):
    os.kill(os.getpid(), number)
"""


def ran(script: str, folder: Path, *, start: str = START) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-c", start + script],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("number", ["signal.SIGINT", "signal.SIGTERM"])
def test_the_process_ends_at_once_where_nothing_has_to_be_cleaned_up(tmp_path: Path, number: str) -> None:
    script = f"try:\n    ctrl_c({number})\nexcept BaseException:\n    print('went on')\nprint('went on')"
    assert ran(script, tmp_path) == (130, "", NOTHING)


def test_what_a_parent_process_ignores_stays_ignored(tmp_path: Path) -> None:
    start = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + START
    assert ran("ctrl_c(); print('went on')", tmp_path, start=start) == (0, "went on\n", "")


CLEANING = """
with interrupts.cleaning_up():
    try:
        {during}
    finally:
        {after}
        print('cleaned up', flush=True)
"""


def test_what_has_to_be_cleaned_up_is(tmp_path: Path) -> None:
    script = "try:\n" + "\n".join(
        f"    {line}" for line in CLEANING.format(during="ctrl_c()", after="pass").splitlines()
    )
    script += "\nexcept KeyboardInterrupt:\n    print(interrupts.message(), interrupts.received())"
    assert ran(script, tmp_path) == (0, "cleaned up\ninterrupted: nothing was written True\n", "")


def test_a_second_one_does_not_wait_for_that(tmp_path: Path) -> None:
    script = CLEANING.format(during="ctrl_c()", after="ctrl_c()")
    assert ran(script, tmp_path) == (130, "", NOTHING.rstrip() + "; temporary files may be left\n")


def test_a_block_is_not_cut_in_two(tmp_path: Path) -> None:
    script = "with interrupts.held():\n    ctrl_c()\n    print('whole', flush=True)\nprint('went on')"
    assert ran(script, tmp_path) == (130, "whole\n", NOTHING)


def test_unless_by_a_second_one(tmp_path: Path) -> None:
    script = "with interrupts.held():\n    ctrl_c()\n    ctrl_c()\n    print('whole', flush=True)"
    assert ran(script, tmp_path) == (130, "", NOTHING)


def test_an_interruption_that_a_destructor_swallows_comes_again(tmp_path: Path) -> None:
    script = """
import time
class Swallows:
    def __del__(self):
        ctrl_c()
        time.sleep(0)
with interrupts.cleaning_up():
    try:
        del_me = Swallows()
        del del_me
        time.sleep(30)
    except KeyboardInterrupt:
        print('raised again')
"""
    assert ran(script, tmp_path) == (0, "raised again\n", "")


WRITING = """
def write(*names):
    for name in names:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        interrupts.note_written(path)
"""


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("write('a', 'b')", "interrupted; already written: a, b"),
        ("write('a', 'b', 'a'); Path('b').unlink()", "interrupted; already written: a"),
        ("write('x/a', 'x/b', 'x/c', 'x/d')", "interrupted; already written: x"),
        ("write('a'); interrupts.begin()", "interrupted: nothing was written"),
        (
            "interrupts.note_cached()",
            "interrupted: nothing was written, except to the cache, where the next run finds it",
        ),
    ],
)
def test_what_was_written_is_named(tmp_path: Path, script: str, says: str) -> None:
    assert ran(f"import ncfmkit.progress{WRITING}{script}\nctrl_c()", tmp_path) == (130, "", f"ncfmkit: {says}\n")


def test_work_in_progress_says_what_it_keeps(tmp_path: Path) -> None:
    inner = "    with interrupts.keeping(lambda: None):\n        pass\n"
    script = f"with interrupts.keeping(lambda: 'kept'):\n{inner}    ctrl_c()"
    assert ran(script, tmp_path) == (130, "", "ncfmkit: kept\n")
    assert ran("with interrupts.keeping(lambda: None):\n    ctrl_c()", tmp_path) == (130, "", NOTHING)
    assert ran("with interrupts.keeping(lambda: 'kept'):\n    pass\nctrl_c()", tmp_path) == (130, "", NOTHING)


def test_a_command_that_has_ended_keeps_its_exit_code_and_its_output(tmp_path: Path) -> None:
    assert ran("print('result'); interrupts.end(3); ctrl_c(); print('went on')", tmp_path) == (3, "result\n", "")


def test_nor_is_it_lost_while_python_shuts_down(tmp_path: Path) -> None:
    script = """
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)
sys.late = Late()
print('result')
interrupts.end(0)
"""
    assert ran(script, tmp_path) == (0, "result\n", "")


AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["ncfmkit", *{arguments!r}]
from ncfmkit.cli.entry import run
run()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("ncfmkit.interrupts", ["--help"]),
        ("typer", ["--help"]),
        ("ncfmkit.cli.main", ["recipes"]),
        ("ncfmkit.jobs.doctor", ["doctor"]),
        ("numpy", ["doctor"]),
        ("torch._C", ["doctor"]),
        ("torch.nn.functional", ["pretrain", "digits"]),
    ],
)
def test_during_an_import(tmp_path: Path, module: str, arguments: list[str]) -> None:
    """Where an exception would turn into other errors, or into none."""
    assert ran(AT_IMPORT.format(module=module, arguments=arguments), tmp_path, start="") == (130, "", NOTHING)
