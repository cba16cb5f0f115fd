import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from ode_detect.backbones import CifarResNet
from ode_detect.ode import (
    BasicField,
    ConversionError,
    FixedStep,
    ODEBlock,
    PiecewiseConstant,
    ResidualBranch,
    project_pieces,
    to_ode,
    to_resnet,
)


def lively(model: nn.Module) -> nn.Module:
    """Statistics, scales and shifts like those of a trained network."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        with torch.no_grad():
            if "running_var" in name or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.0)
            elif "running_mean" in name or (tensor.dim() == 1 and name.endswith("bias")):
                tensor.normal_(0, 0.2)
    return model


def detectron2_resnet(norm: str, kind: type = BottleneckBlock, freeze_at: int = 0) -> ResNet:
    inputs, stages = 8, []
    more = {"bottleneck_channels": 4, "num_groups": 2} if kind is BottleneckBlock else {}
    for outputs, blocks in ((8 if kind is BasicBlock else 16, 3), (32, 2)):
        strides = [1 if inputs == 8 else 2, *[1] * (blocks - 1)]
        stages.append(
            ResNet.make_stage(
                kind, blocks, stride_per_block=strides, in_channels=inputs, out_channels=outputs, norm=norm, **more
            )
        )
        inputs = outputs
    return ResNet(BasicStem(3, 8, norm), stages, out_features=["stem", "res2", "res3"], freeze_at=freeze_at)


def timm_network(name: str, **arguments) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, **arguments)


small = {"num_classes": 5}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "Detectron2 FrozenBN": (lambda: detectron2_resnet("FrozenBN", freeze_at=1), 3),
    "Detectron2 BN": (lambda: detectron2_resnet("BN"), 3),
    "Detectron2 GN, basic": (
        lambda: detectron2_resnet(lambda channels: nn.GroupNorm(2, channels), BasicBlock),
        4,
    ),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(**small), 5),
    "torchvision resnext": (
        lambda: torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 3, 1, 2], 5, False, 4, 8),
        4,
    ),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.5, **small), 10),
    "timm resnet18": (timm_network("resnet18", channels=(16, 24, 32, 48), **small), 4),
    "timm seresnet26d": (
        timm_network("resnet26d", channels=(8, 12, 16, 24), block_args={"attn_layer": "se"}, **small),
        4,
    ),
    "timm mobilenetv2": (timm_network("mobilenetv2_050", **small), 10),
    # Its convolutions are split: each takes a part of the channels.
    "timm mixnet": (timm_network("mixnet_s", **small), 10),
    "CIFAR resnet20": (lambda: CifarResNet(blocks=3), 7),
}
every_network = pytest.mark.parametrize(("make", "count"), NETWORKS.values(), ids=NETWORKS)


def tensors(output: object) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def step(model: nn.Module, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
    x = pictures.clone().requires_grad_()
    torch.manual_seed(5)
    outputs = tensors(model(x))
    sum((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum() for out in outputs).backward()
    return outputs, x.grad


@every_network
def test_a_converted_network_is_the_network_bit_for_bit_and_comes_back(make, count) -> None:
    model = lively(make()).eval()
    before, shown = {name: tensor.clone() for name, tensor in model.state_dict().items()}, repr(model)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ode_model, certificate = to_ode(model)
    assert torch.equal(torch.rand(1), expected), "the random state is left as it was"
    assert repr(model) == shown, "so is the network"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in [*model.modules(), *ode_model.modules()])
    theirs = {id(p) for p in model.parameters()}
    assert not any(id(p) in theirs for p in ode_model.parameters())

    assert certificate.lossless
    assert "random batch (2, 3, 64, 64) (evaluation and training)" in certificate.measured_on
    assert sum(run.pieces for run in certificate.runs) == count
    assert certificate.parameters_before == certificate.parameters_after
    for run in certificate.runs:
        flow = ode_model.get_submodule(run.flow)
        assert isinstance(flow, ODEBlock)
        assert flow.solver == FixedStep("euler", steps=run.pieces, projection=run.projection)
        assert (flow.name, run.blocks[0]) == (run.flow, run.flow)

    back = to_resnet(ode_model).state_dict()
    assert list(back) == list(before)
    assert all(torch.equal(back[name], before[name]) for name in before)

    # On another batch than the certificate's, with other arithmetic than its own.
    pictures = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        for a, b in zip(tensors(ode_model.eval()(pictures)), tensors(model.eval()(pictures)), strict=True):
            assert torch.equal(a, b)
    ours, theirs = step(ode_model.train(), pictures), step(model.train(), pictures)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))
    assert torch.equal(ours[1], theirs[1])

    # What comes back has what the flows learnt in that step, here the statistics.
    back = to_resnet(ode_model)
    state = back.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert repr(back) == shown, "all that is not a tensor comes back too"
    parameters = dict(back.named_parameters())
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)


def test_the_gradients_of_parameters_are_those_of_the_original() -> None:
    model = lively(detectron2_resnet("BN"))
    ode_model, _ = to_ode(model)
    pictures = torch.randn(2, 3, 32, 32)
    step(model, pictures)
    step(ode_model, pictures)
    theirs = dict(model.named_parameters())
    assert torch.equal(
        ode_model.get_parameter("res2.1.field.pieces.1.block.conv2.weight").grad, theirs["res2.2.conv2.weight"].grad
    )
    assert torch.equal(ode_model.stem.conv1.weight.grad, theirs["stem.conv1.weight"].grad)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_checkpoints_give_the_same_bits_and_statistics(norm: str) -> None:
    ode_model, certificate = to_ode(lively(detectron2_resnet(norm)), gradient="checkpoint")
    assert certificate.lossless
    assert "Checkpoint" in repr(ode_model.res2[1].gradient)


@pytest.mark.parametrize("gradient", ["reversible", "adjoint"])
def test_a_gradient_that_is_not_that_of_the_blocks_is_refused(gradient: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), *(InvertedResidual(8, 8, 1, 2) for _ in range(2)))
    with pytest.raises(ConversionError, match="'backprop'"):
        to_ode(lively(model), gradient=gradient)
    assert to_ode(model)[1].lossless


def test_the_certificate_says_what_became_what() -> None:
    _, certificate = to_ode(torchvision.models.resnet18(num_classes=5))
    assert [(run.flow, run.blocks) for run in certificate.runs] == [
        ("layer1.0", ("layer1.0", "layer1.1")),
        ("layer2.1", ("layer2.1",)),
        ("layer3.1", ("layer3.1",)),
        ("layer4.1", ("layer4.1",)),
    ]
    assert certificate.runs[0].parameters == 2 * (2 * 64 * 64 * 9 + 4 * 64)
    assert {(block.name, block.kind) for block in certificate.kept} == {
        (f"layer{stage}.0", "BasicBlock") for stage in (2, 3, 4)
    }


# --- Detectron2 ---


def test_a_backbone_of_detectron2_still_freezes_and_copies() -> None:
    ode_model, _ = to_ode(detectron2_resnet("BN"))
    assert ode_model.stages[0] is ode_model.res2
    other = copy.deepcopy(ode_model).freeze(2)
    frozen = dict(other.res2.named_parameters())
    assert not any(p.requires_grad for p in frozen.values())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in other.res2.modules())
    assert all(p.requires_grad for p in other.res3.parameters())
    assert all(p.requires_grad for p in ode_model.parameters())
    pictures = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        a, b = other.eval()(pictures), ode_model.eval()(pictures)
    assert a.keys() == b.keys() == {"stem", "res2", "res3"}


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    cfg: CfgNode = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    torch.manual_seed(0)
    return lively(build_model(cfg))


def example() -> list[dict]:
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]]))
    instances.gt_classes = torch.tensor([1])
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.rand(3, 64, 64, generator=generator) * 255, "instances": instances}]


def test_a_detector_is_compared_whole_where_the_example_allows(detector: nn.Module) -> None:
    with EventStorage():
        ode_model, certificate = to_ode(detector, example=example())
    assert certificate.lossless
    assert "the given example ((3, 64, 64)" in certificate.measured_on
    assert "evaluation and training" in certificate.measured_on
    # In a C4 detector res5 is the head's.
    assert [run.flow for run in certificate.runs] == [
        *("backbone.res2.1", "backbone.res3.1", "backbone.res4.1", "roi_heads.res5.1")
    ]
    assert list(to_resnet(ode_model).state_dict()) == list(detector.state_dict())


def test_without_an_example_the_flows_of_a_detector_are_compared(detector: nn.Module) -> None:
    _, certificate = to_ode(detector)
    assert certificate.lossless
    assert certificate.measured_on.startswith("each flow alone on a random state")


def test_an_example_that_the_network_itself_does_not_take_is_refused(detector: nn.Module) -> None:
    with pytest.raises(ConversionError, match=r"cannot be evaluated on the given example \(\(3, 64, 64\)\)"):
        to_ode(detector, example=torch.rand(3, 64, 64))


# --- what is not converted ---


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: torchvision.models.densenet121(),
            r"denseblock1 \(_DenseBlock\): its layers are not those[^$]*denseblock4",
        ),
        (torchvision.models.squeezenet1_1, "no residual blocks; a ResNet has"),
        (timm_network("resnetv2_50"), r"stages\.0\.blocks\.0 \(PreActBottleneck\): it normalises before"),
        (timm_network("resnet18", act_layer="silu"), r"layer1\.0 \(BasicBlock\): it applies SiLU after the sum"),
        (timm_network("resnet14t", drop_path_rate=0.1), r"layer1\.0 \(Bottleneck\): its shortcut is a layer"),
    ],
    ids=["densenet", "SqueezeNet", "pre-activation", "SiLU", "no run"],
)
def test_a_network_without_runs_says_which_blocks_and_why(make, said: str) -> None:
    with pytest.raises(ConversionError, match=said):
        to_ode(make())


def test_stochastic_depth_is_kept_and_told() -> None:
    timm = pytest.importorskip("timm")
    _, certificate = to_ode(timm.create_model("resnet18", drop_path_rate=0.2, num_classes=5))
    # timm's rate grows from 0: the first block has none.
    assert [run.blocks for run in certificate.runs] == [("layer1.0",)]
    reasons = {block.name: block.reason for block in certificate.kept}
    assert "DropPath at 'drop_path' draws at random in training" in reasons["layer1.1"]


def test_blocks_that_are_not_called_in_a_row_are_kept() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(TorchvisionBlock(8, 8) for _ in range(2))

        def forward(self, x):
            return [x := block(x) for block in self.blocks]

    with pytest.raises(ConversionError, match=r"blocks\.0 \(BasicBlock\): it is called by ModuleList"):
        to_ode(Features())


def test_a_run_ends_at_a_block_that_cannot_be_a_step() -> None:
    blocks = [TorchvisionBlock(8, 8) for _ in range(5)]
    blocks[2].relu = nn.SiLU()
    _, certificate = to_ode(nn.Sequential(*blocks))
    assert [run.blocks for run in certificate.runs] == [("0", "1"), ("3", "4")]
    assert [block.name for block in certificate.kept] == ["2"]


def test_a_converted_network_has_nothing_left_to_convert() -> None:
    ode_model, _ = to_ode(CifarResNet(blocks=2))
    with pytest.raises(
        ConversionError, match=r"layer2\.0 \(CifarBlock\): its shortcut is a layer of its own"
    ) as caught:
        to_ode(ode_model)
    assert "layer1" not in str(caught.value)


class Skipping(nn.Module):
    """Reaches for a block by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 8, 3), *(TorchvisionBlock(8, 8) for _ in range(3)))

    def forward(self, x):
        for index in range(4):
            x = self.blocks[index](x)
        return x


