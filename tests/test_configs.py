"""Every file of configs/ loads, states its claim, can be built, and differs from what it is compared with as told."""

import functools
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
import torchvision
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

import ode_detect.engine.tasks  # noqa: F401  registers backbones and heads
from ode_detect.backbones import build_cifar_resnet
from ode_detect.engine.config import load_config
from ode_detect.ode import ODEBlock

from .conftest import ROOT, our_configs

CONFIGS = ROOT / "configs"
FILES = [path for path in our_configs() if path.parent.name != "base"]
BASES = [path for path in our_configs() if path.parent.name == "base"]
DETECTION = CONFIGS / "detection"
ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
# Our recipe -> the one of Detectron2's model zoo, and the parts of it that Detectron2 builds under another name.
RECIPES = {
    "faster_rcnn_r101_fpn": ("COCO-Detection/faster_rcnn_R_101_FPN_3x", {"MODEL.BACKBONE.NAME"}),
    "faster_rcnn_r101_c4": ("COCO-Detection/faster_rcnn_R_101_C4_3x", {"MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME"}),
    "faster_rcnn_r101_dc5": ("COCO-Detection/faster_rcnn_R_101_DC5_3x", {"MODEL.BACKBONE.NAME"}),
    "retinanet_r101_fpn": ("COCO-Detection/retinanet_R_101_FPN_3x", {"MODEL.BACKBONE.NAME"}),
    "mask_rcnn_r101_fpn": ("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x", {"MODEL.BACKBONE.NAME"}),
    "faster_rcnn_r101_c4_voc": (
        "PascalVOC-Detection/faster_rcnn_R_50_C4",
        {"MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.RESNETS.DEPTH", "MODEL.WEIGHTS"},
    ),
}
# ODE-ResNets of CIFAR and ImageNet that are trained from scratch, and the published ResNets as flows.
CLASSIFICATION = CONFIGS / "classification"
KINDS = ("constant", "piecewise", "hat", "stacked", "augmented", "wide")
FROM_SCRATCH = [p for kind in KINDS for p in FILES if p.parent == CLASSIFICATION and p.stem.endswith(f"_{kind}")]
PRETRAINED = [path for path in FILES if path.parent == CLASSIFICATION and path.stem.endswith("_pretrained")]
DEPTH = "MODEL.RESNETS.DEPTH"
# Without their tails ResNet-34 and ResNet-101 are ResNet-18 and ResNet-50.
SAME_ABLATION = {"imagenet_r34": "imagenet_r18", "imagenet_r101": "imagenet_r50"}
OUR_OWN = {"TEST.EVAL_PERIOD", "OUTPUT_DIR", "MODEL.DEVICE"}


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return values


def differences(a: CfgNode, b: CfgNode) -> dict[str, Any]:
    """The keys in which b differs from a, with b's values."""
    before, now = flat(a), flat(b)
    return {key: now[key] for key in now if key not in before or before[key] != now[key]}


