"""The table of networks: shapes, sizes, independence of images, gradients, errors."""

import pytest
import torch
from torch import nn

from ncfmkit.config import SETTINGS
from ncfmkit.errors import UserError
from ncfmkit.networks import NETWORKS, build
from ncfmkit.networks.convnet import BatchNorm

SIZES = (28, 32, 64, 128)
LAYER_NORMED = ("vit", "convnext")
BATCH_NORMED = ("convnetbn",)  # the others have instance norm
EXTRACTORS = [name for name in NETWORKS if NETWORKS[name].extracts]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def instance_norms(network: nn.Module) -> list[nn.GroupNorm]:
    return [m for m in network.modules() if isinstance(m, nn.GroupNorm)]


def norm_sides(network: nn.Module, images: torch.Tensor) -> list[int]:
    """The side of the map that each norm of the network sees."""
    sides: list[int] = []
    for norm in instance_norms(network):
        norm.register_forward_hook(lambda _, inputs, __: sides.append(inputs[0].shape[-1]))
    network(images)
    return sides


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_shapes_at_every_size(name: str, size: int) -> None:
    for channels in (1, 3):
        network = build(name, channels=channels, classes=7, size=size)
        images_NCHW = torch.randn(2, channels, size, size)
        feat_ND = network.features(images_NCHW)
        assert feat_ND.shape == (2, network.classifier.in_features)
        logits_NK = network(images_NCHW)
        assert logits_NK.shape == (2, 7)
        torch.testing.assert_close(network.classifier(feat_ND), logits_NK)
        assert feat_ND.isfinite().all()
        assert feat_ND.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if name not in LAYER_NORMED])
@torch.no_grad()
def test_no_norm_acts_on_one_pixel(name: str) -> None:
    smallest = NETWORKS[name].smallest
    for size in range(smallest, smallest + 8):
        with torch.device("meta"):  # sizes alone
            network = build(name, channels=3, classes=2, size=size)
            sides = norm_sides(network, torch.empty(1, 3, size, size))
        assert sides, "the network has norms"
        assert min(sides) >= 2


@pytest.mark.parametrize(
    ("name", "dims", "parameters"),
    [
        # conv1 27*128+128, conv2 and conv3 9*128*128+128 each, 3 norms of 2*128, classifier 2048*10+10
        ("convnet", 2048, 3_584 + 2 * 147_584 + 768 + 20_490),
        ("convnetbn", 2048, 3_584 + 2 * 147_584 + 768 + 20_490),
        # 25*3*128, 25*128*192, 9*192*256, 9*256*192, 9*192*192; norms 2*(128+192+256+192+192); 192*4*4*10+10
        ("alexnet", 3072, 9_600 + 614_400 + 442_368 + 442_368 + 331_776 + 1_920 + 30_730),
        # the published CIFAR form with batch norm has 9,231,114, of which 2,752 are biases that a norm removes
        ("vgg11", 512, 9_231_114 - 2_752),
        # the published CIFAR form with batch norm has 11,173,962; instance norm has as many
        ("resnet18", 512, 11_173_962),
        # stem 27*64+128; 64: 2*9*64*64+256; then per stage (o = 2i): 9*i*o + 9*o*o + i*o and three norms of 2*o
        # (128: 230,144, 256: 919,040, 512: 3,673,088); classifier 512*10+10
        ("resnetap10", 512, 1_856 + 73_984 + 230_144 + 919_040 + 3_673_088 + 5_130),
        # the ImageNet form has 7,978,856: less its classifier (1,025,000), its 7x7 stem (9,408) and that stem's norm
        # (128), plus a 3x3 stem (1,728) and 1024*10+10
        ("densenet121", 1024, 7_978_856 - 1_025_000 - 9_408 - 128 + 1_728 + 10_250),
        # DeiT-Ti has 5,717,416: less half of its blocks (12*192*192 and 13*192 each), its classifier (193,000), its
        # patches of 16 (768*192), its 197 positions and its class token; plus patches of 4 (48*192), 64 positions and
        # 192*10+10
        ("vit", 192, 5_717_416 - 6 * 444_864 - 193_000 - 147_456 - 198 * 192 + 9_216 + 64 * 192 + 1_930),
        # that of timm for ImageNet has 3,695,520: less its classifier (321,000) and its stem (48*40), plus a stem of
        # 12*40 and 320*10+10
        ("convnext", 320, 3_695_520 - 321_000 - 1_920 + 480 + 3_210),
    ],
)
def test_sizes_worked_out_by_hand(name: str, dims: int, parameters: int) -> None:
    with torch.device("meta"):
        network = build(name, channels=3, classes=10, size=32)
    assert network.classifier.in_features == dims
    assert count(network) == parameters


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_convnet_depth_follows_the_size(size: int, depth: int) -> None:
    network = build("convnet", channels=3, classes=10, size=size)
    assert len(instance_norms(network)) == depth


def test_convnet_width_and_depth() -> None:
    network = build("convnet", channels=1, classes=10, size=32, width=16, depth=2)
    assert network.classifier.in_features == 16 * 8 * 8


@torch.no_grad()
def test_convnet_equals_a_reference_with_instance_norm() -> None:
    network = build("convnet", channels=3, classes=10, size=32, width=8)
    maps = images_NCHW = torch.randn(4, 3, 32, 32)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for conv, norm in zip(convs, instance_norms(network), strict=True):
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
        reference = nn.InstanceNorm2d(8, affine=True)
        reference.load_state_dict(norm.state_dict())
        maps = nn.functional.conv2d(maps, conv.weight, conv.bias, padding=1)
        maps = nn.functional.avg_pool2d(torch.relu(reference(maps)), 2)
    torch.testing.assert_close(network.features(images_NCHW), maps.flatten(1))


