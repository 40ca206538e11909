"""What pqc does for a user: one function per verb of the command line."""

from pqc.workflows.compression import compress, finalize
from pqc.workflows.environment import doctor
from pqc.workflows.exports import export
from pqc.workflows.firmware import hls
from pqc.workflows.fitting import fit
from pqc.workflows.importing import import_model
from pqc.workflows.inspection import diff, opt, show
from pqc.workflows.job import RunOptions
from pqc.workflows.quantization import check_quant
from pqc.workflows.running import load_plan, run, train
from pqc.workflows.searching import SearchOptions, plan_search, search
from pqc.workflows.sources import Source, catalogue, resolve
from pqc.workflows.tracking import track, track_settings, tracked

__all__ = [
    "RunOptions",
    "SearchOptions",
    "Source",
    "catalogue",
    "check_quant",
    "compress",
    "diff",
    "doctor",
    "export",
    "finalize",
    "fit",
    "hls",
    "import_model",
    "load_plan",
    "opt",
    "plan_search",
    "resolve",
    "run",
    "search",
    "show",
    "track",
    "track_settings",
    "tracked",
    "train",
]