def without_memory(cfg: CfgNode) -> nn.Module:
    """The network, its weights without values."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@functools.cache
def loaded(path: Path) -> CfgNode:
    """A config, to be read only."""
    return load_config(path)


@functools.cache
def build(path: Path) -> nn.Module:
    """The network of a config, without values."""
    return without_memory(load_config(path))


def backbone_size(model: nn.Module) -> int:
    """Parameters of stem and res2 to res5, wherever they are, without those of a pyramid."""
    return sum(p.numel() for n, p in model.named_parameters() if re.search(r"\.(stem|res[2-5])\.", n))


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    kept = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(kept)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_header_states_a_claim_or_that_there_is_none(path: Path) -> None:
    claim = header(path).partition("Claim: ")[2]
    assert claim, "a config states its claim in its header"
    if "has not been run" in claim:
        assert re.search(r"\d+(\.\d)? (hours|minutes)|a minute", claim), "what it would cost"
        assert re.search(r"(AP|AP50) ?\d|\d box AP|(error|top-1) of \d", claim), "the number to stand beside"
    else:
        assert re.search(r"results/\w+\.json", claim), "where the claim is held"


@pytest.mark.parametrize("path", BASES, ids=name)
def test_a_base_says_that_it_is_one(path: Path) -> None:
    assert re.search("Not to be run by itself", header(path))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_network_of_every_config_is_built(path: Path) -> None:
    cfg = loaded(path)
    model = build(path)
    flows = {n: m for n, m in model.named_modules() if isinstance(m, ODEBlock)}
    assert bool(flows) == (cfg.MODEL.ODE.ROLE == "ode" and cfg.MODEL.BACKBONE.NAME != "build_mlp_backbone")
    if cfg.MODEL.BACKBONE.NAME == "build_odenet_backbone":
        stages = {f"s{number}" for number, blocks in enumerate(cfg.MODEL.ODE_NET.BLOCKS, 1) if blocks}
    else:
        stages = set(cfg.MODEL.ODE.STAGES)
    assert {re.search(r"\b(res|s)\d", n)[0] for n in flows} == (stages if flows else set())  # type: ignore[index]
    if cfg.MODEL.ODE.PIECES == "constant":
        # A new flow is the identity, and a frozen one would stay it.
        assert all(p.requires_grad for flow in flows.values() for p in flow.parameters())


@pytest.mark.parametrize("path", [path for path in FILES if loaded(path).MODEL.CHANNELS_LAST], ids=name)
def test_no_group_norm_is_in_channels_last_which_is_slow(path: Path) -> None:
    model = build(path)
    flows = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, ODEBlock))
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.GroupNorm)]
    assert [name for name in norms if not name.startswith(flows)] == []


def compared() -> list[Path]:
    return [path for path in FILES if path.stem.endswith(("_twin", "_ablation"))]


@pytest.mark.parametrize("path", compared(), ids=name)
def test_twin_and_ablation_differ_in_their_role(path: Path) -> None:
    base = path.parent / yaml.safe_load(path.read_text())["_BASE_"]
    role = path.stem.rpartition("_")[2]
    changed = differences(load_config(base), load_config(path))
    assert changed.pop("MODEL.ODE.ROLE") == role
    assert changed.pop("OUTPUT_DIR") == f"output/{path.stem}"
    # Pretrained weights hold blocks that an ablation has no place for.
    expected = {"MODEL.ALLOW_PARTIAL_WEIGHTS": True} if role == "ablation" and load_config(path).MODEL.WEIGHTS else {}
    assert changed == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_its_twin_and_its_ablation(recipe: str) -> None:
    assert all((DETECTION / f"{recipe}_{role}.yaml").is_file() for role in ("ode", "twin", "ablation"))


@pytest.mark.parametrize("path", [path for path in FILES if path.match("detection/*_r101_*_shared.yaml")], ids=name)
def test_a_shared_field_differs_from_pieces_in_its_flows(path: Path) -> None:
    changed = differences(load_config(path.with_stem(path.stem.replace("_shared", "_ode"))), load_config(path))
    assert changed == {
        "MODEL.ALLOW_PARTIAL_WEIGHTS": True,
        "MODEL.BACKBONE.FREEZE_AT": 1,
        "MODEL.ODE.PIECES": "constant",
        "MODEL.ODE.METHOD": "midpoint",
        "MODEL.ODE.STEPS": 4,
        "MODEL.ODE.PROJECTION": "none",
        "MODEL.ODE.NORM": "GN",
        "OUTPUT_DIR": f"output/{path.stem}",
    }


def test_faster_rcnn_ode_is_the_detector_with_a_pyramid() -> None:
    changed = differences(
        load_config(DETECTION / "faster_rcnn_r101_fpn_ode.yaml"), load_config(CONFIGS / "faster_rcnn_ode.yaml")
    )
    assert changed == {"OUTPUT_DIR": "output/faster_rcnn_ode"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_detectron2s(recipe: str) -> None:
    file, renamed = RECIPES[recipe]
    theirs = get_cfg()
    theirs.merge_from_file(str(ZOO / f"{file}.yaml"), allow_unsafe=True)
    twin = load_config(DETECTION / f"{recipe}_twin.yaml")
    changed = differences(theirs, twin)
    ours = {key for key in changed if key not in flat(get_cfg())}
    assert {key for key in changed if key not in ours} - OUR_OWN == renamed
    assert set(flat(theirs)) - set(flat(twin)) == set()


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if not recipe.endswith("_voc")])
def test_the_network_of_a_twin_is_detectron2s(recipe: str) -> None:
    theirs = get_cfg()
    theirs.merge_from_file(str(ZOO / f"{RECIPES[recipe][0]}.yaml"), allow_unsafe=True)
    a, b = build(DETECTION / f"{recipe}_twin.yaml"), without_memory(theirs)
    assert {n: t.shape for n, t in a.state_dict().items()} == {n: t.shape for n, t in b.state_dict().items()}
    assert {n for n, p in a.named_parameters() if p.requires_grad} == {
        n for n, p in b.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_sizes_that_are_told(recipe: str) -> None:
    sizes = {
        role: backbone_size(build(path))
        for role in ("ode", "shared", "twin", "ablation")
        if (path := DETECTION / f"{recipe}_{role}.yaml").is_file()
    }
    # Of torchvision's resnet101, 44,549,160 parameters: without its classifier (2,049,000) and the scales and shifts of
    # its normalisations (105,344), which FrozenBN does not learn.
    assert sizes["ode"] == sizes["twin"] == 44_549_160 - 2_049_000 - 105_344
    assert round(sizes["ablation"] / 1e6, 1) == 8.0
    if "shared" in sizes:
        assert round(sizes["shared"] / 1e6, 1) == 13.9


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def shapes(model: nn.Module) -> Counter[torch.Size]:
    return Counter(p.shape for p in model.parameters())


def without_tails(model: nn.Module) -> dict[str, torch.Size]:
    """What a network has in every role: stem, transitions and head."""
    tail = re.compile(r"\.(s1\.\d+|(s[2-9]|res[2-5])\.[1-9]\d*)\.")
    return {n: p.shape for n, p in model.named_parameters() if not tail.search(n)}


def counterpart(path: Path, role: str) -> Path:
    """The twin or the ablation of an ODE-ResNet from scratch."""
    network = path.stem if path.stem.endswith("_wide") else path.stem.rpartition("_")[0]
    return path.with_stem(f"{SAME_ABLATION.get(network, network) if role == 'ablation' else network}_{role}")


@pytest.mark.parametrize("role", ["twin", "ablation"])
@pytest.mark.parametrize("path", FROM_SCRATCH, ids=name)
def test_an_ode_resnet_has_the_recipe_and_the_transitions_of_its_twin_and_ablation(path: Path, role: str) -> None:
    other = counterpart(path, role)
    changed = differences(loaded(other), loaded(path))
    expected = {"OUTPUT_DIR"} if other.stem.startswith(path.stem.rpartition("_")[0]) else {"OUTPUT_DIR", DEPTH}
    assert {key for key in changed if not key.startswith("MODEL.ODE.")} == expected
    ours, theirs = without_tails(build(path)), without_tails(build(other))
    if loaded(path).MODEL.ODE.EXTRA_CHANNELS:  # what stands behind a flow is wider
        assert list(ours) == list(theirs)
    else:
        assert ours == theirs
    assert (size(build(other)) == sum(shape.numel() for shape in theirs.values())) == (role == "ablation")


def told(path: Path) -> str:
    """The parameters that a header tells, in millions."""
    match = re.search(r"(\d+\.\d+) M parameters\.", header(path))
    return match[1] if match else ""


@pytest.mark.parametrize("path", [p for p in FILES if p.parent == CLASSIFICATION and told(p)], ids=name)
def test_the_parameters_of_a_classifier_that_are_told(path: Path) -> None:
    digits = len(told(path).partition(".")[2])
    assert f"{size(build(path)) / 1e6:.{digits}f}" == told(path)


def test_the_table_of_parameters_holds_what_the_headers_tell() -> None:
    guide = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")
    section = guide.partition("## CIFAR and ImageNet")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    cells = [(f"{network}{row[0]}", cell) for row in rows[2:] for network, cell in zip(rows[0], row, strict=True)]
    table = {stem: cell for stem, cell in cells if re.fullmatch(r"\d+\.\d+", cell)}
    assert table == {stem: told(CLASSIFICATION / f"{stem}.yaml") for stem in table}
    assert {path.stem for path in FROM_SCRATCH} <= set(table)


@pytest.mark.parametrize("path", PRETRAINED, ids=name)
def test_pretrained_flows_have_the_parameters_of_the_published_network(path: Path) -> None:
    depth = loaded(path).MODEL.RESNETS.DEPTH
    with torch.device("meta"):
        cifar = path.stem.startswith("cifar10")
        published = build_cifar_resnet(f"resnet{depth}") if cifar else torchvision.models.get_model(f"resnet{depth}")
    twin = without_memory(load_config(path, ["MODEL.ODE.ROLE", "twin"]))
    assert shapes(build(path)) == shapes(twin) == shapes(published)


@pytest.mark.parametrize("path", [path for path in FILES if path.match("classification/imagenet_*.yaml")], ids=name)
def test_torchvisions_numbers_are_its_own(path: Path) -> None:
    cfg = loaded(path)
    network = f"resnet{cfg.MODEL.RESNETS.DEPTH}"
    network = "wide_resnet50_2" if cfg.MODEL.RESNETS.WIDTH_PER_GROUP == 128 else network
    weights = torchvision.models.get_model_weights(network)["IMAGENET1K_V1"]
    assert f"top-1 of {weights.meta['_metrics']['ImageNet-1K']['acc@1']:.1f} %" in header(path)
    assert cfg.MODEL.WEIGHTS in ("", f"weights/{Path(weights.url).name}")


@pytest.mark.parametrize("git", [True, False])
def test_a_config_of_a_user_is_none_of_ours(tmp_path: Path, git: bool) -> None:
    ours = ("configs/base/base.yaml", "configs/one.yaml")
    for name, text in zip(
        ours, ("# A base. Not to\n# be run by itself.\n", "# One.\n#\n# Claim: none.\n"), strict=True
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if git:
        for command in (["init", "--quiet"], ["add", "configs"]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "configs" / "mine.yaml").write_bytes(b"# Mine, \xe9t\xe9.\n_BASE_: one.yaml\n")
    assert our_configs(tmp_path) == [tmp_path / name for name in ours]


def named_files(text: str) -> set[str]:
    """Files of the project that a text names: braces are written out, patterns are left out."""
    found = set(
        re.findall(r"(?<![\w/.])(?:configs|tools|datasets|docs|tests|ode_detect)/[\w./{},*-]+\.(?:yaml|py|md)\b", text)
    )
    written = set()
    for name in found:
        before, brace, rest = name.partition("{")
        inside, _, after = rest.partition("}")
        written |= {f"{before}{part}{after}" for part in inside.split(",")} if brace else {name}
    return {name for name in written if "*" not in name}


# Not the changelog, which names what is gone.
DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
SCRIPTS = [*sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "datasets").glob("*.[pm][yd]"))]


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # What a page shows under its name is the reader's to write.
    shown = set(re.findall(r"title=\"([^\"]+)\"", "".join(page.read_text("utf-8") for page in DOCUMENTS)))
    assert {name for name in named_files(text) - shown if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("path", our_configs(), ids=name)
def test_every_config_that_a_header_names_is_there(path: Path) -> None:
    names = set(re.findall(r"(?<![\w/])((?:base|detection|classification)/\w+\.yaml)", header(path)))
    assert {name for name in names if not (CONFIGS / name).is_file()} == set()


def test_named_files_are_found() -> None:
    text = "python tools/x.py configs/a_{b,c}.yaml configs/detection/bccd_*.yaml other/tools/no.py"
    assert named_files(text) == {"tools/x.py", "configs/a_b.yaml", "configs/a_c.yaml"}