class Reusing(Skipping):
    """Works without an error and computes something else once the blocks are one flow."""

    def forward(self, x):
        for index in (0, 1):
            x = self.blocks[index](x)
        return x


@pytest.mark.parametrize(
    ("model", "said"), [(Skipping, "fails in evaluation on a random batch"), (Reusing, "bits of the original")]
)
def test_a_network_that_reaches_into_its_runs_is_refused(model, said: str) -> None:
    with pytest.raises(ConversionError, match=said):
        to_ode(model())


def test_other_precisions_are_measured_not_refused() -> None:
    ode_model, certificate = to_ode(CifarResNet(blocks=2).bfloat16())
    assert 0 < certificate.differences.evaluation < 0.5
    assert ode_model.conv1.weight.dtype == torch.bfloat16
    _, certificate = to_ode(CifarResNet(blocks=2).double())
    assert certificate.lossless


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="OrderedDict"):
        to_ode(nn.Linear(1, 1).state_dict())


# --- the way back ---


def test_flows_of_another_kind_are_named() -> None:
    def flow(*pieces: nn.Module, duration: float | None = None) -> nn.Module:
        field = PiecewiseConstant(pieces, duration=duration)
        return nn.Sequential(nn.Identity(), ODEBlock(field=field, allow_stateful_field=True))

    field, branch = BasicField(channels=8), ResidualBranch(TorchvisionBlock(8, 8))
    with pytest.raises(ConversionError, match=r"flow '1' is a PiecewiseConstant, and only"):
        to_resnet(flow(field))
    with pytest.raises(ConversionError, match=r"flow '1' is a BasicField"):
        to_resnet(nn.Sequential(nn.Identity(), ODEBlock(field=field)))
    with pytest.raises(ConversionError, match="no flow"):
        to_resnet(nn.Sequential(nn.Identity()))
    with pytest.raises(ConversionError, match=r"flow '1' lasts 2 units of time with 1 pieces"):
        to_resnet(flow(branch, duration=2.0))
    assert isinstance(to_resnet(flow(branch))[1], TorchvisionBlock)


