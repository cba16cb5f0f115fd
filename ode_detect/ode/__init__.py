"""Flows: residual stages as ordinary differential equations that are solved. Needs torch and torchdiffeq only."""

from .block import ODEBlock
from .diffeq import adaptive_methods
from .errors import NonFiniteStateError, SolveError, StepUnderflowError, TooManyEvaluationsError
from .fields import BasicField, BottleneckField, ConcatConvField, FrozenBatchNorm2d
from .gradients import Adjoint, Backprop, Checkpoint
from .pieces import HatFunctions, PiecewiseConstant, in_pieces
from .record import BlockRecord, SolveRecord, record_solves
from .solvers import Adaptive, FixedStep

__all__ = [
    "Adaptive",
    "Adjoint",
    "Backprop",
    "BasicField",
    "BlockRecord",
    "BottleneckField",
    "Checkpoint",
    "ConcatConvField",
    "FixedStep",
    "FrozenBatchNorm2d",
    "HatFunctions",
    "NonFiniteStateError",
    "ODEBlock",
    "PiecewiseConstant",
    "SolveError",
    "SolveRecord",
    "StepUnderflowError",
    "TooManyEvaluationsError",
    "adaptive_methods",
    "in_pieces",
    "record_solves",
]
