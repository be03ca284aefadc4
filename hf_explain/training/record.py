"""What is known of a training run once it is over: `training_record.json`, saved and published with the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(kw_only=True)
class TrainingRecord:
    """
    The settings, data, circumstances and losses of one run. What a file does not say is `None` or empty.

    Args:
        description (`dict`): What the caller of [`~hf_explain.training.loop.train`] said of the run; the command line
            says `classifier`, `head`, `dataset`, `train_split` and the like. In the file these stand beside the rest.
        model (`str`, *optional*): Class of the head.
        arguments (`dict`): The settings, without directories.
        num_examples (`int`, *optional*): Images in one pass over the data.
        streaming (`bool`, *optional*): Whether the data was a stream.
        seed (`int`, *optional*): Seed of everything random.
        steps, global_batch_size (`int`, *optional*): Optimiser steps, and images in each.
        extended (`list[list[int]]`): `[step, planned]` for each time the run was made longer: the step it went on
            from with the schedule of its new length, and how many steps were planned until then.
        epochs (`float`, *optional*): Passes over the data, where its length is known.
        trainable_parameters (`int`, *optional*): Numbers that were trained.
        seconds, seconds_waiting_for_data (`float`, *optional*): From the start, those before resuming included; and
            since the last start.
        final_loss, final_eval_loss (`float`, *optional*): Of the last lines of the log.
        losses, eval_losses (`list[list]`): `[step, loss]`.
        machine (`dict`): Platform, device, processes, precision.
        versions (`dict[str, str]`): Of the packages.
    """

    description: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    num_examples: int | None = None
    streaming: bool | None = None
    seed: int | None = None
    steps: int | None = None
    extended: list[list[int]] = field(default_factory=list)
    epochs: float | None = None
    global_batch_size: int | None = None
    trainable_parameters: int | None = None
    seconds: float | None = None
    seconds_waiting_for_data: float | None = None
    final_loss: float | None = None
    final_eval_loss: float | None = None
    losses: list[list[float]] = field(default_factory=list)
    eval_losses: list[list[float]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the file holds: the description, and a key for every other field."""
        rest = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "description"}
        return {**self.description, **rest}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingRecord:
        """What `to_json` wrote, in this version or an earlier one; keys that are not fields go to the description."""
        names = {entry.name for entry in fields(cls)} - {"description"}
        known = {name: entry for name, entry in value.items() if name in names and entry is not None}
        return cls(description={name: entry for name, entry in value.items() if name not in names}, **known)
