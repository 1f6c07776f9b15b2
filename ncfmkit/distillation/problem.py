"""What a step reads, and what it changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ncfmkit import augment
from ncfmkit.config import DistillSettings
from ncfmkit.distillation import frequencies, ncfd
from ncfmkit.distillation.ncfd import Chunk
from ncfmkit.distillation.pool import Pool
from ncfmkit.errors import UserError
from ncfmkit.images import channel_tensors, normalize
from ncfmkit.mosaic import decode_mask
from ncfmkit.networks import Classifier
from ncfmkit.networks.convnet import ConvNet
from ncfmkit.real.store import RealData
from ncfmkit.rng import keyed_rng
from ncfmkit.runtime import Runtime

DEFAULT_WORKING = 256 * 2**20  # bytes that a step works with on a CPU, beyond what it keeps


class AugmentedNetwork:
    """A network behind normalization and augmentation, both compiled where the runtime compiles.

    They are compiled one by one, because torch does not cache the traces of a region that switches autocast itself.
    """

    def __init__(
        self, network: Callable[[torch.Tensor], torch.Tensor], real: RealData, strategy: str, runtime: Runtime
    ):
        self._operations = augment.parse_strategy(strategy)
        mean, std = channel_tensors(real.mean, real.std, runtime.device)

        def prepare(x_NCHW: torch.Tensor, u_NP: torch.Tensor, drawn: tuple[str, ...]) -> torch.Tensor:
            return augment.apply(normalize(x_NCHW, mean, std), self._operations, drawn, u_NP)

        self._autocast = runtime.autocast
        self._plain = prepare, network
        self._compiled = runtime.compiled(prepare), runtime.compiled(network)

    def __call__(self, x_NCHW: torch.Tensor, u_NP: np.ndarray, *, plain: bool = False) -> torch.Tensor:
        """The output for uint8 images, or floats in [0, 1], each augmented by its row of uniform numbers."""
        prepare, network = self._plain if plain else self._compiled
        rows = torch.from_numpy(u_NP)
        x_NCHW = prepare(x_NCHW, rows.to(x_NCHW.device), augment.drawn(self._operations, rows))
        with self._autocast():
            return network(x_NCHW)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What every step reads and none changes, but for the weights that are blended into the two networks."""

    real: RealData
    settings: DistillSettings
    seed: int
    pool: Pool
    runtime: Runtime
    metric: ncfd.Metric
    matcher: Classifier  # the matching extractor
    calibrator: Classifier
    features: AugmentedNetwork  # of the matcher
    logits: AugmentedNetwork  # of the calibrator
    feature_dim: int  # D
    mask_MP: np.ndarray
    train_images: np.ndarray | torch.Tensor  # uint8 [N, ch, H, W], as `real` has them or on the device
    chunks: dict[tuple, list[Chunk]] = field(default_factory=dict)  # they are the same at every step

    @property
    def classes(self) -> int:
        return len(self.real.classes)


@dataclass(kw_only=True)
class State:
    """What a step changes, and a checkpoint holds."""

    images: torch.Tensor  # float32 leaf [C*M, ch, H, W] in [0, 1]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    scaler: torch.amp.GradScaler
    psi: frequencies.SamplingNetwork | None
    psi_optimizer: torch.optim.Optimizer | None
    step: int = 0

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        if self.psi is not None:
            parts |= {"psi": self.psi, "psi_optimizer": self.psi_optimizer}
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values. Random draws need no state: they are keyed by the step."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step, "images": self.images.detach(), **states}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        self.step = stored["step"]
        with torch.no_grad():
            self.images.copy_(stored["images"])
        for name, part in self._parts().items():
            part.load_state_dict(stored[name])


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    matching: float  # weighted, mean over classes
    calibration: float | None  # cross-entropy, mean over classes
    lr: float


def make_problem(
    real: RealData,
    settings: DistillSettings,
    *,
    seed: int,
    pool: Pool,
    build: Callable[[], Classifier],
    runtime: Runtime,
    budget: int | None = None,
    gradient_checkpointing: bool = False,
) -> Problem:
    """Checks the settings against the data and prepares the two networks.

    Args:
        budget: as of :func:`ncfmkit.distillation.memory.make_plan`; real images that take at most a quarter of it are
            kept on a GPU.

    Raises:
        UserError: the factor is above the side, or the network cannot be checkpointed.
    """
    if settings.factor > real.size:
        raise UserError(f"--factor {settings.factor} is above the image side of {real.name}, {real.size}: lower it")
    matcher, calibrator = (build().to(runtime.device).requires_grad_(False) for _ in range(2))
    probe = torch.zeros(2, real.channels, real.size, real.size, device=runtime.device)
    features = checkpointed_features(matcher) if gradient_checkpointing else matcher.features
    images, allowed = real.train.images, default_budget(runtime) if budget is None else budget
    on_device = runtime.device.type == "cuda" and images.nbytes <= allowed // 4
    return Problem(
        real=real,
        settings=settings,
        seed=seed,
        pool=pool,
        runtime=runtime,
        metric=ncfd.metric(settings.metric, alpha=settings.alpha),
        matcher=matcher,
        calibrator=calibrator,
        features=AugmentedNetwork(features, real, settings.augment, runtime),
        logits=AugmentedNetwork(calibrator, real, settings.augment, runtime),
        feature_dim=matcher.features(probe).shape[1],
        mask_MP=decode_mask(settings.decode, settings.factor, settings.ipc, settings.decoded_per_class),
        # torch.from_numpy would warn of an array that is read-only
        train_images=torch.tensor(images, device=runtime.device) if on_device else images,
    )


def checkpointed_features(network: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network's features with each block recomputed in the backward pass, which keeps only the blocks' inputs."""
    from torch.utils.checkpoint import checkpoint_sequential

    if not isinstance(network, ConvNet):
        raise UserError("--gradient-checkpointing works with networks made of blocks: use --network convnet")
    blocks, head = network.blocks, network.features

    def features(x_NCHW: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return head(x_NCHW)
        segments = max(1, len(blocks) // 4)
        return checkpoint_sequential(blocks, segments, network.padded(x_NCHW), use_reentrant=False).flatten(1)

    return features


def make_state(problem: Problem, images_NCHW: torch.Tensor) -> State:
    """The state before the first step, from initial images in [0, 1]."""
    s, device = problem.settings, problem.runtime.device
    images = images_NCHW.to(device).clone().requires_grad_()
    if s.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([images], lr=s.lr, weight_decay=s.weight_decay)
    else:
        optimizer = torch.optim.SGD([images], lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)
    psi = psi_optimizer = None
    if s.sampler == "learned":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_rng(problem.seed, "psi").integers(2**62)))
            psi = frequencies.SamplingNetwork(problem.feature_dim).to(device)
        psi_optimizer = torch.optim.SGD(psi.parameters(), lr=s.sampler_lr, momentum=s.sampler_momentum, maximize=True)
    scaler = problem.runtime.scaler(init_scale=2.0**8)  # the matching weight scales the gradient as well
    scaler.scale(images.new_zeros(()))  # makes its scale, which a step reads without ever calling scale()
    return State(
        images=images,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=s.patience),
        scaler=scaler,
        psi=psi,
        psi_optimizer=psi_optimizer,
    )


def default_budget(runtime: Runtime) -> int:
    """Bytes for a step to work with where nothing is said: half of a GPU's free memory, 256 MiB on a CPU."""
    return torch.cuda.mem_get_info(runtime.device)[0] // 2 if runtime.device.type == "cuda" else DEFAULT_WORKING
