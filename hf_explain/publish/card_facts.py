"""What a model card may say: facts from a head's configuration, its training record and an evaluation of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from hf_explain.classifiers.fingerprint import FINGERPRINT_DTYPES, fingerprint_tensors
from hf_explain.evaluation.results import Comparison, ExplainerResult, read_evaluation
from hf_explain.io.files import read_json_file
from hf_explain.metrics import split_name
from hf_explain.registry import CONTROLS, DEFAULT_METHOD, HEADS


EVALUATION = "evaluation.json"

# What a card shows beside a head: maps that know nothing of the image, and the default method
REFERENCES = (*CONTROLS, DEFAULT_METHOD)


@dataclass(frozen=True)
class Measurement:
    """
    One number of an evaluation with how it was measured.

    Args:
        metric_id (`str`): The metric it is of, by the name that loads it.
        metric (`str`): Its key in the metric's result, with the preset behind it where the metric's name has one.
        title (`str`): What it is called.
        value (`float`): The number.
        better (`str`): `"higher"` or `"lower"`.
        protocol (`dict`): How it was measured.
        interval (`list[float]`, *optional*): Low and high end of its bootstrap interval.
    """

    metric_id: str
    metric: str
    title: str
    value: float
    better: str
    protocol: dict[str, Any]
    interval: list[float] | None = None


def read_json(source: str | os.PathLike | Mapping, argument: str) -> dict[str, Any]:
    """
    A JSON object, read from a file or given as a dictionary.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it holds no JSON object.
    """
    if isinstance(source, Mapping):
        return dict(source)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}` {str(source)!r} does not exist; give a JSON file or a dictionary.")
    try:
        return read_json_file(path)
    except ValueError as error:
        raise ValueError(f"`{argument}` {error}") from error


def read_config(model_or_dir: str | os.PathLike[str] | PreTrainedModel) -> dict[str, Any]:
    """
    The configuration of a head, from the model or from its directory.

    Raises:
        FileNotFoundError: If the directory has no config.json.
        ValueError: If it is not a head's.
    """
    own = getattr(model_or_dir, "config", None)
    if isinstance(own, PreTrainedConfig):
        config = own.to_dict()
    elif isinstance(model_or_dir, (str, os.PathLike)):
        path = Path(model_or_dir) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{os.fspath(model_or_dir)!r} has no config.json; give a directory written by a head's "
                "save_pretrained."
            )
        config = read_json(path, "config.json") or {}
    else:
        raise TypeError(f"`model_or_dir` must be a head or its directory, got {type(model_or_dir).__name__}.")
    if config.get("model_type") not in HEADS:
        raise ValueError(
            f"`model_or_dir` has model_type {config.get('model_type')!r}; heads have one of {', '.join(HEADS)}."
        )
    return config


# ------------------------------------------------------------------------------------------------------ an evaluation


def read_evaluation_file(source: str | os.PathLike | Mapping | Comparison, argument: str) -> Comparison:
    """
    An evaluation, read from a file or given as it is.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it holds no evaluation.
    """
    if isinstance(source, Comparison):
        return source
    value = read_json(source, argument)
    try:
        return read_evaluation(value)
    except ValueError as error:
        named = f" {Path(source).name!r}" if isinstance(source, (str, os.PathLike)) else ""
        raise ValueError(f"`{argument}`{named} is not an evaluation: {error}") from error


def read_measurements(comparison: Comparison, result: ExplainerResult) -> list[Measurement]:
    """
    The numbers of one explainer that say something about its maps.

    Args:
        comparison ([`Comparison`]): What it is part of; it knows which way a number is better.
        result ([`ExplainerResult`]): The explainer's.

    Returns:
        `list[Measurement]`: A main number that is the first of a series (`average_drop`, `average_drop_100`) comes
        once.
    """
    found = []
    for metric, key, number in comparison.distinct_columns():
        value = result.value(metric, key)
        if value is not None and math.isfinite(value) and number.higher_is_better is not None:
            better = "higher" if number.higher_is_better else "lower"
            protocol, interval = result.metrics[metric].protocol, result.interval(metric, key)
            preset = split_name(metric)[1]
            own = key if preset is None else f"{key}@{preset}"
            found.append(Measurement(metric, own, number.title_of(key), float(value), better, protocol, interval))
    return found


@dataclass(frozen=True)
class OwnResult:
    """The part of a comparison that is one head's: its name there, its numbers, and the references' beside it."""

    name: str
    result: ExplainerResult
    references: dict[str, ExplainerResult]


def find_own_result(
    comparison: Comparison, name: str | None, model_type: str, weights: Mapping[str, torch.Tensor] | None
) -> OwnResult:
    """
    The part of an evaluation that is about this head, found by the fingerprint of its weights.

    Args:
        comparison ([`Comparison`]): The evaluation.
        name (`str`, *optional*): The head's name in an evaluation that compares several.
        model_type (`str`): The head's; it decides where an evaluation has no fingerprints.
        weights (`dict[str, torch.Tensor]`, *optional*): The head's.

    Raises:
        ValueError: If it is not clear which part is the head's, or the evaluation measured other weights.
    """
    measured = comparison.measured
    listed = ", ".join(measured) or "none"
    recorded = {key: one.explainer.get("head_fingerprint") for key, one in measured.items()}
    references = {key: one for key, one in measured.items() if key in REFERENCES and not recorded[key]}
    prints = _fingerprints(weights) if any(recorded.values()) else set()
    if name is None:
        # its own maps, not another form of them
        own = [key for key, one in measured.items() if recorded[key] in prints and "form" not in one.explainer]
        if not own and prints:
            raise ValueError(
                f"`evaluation` measured no head with these weights; it has {listed}: evaluate this one, or "
                "give the evaluation it is in."
            )
        own = own or [key for key in measured if key.lower().replace("-", "").startswith(model_type)]
        chosen = own if len(own) == 1 else [key for key in measured if key not in references]
        if len(chosen) != 1:
            raise ValueError(
                f"`evaluation` compares several explainers ({listed}); say with `explainer` which one is this head's."
            )
        name = chosen[0]
    if name not in measured:
        raise ValueError(f"`explainer` {name!r} is not in the evaluation; it has {listed}.")
    if recorded[name] and prints and recorded[name] not in prints:
        raise ValueError(
            f"`explainer` {name!r} of the evaluation is a head with other weights (fingerprint {recorded[name]}), so "
            "its numbers are not this head's: evaluate this one."
        )
    return OwnResult(name, measured[name], {key: one for key, one in references.items() if key != name})


def head_weights(model_or_dir) -> dict[str, torch.Tensor] | None:
    """
    The tensors of a head, or `None` where its directory has no weights.

    Raises:
        ValueError: If the weights cannot be read.
    """
    if isinstance(model_or_dir, torch.nn.Module):
        return model_or_dir.state_dict()
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(Path(model_or_dir).glob("model*.safetensors")):
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path.name!r} is not a valid safetensors file ({error}); save the head again."
            ) from error
    return weights or None


def _fingerprints(weights: Mapping[str, torch.Tensor] | None) -> set[str]:
    """What an evaluation may have recorded of these weights, in whatever dtype they were measured."""
    dtypes = (None, *(getattr(torch, name) for name in FINGERPRINT_DTYPES))
    return set() if weights is None else {fingerprint_tensors(weights, dtype) for dtype in dtypes}
