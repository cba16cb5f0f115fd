"""Every network of configs/ loads, states its claim, is built, and differs from what it is compared with as told."""

import functools
import importlib.util
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

import ode_detect.engine.tasks  # noqa: F401  registers backbones and heads
from ode_detect.backbones import build_cifar_resnet
from ode_detect.engine.config import load_config
from ode_detect.engine.recipes import commands, header, in_role, read_recipes, to_markdown
from ode_detect.ode import ODEBlock
from ode_detect.report.readme import fill
from ode_detect.report.results import Results

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
# All networks: those of the files as they are, and those that their headers name.
RECIPES_OF = {path: read_recipes(path) for path in FILES}
NETWORKS = {name: recipe for recipes in RECIPES_OF.values() for name, recipe in recipes.items()}
CLASSIFICATION = CONFIGS / "classification"
CLASSIFIERS = [name for name, recipe in NETWORKS.items() if Path(recipe.file).parent == CLASSIFICATION]
# ODE-ResNets of CIFAR and ImageNet that are trained from scratch, and the published ResNets as flows.
KINDS = ("constant", "piecewise", "hat", "stacked", "augmented", "wide")
FROM_SCRATCH = [name for kind in KINDS for name in CLASSIFIERS if name.endswith(f"_{kind}")]
PRETRAINED = [name for name in CLASSIFIERS if name.endswith("_pretrained")]
COMPARED = [name for name, recipe in NETWORKS.items() if "MODEL.ODE.ROLE" in recipe.settings()]
DEPTH = "MODEL.RESNETS.DEPTH"
# Without their tails ResNet-34 and ResNet-101 are ResNet-18 and ResNet-50.
SAME_ABLATION = {"imagenet_r34": "imagenet_r18", "imagenet_r101": "imagenet_r50"}
OUR_OWN = {"TEST.EVAL_PERIOD", "OUTPUT_DIR", "MODEL.DEVICE"}


def name_of(path: Path) -> str:
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


def config(name: str) -> CfgNode:
    """The config of a network, as its command makes it."""
    recipe = NETWORKS[name]
    return load_config(recipe.file, [*recipe.keys, *(["OUTPUT_DIR", f"output/{name}"] if recipe.keys else [])])


@functools.cache
def loaded(name: str) -> CfgNode:
    """The config of a network, to be read only."""
    return config(name)


@functools.cache
def build(name: str) -> nn.Module:
    """A network, without values."""
    return without_memory(config(name))


def backbone_size(model: nn.Module) -> int:
    """Parameters of stem and res2 to res5, wherever they are, without those of a pyramid."""
    return sum(p.numel() for n, p in model.named_parameters() if re.search(r"\.(stem|res[2-5])\.", n))


def words_of(path: Path) -> str:
    """The header of a config in one line."""
    return " ".join(line.removeprefix("#").strip() for line in header(path))


def said_of(name: str) -> str:
    """What a header says of one of its networks; of the file's own, all of it."""
    recipe = NETWORKS[name]
    return recipe.about if recipe.keys else words_of(Path(recipe.file))


def test_there_are_few_files_and_no_network_has_two() -> None:
    assert len(our_configs()) <= 45
    assert len(NETWORKS) == sum(map(len, RECIPES_OF.values()))
    for path in FILES:  # none is overlooked for a slip in its line
        lines = [line for line in header(path) if re.match(r"# +[\w-]+: ([A-Z]+\.|as it is)", line)]
        assert len(lines) == len([one for one in RECIPES_OF[path].values() if one.keys or one.name != path.stem])


