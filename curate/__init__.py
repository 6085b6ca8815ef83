"""curate: choose what super-resolution models train on, and keep every score and decision as a table.

The verbs of the command line are functions here by the same names. They are imported on first use, so that
`import curate` and every question that needs no pixels stay free of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curate.checkpoint import Checkpoint
    from curate.comparison import diff
    from curate.config import DistillConfig, DrcConfig, NasConfig, TrainConfig
    from curate.distillation import distill
    from curate.drc import compress, slim
    from curate.duplication import duplicates
    from curate.errors import CurateError, DataError, UsageError
    from curate.evaluation import evaluate
    from curate.exporting import export
    from curate.ingestion import ingest
    from curate.inspection import info
    from curate.leakage import forget, leaks
    from curate.loader import Batch, batches
    from curate.manifest import Manifest
    from curate.nas import search
    from curate.packing import pack
    from curate.pipeline import run
    from curate.repairing import repair
    from curate.reporting import report
    from curate.scoring import score
    from curate.selection import select
    from curate.store import Store
    from curate.training import train
    from curate.verification import verify

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Checkpoint",
    "CurateError",
    "DataError",
    "DistillConfig",
    "DrcConfig",
    "Manifest",
    "NasConfig",
    "Store",
    "TrainConfig",
    "UsageError",
    "batches",
    "compress",
    "diff",
    "distill",
    "duplicates",
    "evaluate",
    "export",
    "forget",
    "info",
    "ingest",
    "leaks",
    "pack",
    "repair",
    "report",
    "run",
    "score",
    "search",
    "select",
    "slim",
    "train",
    "verify",
]

_HOME = {
    "Batch": "loader",
    "Checkpoint": "checkpoint",
    "CurateError": "errors",
    "DataError": "errors",
    "DistillConfig": "config",
    "DrcConfig": "config",
    "Manifest": "manifest",
    "NasConfig": "config",
    "Store": "store",
    "TrainConfig": "config",
    "UsageError": "errors",
    "batches": "loader",
    "compress": "drc",
    "diff": "comparison",
    "distill": "distillation",
    "duplicates": "duplication",
    "evaluate": "evaluation",
    "export": "exporting",
    "info": "inspection",
    "ingest": "ingestion",
    "forget": "leakage",
    "leaks": "leakage",
    "pack": "packing",
    "repair": "repairing",
    "report": "reporting",
    "run": "pipeline",
    "score": "scoring",
    "search": "nas",
    "select": "selection",
    "slim": "drc",
    "train": "training",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'curate' has no attribute '{name}'")
    return getattr(import_module(f"curate.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
