"""rdk: networks that apply the same layers again and again, cheap to train and to run. The public face; start at modules."""

from rdk import functional
from rdk._version import VERSION
from rdk.checkpoint import BudgetError
from rdk.convert import from_module, to_modules
from rdk.dispatch import BackendError, backends, set_cpu_precision, use_backend
from rdk.modules import RecurrentConv, RecurrentLinear, RecurrentResidual
from rdk.preview import explain, plan

__version__ = VERSION

__all__ = [
    "BackendError",
    "BudgetError",
    "RecurrentConv",
    "RecurrentLinear",
    "RecurrentResidual",
    "__version__",
    "backends",
    "explain",
    "from_module",
    "functional",
    "plan",
    "set_cpu_precision",
    "to_modules",
    "use_backend",
]
