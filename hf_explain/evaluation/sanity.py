"""Sanity checks: maps must change when the classifier's weights are random, or another class is explained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.arguments import ComparisonArguments, EvaluationArguments
from hf_explain.evaluation.explainer import Explainer, resolve_explainer
from hf_explain.evaluation.inputs import ExampleReader, choose_precision
from hf_explain.evaluation.results import SanityResult
from hf_explain.methods.controls import centre_maps, random_maps
from hf_explain.metrics import load
from hf_explain.metrics.functional import auc_d
from hf_explain.metrics.presets import PRESETS
from hf_explain.metrics.statistics import bootstrap_interval
from hf_explain.tensors.perturbation import rank_correlation
from hf_explain.tensors.scalars import check_count


# Stated in every result. Rank correlations lie in [-1, 1]; gains are of AUC-D over a random map's.
THRESHOLDS = {
    "max_similarity_random_weights": 0.5,
    "max_gain_kept_random_weights": 0.5,
    "max_similarity_random_label": 0.8,
}
SEEDS = 3  # independent draws of the weights
_SIDE = 28  # maps are compared at this resolution at most: the pixel noise of gradients is not structure


def check_sanity(
    model_or_pipeline,
    data,
    *,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    image_column: str | None = None,
    max_examples: int = ComparisonArguments.sanity_examples,
    batch_size: int = EvaluationArguments.batch_size,
    seed: int = 0,
    seeds: int = SEEDS,
    dtype: str = EvaluationArguments.dtype,
) -> dict[str, Any]:
    """
    Whether maps depend on what the classifier learnt, on the class explained, and beat maps that look at nothing.

    Four checks on the same images, each with AUC-D on the unchanged classifier: (1) *random weights*: the explainer on
    a copy whose weights are redrawn, from the top layer down (cascading) until none is left (full): maps must change
    and lose what they gain over random maps; stated beside it are maps where only one part of the layers is redrawn
    (independent) and AUC-D by the redrawn classifier itself, which some papers report instead; (2) *random label*: a
    random other class is explained: maps must change and AUC-D must fall; (3) *random map*: AUC-D must be higher than
    that of random maps; (4) *centre*: AUC-D of a Gaussian in the middle, stated beside it.

    A tensor is redrawn from a normal distribution of its own mean and standard deviation, which keeps activations in
    range in every architecture; what a BatchNorm knows of its channels is shuffled among them. Similarity is
    Spearman's rank correlation. Numbers under random weights are means over `seeds` draws.

    Source: Adebayo et al. 2018 (https://huggingface.co/papers/1810.03292).

    Args:
        model_or_pipeline, method, method_options: As for [`SaliencyEvaluator.compute`]. It is not changed.
        data: Data set, map-style or streaming.
        image_column (`str`, *optional*): Column of the images.
        max_examples (`int`, *optional*, defaults to 100): Images used.
        batch_size (`int`, *optional*, defaults to 8): Images per pass.
        seed (`int`, *optional*, defaults to 0): Seed of the weights, the labels and the random maps.
        seeds (`int`, *optional*, defaults to 3): Draws of the weights, with this seed and those after it.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of the unchanged classifier's passes that score
            maps, as for [`SaliencyEvaluator.compute`]. Maps, and the redrawn classifier, are always in float32.

    Returns:
        `dict`: `passed` (`bool`), `verdict` (one line), `checks` (name to `passed` and numbers), `cascade` and
            `independent` (lists of the number of tensors redrawn, similarity, AUC-D and gain kept), `thresholds`,
            `num_images`.

    Raises:
        ValueError: If the classifier has only one class, or as for [`SaliencyEvaluator.compute`].
    """
    explainer = resolve_explainer(model_or_pipeline, method, method_options, seed)
    check_count(seeds, "seeds")
    found = check_explainer(
        explainer,
        data,
        image_column=image_column,
        max_examples=max_examples,
        batch_size=batch_size,
        seed=seed,
        seeds=seeds,
        dtype=dtype,
    )
    return found.to_json()


def check_explainer(
    explainer: Explainer,
    data,
    *,
    image_column: str | None,
    max_examples: int,
    batch_size: int,
    seed: int,
    seeds: int = SEEDS,
    dtype: str = EvaluationArguments.dtype,
) -> SanityResult:
    """
    [`check_sanity`] for an [`Explainer`].

    Args:
        explainer ([`Explainer`]): What explains. It is not changed.
        data, image_column, max_examples, batch_size, seed, seeds, dtype: As for [`check_sanity`].

    Returns:
        [`SanityResult`].

    Raises:
        ValueError: As for [`check_sanity`].
    """
    images = _Images(explainer, data, image_column, max_examples, batch_size, seed, dtype)
    predicted = [logits.argmax(-1) for logits in images.logits]
    own = images.maps(explainer, predicted)
    own_score = images.score(own)
    random_score = images.score(images.random_maps(*own[0].shape[-2:]))
    centre_score = images.score([centre_maps(pixel_values) for pixel_values in images.pixel_values])
    gain = (own_score - random_score).mean().item()

    def compare(randomised: Explainer, redrawn: int) -> dict[str, Any]:
        maps = images.maps(randomised, predicted)
        redrawn_score = images.score(maps)
        return {
            "tensors_redrawn": redrawn,
            "similarity": similarity(own, maps),
            "auc_d": redrawn_score.mean().item(),
            "gain_kept": (redrawn_score - random_score).mean().item() / gain if gain > 0 else None,
        }

    cascades, parts, fulls = [], [], []
    for draw in range(seed, seed + seeds):
        randomised = explainer.copy()
        cascades.append(
            [compare(randomised, count) for count in redraw_from_the_top(randomised.classifier.model, draw)]
        )
        by_itself = images.score(images.maps(randomised, predicted), randomised.classifier)
        fulls.append({**cascades[-1][-1], "auc_d_by_the_redrawn_classifier": by_itself.mean().item()})
        randomised = explainer.copy()
        steps = redraw_each_part(randomised.classifier.model, draw)
        parts.append([compare(randomised, count) for count in steps])
    cascade, independent = (_mean_of_draws(zip(*draws)) for draws in (cascades, parts))
    other = images.maps(explainer, images.other_classes(predicted))
    low = bootstrap_interval((own_score - random_score)[:, None].double(), seed=seed)[0].item()
    (full,) = _mean_of_draws([fulls])
    del full["tensors_redrawn"]
    found = [one["similarity"] for one in fulls]
    full |= {"lowest_similarity": min(found), "highest_similarity": max(found), "seeds": seeds}
    label = {
        "similarity": similarity(own, other),
        "fall_of_auc_d": (own_score - images.score(other)).mean().item(),
    }
    checks = {
        "random_weights": full,
        "random_label": label,
        "random_map": {"gain_of_auc_d": gain, "gain_low": low},
        "centre": {"gain_of_auc_d": (own_score - centre_score).mean().item()},
    }
    return SanityResult(
        **_judge(checks),
        checks=checks,
        cascade=cascade,
        independent=independent,
        own_auc_d=own_score.mean().item(),
        random_map_auc_d=random_score.mean().item(),
        centre_auc_d=centre_score.mean().item(),
        thresholds={**THRESHOLDS, "min_fall_random_label": 0, "min_gain_low_random_map": 0},
        num_images=len(own_score),
        seed=seed,
    )


class _Images:
    """The images of the checks in batches, with the unchanged classifier's logits, by which every map is scored."""

    def __init__(
        self, explainer: Explainer, data, image_column, max_examples: int, batch_size: int, seed: int, dtype: str
    ):
        self.classifier, self.seed = explainer.classifier, seed
        reader = ExampleReader(data, explainer, image_column, max_examples=max_examples)
        rows = [entry for _, rows in reader.shards(max_examples, lambda shard: True) for entry in rows]
        examples = [reader.read(index, row) for index, row in rows]
        if self.classifier.num_labels < 2:
            raise ValueError("the sanity checks explain another class, but the classifier has only one class.")
        self.precision = choose_precision(dtype, explainer, reader, batch_size)
        self.in_half = load("auc_d").allows_bfloat16
        self.ids = torch.tensor([example.index for example in examples]).split(batch_size)
        self.pixel_values, self.logits = [], []
        for start in range(0, len(examples), batch_size):
            batch = torch.stack([example.pixel_values for example in examples[start : start + batch_size]])
            batch = batch.to(device=self.classifier.device, dtype=self.classifier.dtype)
            self.pixel_values.append(batch)
            with torch.no_grad(), self._scoring(self.classifier):
                self.logits.append(self.classifier.decided(batch, self.classifier(batch)))

    def _scoring(self, classifier: FrozenClassifier):
        """The precision in which AUC-D keeps its numbers; of a redrawn classifier that was not measured."""
        return self.precision.passes(classifier, self.in_half and classifier is self.classifier)

    def maps(self, explainer: Explainer, targets: list[torch.Tensor]) -> list[torch.Tensor]:
        batches = zip(self.pixel_values, targets, self.ids)
        return [explainer.explain(*batch).saliency.float() for batch in batches]

    def random_maps(self, height: int, width: int) -> list[torch.Tensor]:
        return [random_maps(batch, (height, width), self.seed, ids) for batch, ids in zip(self.pixel_values, self.ids)]

    def other_classes(self, classes: list[torch.Tensor]) -> list[torch.Tensor]:
        """A random class for every image that is not the one in `classes`."""
        count, num_labels = sum(map(len, classes)), self.classifier.num_labels
        generator = torch.Generator().manual_seed(self.seed)
        offsets = torch.randint(1, num_labels, (count,), generator=generator).to(self.classifier.device)
        shifts = offsets.split([len(one) for one in classes])
        return [(one + shift) % num_labels for one, shift in zip(classes, shifts)]

    def score(self, maps: list[torch.Tensor], classifier: FrozenClassifier | None = None) -> torch.Tensor:
        """AUC-D of each image, by the unchanged classifier or by another one; shape `(num_images,)`."""
        all_logits = self.logits
        if classifier is not None:
            with torch.no_grad():
                all_logits = [classifier(batch) for batch in self.pixel_values]
        judge = classifier or self.classifier
        settings = {
            **PRESETS["auc_d"]["default"],
            "image_mean": self.classifier.image_mean,
            "image_std": self.classifier.image_std,
            "seed": self.seed,
        }
        with self._scoring(judge):
            scores = [
                auc_d(judge, batch, saliency, logits=logits, image_ids=ids, **settings).auc_d
                for batch, saliency, logits, ids in zip(self.pixel_values, maps, all_logits, self.ids)
            ]
        return torch.cat(scores).cpu()


def similarity(maps: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """
    Mean Spearman rank correlation of maps and others, image by image; 0 where one of the two is constant.

    Args:
        maps, others (list of `torch.Tensor` of shape `(batch_size, height, width)`): Batches of maps.
    """
    pairs = zip(maps, others, strict=True)
    return torch.cat([rank_correlation(*map(_places, pair)) for pair in pairs]).mean().item()


def redraw_from_the_top(model: nn.Module, seed: int = 0):
    """
    Redraw a model's weights in place, the top layer first: a generator that stops after the top layer, after a
    quarter, a half and three quarters of the weighted layers, and after all of them.

    Args:
        model (`torch.nn.Module`): Changed in place; give a copy.
        seed (`int`, *optional*, defaults to 0): Of the weights.

    Yields:
        `int`: Tensors redrawn so far.
    """
    generator, redrawn = torch.Generator().manual_seed(seed), 0
    for part in _parts(model):
        redrawn += _redraw(part, generator)
        yield redrawn


def redraw_each_part(model: nn.Module, seed: int = 0):
    """
    The same parts, each redrawn by itself while all others are as they were.

    Args:
        model (`torch.nn.Module`): Changed in place, and put back; give a copy all the same.
        seed (`int`, *optional*, defaults to 0): Of the weights.

    Yields:
        `int`: Tensors redrawn.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in _parts(model):
        before = [(tensor, tensor.detach().clone()) for layer in part for tensor in _learnt(layer)]
        yield _redraw(part, generator)
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)


def _parts(model: nn.Module) -> list[list[nn.Module]]:
    """The weighted layers from the top: the first, then up to a quarter, a half, three quarters and all of them."""
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))][::-1]
    stops = sorted({1, *(round(len(layers) * part / 4) for part in (1, 2, 3)), len(layers)} - {0})
    return [layers[start:stop] for start, stop in zip([0, *stops], stops)]


def _learnt(layer: nn.Module) -> list[torch.Tensor]:
    """A layer's own parameters, and what a BatchNorm knows of its channels."""
    statistics = (getattr(layer, name, None) for name in ("running_mean", "running_var"))
    return [*layer.parameters(recurse=False), *(one for one in statistics if isinstance(one, torch.Tensor))]


def _redraw(layers: list[nn.Module], generator: torch.Generator) -> int:
    """New weights in place; the number of tensors."""
    count = 0
    for layer in layers:
        own = _learnt(layer)
        count += len(own)
        for tensor in own:
            values = tensor.detach().float()
            spread = values.std(correction=0).item()
            if spread == 0:  # a fresh scale or bias: nothing was learnt in it
                continue
            if isinstance(tensor, nn.Parameter):
                drawn = torch.randn(tensor.shape, generator=generator) * spread + values.mean().item()
            else:  # no variance is below 0
                drawn = values.cpu()[torch.randperm(len(values), generator=generator)]
            with torch.no_grad():
                tensor.copy_(drawn.to(device=tensor.device, dtype=tensor.dtype))
    return count


def _mean_of_draws(draws: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each step the mean over the draws of the weights; `None` where there is no gain to keep."""
    means = []
    for step in map(list, draws):
        columns = {key: [one[key] for one in step] for key in step[0]}
        mean = {key: None if None in values else sum(values) / len(values) for key, values in columns.items()}
        means.append({**mean, "tensors_redrawn": step[0]["tensors_redrawn"]})
    return means


def _places(maps: torch.Tensor) -> torch.Tensor:
    """The values of each map, of large ones means over a grid; shape `(batch_size, places)`."""
    if max(maps.shape[-2:]) > _SIDE:
        maps = F.adaptive_avg_pool2d(maps[:, None], (min(_SIDE, maps.shape[-2]), min(_SIDE, maps.shape[-1])))[:, 0]
    return maps.flatten(1).double()


def _judge(checks) -> dict[str, Any]:
    """Adds `passed` to each of the `checks`, and returns the verdict on all of them."""
    weights, label, random_map = (checks[name] for name in ("random_weights", "random_label", "random_map"))
    # an inverted map is as similar as an equal one
    weights["passed"] = abs(weights["similarity"]) <= THRESHOLDS["max_similarity_random_weights"] and (
        weights["gain_kept"] is None or weights["gain_kept"] <= THRESHOLDS["max_gain_kept_random_weights"]
    )
    label["passed"] = label["similarity"] <= THRESHOLDS["max_similarity_random_label"] and label["fall_of_auc_d"] > 0
    random_map["passed"] = random_map["gain_low"] > 0
    reasons = []
    if not weights["passed"]:
        kept = "" if weights["gain_kept"] is None else f", {100 * weights['gain_kept']:.0f} % of its gain kept"
        reasons.append(f"maps survive random weights (rank correlation {weights['similarity']:.2f}{kept})")
    if not label["passed"]:
        reasons.append(
            f"maps do not depend on the class (rank correlation {label['similarity']:.2f}, AUC-D falls by "
            f"{label['fall_of_auc_d']:.1f})"
        )
    if not random_map["passed"]:
        reasons.append(f"no better than random maps (AUC-D gain {random_map['gain_of_auc_d']:.1f})")
    return {"passed": not reasons, "verdict": f"fails: {'; '.join(reasons)}" if reasons else "passes"}
