"""Visual explanations of Hugging Face image classifiers.

Importing the package registers the heads with `AutoConfig`, `AutoModel` and `AutoModelForSaliency`, and the task with
`transformers.pipeline("saliency")` and `evaluate.evaluator("saliency")`.
"""

from evaluate.evaluator import SUPPORTED_EVALUATOR_TASKS

from hf_explain import metrics
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.evaluator import SaliencyEvaluator
from hf_explain.heads.lcam import LCamConfig, LCamForSaliency
from hf_explain.heads.scan import ScanConfig, ScanForSaliency
from hf_explain.heads.ttame import TTameConfig, TTameForSaliency
from hf_explain.pipeline import SaliencyPipeline
from hf_explain.registry import EXPLAINERS, METHODS, AutoModelForSaliency
from hf_explain.tensors.outputs import SaliencyOutput


__version__ = "0.1.0"

SUPPORTED_EVALUATOR_TASKS.setdefault("saliency", {"implementation": SaliencyEvaluator, "default_metric_name": "auc_d"})

__all__ = [
    "EXPLAINERS",
    "METHODS",
    "AutoModelForSaliency",
    "FrozenClassifier",
    "LCamConfig",
    "LCamForSaliency",
    "SaliencyEvaluator",
    "SaliencyOutput",
    "SaliencyPipeline",
    "ScanConfig",
    "ScanForSaliency",
    "TTameConfig",
    "TTameForSaliency",
    "metrics",
]
