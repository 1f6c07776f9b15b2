"""What --help shows as examples of each command. tests/cli/test_examples.py runs them as they are written."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "distill": (
        "ncfmkit distill digits",
        "ncfmkit distill photos/ --ipc 10 --size 64 --resize crop --holdout 0.1",
        "ncfmkit distill digits --shard 1/2 --sampler gaussian --schedule constant",
        "ncfmkit distill --resume runs/digits-ipc1",
    ),
    "pretrain": ("ncfmkit pretrain digits", "ncfmkit pretrain cifar10 --recipe cifar10-ipc10 --download"),
    "recipes": ("ncfmkit recipes", "ncfmkit recipes cifar10-ipc10-cpu", "ncfmkit recipes --networks"),
    "inspect": ("ncfmkit inspect runs/digits-ipc1", "ncfmkit inspect student.onnx"),
    "evaluate": (
        "ncfmkit evaluate runs/digits-ipc1 --data digits --baselines random,whole",
        "ncfmkit evaluate runs/digits-ipc1 --data digits --network alexnet --repeats 3",
    ),
    "assess": ("ncfmkit assess runs/digits-ipc1 --data digits --only ranking,privacy",),
    "train": ("ncfmkit train runs/digits-ipc1 --data digits --out student.safetensors",),
    "merge": ("ncfmkit merge runs/digits-ipc1-shard-1-of-2 runs/digits-ipc1-shard-2-of-2",),
    "relabel": (
        "ncfmkit relabel runs/digits-ipc1 --data digits --out soft.safetensors",
        "ncfmkit relabel soft.safetensors --hard --out hard.safetensors",
    ),
    "compare": ("ncfmkit compare hard.safetensors soft.safetensors --data digits --out soft-or-hard",),
    "pack": (
        "ncfmkit pack runs/digits-ipc1 --to webdataset",
        "ncfmkit pack runs/digits-ipc1 --to parquet --license bsd-3-clause",
    ),
    "verify": ("ncfmkit verify digits-ipc1-webdataset", "ncfmkit verify runs/digits-ipc1 --score --data digits"),
    "push": (
        "ncfmkit push digits-ipc1-parquet hf://me/digits-ipc1 --dry-run",
        "ncfmkit push digits-ipc1-parquet hf://me/digits-ipc1",
    ),
    "unpack": ("ncfmkit unpack digits-ipc1-webdataset --out digits.safetensors",),
    "convert": ("ncfmkit convert released.pt --data cifar10 --values normalized --out released.safetensors",),
    "export": (
        "ncfmkit export student.safetensors --data digits",
        "ncfmkit export student.safetensors --precision int8 --calibration runs/digits-ipc1",
        "ncfmkit export student.safetensors --to web --out site --download",
    ),
    "validate": (
        "ncfmkit validate student.onnx --data digits --against student.safetensors",
        "ncfmkit validate student.onnx student-int8.onnx --data digits",
    ),
    "predict": (
        "ncfmkit predict student.onnx photos/ --topk 3 > answers.jsonl",
        "ncfmkit predict student.onnx photos/ --topk 1 --format csv > answers.csv",
    ),
    "doctor": ("ncfmkit doctor", "ncfmkit doctor --json"),
    "cache": ("ncfmkit cache", "ncfmkit cache --clean --older-than 30d --dry-run"),
}


def epilog(command: str) -> str:
    """The text below a command's help; a blank line keeps two examples apart."""
    examples = EXAMPLES[command]
    return "\n\n".join(["Example:" if len(examples) == 1 else "Examples:", *(f"  {line}" for line in examples)])
