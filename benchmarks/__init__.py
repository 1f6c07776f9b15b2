"""Speed and memory of ncfmkit against a plain reference and against what the machine can do: `python -m benchmarks`."""
