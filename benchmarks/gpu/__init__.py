"""What only a machine with a GPU can tell, ready to run on one: `python -m benchmarks.gpu`."""
