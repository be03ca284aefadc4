"""The first steps of a run, where it is asked for: a head learns a training-free method's maps before its own loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from hf_explain.training.arguments import ExplainerTrainingArguments, check_distillation
from hf_explain.training.runtime import derive_seed


class Distillation:
    r"""
    Which steps go by a method's maps, and these maps.

    Args:
        args (`ExplainerTrainingArguments`): Settings; `distill_method`, `distill_steps` and `method_options`.
        model (`torch.nn.Module`): The head; `distillable` says whether its raw map means what a method's map does.
        method (`Callable`, *optional*): What `distill_method` names, see [`~hf_explain.training.loop.train`].
        total_steps (`int`): Optimiser steps of the whole run.

    Raises:
        ValueError: If the settings do not go together, the head cannot be distilled, the method is not given, or the
            run is shorter than `distill_steps`.
    """

    def __init__(
        self,
        args: ExplainerTrainingArguments,
        model: torch.nn.Module,
        method: Callable[..., Any] | None,
        total_steps: int,
    ) -> None:
        check_distillation(args)
        name = args.distill_method
        self._steps, self._seed = args.distill_steps or 0, args.seed
        self._model, self._method = model, method
        self._options = dict(args.method_options.get(name, {})) if name is not None else {}
        if name is None:
            if method is not None:
                raise ValueError("`method` is given, but args.distill_method is None: set it and distill_steps, too.")
            return
        if not getattr(model, "distillable", False):
            raise ValueError(
                f"distill_method {name!r} is for heads that are trained by masks (lcam, ttame, ptame), whose raw map "
                f"is an order of the pixels like a method's; that of {type(model).__name__} is not: leave it out."
            )
        if self._steps > total_steps:
            raise ValueError(
                f"distill_steps {self._steps} is more than the {total_steps} steps of the run: lower it, or raise "
                "max_steps or num_train_epochs."
            )
        if method is None:
            raise ValueError(
                f"distill_method {name!r} is a name alone: give train() the function, too, as "
                f"method=hf_explain.METHODS[{name!r}]."
            )
        # as for an evaluation: a random method is seeded by the run where its options have no seed
        self._draws = "seed" in inspect.signature(method).parameters and "seed" not in self._options

    def inputs(self, step: int) -> dict[str, Any]:
        """What the head is called with besides images and targets in an optimiser step, from 0."""
        if step >= self._steps:
            return {}
        options = dict(self._options)
        if self._draws:
            # By the step alone, so that it is the same one after a resume, and the same one on every process and in
            # every micro-batch: a batch that is divided has the maps of a whole one.
            options["seed"] = derive_seed(self._seed, step)
        return {"distill_from": functools.partial(self._maps, options)}

    def _maps(self, options: dict[str, Any], classifier: Any, pixel_values: torch.Tensor, target: Any) -> torch.Tensor:
        # In float32 whatever the head trains in: no method's maps were measured to be as good from less. A method that
        # needs gradients makes a graph of its own.
        assert self._method is not None  # refused above
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            return self._method(classifier, pixel_values, target, **options).saliency

    def try_out(self, device: torch.device) -> None:
        """One image of noise, so that what the method refuses is said before anything is written."""
        if not self._steps:
            return
        self._model.to(device)
        classifier: Any = self._model.backbone
        shape = (1, len(classifier.image_mean), *classifier.image_size)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        self.inputs(0)["distill_from"](classifier, image, None)