def test_the_solver_is_not_looked_at_on_the_way_back() -> None:
    model = CifarResNet(blocks=2)
    ode_model, _ = to_ode(model)
    for block in ode_model.modules():
        if isinstance(block, ODEBlock):
            block.solver = FixedStep("rk4", steps=3)
    back = to_resnet(ode_model).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_that_grew_is_counted_anew() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), TorchvisionBlock(8, 8), nn.Conv2d(8, 8, 3), TorchvisionBlock(8, 8))
    ode_model, _ = to_ode(model)
    blocks = [ode_model[1].field.pieces[0].block, TorchvisionBlock(8, 8)]
    field = PiecewiseConstant([ResidualBranch(block) for block in blocks])
    ode_model[1] = ODEBlock(field=field, allow_stateful_field=True)
    back = to_resnet(ode_model)
    assert [name for name, _ in back.named_children()] == ["0", "1", "2", "3", "4"]
    assert back[2] is not model[2]
    assert [type(child) for child in back] == [
        nn.Conv2d,
        TorchvisionBlock,
        TorchvisionBlock,
        nn.Conv2d,
        TorchvisionBlock,
    ]


def test_flows_outside_a_sequence_come_back() -> None:
    class Network(nn.Module):
        def __init__(self, *flows: nn.Module) -> None:
            super().__init__()
            self.one, self.two = flows

    def flow(count: int) -> ODEBlock:
        field = PiecewiseConstant([ResidualBranch(TorchvisionBlock(8, 8)) for _ in range(count)])
        return ODEBlock(field=field, allow_stateful_field=True)

    back = to_resnet(Network(flow(1), flow(2)))
    assert isinstance(back.one, TorchvisionBlock)
    assert [type(block) for block in back.two] == [TorchvisionBlock] * 2
    assert len(to_resnet(flow(3))) == 3


