import pytest
from torch import nn

from ode_detect.ode import BasicField, FixedStep, ODEBlock
from ode_detect.ode.flows import find_flow, flow_names, flows_of
from ode_detect.ode.names import UnknownNameError

from .two_stages import Network


@pytest.fixture
def network(lively):
    return lively(Network(FixedStep("euler", steps=4, projection="relu"))).eval()


def test_flows_are_called_by_their_own_names_unless_two_share_one(network):
    assert list(flow_names(flows_of(network)).values()) == ["res2.flow", "res3.flow"]
    network.res2[2].name = network.res3[2].name = "flow"
    assert list(flow_names(flows_of(network)).values()) == ["res2.2", "res3.2"]


def test_an_unknown_flow_is_an_unknown_name(network):
    with pytest.raises(UnknownNameError, match=r"Did you mean 'res3\.flow'"):
        find_flow(flows_of(network), "res3.flo")


def test_a_flow_without_a_name_goes_by_its_path():
    network = nn.Sequential(nn.Identity(), ODEBlock(field=BasicField(channels=4)))
    assert flow_names(flows_of(network)) == {"1": "1"}
    with pytest.raises(ValueError, match="1"):
        find_flow(flows_of(network), "layer3")
    assert flow_names(flows_of(network[1])) == {"ODEBlock": "ODEBlock"}
