"""Neural ODEs as layers: vector fields, solvers and gradients, and what is done with trained ones.

Needs torch and torchdiffeq only.
"""

from ode_detect.ode.certification.flow import certify_flow
from ode_detect.ode.certification.gradients import certify_gradients
from ode_detect.ode.certification.model import certify_model
from ode_detect.ode.conversion.certificate import Certificate
from ode_detect.ode.conversion.convert import to_ode, to_resnet
from ode_detect.ode.conversion.residual import ConversionError, ResidualBranch
from ode_detect.ode.inference.export import Exported, ExportError, export_model
from ode_detect.ode.inference.optimize import Optimization, OptimizationError, optimize_for_inference
from ode_detect.ode.refitting.distillation import distil
from ode_detect.ode.refitting.refit import FlowProjection, ProjectionReport, project_pieces, split_pieces

from .adaptive import Adaptive, adaptive_methods
from .block import ODEBlock
from .dial import solver_override
from .errors import GradientError, NonFiniteStateError, SolveError, StepUnderflowError, TooManyEvaluationsError
from .fields import BasicField, BottleneckField, ConcatConvField, FrozenBatchNorm2d, PreactField
from .gradients import Adjoint, Auto, Backprop, Checkpoint, Reversible
from .pieces import HatFunctions, PiecewiseConstant, in_pieces
from .record import SolveRecord, record_solves
from .solvers import FixedStep
from .statistics import estimate_statistics
from .tally import BlockRecord

__all__ = [
    "Adaptive",
    "Adjoint",
    "Auto",
    "Backprop",
    "BasicField",
    "BlockRecord",
    "BottleneckField",
    "Certificate",
    "Checkpoint",
    "ConcatConvField",
    "ConversionError",
    "ExportError",
    "Exported",
    "FixedStep",
    "FlowProjection",
    "FrozenBatchNorm2d",
    "GradientError",
    "HatFunctions",
    "NonFiniteStateError",
    "ODEBlock",
    "Optimization",
    "OptimizationError",
    "PiecewiseConstant",
    "PreactField",
    "ProjectionReport",
    "ResidualBranch",
    "Reversible",
    "SolveError",
    "SolveRecord",
    "StepUnderflowError",
    "TooManyEvaluationsError",
    "adaptive_methods",
    "certify_flow",
    "certify_gradients",
    "certify_model",
    "distil",
    "estimate_statistics",
    "export_model",
    "in_pieces",
    "optimize_for_inference",
    "project_pieces",
    "record_solves",
    "solver_override",
    "split_pieces",
    "to_ode",
    "to_resnet",
]
