"""Peak memory of a distillation step against IPC and real batch, at one chunk size: it should not grow.

    python benchmarks/step_memory.py [--json FILE]

Each setting runs in a fresh process: 2 steps of CIFAR-10's shape (random pixels, untrained ConvNet-3 of width 128,
float32, uncompiled, T 1024). Reported: the peak of the process's anonymous resident memory above what it held before
the first step (Linux; memory-mapped real images are not part of it), and the stored images with gradient and two
moments. glibc is told to give freed blocks back at once, so that the peak is of what was in use.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SETTINGS = [(ipc, real) for real in (256, 1024) for ipc in (1, 10, 50)]
CHUNK = 40  # images: what IPC 1 decodes to, so that every setting fills its chunks


def resident_bytes() -> int:
    """Anonymous resident memory of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


class Peak(threading.Thread):
    """Watches resident memory every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.bytes = resident_bytes()
        self.running = True

    def run(self) -> None:
        while self.running:
            self.bytes = max(self.bytes, resident_bytes())
            time.sleep(0.002)

    def stop(self) -> int:
        self.running = False
        self.join()
        return self.bytes - self.before


def measure(ipc: int, real_batch: int, sampler: str) -> dict:
    import numpy as np
    import torch

    from ncfmkit.config import DistillSettings, RuntimeSettings
    from ncfmkit.distillation import Plan, distill_step, make_problem, make_state
    from ncfmkit.extractors import Pool
    from ncfmkit.networks import build
    from ncfmkit.real import RealData, Split
    from ncfmkit.runtime import choose_runtime
    from ncfmkit.synthetic import initialise

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, rng.integers(0, 256, (50_000, 3, 32, 32), dtype=np.uint8))
        split = Split(np.load(file, mmap_mode="r"), np.arange(11) * 5000)
        real = RealData(
            name="random pixels",
            classes=tuple("abcdefghij"),
            train=split,
            test=None,
            size=32,
            channels=3,
            mean=(0.5,) * 3,
            std=(0.3,) * 3,
            fingerprint="",
            skipped=0,
        )

        def network() -> torch.nn.Module:
            return build("convnet", channels=3, classes=10, size=32)

        state = {k: v.detach() for k, v in network().named_parameters()}
        pool = Pool(key="", initial=[state], final=[state], accuracies=[None], seconds=0.0)
        runtime = choose_runtime(RuntimeSettings(device="cpu", precision="fp32", compile="off"))
        settings = DistillSettings(ipc=ipc, real_batch=real_batch, sampler=sampler)
        problem = make_problem(real, settings, seed=0, pool=pool, build=network, runtime=runtime)
        images = initialise("mix", real, ipc=ipc, factor=2, seed=0)
        peak = Peak()
        peak.start()
        held = make_state(problem, images)
        plan = Plan(chunk=CHUNK, slots=1, stack=1 if sampler == "learned" else 10)
        for _ in range(2):
            distill_step(problem, held, plan)
        above = peak.stop()
    return {
        "ipc": ipc,
        "real_batch": real_batch,
        "sampler": sampler,
        "chunk": CHUNK,
        "peak_bytes": above,
        "stored_bytes": 4 * images.nbytes,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--sampler", choices=("gaussian", "learned"), default="gaussian")
    parser.add_argument("--one", nargs=2, type=int, metavar=("IPC", "REAL_BATCH"), help="only this setting, here")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.sampler)))
        return
    rows = []
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    print("IPC  real batch  peak MiB  stored MiB  difference MiB")
    for ipc, real_batch in SETTINGS:
        command = [sys.executable, __file__, "--one", str(ipc), str(real_batch), "--sampler", options.sampler]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        row = json.loads(done.stdout)
        rows.append(row)
        peak, stored = row["peak_bytes"] / 2**20, row["stored_bytes"] / 2**20
        print(f"{ipc:3d}  {real_batch:10d}  {peak:8.0f}  {stored:10.1f}  {peak - stored:14.0f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
