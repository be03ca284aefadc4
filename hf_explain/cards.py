"""Model cards of trained heads, filled from what was recorded. What is not known is left out, and said so."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from hf_explain.citations import PAPERS
from hf_explain.modeling_explainer import ExplainerConfig


TRAINING_RECORD = "training_record.json"
EVALUATION = "evaluation.json"

# Where a fact may stand in a training record: the first that is there wins. No other line of the package knows
# these keys.
TRAINING_KEYS: dict[str, tuple[str, ...]] = {
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


_CONTROLS = ("random", "center", "centre", "center_gaussian", "centre_gaussian", "gaussian")


@dataclass(frozen=True)
class Measurement:
    """One number of an evaluation with how it was measured."""

    metric: str
    value: float
    better: str
    protocol: dict[str, Any]
    interval: tuple[float, float] | None = None


# ------------------------------------------------------------------------------------------------------------- reading


def is_local_path(text: str) -> bool:
    """Whether a string is a path of some machine rather than a Hub id, a URL or a word."""
    return bool(re.match(r"(/|~|\.{1,2}[/\\]|[A-Za-z]:[\\/]|\\\\|file:)", text)) or "\\" in text


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
    if config.get("model_type") not in PAPERS:
        raise ValueError(
            f"`model_or_dir` has model_type {config.get('model_type')!r}; heads have one of {', '.join(PAPERS)}."
        )
    return config


def read_measurements(results: Any, protocol: Mapping | None = None, group: str = "") -> Iterator[Measurement]:
    """
    The metrics of a nested result, each with the protocol nearest above it.

    Args:
        results (`dict`): Numbers by metric name, possibly grouped by metric, `protocol` dictionaries among them.
        protocol (`dict`, *optional*): What holds for all of them.
        group (`str`, *optional*): The metric whose parts these are.

    Yields:
        [`Measurement`].
    """
    if not isinstance(results, Mapping):
        return
    if isinstance(results.get("protocol"), Mapping):
        protocol = results["protocol"]
    for key, value in results.items():
        name = key if _better(key) or not group else f"{group}_{key}"
        if isinstance(value, Mapping) and key != "protocol":
            yield from read_measurements(value, protocol, name if _better(name) else group)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            if better := _better(key):
                interval = results.get(f"{key}_interval") or results.get(f"{key}_ci")
                pair = tuple(interval) if isinstance(interval, (list, tuple)) and len(interval) == 2 else None
                yield Measurement(key, float(value), better, dict(protocol or {}), pair)


def _better(key: str) -> str | None:
    return next((better for prefix, better in METRIC_PREFIXES.items() if key.lower().startswith(prefix)), None)


def _split_explainers(results: Any, name: str | None, model_type: str) -> tuple[Mapping, dict[str, Mapping]]:
    """The part of a comparison that is this head's, and the controls beside it."""
    if not isinstance(results, Mapping):
        return {}, {}
    groups = {key: value for key, value in results.items() if isinstance(value, Mapping) and not _better(key)}
    groups = {key: value for key, value in groups.items() if any(read_measurements(value))}
    if not groups:
        return results, {}
    controls = {key: value for key, value in groups.items() if key.lower() in _CONTROLS}
    if name is None:
        own = [key for key in groups if key.lower().replace("-", "").startswith(model_type)]
        rest = [key for key in groups if key not in controls]
        chosen = own if len(own) == 1 else rest
        if len(chosen) != 1:
            raise ValueError(
                f"`evaluation` compares several explainers ({', '.join(groups)}); say with `explainer` which is this "
                "head's."
            )
        name = chosen[0]
    if name not in groups:
        raise ValueError(f"`explainer` {name!r} is not in the evaluation; it has {', '.join(groups)}.")
    return groups[name], {key: value for key, value in controls.items() if key != name}


# ------------------------------------------------------------------------------------------------------------- filling


