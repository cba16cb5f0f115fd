"""Networks to compare: by file, by role, by the name that a header gives them."""

from pathlib import Path

import pytest

from ode_detect.ode.names import UnknownNameError
from ode_detect.studies.compare.choice import choose
from ode_detect.studies.compare.runs import plan
from ode_detect.task import ConfigError

from ...conftest import QUICKSTART, ROOT

MNIST = str(ROOT / "configs" / "classification" / "mnist_odenet.yaml")
MLP = str(ROOT / "configs" / "classification" / "mnist_mlp.yaml")


def config(folder: Path, name: str, *lines: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([f"_BASE_: {QUICKSTART}", f"OUTPUT_DIR: {folder / name}", *lines]) + "\n")
    return str(path)


def test_names_tell_networks_apart(tmp_path: Path) -> None:
    files = [config(tmp_path / "a", "x"), config(tmp_path / "b", "y")]
    assert [one.name for one in choose(files)] == ["x", "y"]
    files = [config(tmp_path / "a", "x"), config(tmp_path / "b", "x")]
    assert [one.name for one in choose(files)] == ["a_x", "b_x"]


def test_a_config_in_its_roles(tmp_path: Path) -> None:
    mine = config(tmp_path, "mine")
    found = plan([mine], [1], [], roles=["ode", "twin", "ablation"])
    assert [(one.name, one.folder, one.config().MODEL.ODE.ROLE) for one in found] == [
        ("mine", tmp_path / "mine" / "seed_0", "ode"),
        ("mine_twin", tmp_path / "mine_twin" / "seed_0", "twin"),
        ("mine_ablation", tmp_path / "mine_ablation" / "seed_0", "ablation"),
    ]
    words = found[1].command(resume=False)
    assert f"--config-file {mine} MODEL.ODE.ROLE twin SEED 0 OUTPUT_DIR {tmp_path}/mine_twin/seed_0" in words
    shared = plan([mine], [2, 1], ["OUTPUT_DIR", str(tmp_path / "all")], roles=["ode", "twin"])
    assert [(one.name, one.folder.relative_to(tmp_path / "all").as_posix()) for one in shared] == [
        ("mine", "mine/seed_0"),
        ("mine_twin", "mine_twin/seed_0"),
        ("mine", "mine/seed_1"),
    ]


def test_a_config_that_is_a_twin_itself(tmp_path: Path) -> None:
    mine = config(tmp_path, "mine", "MODEL: {ODE: {ROLE: twin}}")
    found = plan([mine], [1], [], roles=["ode", "twin"])
    assert [(one.name, one.folder.parent.name, one.config().MODEL.ODE.ROLE) for one in found] == [
        ("mine_ode", "mine_ode", "ode"),
        ("mine", "mine", "twin"),
    ]


def test_several_configs_in_several_roles(tmp_path: Path) -> None:
    files = [config(tmp_path, "a"), config(tmp_path, "b", "MODEL: {ODE: {STEPS: 3}}")]
    assert [one.name for one in choose(files, ["ode", "twin"])] == ["a", "a_twin", "b", "b_twin"]


def test_networks_that_a_header_names() -> None:
    found = plan([MNIST], [1], [], networks=["mnist_rknet", "mnist_resnet", "mnist_odenet"])
    assert [(one.name, str(one.folder)) for one in found] == [
        ("mnist_rknet", "output/mnist_rknet/seed_0"),
        ("mnist_resnet", "output/mnist_resnet/seed_0"),
        ("mnist_odenet", "output/mnist_odenet/seed_0"),
    ]
    assert found[0].config().MODEL.ODE.METHOD == "rk4"
    assert [one.name for one in choose([MNIST], ["ode", "twin", "ablation"])] == [
        "mnist_odenet",
        "mnist_resnet",
        "mnist_ablation",
    ]
    both = choose([MNIST], ["ode", "twin"], ["mnist_euler", "mnist_stack2"])
    assert [one.name for one in both] == ["mnist_euler", "mnist_euler_twin", "mnist_stack2", "mnist_stack2_twin"]
    assert [one.name for one in choose([MNIST, MLP], networks=["mnist_resnet", "mnist_mlp"])] == [
        "mnist_resnet",
        "mnist_mlp",
    ]


def test_what_the_command_line_says_wins_over_a_header() -> None:
    (one, _) = plan([MNIST], [1], ["MODEL.ODE.STEPS", "3"], networks=["mnist_rknet", "mnist_odenet"])
    assert (one.config().MODEL.ODE.METHOD, one.config().MODEL.ODE.STEPS) == ("rk4", 3)


@pytest.mark.parametrize(
    ("roles", "networks", "message"),
    [
        (["ode", "twim"], [], "unknown role 'twim'; known are ablation, ode, twin. Did you mean 'twin'?"),
        (["ode"], ["mnist_eluer"], "unknown network 'mnist_eluer'.*Did you mean 'mnist_euler'"),
    ],
)
def test_an_unknown_name_lists_those_that_there_are(roles: list[str], networks: list[str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        choose([MNIST], roles, networks)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each role is compared once, and twin was given 2 times; leave it out once"):
        choose([MNIST], ["twin", "ode", "twin"])
    with pytest.raises(ConfigError, match="each network is compared once, and mnist_odenet was given 2 times"):
        choose([MNIST], ["ode", "twin"], ["mnist_odenet", "mnist_resnet"])
    with pytest.raises(ConfigError, match=r"--roles sets MODEL.ODE.ROLE, and it is among the config keys too"):
        choose([MNIST], ["ode", "twin"], overrides=["MODEL.ODE.ROLE", "ode"])
    for roles in ([], ["twin"]):
        with pytest.raises(ConfigError, match=r"two configs or more, or one in two roles.*--roles ode twin ablation"):
            choose([MNIST], roles)
    with pytest.raises(ConfigError, match=r"none of mnist_euler is one of .*mnist_mlp.yaml; leave it out, or name one"):
        choose([MNIST, MLP], networks=["mnist_euler"])
    same = [config(tmp_path / "a", "x"), config(tmp_path / "b", "x")]
    with pytest.raises(ConfigError, match=r"a network is named by one config, and 'x' by .* and .*; leave one"):
        choose(same, networks=["x"])
    odd = config(tmp_path, "odd")
    Path(odd).write_text(f"#   x: MODEL.ODE.STEPS 1 MODEL.ODE.METHOD\n{Path(odd).read_text()}")
    with pytest.raises(ConfigError, match="has no value; write KEY VALUE"):
        choose([odd], ["ode", "twin"])


def test_a_network_without_flows_has_no_roles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mnist_mlp of .* has none \(MODEL.BACKBONE.NAME is build_mlp_backbone\)"):
        choose([MLP], ["ode", "twin"])
    with pytest.raises(ConfigError, match=r"place of flows, and mine of .* has none"):
        choose([config(tmp_path, "mine", "MODEL: {ODE: {STAGES: []}}")], ["ode", "twin"])
    # Among others it is taken once, as it is.
    names = [one.name for one in choose([MNIST, MLP], ["ode", "twin"])]
    assert names == ["mnist_odenet", "mnist_resnet", "mnist_mlp"]
    # One that is a twin has flows in the role of an ODE network.
    assert len(choose([config(tmp_path, "twin", "MODEL: {ODE: {ROLE: twin}}")], ["ode", "twin"])) == 2
