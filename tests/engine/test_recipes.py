"""The networks that the header of a config names."""

from pathlib import Path

import pytest

from ode_detect.engine.recipes import Recipe, commands, in_role, moved, read_recipes, to_markdown

HEADER = """\
# Digits. The ODE-Net of Chen et al. 2018: small.
#
# Claim: none.
#
#   python tools/compare.py --config-file a.yaml \\
#     --roles ode twin
#   python tools/dial.py --config-file a.yaml
#
# Networks:
#   shared: as it is
#   rknet: MODEL.ODE.METHOD rk4
#       MODEL.ODE.STEPS 1
#     One step, as in Chen et al. 2018 | there.
#     Two lines.
#   wide: MODEL.ODE_NET.CHANNELS "[1, 2]"
#   resnet: MODEL.ODE.ROLE twin
#   wide_resnet: MODEL.ODE_NET.CHANNELS "[1, 2]" MODEL.ODE.ROLE twin
#   note: MODEL.ODE.STEPS 2 takes 30 ms
#   other: MODEL.ODE.STEPS isn't read
#     Nor is this.
SEED: 0
#   late: SOLVER.MAX_ITER 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "a.yaml"
    path.parent.mkdir()
    path.write_text(HEADER)
    return path


def test_a_header_names_networks_by_their_keys(file: Path) -> None:
    found = read_recipes(file)
    assert list(found) == ["shared", "rknet", "wide", "resnet", "wide_resnet"]
    assert found["shared"] == Recipe("shared", str(file), about="Digits. The ODE-Net of Chen et al. 2018: small.")
    assert found["rknet"].keys == ("MODEL.ODE.METHOD", "rk4", "MODEL.ODE.STEPS", "1")
    assert found["rknet"].about == "One step, as in Chen et al. 2018 | there. Two lines."
    assert found["wide"].settings() == {"MODEL.ODE_NET.CHANNELS": "[1, 2]"}


def test_a_config_without_names_is_one_network_with_the_name_of_its_file(tmp_path: Path) -> None:
    for text in ("SEED: 0\n", "", "# \xe9t\xe9\n", "#   why: it's fine\n"):
        (tmp_path / "b.yaml").write_bytes(text.encode("latin-1"))
        assert [(one.name, one.keys) for one in read_recipes(tmp_path / "b.yaml").values()] == [("b", ())]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("#   x: MODEL.ODE.STEPS 1 MODEL.ODE.METHOD", "MODEL.ODE.METHOD of x in the header of .* has no value; write"),
        ("#   x: MODEL.ODE.STEPS 1\n#   x: MODEL.ODE.STEPS 2", "each of its networks once, and 'x' is one too many"),
        ("#   x: as it is\n#   y: as it is", "'y' is one too many; rename it"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "b.yaml").write_text(f"{lines}\nSEED: 0\n")
    with pytest.raises(ValueError, match=message):
        read_recipes(tmp_path / "b.yaml")


def test_a_role_has_the_name_of_the_header_or_is_appended(file: Path) -> None:
    named = read_recipes(file)
    assert in_role(named["shared"], "ode", "ode") == named["shared"]
    assert in_role(named["shared"], "twin", "ode") == named["resnet"]
    assert in_role(named["resnet"], "ode", "ode") == named["shared"]
    assert in_role(named["wide"], "twin", "ode") == named["wide_resnet"]
    assert in_role(named["wide_resnet"], "ode", "ode") == named["wide"]
    ablation = in_role(named["shared"], "ablation", "ode")
    assert (ablation.name, ablation.keys) == ("a_ablation", ("MODEL.ODE.ROLE", "ablation"))
    wide = in_role(named["wide_resnet"], "ablation", "ode")
    assert (wide.name, wide.settings()["MODEL.ODE.ROLE"]) == ("wide_resnet_ablation", "ablation")
    # A file that is a twin itself.
    assert in_role(named["shared"], "twin", "twin") == named["shared"]
    assert in_role(named["shared"], "ode", "twin").keys == ("MODEL.ODE.ROLE", "ode")


def test_no_two_networks_have_one_folder(file: Path) -> None:
    named = read_recipes(file)
    recipes = {in_role(one, role, "ode").name: in_role(one, role, "ode") for one in named.values() for role in
               ("ode", "twin", "ablation")}  # fmt: skip
    folders = {name: one.folder("output/a/") for name, one in recipes.items()}
    assert len(set(folders.values())) == len(folders)
    assert folders["shared"] == "output/a"
    assert folders["rknet"] == "output/rknet"
    assert folders["a_ablation"] == "output/a_ablation"
    assert folders["wide_resnet_ablation"] == "output/wide_resnet_ablation"


def test_a_config_that_is_gone_is_found_in_the_header_of_another(file: Path) -> None:
    assert moved(file.with_stem("rknet")).endswith("give that file and MODEL.ODE.METHOD rk4 MODEL.ODE.STEPS 1.")
    assert moved(file.with_stem("shared")) == f" shared is a network of {file} now: give that file as it is."
    assert moved(file.with_stem("unknown")) == moved(file.parent / "none" / "rknet.yaml") == ""


def test_the_commands_of_a_header_are_in_one_line_each(file: Path) -> None:
    assert commands(file) == [
        "python tools/compare.py --config-file a.yaml --roles ode twin",
        "python tools/dial.py --config-file a.yaml",
    ]


def test_all_networks_stand_in_one_table(file: Path, tmp_path: Path) -> None:
    (file.parent / "base").mkdir()
    (file.parent / "base" / "b.yaml").write_text(HEADER)
    (file.parent / "mine.yaml").write_text("# Mine.\nSEED: 0\n")  # a user's own states no claim
    published = "# Weights.\n#\n# Claim: none.\n#\n#   python tools/train_net.py --eval-only --config-file p.yaml\n"
    (file.parent / "p.yaml").write_text(published)
    rows = to_markdown(tmp_path, "configs").splitlines()[2:]
    assert rows[0] == "| shared | Digits | `python tools/train_net.py --config-file configs/a.yaml` |"
    assert rows[1] == (
        "| rknet | One step, as in Chen et al. 2018 \\| there | `python tools/train_net.py --config-file "
        "configs/a.yaml MODEL.ODE.METHOD rk4 MODEL.ODE.STEPS 1 OUTPUT_DIR output/rknet` |"
    )
    assert rows[5:] == ["| p | Weights | `python tools/train_net.py --eval-only --config-file configs/p.yaml` |"]