def build_model_card(
    model_or_dir,
    *,
    repo_id: str | None = None,
    training_record: str | os.PathLike | Mapping | None = None,
    evaluation: str | os.PathLike | Mapping | None = None,
    explainer: str | None = None,
    picture: str | os.PathLike | None = None,
    dataset: str | None = None,
    evaluation_dataset: str | None = None,
    license: str | None = None,
    limitations: str | None = None,
) -> ModelCard:
    """
    The model card of a trained head.

    Every field comes from the configuration, the training record, the evaluation or an argument. A field that none of
    them has is left out of the card's data and named under "Not known".

    Args:
        model_or_dir ([`ExplainerPreTrainedModel`], `str` or `os.PathLike`): A head, or the directory it was saved to;
            a `training_record.json` and an `evaluation.json` in there are read where none is given.
        repo_id (`str`, *optional*): Where it will be on the Hub; the directory's name stands in the snippet if not.
        training_record (`str`, `os.PathLike` or `dict`, *optional*): Written by training.
        evaluation (`str`, `os.PathLike` or `dict`, *optional*): Written by the evaluation.
        explainer (`str`, *optional*): The name of this head in an evaluation that compares several.
        picture (`str` or `os.PathLike`, *optional*): An image file beside the card, shown on top.
        dataset (`str`, *optional*): Hub id or name of the training data, where the record has only a local path.
        evaluation_dataset (`str`, *optional*): Hub id or name of the evaluation's data, likewise.
        license (`str`, *optional*): Licence of the head's weights, a Hub licence identifier.
        limitations (`str`, *optional*): Markdown, added to the limitations that follow from the configuration.

    Returns:
        `huggingface_hub.ModelCard`.

    Raises:
        FileNotFoundError: If a file that was named is missing.
        ValueError: If the configuration is not a head's, a JSON cannot be read, or `explainer` is not in the
            evaluation.
    """
    config = read_config(model_or_dir)
    directory = Path(model_or_dir) if isinstance(model_or_dir, (str, os.PathLike)) else None
    if directory is not None:
        found = {name: directory / name for name in (TRAINING_RECORD, EVALUATION) if (directory / name).is_file()}
        training_record = found.get(TRAINING_RECORD) if training_record is None else training_record
        evaluation = found.get(EVALUATION) if evaluation is None else evaluation
        if picture is not None and not (directory / picture).is_file():
            raise FileNotFoundError(f"`picture` {os.fspath(picture)!r} is not in {str(directory)!r}.")
    training = read_json(training_record, "training_record")
    measured = read_json(evaluation, "evaluation")
    name = repo_id or (directory.resolve().name if directory is not None else config["model_type"])

    unknown: list[str] = []
    method = PAPERS[config["model_type"]]
    title = method.variants.get(config.get("variant"), method.name)
    if config.get("removal_weight"):
        title += " (with this package's removal term, which is not in the paper)"
    backbone, revision = _public_backbone(config, unknown)
    dataset = dataset or _public_name(look_up(training, TRAINING_KEYS["dataset"]), "training data", unknown)
    license = license or look_up(training, TRAINING_KEYS["license"])
    if license is None:
        unknown.append("Licence of the weights: none was given.")
    if training is None:
        unknown.append("How the head was trained: there is no training record.")
    own, controls, results = {}, {}, []
    tested_on = evaluation_dataset
    if measured is None:
        unknown.append("How faithful its maps are: there is no evaluation.")
    else:
        nested = look_up(measured, EVALUATION_KEYS["results"])
        own, controls = _split_explainers(
            nested if isinstance(nested, Mapping) else measured, explainer, config["model_type"]
        )
        results = list(read_measurements(own, look_up(measured, ("protocol",))))
        if not results:
            unknown.append("How faithful its maps are: the evaluation holds no metric this package knows.")
        tested_on = tested_on or _public_name(
            look_up(measured, EVALUATION_KEYS["dataset"]), "data of the evaluation", unknown
        )
    sanity = look_up(own, EVALUATION_KEYS["sanity"]) or look_up(measured, EVALUATION_KEYS["sanity"])
    if not sanity:
        unknown.append("Sanity checks (random weights, random labels): none were recorded.")

    split = look_up(measured, EVALUATION_KEYS["dataset_split"])
    data = ModelCardData(
        library_name="hf-explain",
        tags=["saliency", "explainability", "image-classification", config["model_type"]],
        model_name=name,
        base_model=backbone,
        base_model_relation="adapter" if backbone else None,
        base_model_revision=revision if backbone else None,
        datasets=[dataset] if dataset and _is_hub_id(dataset) else None,
        license=license,
        metrics=sorted({result.metric for result in results}) or None,
        eval_results=[
            EvalResult(
                task_type="saliency",
                task_name="Saliency",
                dataset_type=tested_on,
                dataset_name=tested_on,
                dataset_split=split,
                dataset_revision=look_up(measured, EVALUATION_KEYS["dataset_revision"]),
                metric_type=result.metric,
                metric_name=_title(result.metric),
                metric_value=result.value,
                metric_args=_plain(result.protocol) or None,
            )
            for result in results
        ]
        if tested_on
        else None,
    )
    template = resources.files("hf_explain").joinpath("card_template.md").read_text(encoding="utf-8")
    return ModelCard.from_template(
        data,
        template_str=template,
        name=name,
        title=title,
        method=method,
        backbone=backbone,
        revision=revision,
        self_contained=bool(config.get("self_contained")),
        num_labels=len(config.get("id2label") or {}) or None,
        layers=list(config.get("feature_layers") or []),
        settings=_own_settings(config),
        picture=None if picture is None else Path(picture).name,
        dataset=dataset,
        dataset_split=look_up(training, TRAINING_KEYS["dataset_split"]),
        recipe=_recipe(training),
        results=[_row(result, controls) for result in results],
        controls=list(controls),
        tested_on=tested_on,
        tested_split=split,
        num_images=look_up(measured, EVALUATION_KEYS["num_images"]),
        protocols=_protocols(results),
        sanity=_sanity(sanity),
        limitations=limitations,
        license=license,
        unknown=unknown,
    )


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _public_backbone(config: Mapping[str, Any], unknown: list[str]) -> tuple[str | None, str | None]:
    backbone = config.get("backbone")
    if not backbone:
        unknown.append("The classifier's name: the head was trained on a model in memory.")
        return None, None
    if is_local_path(backbone):
        unknown.append("The classifier's place on the Hub: the head was trained on a local directory.")
        return None, None
    revision = config.get("backbone_revision")
    if revision is None:
        unknown.append("The classifier's revision: it was not recorded.")
    return backbone, revision