# --- what a converted network is for ---


@pytest.mark.parametrize("make", [lambda: CifarResNet(blocks=3), lambda: detectron2_resnet("FrozenBN")])
def test_a_converted_network_exports_as_one_graph(make) -> None:
    ode_model, _ = to_ode(lively(make()).eval())
    pictures = torch.randn(1, 3, 32, 32)
    exported = torch.export.export(ode_model.eval(), (pictures,))
    with torch.no_grad():
        for a, b in zip(tensors(exported.module()(pictures)), tensors(ode_model(pictures)), strict=True):
            torch.testing.assert_close(a, b)


PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "data" / "weights" / "cifar10_resnets"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
def test_a_trained_network_converts_without_loss() -> None:
    (file,) = PUBLISHED.glob("resnet56-*.th")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(blocks=9)
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()}, strict=False)
    ode_model, certificate = to_ode(model)
    assert certificate.lossless
    assert [run.pieces for run in certificate.runs] == [9, 8, 8]
    assert all(
        torch.equal(t, state[f"module.{n}"]) for n, t in to_resnet(ode_model).state_dict().items() if "num" not in n
    )


def test_layers_that_occur_twice_come_back() -> None:
    """The same relu between the blocks, and the same block twice: runs end where they should, and nothing is lost."""
    relu, blocks = nn.ReLU(), [TorchvisionBlock(8, 8) for _ in range(5)]
    layers = [blocks[0], relu, blocks[1], relu, blocks[2], blocks[3], blocks[2], relu, blocks[0]]
    model = lively(nn.Sequential(*layers)).eval()
    ode_model, certificate = to_ode(model)
    assert [run.blocks for run in certificate.runs] == [("0",), ("2",), ("4", "5", "6"), ("8",)]
    assert certificate.lossless
    back = to_resnet(ode_model)
    assert list(back.state_dict()) == list(model.state_dict())
    assert [type(layer) for layer in back._modules.values()] == [type(layer) for layer in model._modules.values()]
    assert back[4] is back[6]
    assert back[0] is back[8]
    assert back[1] is back[3] is back[7]
    h = torch.randn(2, 8, 6, 6)
    assert torch.equal(back(h), model(h))


def test_a_flow_that_is_held_twice_comes_back_in_both_places() -> None:
    class Network(nn.Module):
        def __init__(self, flow: nn.Module) -> None:
            super().__init__()
            self.one = self.two = flow

    field = PiecewiseConstant([ResidualBranch(TorchvisionBlock(8, 8))])
    back = to_resnet(Network(ODEBlock(field=field, allow_stateful_field=True)))
    assert isinstance(back.one, TorchvisionBlock)
    assert back.two is back.one


@pytest.mark.parametrize("kind", ["piecewise", "hat"])
def test_a_flow_on_fewer_pieces_still_freezes(kind) -> None:
    ode_model, _ = to_ode(nn.Sequential(*[TorchvisionBlock(8, 8) for _ in range(3)]))
    project_pieces(ode_model, [torch.randn(2, 8, 6, 6)], count=2, kind=kind)
    assert not any(p.requires_grad for p in ode_model[0].freeze().parameters())
