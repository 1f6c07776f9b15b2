"""Real data in: a table of sources, each read once into a memory-mapped uint8 store sorted by class."""
