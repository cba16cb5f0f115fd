"""A certificate of all flows of a model: whether their gradients are right, and whether they are flows at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.adaptive import Solver
from ode_detect.ode.block import ODEBlock
from ode_detect.ode.difference import difference
from ode_detect.ode.errors import SolveError
from ode_detect.ode.flows import flows_of
from ode_detect.ode.gradients import scheme_for
from ode_detect.ode.observation import in_evaluation

from .flow import TOLERANCE, FlowReport, certify_flow
from .gradients import GradientReport, certify_gradients


@dataclass(frozen=True)
class BlockReport:
    """The certificate of one flow of a model.

    Attributes:
        calls: how often the example reached it; at 0 there is nothing else.
        shape: of the state of the first call, which the reports are about.
        flow: is it a flow?
        gradients: are its gradients right?
    """

    calls: int
    shape: tuple[int, ...] = ()
    flow: FlowReport | None = None
    gradients: GradientReport | None = None


@dataclass(frozen=True)
class Report:
    """The certificate of a model; ``str()`` is for people, ``to_dict()`` for files.

    Attributes:
        blocks: by the flow's name in the model.
        together: change of the model's output, as a share of it, when all flows are solved otherwise at once, by what
            was done; empty for one flow, and where the output is no tensor.
    """

    blocks: dict[str, BlockReport]
    together: dict[str, float]

    @property
    def verdict(self) -> str:
        """That of the flows that were reached: "Euler-only" if one is, or "flow"; "not reached" where none was."""
        verdicts = {block.flow.verdict for block in self.blocks.values() if block.flow}
        return "Euler-only" if "Euler-only" in verdicts else "flow" if verdicts else "not reached"

    @property
    def right(self) -> bool:
        """Whether every mode of every flow that was reached keeps what it promises about its gradient."""
        return not self._broken()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: fractions, counts, names; a number that is not finite becomes None."""
        return {"verdict": self.verdict, "right": self.right, **_plain(dataclasses.asdict(self))}

    def __str__(self) -> str:
        lines = []
        for name, block in self.blocks.items():
            size = " x ".join(map(str, block.shape))
            calls = "" if block.calls == 1 else f", the first of {block.calls} calls"
            lines += [name, *([f"  state {size}{calls}"] if block.calls else ["  not reached by this example"])]
            if block.flow:
                lines += [f"  {block.flow.solver}", *_indented(block.flow), *_indented(block.gradients), ""]
        for what, change in self.together.items():
            lines += [f"all flows, {what}: the model's output changes by {100 * change:.3g} %"]
        lines += [f"gradients of {name} that are WRONG or failed: {', '.join(m)}" for name, m in self._broken().items()]
        gradients = f"; its gradients are {'right' if self.right else 'NOT right'}"
        return "\n".join([*lines, _SUMMARY[self.verdict] + (gradients if self.verdict != "not reached" else "")])

    def _broken(self) -> dict[str, list[str]]:
        """The modes that do not keep what they promise, by the flow's name."""
        found = {n: [m.mode for m in b.gradients.modes if m.broken] for n, b in self.blocks.items() if b.gradients}
        return {name: modes for name, modes in found.items() if modes}


_SUMMARY = {
    "flow": "the network is a flow: finer steps and other methods change it by no more than is allowed",
    "Euler-only": "the network is Euler-only: it is tied to its steps, and with others it is another network",
    "not reached": "nothing is certified: the example reached no flow",
}


def certify_model(
    model: nn.Module,
    example: Any,
    *,
    run: Callable[[nn.Module, Any], Any] | None = None,
    tolerance: float = TOLERANCE,
    repeats: int = 5,
) -> Report:
    """Certify all flows of a model at the states that enter them when it runs on an example.

    The model runs in evaluation mode and is afterwards what it was: weights, modes, solvers, random state; after an
    error too. A flow that is called several times is certified at its first state.

    Args:
        model: any module with at least one `ODEBlock`.
        example: what it is called with.
        run: ``run(model, example)``, where that is not ``model(example)``, or to choose what counts as the model's
            output: tensors, or lists, tuples or dicts of tensors. Anything else is not compared.
        tolerance: see `certify_flow`.
        repeats: see `certify_gradients`.

    Raises:
        ValueError: the model has no flow.
        SolveError: the model's own solve failed.
    """
    flows = flows_of(model)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with in_evaluation(model), torch.random.fork_rng(devices=devices):
        running = _Running(flows, (lambda: run(model, example)) if run else (lambda: model(example)))
        blocks = {name: BlockReport(calls) for name, calls in running.calls.items()}
        for name, state in running.states.items():
            flow = certify_flow(flows[name], state, tolerance=tolerance)
            changes = tuple(
                dataclasses.replace(c, of_model=None if c.limit else running.change({name: c.solver}))
                for c in flow.changes
            )
            blocks[name] = dataclasses.replace(
                blocks[name],
                shape=tuple(state.shape),
                flow=dataclasses.replace(flow, changes=changes),
                gradients=certify_gradients(flows[name], state, repeats=repeats),
            )
        return Report(blocks, _together(blocks, running))


class _Running:
    """A model on its example: the states that enter its flows, and what other solvers do to its output."""

    def __init__(self, flows: dict[str, ODEBlock], run: Callable[[], Any]) -> None:
        self._flows, self._run = flows, run
        self.calls = dict.fromkeys(flows, 0)
        self.states: dict[str, Tensor] = {}
        hooks = [b.register_forward_pre_hook(partial(self._enter, n), with_kwargs=True) for n, b in flows.items()]
        try:
            self._output = self._leaves()
        finally:
            for hook in hooks:
                hook.remove()

    def change(self, solvers: dict[str, Solver]) -> float | None:
        """Change of the output, as a share of it, when flows are solved otherwise; None where it is no tensor."""
        if not self._output:
            return None
        before = {name: (self._flows[name].solver, self._flows[name].gradient) for name in solvers}
        try:
            for name, solver in solvers.items():
                block = self._flows[name]
                block.solver, block.gradient = solver, scheme_for(block.gradient, solver)
            other = self._leaves()
        except SolveError:
            return math.inf
        finally:
            for name, own in before.items():
                self._flows[name].solver, self._flows[name].gradient = own
        if [x.shape for x in other] != [x.shape for x in self._output]:
            return None
        return difference(self._output, other).relative_norm()

    @torch.no_grad()
    def _leaves(self) -> list[Tensor]:
        return [leaf.double() for leaf in _tensors(self._run())]

    def _enter(self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[name] += 1
        if name not in self.states:
            # The model may go on to change it in place.
            self.states[name] = (args[0] if args else kwargs["h"]).detach().clone()


def _together(blocks: dict[str, BlockReport], running: _Running) -> dict[str, float]:
    """Change of the output when the same is done to the solvers of all flows; for one flow it is known already."""
    solvers: dict[str, dict[str, Solver]] = {}
    for name, block in blocks.items():
        for change in block.flow.changes if block.flow else ():
            if not change.limit:
                solvers.setdefault(change.what, {})[name] = change.solver
    changes = {what: running.change(chosen) for what, chosen in solvers.items() if len(chosen) > 1}
    return {what: change for what, change in changes.items() if change is not None}


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in nested containers; none if there is anything else."""
    if isinstance(output, Tensor):
        return [output]
    parts = (
        list(output.values()) if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else []
    )
    found = [_tensors(part) for part in parts]
    return [leaf for leaves in found for leaf in leaves] if all(found) else []


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _indented(report: object) -> list[str]:
    return [f"  {line}" for line in str(report).splitlines()]
