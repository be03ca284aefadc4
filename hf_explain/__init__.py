"""Visual explanations of Hugging Face image classifiers.

Importing the package registers the heads with `AutoConfig`, `AutoModel` and `AutoModelForSaliency`, and the task with
`transformers.pipeline("saliency")` and `evaluate.evaluator("saliency")`.
"""

from evaluate.evaluator import SUPPORTED_EVALUATOR_TASKS
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_explain import metrics
from hf_explain.backbones import FrozenClassifier
from hf_explain.evaluation import SaliencyEvaluator
from hf_explain.heads.lcam import LCamConfig, LCamForSaliency
from hf_explain.heads.scan import ScanConfig, ScanForSaliency
from hf_explain.heads.ttame import TTameConfig, TTameForSaliency
from hf_explain.mapping import EXPLAINERS, METHODS, AutoModelForSaliency
from hf_explain.outputs import SaliencyOutput
from hf_explain.pipeline import SaliencyPipeline


__version__ = "0.1.0"

for _model_type, (_config_class, _model_class) in EXPLAINERS.items():
    AutoConfig.register(_model_type, _config_class, exist_ok=True)
    AutoModel.register(_config_class, _model_class, exist_ok=True)
    AutoModelForSaliency.register(_config_class, _model_class, exist_ok=True)

if "saliency" not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline("saliency", SaliencyPipeline, pt_model=(AutoModelForSaliency,), type="image")

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
