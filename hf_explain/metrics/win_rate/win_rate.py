"""The pairwise win rate as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import win_rate
from hf_explain.metrics.module import ColumnMetric
from hf_explain.metrics.number import Number
from hf_explain.metrics.statistics import CONFIDENCE, RESAMPLES


_DESCRIPTION = """
The win rate is the percentage of images on which one explainer scores better than another one, image by image. Images
where the two are equal count half for each, so that the win rates of a pair add up to 100.
"""

_KWARGS_DESCRIPTION = """
Args:
    scores (`list` of `float`): One number per image: a column of another metric, for the explainer in question.
    other (`list` of `float`): The same column for the explainer it is compared with, of the same images in the same
        order.
    higher_is_better (`bool`, *optional*): Which of two scores wins; what the preset says by default.

Returns:
    `dict`: `win_rate`, `ties` (percentage of images where the two are equal), an `_interval` of each, `num_images` and
    `protocol`.

Examples:
    >>> import evaluate
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("win_rate"), "lower_is_better")
    >>> result = metric.compute(scores=[10.0, 40.0, 0.0, 25.0], other=[30.0, 20.0, 0.0, 50.0])
    >>> result["win_rate"], result["ties"]
    (62.5, 25.0)
"""

_CITATION = """
@inproceedings{chattopadhay2018gradcampp,
  title     = {{Grad-CAM++}: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks},
  author    = {Chattopadhay, Aditya and Sarkar, Anirban and Howlader, Prantik and Balasubramanian, Vineeth N.},
  booktitle = {IEEE Winter Conference on Applications of Computer Vision},
  year      = {2018}
}
"""


class WinRate(ColumnMetric):
    """Pairwise win rate: presets `default` and `higher_is_better` (AUC-D), `lower_is_better` (drops)."""

    metric_name = "win_rate"
    numbers = (Number("win_rate", "win rate", True, "%"), Number("ties", "ties", None, "%"))
    presets = {
        "default": {"higher_is_better": True},
        "higher_is_better": {"higher_is_better": True},
        "lower_is_better": {"higher_is_better": False},
    }

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"scores": datasets.Value("float64"), "other": datasets.Value("float64")}),
            reference_urls=["https://huggingface.co/papers/1710.11063"],
        )

    def measure(self, *, scores=None, other=None, higher_is_better=None):
        """
        Check and collect the scores of two explainers.

        Args:
            scores (sequence of `float` or `torch.Tensor` of shape `(batch_size,)`): One number per image.
            other (sequence of `float` or `torch.Tensor` of shape `(batch_size,)`): The other explainer's.
            higher_is_better (`bool`, *optional*): Replaces what the preset says.

        Returns:
            `dict[str, list[float]]`: `scores` and `other`.

        Raises:
            ValueError: If one is missing, or they are not equally many finite numbers.
        """
        for name, values in (("scores", scores), ("other", other)):
            if values is None:
                raise ValueError(f"`{name}` is missing: win_rate compares the columns `scores` and `other`.")
        overrides = {} if higher_is_better is None else {"higher_is_better": higher_is_better}
        direction = {**self.presets[self.config_name], **overrides}
        result = win_rate(scores, other, **direction)
        self._remember(result.protocol, overrides)
        return {"scores": [float(value) for value in scores], "other": [float(value) for value in other]}

    def _compute(
        self,
        *,
        protocol,
        higher_is_better=None,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        bootstrap_seed=0,
        **columns,
    ):
        if higher_is_better is not None:
            protocol = {**protocol, "higher_is_better": higher_is_better}
        return super()._compute(
            protocol=protocol,
            confidence=confidence,
            resamples=resamples,
            bootstrap_seed=bootstrap_seed,
            **columns,
        )

    def _summarize(self, columns, protocol):
        scores, other = columns["scores"], columns["other"]
        result = win_rate(scores, other, higher_is_better=protocol["higher_is_better"])
        return {"win_rate": 100 * result.win, "ties": 100.0 * (scores == other).double()}, {}, result.protocol
