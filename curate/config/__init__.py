"""Options of the long verbs as frozen dataclasses: one set of names for Python, the command line and TOML.

Each field's help is part of its type (`Annotated`), so that the command line and this page cannot drift apart.
"""

from curate.config.distillation import DistillConfig
from curate.config.drc import DrcConfig
from curate.config.ldm import LdmConfig
from curate.config.nas import NasConfig
from curate.config.options import Config, Option, options_of, settle
from curate.config.training import TrainConfig, plan

__all__ = [
    "Config",
    "DistillConfig",
    "DrcConfig",
    "LdmConfig",
    "NasConfig",
    "Option",
    "TrainConfig",
    "options_of",
    "plan",
    "settle",
]
