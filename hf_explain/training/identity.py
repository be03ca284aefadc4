"""
What a run trains and on which data, so that a checkpoint is not gone on with by another run.

The settings of the run itself are in `hf_explain.training.arguments`: the path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from hf_explain.io.data_checksum import data_checksum


logger = logging.get_logger(__name__)
# What of an image processor names its class or files, which differ between versions, and not what it does
_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "auto_map")
_CHECKSUMS = ("fingerprint", "checksum", "labels")
_LONGEST = 200  # characters of a value that a checkpoint keeps and an error shows; of a longer one it is a checksum


def describe_data(dataset: Any, columns: list[str]) -> dict[str, Any] | None:
    """The columns that are read, with what [`~hf_explain.io.data_checksum.data_checksum`] says of them."""
    told = data_checksum(dataset, columns)
    if told is None:
        return None
    features = getattr(dataset, "features", None) or {}
    names = {column: features[column].names for column in columns if getattr(features.get(column), "names", None)}
    return {"columns": columns, **({"labels": names} if names else {}), **told}


def describe_run(model: torch.nn.Module, image_processor: Any, data: dict[str, Any] | None) -> dict[str, Any]:
    """
    What makes this run another one than a run with the same settings.

    Args:
        model (`torch.nn.Module`): What is trained; `training_identity()`, where it has one, describes it.
        image_processor: What its images are prepared with.
        data (`dict[str, Any]`, *optional*): What [`describe_data`] says; `None` where nothing can be said.

    Returns:
        `dict[str, dict | None]`: JSON values by name, one level deep, in groups.
    """
    identity = model.training_identity() if hasattr(model, "training_identity") else {}  # type: ignore[operator]
    settings = image_processor.to_dict() if hasattr(image_processor, "to_dict") else None
    if settings is not None:
        settings = {name: value for name, value in settings.items() if name not in _NAMES}
    groups = {**identity, "image processor": settings, "data": data}
    return {name: None if group is None else _flatten(group) for name, group in groups.items()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and len(value) <= 100:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            text = json.dumps(json.loads(json.dumps(value, default=str)), sort_keys=True)
            flat[f"{prefix}{name}"] = json.loads(text) if len(text) <= _LONGEST else _checksum(text)
    return flat


def _checksum(text: str) -> str:
    return f"of checksum {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_same_run(
    checkpoint: Path,
    saved: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    r"""
    Refuse a checkpoint of another classifier, head, image processor or data, and say what could not be compared.

    A field that only one of the two knows, as one of an older version, is not compared, unless `defaults` says what it
    was before there was such a field.

    Args:
        checkpoint (`Path`): Named in the error.
        saved (`dict`, *optional*): What [`describe_run`] said when the checkpoint was written; version 0.1 said
            nothing.
        now (`dict`): What it says of this run.
        defaults (`dict`, *optional*): By group, the values of fields that the checkpoint does not know.

    Raises:
        ValueError: Naming the first thing that differs, with both values.
    """
    saved = saved or {}
    unknown = [group for group, values in now.items() if values is None or saved.get(group) is None]
    for group, values in now.items():
        before = saved.get(group) or {}
        if before and defaults is not None:
            before = {**defaults.get(group, {}), **before}
        for name, value in (values or {}).items():
            if name in before and before[name] != value:
                what, same = f"{group} {name}", f"{group} {name} {before[name]!r}"
                if name.split(".")[0] in _CHECKSUMS:
                    same = f"the {group} it was written with"
                raise ValueError(
                    f"checkpoint {str(checkpoint)!r} was written with {what} {before[name]!r}, this run has "
                    f"{value!r}: resume with {same}, or start anew in another output_dir."
                )
    if unknown:
        logger.warning(
            f"Resuming from {str(checkpoint)!r}: it could not be compared whether this run has the same "
            f"{', '.join(unknown[:-1]) + ' and ' if unknown[1:] else ''}{unknown[-1]} as the one that wrote it."
        )


def compare_surroundings(checkpoint: Path, info: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """
    Say what is otherwise around a run than when a checkpoint was written, and changes less than where it arrives.

    Args:
        checkpoint (`Path`): Named in the lines.
        info (`dict`): What it says of itself: `step`, `versions` and `validation`, which version 0.1 did not write.
        now (`dict`): The same of this run, without the step.
    """
    before, after = info.get("validation"), now["validation"]
    if before and after and json.loads(json.dumps(before)) != json.loads(json.dumps(after)):
        logger.warning(
            f"Resuming from {str(checkpoint)!r}: the validation images are others, so validation losses up to step "
            f"{info['step']} and after it cannot be compared with each other."
        )
    versions = info.get("versions") or {}
    changed = [name for name, version in now["versions"].items() if versions.get(name, version) != version]
    if changed:
        listing = ", ".join(f"{name} {versions[name]} then and {now['versions'][name]} now" for name in changed)
        logger.warning(
            f"Resuming from {str(checkpoint)!r} with other versions of packages ({listing}): the weights may differ "
            "in the last digits from those of a run without a break."
        )
