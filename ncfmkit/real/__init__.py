"""Real data in: a table of sources, each read once into a memory-mapped uint8 store sorted by class."""

from ncfmkit.real.opening import open_real
from ncfmkit.real.sources import SOURCES
from ncfmkit.real.store import RealData, Split

__all__ = ["SOURCES", "RealData", "Split", "open_real"]
