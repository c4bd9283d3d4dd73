"""The menu: one function per published method, that only composes parts and carries the paper's defaults.

Units: mu in units of x; lr multiplies the direction. Learning rates are the papers' for full fine-tuning of large
language models unless stated; small problems take larger ones.
"""

from zograd.methods.gradient import *  # noqa: F403  # the first page of the menu

# isort: split
from zograd.methods.blockwise import *  # noqa: F403
from zograd.methods.directions import *  # noqa: F403
from zograd.methods.estimators import *  # noqa: F403
from zograd.methods.evolution import *  # noqa: F403
from zograd.methods.geometry import *  # noqa: F403
from zograd.methods.matrices import *  # noqa: F403
from zograd.methods.menu import *  # noqa: F403
from zograd.methods.proximal import *  # noqa: F403
from zograd.methods.rules import *  # noqa: F403
from zograd.methods.search import *  # noqa: F403