def _public_name(value: Any, what: str, unknown: list[str]) -> str | None:
    """A data set's name that means something to others; a path of this machine does not."""
    if isinstance(value, str) and value and not is_local_path(value):
        return value
    unknown.append(f"The {what}: " + ("only a local path was recorded." if value else "not recorded."))
    return None


def _own_settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The fields that belong to the head's method, not to every Transformers config."""
    shared = {entry.name for entry in fields(PreTrainedConfig)} | {entry.name for entry in fields(ExplainerConfig)}
    shared |= {
        "model_type",
        "transformers_version",
        "auto_map",
        "torch_dtype",
        "custom_pipelines",
        "output_attentions",
    }
    return [
        (key, value)
        for key, value in sorted(config.items())
        if key not in shared and not key.startswith("_") and not isinstance(value, Mapping)
    ]


def _recipe(training: Mapping | None) -> list[tuple[str, str]]:
    rows = []
    for label, keys in TRAINING_KEYS.items():
        value = look_up(training, keys)
        if label in ("dataset", "dataset_split", "dataset_revision", "license") or value is None:
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items() if isinstance(item, (str, int, float)))
        if isinstance(value, float):
            value = f"{value:.4g}"
        if value != "" and not (isinstance(value, str) and is_local_path(value)):
            rows.append((label, str(value)))
    return rows


def _title(metric: str) -> str:
    words = metric.replace("_", " ")
    return {"auc d": "AUC-D"}.get(words, words[:1].upper() + words[1:])


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.2f}"


def _row(result: Measurement, controls: Mapping[str, Mapping]) -> dict[str, Any]:
    value = _number(result.value)
    if result.interval:
        value += f" [{_number(result.interval[0])}, {_number(result.interval[1])}]"
    others = []
    for control in controls.values():
        same = [other for other in read_measurements(control) if other.metric == result.metric]
        others.append(_number(same[0].value) if same else "")
    return {"metric": _title(result.metric), "better": result.better, "value": value, "controls": others}


def _plain(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol without anything that YAML cannot hold or that names a path."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in protocol.items()
        if isinstance(value, (int, float, bool, list, tuple)) or (isinstance(value, str) and not is_local_path(value))
    }


def _protocols(results: list[Measurement]) -> list[tuple[str, str]]:
    """Each distinct protocol once, with the metrics that follow it."""
    shared: dict[str, list[str]] = {}
    for result in results:
        plain = _plain(result.protocol)
        text = ", ".join(f"{key} {value}" for key, value in plain.items()) or "not recorded"
        shared.setdefault(text, []).append(_title(result.metric))
    return [(", ".join(metrics), text) for text, metrics in shared.items()]


def _sanity(sanity: Any) -> list[tuple[str, str]]:
    if isinstance(sanity, str):
        return [("verdict", sanity)]
    if not isinstance(sanity, Mapping):
        return []
    rows = []
    for key, value in sanity.items():
        if isinstance(value, Mapping):
            value = ", ".join(
                f"{part} {_number(item) if isinstance(item, float) else item}"
                for part, item in value.items()
                if isinstance(item, (str, int, float))
            )
        elif isinstance(value, float):
            value = _number(value)
        if isinstance(value, (str, int)) and str(value):
            rows.append((str(key).replace("_", " "), str(value)))
    return rows
