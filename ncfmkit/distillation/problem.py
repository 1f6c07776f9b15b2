"""What a step reads, and what it changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ncfmkit import augment, distributed
from ncfmkit.config import DistillSettings
from ncfmkit.distillation import frequencies, ncfd
from ncfmkit.distillation.difficulty import placeholder
from ncfmkit.distillation.ncfd import Chunk
from ncfmkit.distillation.pool import Pool
from ncfmkit.distillation.schedule import Schedule, wide
from ncfmkit.distillation.shares import rank_labels
from ncfmkit.errors import NonFiniteLossError, UserError
from ncfmkit.images import channel_tensors, normalize
from ncfmkit.mosaic import decode_mask
from ncfmkit.networks import Classifier
from ncfmkit.networks.convnet import ConvNet
from ncfmkit.real.store import RealData
from ncfmkit.recorded import Recorded
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

    def __call__(
        self, x_NCHW: torch.Tensor, u_NP: torch.Tensor, drawn: tuple[str, ...], *, plain: bool = False
    ) -> torch.Tensor:
        """The output for uint8 images, or floats in [0, 1], each augmented by its row of uniform numbers.

        Args:
            u_NP: on the device of the images.
            drawn: the operations that these rows pick, and maybe others (:meth:`Problem.drawn`).
        """
        prepare, network = self._plain if plain else self._compiled
        x_NCHW = prepare(x_NCHW, u_NP, drawn)
        with self._autocast():
            return network(x_NCHW)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The two networks of a step, of one architecture."""

    matcher: Classifier  # the matching extractor
    calibrator: Classifier
    features: AugmentedNetwork  # of the matcher
    logits: AugmentedNetwork  # of the calibrator
    feature_dim: int  # D


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What every step reads and none changes, but for the weights that are blended into the networks."""

    real: RealData
    settings: DistillSettings
    seed: int
    pool: Pool
    runtime: Runtime
    metric: ncfd.Metric
    architectures: tuple[Architecture, ...]  # of the pool's members, in turn
    current: int = 0  # the architecture of the step
    mask_MP: np.ndarray
    shares: list[np.ndarray]  # labels of the classes that each rank distills, ascending; int64
    shared: bool = True  # with the other ranks
    label_C: np.ndarray  # of those of this rank
    device_label_C: torch.Tensor  # the same on the device
    easiest: list[np.ndarray] | None  # positions in the train split that each class's draws are from; None: all
    pool_bytes: int  # of the pool's weights on a GPU, of those that are yet to be trained too
    train_images: np.ndarray | torch.Tensor  # uint8 [N, ch, H, W], as `real` has them or on the device
    chunks: dict[tuple, list[Chunk]] = field(default_factory=dict)  # they are the same at every step

    @property
    def classes(self) -> int:
        """How many this rank distills."""
        return len(self.label_C)

    def mean(self, *losses: torch.Tensor) -> torch.Tensor:
        """The mean over the classes of all ranks of each of some losses `[C]`, in the floats of a rate."""
        sums = torch.stack([loss_C.sum().to(wide(loss_C.device)) for loss_C in losses])
        if not self.shared:
            return sums / self.classes
        distributed.add(sums)
        return sums / sum(map(len, self.shares))

    def real_counts(self) -> np.ndarray:
        """How many real images each class draws in a step, int64 `[C]`."""
        counts = self.real.train.counts() if self.easiest is None else np.array([len(index) for index in self.easiest])
        return np.minimum(counts[self.label_C], self.settings.real_batch)

    @property
    def architecture(self) -> Architecture:
        """That of the step."""
        return self.architectures[self.current]

    def drawn(self, u_NP: torch.Tensor) -> tuple[str, ...]:
        """The operations that rows of uniform numbers, on the CPU, pick."""
        return augment.drawn(augment.parse_strategy(self.settings.augment), u_NP)


@dataclass(kw_only=True)
class State:
    """What a step changes, and a checkpoint holds."""

    images: torch.Tensor  # float32 leaf [C*M, ch, H, W] in [0, 1]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    psi: frequencies.SamplingNetwork | None
    psi_optimizer: torch.optim.Optimizer | None
    average: torch.Tensor | None  # of the images over the steps, where it is what is stored
    step: int = 0
    recorded: dict[tuple, Recorded] = field(default_factory=dict)  # steps, by what decides their work

    @property
    def result(self) -> torch.Tensor:
        """The images to store, float32 in [0, 1] `[C*M, ch, H, W]`."""
        return self.images.detach() if self.average is None else self.average

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Moves the average towards the images after a step, further in the first steps: until then, they are few."""
        if self.average is not None:
            self.average.lerp_(self.images, 1 - min(decay, self.step / (self.step + 9)))

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "scaler": self.scaler}
        if self.psi is not None:
            parts |= {"psi": self.psi, "psi_optimizer": self.psi_optimizer}
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values. Random draws need no state: they are keyed by the step."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        average = {} if self.average is None else {"average": self.average}
        scheduler = self.schedule.state_dict()
        return {"step": self.step, "images": self.images.detach(), **average, "scheduler": scheduler, **states}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        self.step = stored["step"]
        self.recorded.clear()  # optimizers get other tensors
        with torch.no_grad():
            self.images.copy_(stored["images"])
            if self.average is not None:
                self.average.copy_(stored["average"])
        for name, part in self._parts().items():
            content = stored[name]
            if isinstance(part, torch.optim.Optimizer):  # how it steps is of this device, but for the rate
                (own,), (group,) = part.state_dict()["param_groups"], content["param_groups"]
                content = content | {"param_groups": [own | {"lr": group["lr"]}]}
            part.load_state_dict(content)
        group = self.optimizer.param_groups[0]
        self.schedule.load_state_dict(stored["scheduler"], self.step, float(group["lr"]))
        group["lr"] = self.schedule.rate


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step found, on the device, where it waits to be read together with other steps."""

    step: int
    values: torch.Tensor  # [6]: matching, calibration, lr; the number here of the first class whose matching loss,
    # calibration loss and images are not finite, each -1 where there is none


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    matching: float  # weighted, mean over classes
    calibration: float | None  # cross-entropy, mean over classes
    lr: float


def read(problem: Problem, reports: Sequence[StepReport]) -> list[StepLosses]:
    """The losses of steps, in one wait for the device.

    Raises:
        NonFiniteLossError: with the class and the step.
    """
    losses = []
    values_SV = torch.stack([report.values for report in reports]).cpu()
    wrong_SW, none = values_SV[:, 3:].long(), len(problem.real.classes)
    wrong_SW = torch.where(wrong_SW < 0, none, torch.from_numpy(problem.label_C)[wrong_SW])
    distributed.lowest(wrong_SW)
    rows = zip(reports, values_SV[:, :3].tolist(), wrong_SW.tolist(), strict=True)
    for report, (matching, calibration, lr), wrong in rows:
        for what, label in zip(("matching loss", "calibration loss", "images"), wrong, strict=True):
            if label < none:
                with distributed.agreed():
                    raise NonFiniteLossError(
                        f"the {what} of class {problem.real.classes[label]!r} became non-finite in step {report.step}: "
                        "lower --lr, or try --precision fp32; the last checkpoint is kept"
                    )
        calibrated = calibration if problem.settings.calibration_weight > 0 else None
        losses.append(StepLosses(matching=matching, calibration=calibrated, lr=lr))
    return losses


def make_problem(
    real: RealData,
    settings: DistillSettings,
    *,
    seed: int,
    pool: Pool,
    builds: Sequence[Callable[[], Classifier]],
    runtime: Runtime,
    members: int | None = None,
    snapshots: int = 0,
    easiest: list[np.ndarray] | None = None,
    budget: int | None = None,
    gradient_checkpointing: bool = False,
) -> Problem:
    """Checks the settings against the data and prepares the two networks of each architecture.

    Args:
        builds: a function for each architecture of the pool.
        members: that the pool will have; None: as it is.
        snapshots: of each of them.
        easiest: what :func:`ncfmkit.distillation.difficulty.easiest_images` gives; None: any of that number.
        budget: as of :func:`ncfmkit.distillation.memory.make_plan`; real images that take at most a quarter of it are
            kept on a GPU, and so are a pool's weights.

    Raises:
        UserError: the factor is above the side, or the network cannot be checkpointed.
    """
    if settings.factor > real.size:
        raise UserError(f"--factor {settings.factor} is above the image side of {real.name}, {real.size}: lower it")
    architectures = tuple(
        _architecture(build, real, settings, runtime, gradient_checkpointing=gradient_checkpointing) for build in builds
    )
    each = [sum(p.nbytes for p in architecture.matcher.parameters()) for architecture in architectures]
    weights = sum(
        2 * each[m % len(each)] + snapshots * each[m % len(each)] // 2
        for m in range(len(pool) if members is None else members)
    )
    shares = rank_labels(real.classes, real.train.counts().tolist(), settings, distributed.world())
    label_C = shares[distributed.rank()]
    images, room = real.train.images, (default_budget(runtime) if budget is None else budget) // 4
    on_device, pool_on_device = (runtime.device.type == "cuda" and size <= room for size in (images.nbytes, weights))
    return Problem(
        real=real,
        settings=settings,
        seed=seed,
        pool=pool.placed(runtime.device, resident=pool_on_device),
        runtime=runtime,
        metric=ncfd.metric(settings.metric, alpha=settings.alpha),
        architectures=architectures,
        mask_MP=decode_mask(settings.decode, settings.factor, settings.ipc, settings.decoded_per_class),
        label_C=label_C,
        shares=shares,
        device_label_C=torch.from_numpy(label_C).to(runtime.device),
        easiest=None if settings.easiest == 1 else easiest or placeholder(real, settings.easiest),
        pool_bytes=weights if pool_on_device else 0,
        # torch.from_numpy would warn of an array that is read-only
        train_images=torch.tensor(images, device=runtime.device) if on_device else images,
    )


def _architecture(
    build: Callable[[], Classifier],
    real: RealData,
    settings: DistillSettings,
    runtime: Runtime,
    *,
    gradient_checkpointing: bool,
) -> Architecture:
    matcher, calibrator = (build().to(runtime.device).requires_grad_(False) for _ in range(2))
    features = checkpointed_features(matcher) if gradient_checkpointing else matcher.features
    probe = torch.zeros(2, real.channels, real.size, real.size, device=runtime.device)
    return Architecture(
        matcher=matcher,
        calibrator=calibrator,
        features=AugmentedNetwork(features, real, settings.augment, runtime),
        logits=AugmentedNetwork(calibrator, real, settings.augment, runtime),
        feature_dim=matcher.features(probe).shape[1],
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
        # nothing is drawn in them, and the state of a generator cannot be read while a step is recorded
        how: dict[str, bool] = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint_sequential(blocks, segments, network.padded(x_NCHW), **how).flatten(1)

    return features


def make_state(problem: Problem, images_NCHW: torch.Tensor) -> State:
    """The state before the first step, from initial images in [0, 1], those of all classes of the real data."""
    s, device = problem.settings, problem.runtime.device
    of_class_CMCHW = images_NCHW.unflatten(0, (len(problem.real.classes), s.ipc))
    images = of_class_CMCHW[problem.label_C].flatten(0, 1).to(device).requires_grad_()
    fused = device.type == "cuda"  # where it takes its rate, and fp16's overflow, from the device
    lr = torch.full((), s.lr, dtype=torch.float32 if fused else wide(device), device=device)
    how: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "fused": fused}
    if s.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([images], capturable=fused, **how)
    else:
        optimizer = torch.optim.SGD([images], momentum=s.momentum, **how)
    optimizer.param_groups[0]["lr"] = lr
    psi = psi_optimizer = None
    if s.sampler == "learned":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_rng(problem.seed, "psi").integers(2**62)))
            psi = frequencies.SamplingNetwork(problem.architecture.feature_dim).to(device)
        psi_optimizer = torch.optim.SGD(
            psi.parameters(), lr=s.sampler_lr, momentum=s.sampler_momentum, maximize=True, fused=fused
        )
    scaler = problem.runtime.scaler(init_scale=2.0**8)  # the matching weight scales the gradient as well
    scaler.scale(images.new_zeros(()))  # makes its scale, which a step reads without ever calling scale()
    return State(
        images=images,
        optimizer=optimizer,
        schedule=Schedule(s, lr),
        scaler=scaler,
        psi=psi,
        psi_optimizer=psi_optimizer,
        average=images.detach().clone() if s.average else None,
    )


def default_budget(runtime: Runtime) -> int:
    """Bytes for a step to work with where nothing is said: half of a GPU's free memory, 256 MiB on a CPU."""
    return torch.cuda.mem_get_info(runtime.device)[0] // 2 if runtime.device.type == "cuda" else DEFAULT_WORKING
