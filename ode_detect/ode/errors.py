"""Errors of a solve, which name the block, the time, the step and the evaluations, and say what to try."""

from __future__ import annotations


class SolveError(RuntimeError):
    """A solve that did not reach its end. Base class of the three that follow.

    Attributes:
        block: name of the `ODEBlock`.
        time: time of integration at which it failed.
        step: the step being taken: its number for a fixed step, its size for an adaptive one.
        evaluations: evaluations of the vector field until then.
        cure: what to try.
    """

    cause = "failed"
    cure = ""

    def __init__(self, *, block: str, time: float, step: str, evaluations: int) -> None:
        self.block, self.time, self.step, self.evaluations = block, time, step, evaluations
        where = f"at time {time:.6g}, {step}, after {evaluations} evaluations"
        super().__init__(f"the solve of {block!r} {self.cause} {where}. {self.cure}")

    def __reduce__(self) -> tuple:
        arguments = {"block": self.block, "time": self.time, "step": self.step, "evaluations": self.evaluations}
        return _rebuild, (type(self), arguments)


class NonFiniteStateError(SolveError):
    """The state or the vector field became NaN or infinite."""

    cause = "met a value that is not finite"
    cure = (
        "Check the input for NaN first; then lower the learning rate or clip gradients, "
        "use a field with norm='GN', or take more steps."
    )


class StepUnderflowError(SolveError):
    """The adaptive step became too small to move time."""

    cause = "shrank its step to nothing"
    cure = (
        "The field is stiff or the tolerances are too tight for the precision of the state: raise rtol and atol, "
        "use a smooth activation (softplus, SiLU), add weight decay, or use FixedStep."
    )


class TooManyEvaluationsError(SolveError):
    """The solve needed more evaluations than its limit."""

    cause = "reached max_evaluations"
    cure = "Raise rtol and atol, raise max_evaluations, or use FixedStep, whose cost is known beforehand."


class GradientError(RuntimeError):
    """A backward pass whose gradient would be wrong; the message says why and what to do."""


def _rebuild(kind: type[SolveError], arguments: dict) -> SolveError:
    return kind(**arguments)
