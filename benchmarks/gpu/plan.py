"""Which checks there are, in which order, and how long each may take: the one table of :mod:`benchmarks.gpu`.

A GPU may be there for a few minutes only, so the first ones answer the most. A part is what one command can do: its
checks share its seconds, in order.
"""

import os
from dataclasses import dataclass

SMALL = bool(os.environ.get("NCFM_CPU"))  # everything in miniature, on the CPU

CHECK = ("-m", "benchmarks.gpu.checks")
PYTEST = (
    *("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short", "tests/test_gpu.py"),
    *("-W", "ignore::pytest.PytestConfigWarning"),  # the project's settings name plugins that may not be there
)
CLI = ("-c", "from ncfmkit.cli.entry import run; run()")

PARTS = {"step": 315, "cifar10": 275, "export": 140}  # seconds of each


@dataclass(frozen=True, kw_only=True)
class Check:
    """A row of `CHECKS`: arguments of Python, in which {device}, {provider}, {keep} and {out} are filled in."""

    name: str
    part: str
    seconds: float  # the most that it may take
    arguments: tuple[str, ...]
    small: tuple[str, ...] = ()  # more arguments, in miniature
    needs: str = ""  # what an earlier check has left in the folder that is kept


def _check(part: str, seconds: float, *arguments: str) -> Check:
    name = " ".join(a for a in arguments if "{" not in a)
    return Check(name=name, part=part, seconds=seconds, arguments=(*CHECK, *arguments))


def _tests(name: str, part: str, seconds: float, select: str) -> Check:
    arguments = (*PYTEST, "-k", select, f"--junitxml={{out}}/tests-{name}.xml")
    return Check(name=f"tests {name}", part=part, seconds=seconds, arguments=arguments)


CHECKS = (
    _check("step", 40, "machine"),
    _check("step", 40, "rates"),
    _tests("core", "step", 70, "not main_job and not providers and not validate and not compiled"),
    _check("step", 40, "step", "compile=off"),  # before what has to be compiled first
    _check("step", 110, "step", "profile=true"),
    _check("step", 30, "step", "allow_tf32=false"),
    _check("step", 70, "step", "chunk=2048"),
    _check("step", 30, "step", "compile=off", "half_norms=true"),
    _check("step", 20, "norm_pool"),
    _check("step", 45, "real_side"),
    _check("step", 80, "training"),
    _check("step", 60, "kernels"),
    _check("step", 50, "step", "precision=fp32"),
    _tests("compiled", "step", 60, "compiled or main_job"),
    _check("cifar10", 60, "store"),
    _check("cifar10", 205, "cifar10"),
    _check("cifar10", 45, "same_bytes"),
    _check("cifar10", 45, "resume"),
    _check("cifar10", 30, "out_of_memory"),
    _check("cifar10", 60, "memory_budget"),
    _check("export", 30, "onnxruntime"),
    _tests("providers", "export", 90, "providers or validate"),
    Check(
        name="train a student",
        part="export",
        seconds=60,
        arguments=(*CLI, "train", "{keep}/run", "--out", "{keep}/student.safetensors", "--device", "{device}"),
        needs="run/scores.json",
    ),
    Check(
        name="export it",
        part="export",
        seconds=40,
        arguments=(*CLI, "export", "{keep}/student.safetensors", "--out", "{keep}/student.onnx"),
        needs="student.safetensors",
    ),
    Check(
        name="validate it",
        part="export",
        seconds=90,
        arguments=(
            *(*CLI, "validate", "{keep}/student.onnx", "--data", "{data}", "--out", "{out}/validation"),
            *("--against", "{keep}/student.safetensors", "--provider", "{provider}", "--json"),
        ),
        small=("--no-speed",),
        needs="student.onnx",
    ),
)
