import re

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from ode_detect.backbones.build import ExtraChannels, FlowBlock, Tail, check_flows, make_flows
from ode_detect.engine.config import add_ode_config
from ode_detect.ode.fields import FIELDS, NORMS
from ode_detect.ode.statistics import batch_norms

TAIL = Tail(stage="s1", channels=8, blocks=3, norm="GN", norm_key="MODEL.ODE_NET.NORM")


def config(**ode: object) -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    for key, value in {"PROJECTION": "none", **ode}.items():
        cfg.MODEL.ODE[key] = value
    return cfg


def flow_of(cfg: CfgNode, tail: Tail = TAIL) -> FlowBlock:
    (block,) = make_flows(cfg, tail)
    assert isinstance(block, FlowBlock)
    return block


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("norm", ["BN", *NORMS])
def test_every_field_with_every_normalisation_is_built(name: str, norm: str) -> None:
    flow = nn.Sequential(*make_flows(config(FIELD=name, NORM=norm), TAIL))
    h = torch.rand(2, 8, 4, 4)
    assert torch.equal(flow(h), h)
    assert bool(batch_norms(flow)) == (norm == "BN")


def test_auto_is_what_the_backbone_says() -> None:
    for name, field in FIELDS.items():
        tail = Tail(stage="s1", channels=8, blocks=1, norm="GN", norm_key="", field=name)
        assert isinstance(flow_of(config(PIECES="constant"), tail).flow.field, field)


def test_a_stack_has_weights_of_its_own_and_extra_channels_come_before_it() -> None:
    cfg = config(STACK=3, EXTRA_CHANNELS=5, PIECES="constant")
    blocks = make_flows(cfg, TAIL)
    assert [type(block) for block in blocks] == [ExtraChannels, FlowBlock, FlowBlock, FlowBlock]
    assert [(b.in_channels, b.out_channels) for b in blocks] == [(8, 13), (13, 13), (13, 13), (13, 13)]
    assert [b.flow.name for b in blocks[1:]] == ["s1.flow", "s1.flow2", "s1.flow3"]
    assert len({id(p) for b in blocks for p in b.parameters()}) == 3 * len(list(blocks[1].parameters()))
    h = torch.randn(2, 8, 4, 6)
    out = nn.Sequential(*blocks)(h)
    assert torch.equal(out[:, :8], h)
    assert out.shape == (2, 13, 4, 6)
    assert not out[:, 8:].any()


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_batch_statistics_in_pieces_are_those_of_the_blocks(gradient: str) -> None:
    torch.manual_seed(0)
    flow = flow_of(config(NORM="BN", GRADIENT=gradient, FIELD="preact"))
    pieces = flow.flow.field.pieces
    for parameter in pieces.parameters():
        nn.init.normal_(parameter, std=0.3)
    h = torch.randn(4, 8, 5, 5, requires_grad=True)
    flow(h).sum().backward()
    for piece in pieces:
        assert piece.norm.num_batches_tracked == 1
        # After the first batch: 0.9 times the start, which is 0, and 0.1 times the mean of the state.
        torch.testing.assert_close(piece.norm.running_mean, 0.1 * h.detach().mean((0, 2, 3)))
        h = h + piece(0.0, h)


def test_batch_statistics_at_several_times_are_refused() -> None:
    for pieces in ("constant", "hat"):
        with pytest.raises(ValueError, match=re.escape("'BN' (from MODEL.ODE.NORM)") + ".*or PIECES to piecewise"):
            make_flows(config(PIECES=pieces, NORM="BN"), TAIL)
    tail = Tail(stage="s1", channels=8, blocks=3, norm="BN", norm_key="MODEL.ODE_NET.NORM")
    with pytest.raises(ValueError, match=r"from MODEL\.ODE_NET\.NORM.*Set MODEL\.ODE\.NORM to one of GN"):
        make_flows(config(PIECES="constant"), tail)
    with pytest.raises(ValueError, match=r"cannot be normalised by 'SyncBN'.*Set MODEL\.ODE\.NORM to one of GN"):
        make_flows(config(NORM="SyncBN"), TAIL)


@pytest.mark.parametrize(
    ("ode", "message"),
    [
        ({"STEPS": -1}, "0 is one step for each piece"),
        ({"STACK": 0}, "1 or more, not 0; 1 is usual"),
        ({"EXTRA_CHANNELS": -1}, "0 or more, not -1; 0 adds none"),
    ],
)
def test_counts_out_of_range_are_refused(ode: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_flows(config(**ode))


# --- TorchScript ---

scripted = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")


@scripted
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(("pieces", "method"), [("constant", "rk4"), ("piecewise", "euler"), ("piecewise", "heun")])
def test_a_flow_becomes_a_script(name: str, pieces: str, method: str) -> None:
    flow = nn.Sequential(*make_flows(config(FIELD=name, PIECES=pieces, METHOD=method, STEPS=4, EXTRA_CHANNELS=8), TAIL))
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    h = torch.randn(2, 8, 5, 6, requires_grad=True)
    out = flow(h)
    out.square().sum().backward()
    expected = [h.grad, *(p.grad for p in flow.parameters())]
    script = torch.jit.script(flow)
    h.grad = None
    flow.zero_grad()
    torch.testing.assert_close(script(h), out)
    script(h).square().sum().backward()
    for found, wanted in zip([h.grad, *(p.grad for p in script.parameters())], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@scripted
@pytest.mark.parametrize(
    ("ode", "message"),
    [({"METHOD": "dopri5"}, "set a FixedStep, by solver_override"), ({"PIECES": "hat"}, "MODEL.ODE.PIECES piecewise")],
)
def test_a_flow_that_is_no_script_says_what_to_do(ode: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"'s1\.flow' .*{message}"):
        torch.jit.script(nn.Sequential(*make_flows(config(**ode), TAIL)))
