"""Published settings of the metrics, as data."""

from __future__ import annotations

from typing import Any

from hf_explain.tensors.scalars import check_count, check_number


def step_fractions(steps: int, stop: float = 1.0) -> tuple[float, ...]:
    """
    `steps + 1` fractions from 0 to `stop` at equal distances.

    Formula:

        f_k = stop k / steps,  k = 0 ... steps

    Raises:
        ValueError: If `steps` is below 1 or `stop` is outside (0, 1].

    Example:

    ```python
    >>> from hf_explain.metrics.functional import step_fractions

    >>> step_fractions(4)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    >>> step_fractions(3, stop=0.9)
    (0.0, 0.3, 0.6, 0.9)
    ```
    """
    check_count(steps, "steps")
    check_number(stop, "stop", "(0, 1]")
    return tuple(round(stop * step / steps, 12) for step in range(steps + 1))


# Published settings as data: `auc_d(..., **PRESETS["auc_d"]["chefer"])`.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "auc_d": {
        # Ours: the model's own top-1, 0...100 % in 10 % steps, area over [0, 1]
        "default": {"fractions": step_fractions(10), "score": "agreement", "fill": "black"},
        # Chefer et al. 2021: accuracy against labels, 0...90 %, counts rounded down, area not divided by its 0.9
        "chefer": {
            "fractions": step_fractions(9, 0.9),
            "score": "accuracy",
            "fill": "black",
            "rounding": "floor",
            "normalize": False,
        },
        # SCAN 2026: the same after maps are brought to the grid of a ViT-B/16; for CNNs pass grid_size=(7, 7)
        "scan": {
            "fractions": step_fractions(9, 0.9),
            "score": "accuracy",
            "fill": "black",
            "rounding": "floor",
            "normalize": False,
            "grid_size": (14, 14),
        },
        # RISE 2018: softmax of the top-1, 28 steps (1,792 pixels at 224²), the mean colour
        "rise": {"fractions": step_fractions(28), "score": "probability", "fill": "mean"},
    },
    # The default of AUC-D with every fill
    "auc_d_fills": {"default": {"fractions": step_fractions(10), "score": "agreement"}},
    "average_drop": {
        "default": {"percents": (100, 50, 15), "rule": "ceil", "mask_space": "pixel"},
        "lcam": {"percents": (100, 50, 15), "rule": "ceil", "mask_space": "pixel"},
        "ttame": {"percents": (100, 50, 15), "rule": "quantile", "mask_space": "pixel"},
    },
    "insertion_deletion": {
        "default": {"steps": 28, "deletion_fill": "mean", "insertion_fill": "blur"},
        "rise": {"steps": 28, "deletion_fill": "mean", "insertion_fill": "blur"},
    },
    "road": {
        "default": {"percents": (10, 20, 30, 40, 50, 60, 70, 80, 90), "score": "probability", "noise": 0.01},
        "road": {"percents": (10, 20, 30, 40, 50, 60, 70, 80, 90), "score": "accuracy", "noise": 0.01},
    },
}