def test_the_table_of_all_networks_is_that_of_the_headers() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert "<!-- networks: configs -->" in text
    assert fill(text, ROOT, {"networks": lambda folder, root: to_markdown(root, folder)}) == text, (
        "run python tools/update_readme.py"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_command_in_the_table_makes_the_network(name: str) -> None:
    table = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("<!-- networks:")[2]
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    _, _, about, command, _ = re.split(r"(?<!\\) ?\| ?", row)
    assert about
    words = shlex.split(command.strip("`"))
    assert words[:2] == ["python", "tools/train_net.py"]
    args = script("tools/train_net.py").parse(words[2:])
    assert args.eval_only == (name.endswith("_pretrained") or name in ("cifar10_resnet56_ode", "cifar10_resnet56_twin"))
    assert load_config(ROOT / args.config_file, args.overrides) == loaded(name)


def test_each_network_has_a_folder_of_its_own() -> None:
    folders = {name: recipe.folder(load_config(recipe.file).OUTPUT_DIR) for name, recipe in NETWORKS.items()}
    assert len(set(folders.values())) == len(folders)
    # That of the command, and that of a comparison.
    assert folders == {name: loaded(name).OUTPUT_DIR for name in NETWORKS}
    assert folders == {name: f"output/{name}" for name in NETWORKS}


def script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_of_a_header", ROOT / path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize("path", [path for path in FILES if commands(path)], ids=name_of)
def test_the_commands_of_a_header_are_understood(path: Path) -> None:
    for command in commands(path):
        _, tool, *words = shlex.split(command)
        args = script(tool).parse(words)
        assert [ROOT / file for file in getattr(args, "configs", [args.config_file])] == [path]
        assert set(getattr(args, "networks", [])) <= set(RECIPES_OF[path])


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_has_a_network_that_can_be_run(path: Path) -> None:
    results = Results.read(path)
    rows = [row for row in results.rows if row.config.startswith("configs/")]
    for row in rows:
        assert (ROOT / row.config).is_file()
        if results.what.startswith(("The dial of", "Pieces of")):  # rows are settings of the file's network
            continue
        recipe = NETWORKS[row.name]
        assert Path(recipe.file) == ROOT / row.config
        assert row.role in (loaded(row.name).MODEL.ODE.ROLE, "baseline")
    for command in results.command.splitlines():
        assert {file for file in named_files(command) if not (ROOT / file).is_file()} == set()
        _, tool, *words = shlex.split(command)
        if tool == "tools/compare.py":
            args = script(tool).parse(words)
            known = {name for file in args.configs for name in RECIPES_OF[ROOT / file]}
            assert set(args.networks) <= known
            if args.networks:
                assert args.networks == list(dict.fromkeys(row.name for row in results.rows))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_header_states_a_claim_or_that_there_is_none(path: Path) -> None:
    claim = words_of(path).partition("Claim: ")[2]
    assert claim, "a config states its claim in its header"
    if "has not been run" in claim:
        assert re.search(r"\d+(\.\d)? (hours|minutes)|a minute", claim), "what it would cost"
        assert re.search(r"(AP|AP50) ?\d|\d box AP|(error|top-1) of \d", claim), "the number to stand beside"
    else:
        assert re.search(r"results/\w+\.json", claim), "where the claim is held"


@pytest.mark.parametrize("name", [*FROM_SCRATCH, *PRETRAINED, *(name for name in COMPARED if name in CLASSIFIERS)])
def test_what_a_classifier_that_has_not_been_run_would_cost_is_told(name: str) -> None:
    if re.search("it would take|testing takes", words_of(Path(NETWORKS[name].file))):
        assert re.search(r"\d+(\.\d)? (hours|minutes)|a minute", said_of(name)), "what it would cost"


@pytest.mark.parametrize("path", BASES, ids=name_of)
def test_a_base_says_that_it_is_one(path: Path) -> None:
    assert re.search("Not to be run by itself", words_of(path))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built(name: str) -> None:
    cfg = loaded(name)
    model = build(name)
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


@pytest.mark.parametrize("name", [name for name in NETWORKS if loaded(name).MODEL.CHANNELS_LAST])
def test_no_group_norm_is_in_channels_last_which_is_slow(name: str) -> None:
    model = build(name)
    flows = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, ODEBlock))
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.GroupNorm)]
    assert [name for name in norms if not name.startswith(flows)] == []


