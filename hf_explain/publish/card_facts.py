"""What a model card may say: facts from a head's configuration, its training record and an evaluation of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from hf_explain.classifiers.fingerprint import FINGERPRINT_DTYPES, fingerprint_tensors
from hf_explain.registry import HEADS


TRAINING_RECORD = "training_record.json"
EVALUATION = "evaluation.json"

# Where a fact may stand in a training record: the first that is there wins. No other line of the package knows
# these keys.
TRAINING_KEYS: dict[str, tuple[str, ...]] = {
    "classifier": ("classifier",),
    "dataset": ("dataset", "dataset.name"),
    "dataset_split": ("train_split", "dataset_split"),
    "dataset_revision": ("dataset_revision",),
    "license": ("license",),
    "images": ("num_examples",),
    "epochs": ("epochs",),
    "steps": ("steps",),
    "images per step": ("global_batch_size",),
    "optimizer": ("arguments.optimizer",),
    "schedule": ("arguments.lr_scheduler",),
    "learning rate": ("arguments.learning_rate",),
    "weight decay": ("arguments.weight_decay",),
    "augmentation": ("arguments.augmentation",),
    "explained class": ("arguments.target",),
    "mixed precision": ("machine.mixed_precision", "arguments.mixed_precision"),
    "processes": ("machine.num_processes",),
    "device": ("machine.device",),
    "seed": ("seed", "arguments.seed"),
    "trained parameters": ("trainable_parameters",),
    "final loss": ("final_loss",),
    "final validation loss": ("final_eval_loss",),
    "seconds": ("seconds",),
    "versions": ("versions",),
}
# Likewise for the JSON of an evaluation.
EVALUATION_KEYS: dict[str, tuple[str, ...]] = {
    "results": ("explainers", "results", "metrics"),
    "dataset": ("dataset_name", "dataset.name", "dataset.id", "dataset", "protocol.dataset", "data.dataset"),
    "dataset_split": ("dataset_split", "dataset.split", "split", "protocol.split"),
    "dataset_revision": ("dataset_revision", "dataset.revision", "protocol.dataset_revision"),
    "num_images": ("num_images", "num_samples", "dataset.num_images", "protocol.num_images"),
    "classifier": ("classifier.id", "classifier"),
    "head": ("explainer.head_fingerprint",),
    "sanity": ("sanity", "sanity_checks"),
}
# Numbers of an evaluation that are metrics, by the start of their key, and which way is better; other numbers
# (times, counts, seeds) are not.
METRIC_PREFIXES: dict[str, str] = {
    "auc_d": "higher",
    "negative": "higher",
    "positive": "lower",
    "average_drop": "lower",
    "increase_in_confidence": "higher",
    "mask_area": "lower",
    "ad_": "lower",
    "ic_": "higher",
    "insertion": "higher",
    "deletion": "lower",
    "road": "higher",
    "lerf": "higher",
    "morf": "lower",
    "pointing": "higher",
    "hit_rate": "higher",
    "energy": "higher",
    "win_rate": "higher",
}
# What a head is shown beside: maps that know nothing of the image, and the method everybody has.
REFERENCES = ("random", "center", "centre", "center_gaussian", "centre_gaussian", "gaussian", "gradcam")


@dataclass(frozen=True)
class Measurement:
    """One number of an evaluation with how it was measured."""

    metric: str
    value: float
    better: str
    protocol: dict[str, Any]
    interval: tuple[float, float] | None = None


def look_up(record: Mapping[str, Any] | None, keys: tuple[str, ...]) -> Any:
    """The first of several dotted keys that a nested dictionary has, with a value that is not `None`."""
    for key in keys:
        value: Any = record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def read_json(source: str | os.PathLike | Mapping | None, argument: str) -> dict[str, Any] | None:
    """
    A JSON object from a file or as it is.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it holds no JSON object.
    """
    if source is None or isinstance(source, Mapping):
        return None if source is None else dict(source)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}` {str(source)!r} does not exist; give a JSON file or a dictionary.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}` {path.name!r} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`{argument}` {path.name!r} must hold a JSON object, got {type(content).__name__}.")
    return content


def read_config(model_or_dir) -> dict[str, Any]:
    """
    The configuration of a head, from the model or from its directory.

    Raises:
        FileNotFoundError: If the directory has no config.json.
        ValueError: If it is not a head's.
    """
    config = getattr(model_or_dir, "config", None)
    if isinstance(config, PreTrainedConfig):
        config = config.to_dict()
    elif isinstance(model_or_dir, (str, os.PathLike)):
        path = Path(model_or_dir) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{os.fspath(model_or_dir)!r} has no config.json; give a directory written by a head's "
                "save_pretrained."
            )
        config = read_json(path, "config.json")
    else:
        raise TypeError(f"`model_or_dir` must be a head or its directory, got {type(model_or_dir).__name__}.")
    if config.get("model_type") not in HEADS:
        raise ValueError(
            f"`model_or_dir` has model_type {config.get('model_type')!r}; heads have one of {', '.join(HEADS)}."
        )
    return config


# ------------------------------------------------------------------------------------------------------ an evaluation


def read_measurements(results: Any, protocol: Mapping | None = None) -> list[Measurement]:
    """
    The metrics of a nested result, each with the protocol nearest above it.

    A main number that another one repeats under its full name (`average_drop` and `average_drop_100`) comes once.

    Args:
        results (`dict`): Numbers by metric name, possibly grouped by metric, `protocol` dictionaries among them.
        protocol (`dict`, *optional*): What holds for all of them.

    Returns:
        `list[Measurement]`.
    """
    found = list(_measurements(results, protocol))
    named = {(one.metric, one.value) for one in found}
    return [one for one in found if (f"{one.metric}_100", one.value) not in named]


def _measurements(results: Any, protocol: Mapping | None) -> Iterator[Measurement]:
    if not isinstance(results, Mapping):
        return
    if isinstance(results.get("protocol"), Mapping):
        protocol = results["protocol"]
    for key, value in results.items():
        if isinstance(value, Mapping) and key != "protocol" and key not in EVALUATION_KEYS["sanity"]:
            yield from _measurements(value, protocol)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            if better := _better(key):
                interval = results.get(f"{key}_interval") or results.get(f"{key}_ci")
                pair = tuple(interval) if isinstance(interval, (list, tuple)) and len(interval) == 2 else None
                yield Measurement(key, float(value), better, dict(protocol or {}), pair)


def _better(key: str) -> str | None:
    return next((better for prefix, better in METRIC_PREFIXES.items() if key.lower().startswith(prefix)), None)


@dataclass(frozen=True)
class OwnResult:
    """The part of a comparison that is one head's: its name there, its numbers, and the references' beside it."""

    name: str | None
    result: Mapping[str, Any]
    references: dict[str, Mapping[str, Any]]


def find_own_result(
    evaluation: Mapping[str, Any], name: str | None, model_type: str, weights: Mapping[str, torch.Tensor] | None
) -> OwnResult:
    """
    The part of an evaluation that is about this head, found by the fingerprint of its weights.

    Args:
        evaluation (`dict`): What an evaluation wrote.
        name (`str`, *optional*): The head's name in an evaluation that compares several.
        model_type (`str`): The head's, which tells where an evaluation has no fingerprints.
        weights (`dict[str, torch.Tensor]`, *optional*): The head's.

    Raises:
        ValueError: If the head cannot be told, or the evaluation measured other weights.
    """
    results = look_up(evaluation, EVALUATION_KEYS["results"])
    results = results if isinstance(results, Mapping) else evaluation
    groups = {key: value for key, value in results.items() if isinstance(value, Mapping) and not _better(key)}
    groups = {key: value for key, value in groups.items() if read_measurements(value)}
    if not groups:
        return OwnResult(None, results, {})
    recorded = {key: look_up(value, EVALUATION_KEYS["head"]) for key, value in groups.items()}
    references = {key: value for key, value in groups.items() if key.lower() in REFERENCES and not recorded[key]}
    prints = _fingerprints(weights) if any(recorded.values()) else set()
    if name is None:
        own = [key for key in groups if recorded[key] in prints]
        if not own and prints:
            raise ValueError(
                f"`evaluation` measured no head with these weights; it has {', '.join(groups)}: evaluate this one, or "
                "give the evaluation it is in."
            )
        own = own or [key for key in groups if key.lower().replace("-", "").startswith(model_type)]
        chosen = own if len(own) == 1 else [key for key in groups if key not in references]
        if len(chosen) != 1:
            raise ValueError(
                f"`evaluation` compares several explainers ({', '.join(groups)}); say with `explainer` which is this "
                "head's."
            )
        name = chosen[0]
    if name not in groups:
        raise ValueError(f"`explainer` {name!r} is not in the evaluation; it has {', '.join(groups)}.")
    if recorded[name] and prints and recorded[name] not in prints:
        raise ValueError(
            f"`explainer` {name!r} of the evaluation is a head with other weights (fingerprint {recorded[name]}), so "
            "its numbers are not this head's: evaluate this one."
        )
    return OwnResult(name, groups[name], {key: value for key, value in references.items() if key != name})


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
