"""A student as fp32, fp16 and int8 ONNX beside torch, eager and compiled: size, accuracy, agreement, speed, in one run.

    python benchmarks/exported_models.py STUDENT --data DATA --calibration SET [--provider cpu] [--json FILE]

All contenders take turns (`ncfmkit.exporters.timing`), with as many CPU threads as torch takes (OMP_NUM_THREADS). The
student in torch is float32. Accuracy and agreement are of the whole test split, on the CPU provider or the one named.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from ncfmkit.config import Settings
from ncfmkit.exporters import accuracy, export, timing
from ncfmkit.exporters.sessions import PROVIDERS, open_session
from ncfmkit.exporters.student import load_student
from ncfmkit.exporters.table import EXPORTERS
from ncfmkit.real.arguments import DataArguments
from ncfmkit.runtime import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--provider", default="cpu", choices=PROVIDERS)
    parser.add_argument("--batches", default="1,256")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    data = DataArguments(data=arguments.data)
    test = data.open(Settings()).test_split()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in EXPORTERS["onnx"].precisions}
        for precision, path in files.items():
            calibration = DataArguments(data=arguments.calibration) if precision == "int8" else None
            export.export(arguments.student, out=path, precision=precision, calibration=calibration)
        sizes = {name: path.stat().st_size for name, path in files.items()}
        threads = torch.get_num_threads()
        sessions = {name: open_session(path, arguments.provider, threads=threads) for name, path in files.items()}
    student = load_student(arguments.student)
    contract = sessions["fp32"].contract
    deployed = student.deployed(layout=contract.layout, output=contract.output)
    reference, *others = accuracy.score([_scores(deployed), *sessions.values()], test.images, title="accuracy")
    accuracies = {"torch": accuracy.tally(reference, test.labels).accuracy}
    agreements = {}
    for name, outcome in zip(sessions, others, strict=True):
        accuracies[name] = accuracy.tally(outcome, test.labels).accuracy
        agreements[name] = accuracy.agreement(outcome, reference).to_dict()
    config = timing.TimingConfig(batches=timing.parse_batches(arguments.batches))
    device = PROVIDERS[arguments.provider].device
    timed = timing.time_device(device, sessions, deployed, test.images, config)
    result = {
        **timed.to_dict(),
        "provider": arguments.provider,
        "threads": threads,
        "versions": versions() | (contract.metadata.versions if contract.metadata else {}),
        "student": student.manifest.network.to_dict(),
        "bytes": sizes,
        "accuracy": accuracies,
        "agreement": agreements,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _show(result)


def _scores(deployed: torch.nn.Module):
    @torch.inference_mode()
    def scores(images_NCHW: np.ndarray) -> np.ndarray:
        return deployed(torch.from_numpy(images_NCHW)).numpy()

    return scores


def _show(result: dict) -> None:
    print(f"{result['device']}, {result['threads']} threads, others used {result['others_cpu'] or 0:.0%} of the CPUs")
    print("| what | KiB | accuracy % | agreement % | p50 ms at batch 1 | x eager | x compiled |", end="")
    print("".join(f" images/s at {b['batch']} | x eager | x compiled |" for b in result["rows"][0]["batches"][1:]))
    for row in result["rows"]:
        name, right = row["name"], result["accuracy"].get(row["name"], result["accuracy"]["torch"])
        size = f"{result['bytes'][name] / 1024:.0f}" if name in result["bytes"] else ""
        agreement = f"{100 * result['agreement'][name]['agreement']:.2f}" if name in result["agreement"] else ""
        cells = [name, size, f"{100 * right:.2f}", agreement]
        for batch in row["batches"]:
            speed = f"{batch['p50_ms']:.3f}" if batch["batch"] == 1 else f"{batch['images_per_second']:,.0f}"
            cells += [
                speed,
                *(f"{batch['times'][t]:.2f}" if batch["times"] else "" for t in (timing.EAGER, timing.COMPILED)),
            ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
