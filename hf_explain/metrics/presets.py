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


# Ours: the model's own top-1, 0...100 % in 10 % steps, area over [0, 1]
_AUC_D: dict[str, Any] = {"fractions": step_fractions(10), "score": "agreement", "fill": "black"}
# Chefer et al. 2021: accuracy against labels, 0...90 %, counts rounded down, area not divided by its 0.9
_CHEFER: dict[str, Any] = {
    "fractions": step_fractions(9, 0.9),
    "score": "accuracy",
    "fill": "black",
    "rounding": "floor",
    "normalize": False,
}
_LCAM: dict[str, Any] = {"percents": (100, 50, 15), "rule": "ceil", "mask_space": "pixel"}
_RISE: dict[str, Any] = {"steps": 28, "deletion_fill": "mean", "insertion_fill": "blur"}
_ROAD: dict[str, Any] = {"percents": (10, 20, 30, 40, 50, 60, 70, 80, 90), "score": "probability", "noise": 0.01}

# Boehle et al. 2021: 2 x 2 photographs, and as large a picture as one of them
_GRID_GAME: dict[str, Any] = {"cells": 2, "confidence": 0.95, "enlarged": False, "scale": "map"}
# Hesse et al. 2024: the logit, 4 x 4 patches, zeros in `pixel_values`
_IDSDS: dict[str, Any] = {"patches": 4, "score": "logit", "fill": "mean"}
_FILLS: dict[str, Any] = {
    "fractions": _AUC_D["fractions"],
    "score": _AUC_D["score"],
    "fills": ("black", "mean", "blur"),
}
_EVERY_FILL: dict[str, Any] = {**_FILLS, "fills": (*_FILLS["fills"], "white", "noise", "color", "photo")}
# Ours: the default, with the patches of a vision transformer removed as wholes
_PATCH: dict[str, Any] = {"grid": "patch"}

# Published settings as data: `auc_d(..., **PRESETS["auc_d"]["chefer"])`. What a function does where nothing is said is
# its "default".
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "auc_d": {
        "default": _AUC_D,
        "chefer": _CHEFER,
        # SCAN 2026: the same after maps are brought to the grid of a ViT-B/16; for CNNs pass grid_size=(7, 7)
        "scan": {**_CHEFER, "grid_size": (14, 14)},
        # RISE 2018: softmax of the top-1, 28 steps (1,792 pixels at 224²), the mean colour
        "rise": {"fractions": step_fractions(28), "score": "probability", "fill": "mean"},
        "patch": {**_AUC_D, **_PATCH},
    },
    "auc_d_fills": {
        "default": _FILLS,
        "patch": {**_FILLS, **_PATCH},
        # with those that a head was not trained with
        "all": _EVERY_FILL,
        "all-patch": {**_EVERY_FILL, **_PATCH},
    },
    "average_drop": {
        "default": _LCAM,
        "lcam": _LCAM,
        "ttame": {**_LCAM, "rule": "quantile"},
        "patch": {**_LCAM, **_PATCH},
        # ours: as the default, of the order of a map's values alone
        "rank": {**_LCAM, "scale": "rank"},
    },
    "grid_pointing": {
        "default": _GRID_GAME,
        "3x3": {**_GRID_GAME, "cells": 3},
        # as Rao et al. 2022, for classifiers that take any size
        "enlarged": {**_GRID_GAME, "enlarged": True},
        # ours: as the default, of the order of a map's values alone
        "top": {**_GRID_GAME, "scale": "top"},
    },
    "insertion_deletion": {"default": _RISE, "rise": _RISE, "patch": {**_RISE, **_PATCH}},
    "pointing": {"default": {"margin": 0}, "excitation_backprop": {"margin": 15}},
    "road": {"default": _ROAD, "road": {**_ROAD, "score": "accuracy"}, "patch": {**_ROAD, **_PATCH}},
    "single_deletion": {"default": _IDSDS, "idsds": _IDSDS},
}