@pytest.mark.parametrize("name", COMPARED)
def test_twin_and_ablation_differ_in_their_role(name: str) -> None:
    recipe = NETWORKS[name]
    base = in_role(recipe, "ode", "ode")
    assert base.name in RECIPES_OF[Path(recipe.file)]
    changed = differences(loaded(base.name), loaded(name))
    assert changed.pop("MODEL.ODE.ROLE") == ("twin" if name.endswith(("_twin", "_resnet")) else "ablation")
    assert changed.pop("OUTPUT_DIR") == f"output/{name}"
    # Pretrained weights hold blocks that an ablation has no place for; it begins with them all the same.
    assert changed == {}


@pytest.mark.parametrize("name", [name for name in NETWORKS if loaded(name).MODEL.ODE.ROLE == "ode"])
def test_every_network_with_flows_has_its_twin_and_its_ablation(name: str) -> None:
    """By role alone, whether the header names them or not; the one of a file of its own has it from there."""
    if not any(isinstance(module, ODEBlock) for module in build(name).modules()):
        return
    flows = without_memory(config(name))
    for role in ("twin", "ablation"):
        other = in_role(NETWORKS[name], role, "ode")
        model = without_memory(load_config(other.file, other.keys))
        assert not any(isinstance(module, ODEBlock) for module in model.modules())
        if role == "ablation":
            assert size(model) < size(flows)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_its_twin_and_its_ablation(recipe: str) -> None:
    assert {f"{recipe}_{role}" for role in ("ode", "twin", "ablation")} <= set(NETWORKS)


@pytest.mark.parametrize("name", [name for name in NETWORKS if re.fullmatch(r".*_r101_.*_shared", name)])
def test_a_shared_field_differs_from_pieces_in_its_flows(name: str) -> None:
    changed = differences(loaded(name.replace("_shared", "_ode")), loaded(name))
    assert changed == {
        "MODEL.ALLOW_PARTIAL_WEIGHTS": True,
        "MODEL.BACKBONE.FREEZE_AT": 1,
        "MODEL.ODE.PIECES": "constant",
        "MODEL.ODE.METHOD": "midpoint",
        "MODEL.ODE.STEPS": 4,
        "MODEL.ODE.PROJECTION": "none",
        "MODEL.ODE.NORM": "GN",
        "OUTPUT_DIR": f"output/{name}",
    }