@torch.no_grad()
def test_batch_norm_equals_that_of_torch_in_training_and_afterwards() -> None:
    ours, torchs = BatchNorm(5), nn.BatchNorm2d(5, momentum=1.0)
    for norm in (ours, torchs):
        norm.weight.copy_(torch.linspace(0.5, 2.0, 5))
        norm.bias.copy_(torch.linspace(-1.0, 1.0, 5))
    x_NCHW = 3 * torch.randn(7, 5, 4, 4) + 1
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    torch.testing.assert_close(ours.train()(x_NCHW), torchs.train()(x_NCHW))
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items()), "training leaves the statistics alone"
    ours.load_state_dict({**torchs.state_dict(), "mean": torchs.running_mean, "var": torchs.running_var}, strict=False)
    other_NCHW = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(ours.eval()(other_NCHW), torchs.eval()(other_NCHW))
    torch.testing.assert_close(ours(other_NCHW)[:1], ours(other_NCHW[:1]))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_28_px_equals_the_same_image_padded_to_32(name: str) -> None:
    at_28 = build(name, channels=1, classes=10, size=28)
    at_32 = build(name, channels=1, classes=10, size=32)
    at_32.load_state_dict(at_28.state_dict())
    images_NCHW = torch.randn(2, 1, 28, 28)
    padded_NCHW = nn.functional.pad(images_NCHW, [2] * 4)
    torch.testing.assert_close(at_28.features(images_NCHW), at_32.features(padded_NCHW))


def test_only_batch_norm_keeps_a_network_from_being_an_extractor() -> None:
    assert set(NETWORKS) - set(EXTRACTORS) == set(BATCH_NORMED)


@pytest.mark.parametrize("name", EXTRACTORS)
@torch.no_grad()
def test_an_image_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    network = build(name, channels=3, classes=10, size=32).train()
    images_NCHW = torch.randn(3, 3, 32, 32)
    together_ND = network.features(images_NCHW)
    alone_ND = torch.cat([network.features(image[None]) for image in images_NCHW])
    torch.testing.assert_close(together_ND, alone_ND, rtol=1e-3, atol=1e-4)
    assert not any(True for _ in network.buffers()), "running statistics would be state beside the weights"


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_the_images_and_every_parameter(name: str) -> None:
    network = build(name, channels=3, classes=10, size=32)
    images_NCHW = torch.randn(4, 3, 32, 32, requires_grad=True)
    nn.functional.cross_entropy(network(images_NCHW), torch.arange(4)).backward()
    assert images_NCHW.grad is not None
    assert (images_NCHW.grad.flatten(1).abs().sum(1) > 0).all()
    before_norm = {f"{key}.bias" for key, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert key in before_norm or parameter.grad.abs().sum() > 0, key  # a norm removes the bias of its convolution


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "densenet121" else []) for n in NETWORKS]
)
@torch.no_grad()
def test_traces_without_control_flow_on_data(name: str) -> None:
    network = build(name, channels=3, classes=10, size=32).eval()
    images_NCHW = torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (images_NCHW,), dynamic_shapes=({0: batch},), strict=False)
    more_NCHW = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(more_NCHW), network(more_NCHW), rtol=1e-3, atol=1e-4)


def test_the_global_generator_decides_the_weights() -> None:
    torch.manual_seed(3)
    first = build("resnetap10", channels=3, classes=10, size=32)
    torch.manual_seed(3)
    second = build("resnetap10", channels=3, classes=10, size=32)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_setting_lists_the_networks_of_the_table() -> None:
    assert SETTINGS["network.name"].choices == tuple(NETWORKS)


def test_unknown_name_with_and_without_a_near_match() -> None:
    with pytest.raises(UserError, match=r"'resnet-18': .*'resnet18'\? known: convnet"):
        build("resnet-18", channels=3, classes=10, size=32)
    with pytest.raises(UserError, match="unknown network '###': known: convnet"):
        build("###", channels=3, classes=10, size=32)


@pytest.mark.parametrize("name", NETWORKS)
def test_too_small_images_are_refused(name: str) -> None:
    size = NETWORKS[name].smallest - 1
    with pytest.raises(UserError, match=f"{name} .*{size + 1} pixels or more, got {size}: resize"):
        build(name, channels=3, classes=10, size=size)


@pytest.mark.parametrize("depth", [0, 6])
def test_convnet_depth_out_of_range(depth: int) -> None:
    with pytest.raises(UserError, match=rf"--depth \(network\.depth\) {depth} .*32 pixels: expected 1 to 5"):
        build("convnet", channels=3, classes=10, size=32, depth=depth)


@pytest.mark.parametrize("name", [name for name, row in NETWORKS.items() if not row.takes_width])
def test_other_networks_refuse_a_width_or_depth(name: str) -> None:
    with pytest.raises(UserError, match=r"fixed width: leave out --width \(network\.width\), got 64"):
        build(name, channels=3, classes=10, size=32, width=64)
    with pytest.raises(UserError, match=r"fixed depth: leave out --depth \(network\.depth\), got 3"):
        build(name, channels=3, classes=10, size=32, depth=3)
