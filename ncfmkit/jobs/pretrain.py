"""`ncfmkit pretrain`: only the extractor pool."""

from collections.abc import Iterator

from ncfmkit.config import Settings
from ncfmkit.distillation.pool import Pool, estimate_pool, open_pool
from ncfmkit.estimate import Stage, announce
from ncfmkit.jobs.setup import resolve
from ncfmkit.progress import notice
from ncfmkit.real.store import RealData
from ncfmkit.runtime import Runtime


def estimate(real: RealData, settings: Settings, runtime: Runtime) -> Iterator[Stage]:
    """The members that :func:`pretrain` would train, measured; nothing where all are in the cache."""
    networks = resolve(settings, real).extractors
    return estimate_pool(real, networks, settings.pool, seed=settings.seed, runtime=runtime)


def pretrain(real: RealData, settings: Settings, runtime: Runtime) -> Pool:
    """Only the extractor pool: trains what the cache lacks."""
    settings = resolve(settings, real)
    notice(f"device: {runtime.describe()}")
    announce(estimate(real, settings, runtime))
    return open_pool(real, settings.extractors, settings.pool, seed=settings.seed, runtime=runtime)