def test_faster_rcnn_ode_is_the_detector_with_a_pyramid() -> None:
    changed = differences(loaded("faster_rcnn_r101_fpn_ode"), load_config(CONFIGS / "faster_rcnn_ode.yaml"))
    assert changed == {"OUTPUT_DIR": "output/faster_rcnn_ode"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_detectron2s(recipe: str) -> None:
    file, renamed = RECIPES[recipe]
    theirs = get_cfg()
    theirs.merge_from_file(str(ZOO / f"{file}.yaml"), allow_unsafe=True)
    twin = loaded(f"{recipe}_twin")
    changed = differences(theirs, twin)
    ours = {key for key in changed if key not in flat(get_cfg())}
    assert {key for key in changed if key not in ours} - OUR_OWN == renamed
    assert set(flat(theirs)) - set(flat(twin)) == set()


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if not recipe.endswith("_voc")])
def test_the_network_of_a_twin_is_detectron2s(recipe: str) -> None:
    theirs = get_cfg()
    theirs.merge_from_file(str(ZOO / f"{RECIPES[recipe][0]}.yaml"), allow_unsafe=True)
    a, b = build(f"{recipe}_twin"), without_memory(theirs)
    assert {n: t.shape for n, t in a.state_dict().items()} == {n: t.shape for n, t in b.state_dict().items()}
    assert {n for n, p in a.named_parameters() if p.requires_grad} == {
        n for n, p in b.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_sizes_that_are_told(recipe: str) -> None:
    sizes = {
        role: backbone_size(build(name))
        for role in ("ode", "shared", "twin", "ablation")
        if (name := f"{recipe}_{role}") in NETWORKS
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


def counterpart(name: str, role: str) -> str:
    """The twin or the ablation of an ODE-ResNet from scratch."""
    network = name if name.endswith("_wide") else name.rpartition("_")[0]
    return f"{SAME_ABLATION.get(network, network) if role == 'ablation' else network}_{role}"


@pytest.mark.parametrize("role", ["twin", "ablation"])
@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_an_ode_resnet_has_the_recipe_and_the_transitions_of_its_twin_and_ablation(name: str, role: str) -> None:
    other = counterpart(name, role)
    changed = differences(loaded(other), loaded(name))
    expected = {"OUTPUT_DIR"} if other.startswith(name.rpartition("_")[0]) else {"OUTPUT_DIR", DEPTH}
    assert {key for key in changed if not key.startswith("MODEL.ODE.")} == expected
    ours, theirs = without_tails(build(name)), without_tails(build(other))
    if loaded(name).MODEL.ODE.EXTRA_CHANNELS:  # what stands behind a flow is wider
        assert list(ours) == list(theirs)
    else:
        assert ours == theirs
    assert (size(build(other)) == sum(shape.numel() for shape in theirs.values())) == (role == "ablation")


def told(name: str) -> str:
    """The parameters that a header tells of a network, in millions."""
    match = re.search(r"(\d+\.\d+) M parameters\.", said_of(name))
    return match[1] if match else ""


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if told(name)])
def test_the_parameters_of_a_classifier_that_are_told(name: str) -> None:
    digits = len(told(name).partition(".")[2])
    assert f"{size(build(name)) / 1e6:.{digits}f}" == told(name)


def test_the_table_of_parameters_holds_what_the_headers_tell() -> None:
    guide = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")
    section = guide.partition("## CIFAR and ImageNet")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"]
    cells = [(f"{network}{row[0]}", cell) for row in rows[2:] for network, cell in zip(rows[0], row, strict=True)]
    table = {name: cell for name, cell in cells if re.fullmatch(r"\d+\.\d+", cell)}
    assert table == {name: told(name) for name in table}
    assert set(FROM_SCRATCH) <= set(table)


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_flows_have_the_parameters_of_the_published_network(name: str) -> None:
    depth = loaded(name).MODEL.RESNETS.DEPTH
    with torch.device("meta"):
        cifar = name.startswith("cifar10")
        published = build_cifar_resnet(f"resnet{depth}") if cifar else torchvision.models.get_model(f"resnet{depth}")
    recipe = NETWORKS[name]
    twin = without_memory(load_config(recipe.file, [*recipe.keys, "MODEL.ODE.ROLE", "twin"]))
    assert shapes(build(name)) == shapes(twin) == shapes(published)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("imagenet_")])
def test_torchvisions_numbers_are_its_own(name: str) -> None:
    cfg = loaded(name)
    network = f"resnet{cfg.MODEL.RESNETS.DEPTH}"
    network = "wide_resnet50_2" if cfg.MODEL.RESNETS.WIDTH_PER_GROUP == 128 else network
    weights = torchvision.models.get_model_weights(network)["IMAGENET1K_V1"]
    assert f"top-1 of {weights.meta['_metrics']['ImageNet-1K']['acc@1']:.1f} %" in said_of(name)
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


@pytest.mark.parametrize("path", our_configs(), ids=name_of)
def test_every_config_that_a_header_names_is_there(path: Path) -> None:
    names = set(re.findall(r"(?<![\w/])((?:base|detection|classification)/\w+\.yaml)", words_of(path)))
    assert {name for name in names if not (CONFIGS / name).is_file()} == set()


def test_named_files_are_found() -> None:
    text = "python tools/x.py configs/a_{b,c}.yaml configs/detection/bccd_*.yaml other/tools/no.py"
    assert named_files(text) == {"tools/x.py", "configs/a_b.yaml", "configs/a_c.yaml"}
