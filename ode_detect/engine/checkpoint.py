"""Checkpoints: pretrained ResNets into ODE networks, with a report of what was loaded; a bad fit is refused."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn

from ode_detect.backbones.weights import align_and_update_state_dicts, discrete_names
from ode_detect.media.files import say_unreadable, whole, write_text

from .weights import CheckpointError, categories_in, explained, load_weights_only, unpickle_weights


@dataclass(frozen=True)
class Coverage:
    """How much of a model a checkpoint filled.

    Attributes:
        sizes: for each tensor of the model, its number of elements.
        loaded: tensors that were filled.
        unused: names in the file that the model does not have.
        misfits: tensors of another shape, as (name, shape in the file, shape in the model).
        categories: id and name of each class, in the order of the network, as the file says; () if it does not.
    """

    sizes: dict[str, int]
    loaded: frozenset[str]
    unused: tuple[str, ...]
    misfits: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    categories: tuple[dict[str, Any], ...] = ()

    @property
    def missing(self) -> list[str]:
        """Tensors that were not filled."""
        return [name for name in self.sizes if name not in self.loaded]

    def __str__(self) -> str:
        rows = []
        for part in dict.fromkeys(map(_part, self.sizes)):
            names = [name for name in self.sizes if _part(name) == part]
            filled = [name for name in names if name in self.loaded]
            rows.append((part, len(filled), len(names) - len(filled), self._share(filled, names)))
        everything = list(self.sizes)
        filled = [name for name in everything if name in self.loaded]
        rows.append(("all", len(filled), len(everything) - len(filled), self._share(filled, everything)))
        table = tabulate(rows, headers=("part", "tensors loaded", "new", "share of elements"), tablefmt="github")
        unused = Counter(map(_part, self.unused))
        note = ", ".join(f"{name} ({count})" for name, count in unused.items())
        return f"{table}\nnot used of the file: {note or 'nothing'}"

    def _share(self, some: list[str], all_of: list[str]) -> str:
        return f"{sum(self.sizes[n] for n in some) / max(1, sum(self.sizes[n] for n in all_of)):.1%}"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for ODE networks.

    It fills flows from the residual blocks that they replace, in checkpoints of Detectron2's model zoo, MSRA's and
    torchvision's ResNets, and those of CIFAR; reads weights without running code from the file; writes a file whole or
    not at all.

    Args:
        model: the model.
        save_dir: the run folder; "" saves nothing.
        allow_partial: accept weights that leave tensors new, or do not fit.
        emptied: stages without their tails (the network is an ablation). What a file has for these tails has no place
            where a training begins with it, and is left out.
        checkpointables: what else is saved, with ``state_dict()`` and ``load_state_dict()``.

    Attributes:
        coverage: what the latest load filled.
        notes: what else is written into each file, for whoever uses the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_partial: bool = False,
        emptied: Iterable[str] = (),
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.allow_partial = allow_partial
        self._emptied = tuple(emptied)
        self.coverage: Coverage
        self.notes: dict[str, Any] = {}

    def load_weights(self, path: str, *, whole: bool) -> Coverage | None:
        """Fill the model.

        Args:
            path: a file, or an address that Detectron2 knows ("detectron2://..."); "" loads nothing.
            whole: every tensor must be in the file. If not, those of the backbone must, and a detection head's if the
                file has one.

        Returns:
            What was loaded; None for "".

        Raises:
            CheckpointError: the file is not there, cannot be read, or does not fit.
        """
        if not path:
            return None
        if "://" in path and ".." in path.split("/"):
            # What is downloaded is kept under the path in its address, which must not lead out of the cache.
            raise CheckpointError(f"an address of weights has no '..' in its path, and this is {path!r}; write it out.")
        if "://" not in path and not Path(path).is_file():
            raise CheckpointError(f"there is no checkpoint {path!r}; MODEL.WEIGHTS names a file, or '' for none.")
        self._load_or_explain(path, checkpointables=[])
        if comm.is_main_process():
            logging.getLogger("ode_detect.engine").info("%s:\n%s", path, self.coverage)
        self._refuse_bad_fit(path, self.coverage, whole)
        return self.coverage

    def resume(self) -> int:
        """Go on from the last checkpoint in the run folder.

        Returns:
            The iteration to continue with; 0 if there is no checkpoint.
        """
        path = self.get_checkpoint_file()
        if not path:
            return 0
        if not Path(path).is_file():
            raise CheckpointError(
                f"the run goes on from {path}, which is not there. Write the name of another checkpoint in that folder "
                "into its file last_checkpoint, or begin again in another OUTPUT_DIR."
            )
        if _iteration(path) is None:
            say_unreadable(Path(path), "it is cut short or damaged")
            path = self._newest() or path
        rest = self._load_or_explain(path)
        if self.coverage.missing or self.coverage.misfits:
            raise CheckpointError(
                f"{path} is of another network than the config builds, so the run cannot go on:\n{self.coverage}\n"
                "Give the config that the run began with, or another OUTPUT_DIR."
            )
        return int(rest["iteration"] if "iteration" in rest else self.checkpointables["trainer"].iter) + 1

    def get_checkpoint_file(self) -> str:
        """The checkpoint that last_checkpoint names; if that file is broken, the newest in the folder; "" for none."""
        file = Path(self.save_dir) / "last_checkpoint"
        if not file.exists():
            return ""
        try:
            name = file.read_text(encoding="utf-8").strip()
        except ValueError:
            name = ""
        # A name that was cut while it was written, before such files were written whole.
        if name.endswith(".pth"):
            return str(Path(self.save_dir) / name)
        say_unreadable(file, f"it holds {name!r}")
        return self._newest()

    def _newest(self) -> str:
        """The checkpoint of the latest iteration in the folder; "" if there is none that can be read."""
        known = {str(file): _iteration(file) for file in Path(self.save_dir).glob("model_*.pth")}
        done = {file: at for file, at in known.items() if at is not None and not file.endswith("model_best.pth")}
        return max(done, key=lambda file: done[file], default="")

    def _load_or_explain(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        try:
            rest: dict[str, Any] = self.load(path, checkpointables)
        except CheckpointError:
            raise
        except (OSError, AssertionError, TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be loaded ({type(error).__name__}: {error}). It must be a file of weights by name, or "
                "an address that this machine can reach."
            ) from error
        self.coverage = replace(self.coverage, categories=categories_in(rest, path))
        return rest

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth; a kill while writing leaves the file as it was before."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {
            "model": self.model.state_dict(),
            **{k: v.state_dict() for k, v in self.checkpointables.items()},
            **self.notes,
            **kwargs,
        }
        final = Path(self.save_dir) / f"{name}.pth"
        with whole(final) as partial:
            torch.save(data, partial)
        if name != "model_best":
            self.tag_last_checkpoint(final.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Say which checkpoint to resume from; a kill while writing leaves the earlier word."""
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _load_file(self, filename: str) -> dict[str, Any]:
        with explained(filename):
            if filename.endswith(".pkl"):
                return unpickle_weights(filename)
            if filename.endswith(".pyth"):  # of pycls
                state = load_weights_only(filename)["model_state"]
                return {"model": {n: v for n, v in state.items() if not _is_counter(n)}, "matching_heuristics": True}
            content = super()._load_file(filename)
            inner = content["model"].get("state_dict")
            return {"model": inner} if isinstance(inner, dict) else content

    def _torch_load(self, f: str) -> Any:
        return load_weights_only(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = {name: _as_tensor(value) for name, value in checkpoint["model"].items()}
        if any(re.match(r"(module\.)?layer\d\.", name) for name in state):
            state = {_torchvision_name(n.removeprefix("module.")): v for n, v in state.items() if not _is_counter(n)}
            checkpoint["matching_heuristics"] = True
        ours = self.model.state_dict()
        caffe2 = checkpoint.get("__author__") == "Caffe2"
        if checkpoint.pop("matching_heuristics", False):
            state = align_and_update_state_dicts(ours, state, c2_conversion=caffe2)
            state |= _folded_statistics(state, ours) if caffe2 else {}
        # The backbone does this too, but in a load that raises where shapes differ, and here they are listed.
        theirs = {name: flow for flow, name in discrete_names(list(ours)).items() if name not in ours}
        checkpoint["model"] = {theirs.get(name, name): value for name, value in state.items()}
        given = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        misfits = tuple(incompatible.incorrect_shapes)
        skipped = {name for name, *_ in misfits}
        sizes = {name: value.numel() for name, value in ours.items() if not _is_counter(name)}
        loaded = frozenset(name for name in sizes if name in given and name not in skipped)
        self.coverage = Coverage(sizes, loaded, tuple(incompatible.unexpected_keys), misfits)
        return None

    def _may_lack(self, name: str) -> bool:
        """Whether a file may leave a tensor out: it has a value without it, or the network says that it may."""
        optional: tuple[str, ...] = getattr(self.model, "optional_tensors", ())
        return name in ("pixel_mean", "pixel_std") or name.startswith(optional)

    def _refuse_bad_fit(self, path: str, coverage: Coverage, whole: bool) -> None:
        bottom = (
            "backbone.bottom_up." if any(n.startswith("backbone.bottom_up.") for n in coverage.sizes) else "backbone."
        )
        emptied = () if whole else self._emptied
        # The res5 that a C4 head holds comes with the backbone's weights.
        head = [
            n for n in coverage.sizes if not n.startswith("backbone.") and ".res5." not in n and not self._may_lack(n)
        ]
        whole = whole or not coverage.loaded.isdisjoint(head)
        missing = [
            n for n in coverage.missing if not self._may_lack(n) and (whole or n.startswith(bottom) or ".res5." in n)
        ]
        blocks = {n: re.search(r"\b(res[2-5])\.(\d+)\.", n) for n in coverage.unused}
        dropped = [n for n, block in blocks.items() if block and not _in_tail(block, emptied)]
        if self.allow_partial or not (missing or dropped or coverage.misfits):
            return
        lines = [f"{name}: {theirs} in the file, {ours} here" for name, theirs, ours in coverage.misfits]
        lines += [f"{name}: not in the file" for name in missing]
        lines += [f"{name}: in the file, and the network has no place for it" for name in dropped]
        listed = "\n  ".join(lines[:8])
        raise CheckpointError(
            f"{path} does not fit the network in {len(lines)} tensors:\n  {listed}\n"
            "Give the weights that belong to the config, or set MODEL.ALLOW_PARTIAL_WEIGHTS True to go on all the same."
        )


def _in_tail(block: re.Match[str], stages: Iterable[str]) -> bool:
    """Whether a block ("res4", "3") comes after the transition of one of these stages."""
    return block[1] in stages and block[2] != "0"


def _iteration(path: str | Path) -> int | None:
    """The iteration after which a checkpoint was written, -1 for weights alone; None if it cannot be read."""
    try:
        # Mapped, so that nothing but its table of contents is read.
        content = load_weights_only(str(path), mmap=True)
        return int(content.get("trainer", content).get("iteration", -1))
    except Exception:  # what a broken file makes its reader raise is nobody's contract
        return None


def _folded_statistics(state: dict[str, Tensor], model: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistics that Caffe2's files leave out, since they are folded into scale and shift: mean 0, variance 1."""
    values = {"running_mean": 0.0, "running_var": 1.0 - 1e-5}
    statistics = {}
    for name, tensor in model.items():
        layer, _, kind = name.rpartition(".")
        if kind in values and name not in state and f"{layer}.weight" in state:
            statistics[name] = torch.full_like(tensor, values[kind])
    return statistics


def _torchvision_name(name: str) -> str:
    """Detectron2's name of a ResNet tensor of torchvision, or of CIFAR; the last layer's is that of a `Classifier`."""
    if name.startswith(("fc.", "linear.")):
        return f"linear.{name.partition('.')[2]}"
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (np.ndarray, np.generic, int, float)):
        raise TypeError(f"weights are tensors or arrays of numbers, and one is a {type(value).__name__}")
    return torch.from_numpy(np.asarray(value))


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:3] if words[:2] == ["backbone", "bottom_up"] else words[:2]) if len(words) > 1 else "input"
