"""Visual explanations of Hugging Face image classifiers.

Importing the package registers the heads with `AutoConfig`, `AutoModel` and `AutoModelForSaliency`, and the task with
`transformers.pipeline("saliency")` and `evaluate.evaluator("saliency")`.

Beside the heads, for a notebook or a paper:

- [`overlay`] lays a map over its image; what `pipeline("saliency")` returns shows itself, by its `picture()`.
- [`compare`] measures several explainers of one classifier side by side and writes tables, charts (PNG, and SVG and
  PDF for print) and pictures.
- [`plot_curves`] draws curves such as those that it writes, with `kinds=` in the colours of its charts.

Where things are, from the ground floor up; a file imports only from rooms below its own (tests/test_imports.py holds
it), and tests/ has the same rooms:

- `tensors/`: maps and the geometry of image processors, perturbed images, seeded randomness, checks of arguments
- `io/`: files written whole, paths, downloads, the image decoder, data sets, names of classes, pictures, charts,
  pages, processes
- `classifiers/`: the frozen classifier: features of every layer, the tail from any of them; how each architecture is
  built is in `architectures.py`
- `metrics/`: `functional.py` and its neighbours: tensors in, numbers out; one `evaluate` module per folder
- `training/`: the Accelerate loop, its settings, batches and checkpoints; it knows no head
- `heads/<name>/`: the trained heads; the base class is `modeling_explainer.py`, its loading and
  saving `modeling_bound.py`, the masking loss `modeling_mask_trained.py`
- `methods/`: the training-free methods, one function each
- `registry.py`: the one list of heads and the one of methods, with what is known of each
- `pipeline.py`: images in, maps on the original image out
- `evaluation/`: explainers on a data set: numbers, comparisons, sanity checks, the study of mistakes
- `publish/`: model cards, and what goes to the Hub
- `apps/`: what people start: a module per command, the quickstart, the demo
- `cli.py`: the program `hf-explain`

A new head is one folder under heads/ (its classes and presets, and its entry: paper, citation, names), its name in
registry.py, one tester class, one golden file, one card; a head of another package calls `registry.register_head`.
scripts/ has training, evaluation and export for `accelerate launch`, the papers' runs, the benchmark and the checks.
"""

import sys
from importlib import import_module
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from hf_explain import metrics as metrics


if TYPE_CHECKING:
    from hf_explain.classifiers.frozen_classifier import FrozenClassifier as FrozenClassifier
    from hf_explain.evaluation.comparison import compare as compare
    from hf_explain.evaluation.evaluator import SaliencyEvaluator as SaliencyEvaluator
    from hf_explain.heads.lcam import LCamConfig as LCamConfig
    from hf_explain.heads.lcam import LCamForSaliency as LCamForSaliency
    from hf_explain.heads.ptame import PTameConfig as PTameConfig
    from hf_explain.heads.ptame import PTameForSaliency as PTameForSaliency
    from hf_explain.heads.scan import ScanConfig as ScanConfig
    from hf_explain.heads.scan import ScanForSaliency as ScanForSaliency
    from hf_explain.heads.shapley import ShapleyConfig as ShapleyConfig
    from hf_explain.heads.shapley import ShapleyForSaliency as ShapleyForSaliency
    from hf_explain.heads.ttame import TTameConfig as TTameConfig
    from hf_explain.heads.ttame import TTameForSaliency as TTameForSaliency
    from hf_explain.io.charts import plot_curves as plot_curves
    from hf_explain.io.pictures import overlay as overlay
    from hf_explain.pipeline import SaliencyPipeline as SaliencyPipeline
    from hf_explain.registry import HEADS as HEADS
    from hf_explain.registry import METHODS as METHODS
    from hf_explain.registry import AutoModelForSaliency as AutoModelForSaliency
    from hf_explain.tensors.outputs import SaliencyOutput as SaliencyOutput

__version__ = "0.1.0"

# The public names and the modules that define them, imported when one is asked for
_HOMES = {
    "HEADS": "registry",
    "METHODS": "registry",
    "AutoModelForSaliency": "registry",
    "FrozenClassifier": "classifiers.frozen_classifier",
    "LCamConfig": "heads.lcam",
    "LCamForSaliency": "heads.lcam",
    "PTameConfig": "heads.ptame",
    "PTameForSaliency": "heads.ptame",
    "SaliencyEvaluator": "evaluation.evaluator",
    "SaliencyOutput": "tensors.outputs",
    "SaliencyPipeline": "pipeline",
    "ScanConfig": "heads.scan",
    "ScanForSaliency": "heads.scan",
    "ShapleyConfig": "heads.shapley",
    "ShapleyForSaliency": "heads.shapley",
    "TTameConfig": "heads.ttame",
    "TTameForSaliency": "heads.ttame",
    "compare": "evaluation.comparison",
    "overlay": "io.pictures",
    "plot_curves": "io.charts",
}

__all__ = [*_HOMES, "metrics"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make the heads and the task known to Transformers and to `evaluate`. Done on import; a second call is free."""
    import hf_explain.pipeline  # noqa: F401  which registers the heads on its way
    from hf_explain.evaluation import task

    task.register()


def _is_the_program() -> bool:
    """Whether this process is `hf-explain` itself, which answers `--help` without Transformers and registers later."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # Python is still looking for the module it was told to run
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m") == f"{__name__}.cli"
    return PurePath(program).name.removesuffix(".exe") == "hf-explain"


if not _is_the_program():
    register()
