"""FGVis: a mask per pixel and colour, optimised for each image, that no adversarial evidence can enter."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.gradient_defence import GradientDefence, gradient_defence
from hf_explain.tensors.checks import check_pixel_values
from hf_explain.tensors.maps import min_max
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.perturbation import fill_values
from hf_explain.tensors.randomness import image_keys, random_bits, random_normal
from hf_explain.tensors.scalars import check_choice, check_count, check_number


@dataclass(frozen=True)
class Game:
    """
    One of the paper's four optimisations, seen as a search for the lowest cost that meets a goal.

    The cost of a pixel's colour is how much of it is removed (`removes`; the class must go) or kept (otherwise; the
    class must show). A game that starts free of cost is over once it meets its goal; one that starts at full cost
    meets it from the beginning and gives back what it can.
    """

    removes: bool
    starts_free: bool


GAMES: dict[str, Game] = {
    "deletion": Game(removes=True, starts_free=True),
    "preservation": Game(removes=False, starts_free=False),
    "generation": Game(removes=False, starts_free=True),
    "repression": Game(removes=True, starts_free=False),
}
# Where the weight on L1 is looked for. It is in units of an image's largest gradient: at 1 nothing would move.
L1_RANGE = (0.001, 1.0)
# The share of the image's own score an explanation must keep, or may leave
KEPT_SHARE, LEFT_SHARE = 0.9, 0.05
# Where nothing can gain any more, losses are scaled by this share of the largest gradient instead
_SMALLEST_SCALE = 0.01
# Rotations of an image's noise are drawn in advance; more than this many steps use them again
_NUM_SHIFTS = 4096


@dataclass(frozen=True)
class _Settings:
    game: Game
    budget: int
    deadline: float
    learning_rate: float
    l1_weight: float | None
    rounds: int
    noise: float
    seed: int
    progress: bool


def fgvis(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    mode: str = "deletion",
    fill: str | Sequence[float] = "black",
    budget: int = 200,
    max_seconds: float | None = None,
    learning_rate: float = 0.5,
    l1_weight: float | None = None,
    rounds: int = 4,
    goal: float | None = None,
    noise: float = 0.0,
    defence: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> SaliencyOutput:
    r"""
    FGVis: the smallest change of the image that takes the class away, or brings it about.

    The explanation is `e = m * x + (1 - m) * r`, with `m` in [0, 1] per pixel and colour, `x` the image and `r` the
    fill. Deletion looks for the smallest `|1 - m|` that destroys the score of the target, from `m = 1`; preservation
    for the smallest `|m|` that keeps it, from `m = 1`; generation and repression play the same two from `m = 0`.

    A step follows the gradient of the log-odds of the target, which does not fade where the softmax saturates,
    divided by its largest entry (of those that can still move, in the games that start free of cost), less
    `l1_weight`; `m` is then clamped.

    The paper chooses the weight of the L1 term so that the score of the explanation is comparable to the image's, in
    an unpublished range. Ours: each image plays `rounds` rounds of `budget // rounds` steps, each from the start, and
    its weight is bisected geometrically in [0.001, 1]: up after a round that ends with the goal met, down otherwise.
    Of all masks seen that meet the goal the smallest is returned; if none does, the one that comes nearest, so look at
    `explanation_score`. Images are independent: each has its own weight, rounds and end, and leaves the batch there.

    Formula, for deletion, with `x` the image, `r` the fill, `p` the target's softmax and `h` every nonlinearity:

        e  = m ⊙ x + (1 − m) ⊙ r
        m* = argmin ‖1 − m‖₁ subject to p(e) ≤ goal
        the gradient at h(e) is multiplied by [min(0, h(x)) ≤ h(e) ≤ max(0, h(x))]
        L  = mean of 1 − m* over colours

    Source: Wagner et al., CVPR 2019 (https://huggingface.co/papers/1908.02686).

    Args:
        classifier ([`FrozenClassifier`]): Classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, a list of them, *optional*): Class to explain; the top class when not given.
        layer (`str` or `int`, *optional*): Not used; the mask lies on the pixels.
        mode (`str`, *optional*, defaults to `"deletion"`): `"deletion"` (finest and fastest), `"preservation"`,
            `"generation"` or `"repression"`.
        fill (`str` or sequence of `float`, *optional*, defaults to `"black"`): `"black"`, `"blur"`, `"mean"` or a
            colour; see [`~hf_explain.tensors.perturbation.fill_values`].
        budget (`int`, *optional*, defaults to 200): Most steps (one forward and one backward pass each) per image,
            all rounds together.
        max_seconds (`float`, *optional*): Stop the whole batch after so many seconds and return the best so far; the
            result then depends on the machine.
        learning_rate (`float`, *optional*, defaults to 0.5): How far the mask moves at the largest gradient, per step.
        l1_weight (`float`, *optional*): In [0, 1), in units of the largest gradient; played as it is in one round of
            `budget` steps instead of being bisected.
        rounds (`int`, *optional*, defaults to 4): Rounds of bisection.
        goal (`float`, *optional*): Softmax of the target to fall to or below (deletion, repression) or to reach
            (preservation, generation). By default 0.05 or 0.9 times the image's own.
        noise (`float`, *optional*, defaults to 0): Standard deviation of normal noise added to `pixel_values` in every
            step, drawn from the image and the seed. The imitation uses 0.1; with the defence noise costs, because half
            of the activations of untouched regions then exceed the image's.
        defence (`bool`, *optional*, defaults to `True`): Defend against adversarial evidence; see
            [`~hf_explain.methods.gradient_defence.GradientDefence`].
        seed (`int`, *optional*, defaults to 0): Seed of the noise; without noise nothing is random.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        [`SaliencyOutput`]: `saliency` (`(batch_size, height, width)`, scaled by its minimum and maximum) and
        `saliency_logits` (the same before scaling): `1 - m` for deletion and repression and `m` for preservation and
        generation, averaged over colours; `explanation`, a valid input of the classifier, and its `explanation_score`;
        `logits` of the images and `target`.

    Raises:
        ValueError: If an option is out of range, the layer or the target does not exist, the classifier has fewer
            than two classes or no activation to defend, or a gradient is not finite (the message names the image and
            the iteration).
        TypeError: If an option is not a number, or `pixel_values` is not floating point.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.fgvis import fgvis

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> output = fgvis(classifier, pixel_values, target=1, budget=20)
    >>> output.saliency.shape, output.explanation.shape
    (torch.Size([2, 32, 32]), torch.Size([2, 3, 32, 32]))
    >>> before = output.logits.softmax(-1)[:, 1]
    >>> bool((output.explanation_score < before).all())  # what is left speaks less for the target
    True
    ```
    """
    _check_options(mode, budget, max_seconds, learning_rate, l1_weight, rounds, goal, noise)
    game = GAMES[mode]
    settings = _Settings(
        game=game,
        budget=budget,
        deadline=math.inf if max_seconds is None else time.monotonic() + max_seconds,
        learning_rate=learning_rate,
        l1_weight=l1_weight,
        rounds=1 if l1_weight is not None else min(rounds, budget),
        noise=noise,
        seed=seed,
        progress=progress,
    )
    dtype = check_pixel_values(pixel_values).dtype
    if layer is not None:
        classifier.resolve_layer(layer)
    # Leaving inference mode first: nothing made inside it could ever be part of a graph
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        image = pixel_values.detach().to(device=classifier.device, dtype=torch.float32, copy=True)
        filled = fill_values(image, fill, classifier.image_mean, classifier.image_std).expand_as(image)
        guard = stack.enter_context(gradient_defence(classifier)) if defence else None
        logits = guard.record(image) if guard else classifier(image)
        if logits.shape[1] < 2:
            raise ValueError("`classifier` has one class, but fgvis weighs the target against others: it needs two.")
        target = classifier.resolve_target(target, len(image), logits)
        if goal is None:
            share = LEFT_SHARE if game.removes else KEPT_SHARE
            goals = share * _score(logits, target)
        else:
            goals = torch.full((len(image),), float(goal), device=image.device)
        start, end = (image, filled) if game.removes else (filled, image)
        cost = _Search(settings, classifier, guard, start, end, target, goals).run()
        explanation = torch.lerp(start, end, cost)
        score = _score(classifier(explanation), target)
        saliency = cost.mean(1)
        return SaliencyOutput(
            saliency=min_max(saliency),
            logits=logits,
            target=target,
            saliency_logits=saliency,
            explanation=explanation.to(dtype),
            explanation_score=score,
        )


def _score(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return logits.float().softmax(1).gather(1, target[:, None])[:, 0]


@dataclass
class _State:
    """What the searches carry from step to step: one row per image that is still searched."""

    index: torch.Tensor  # its place in the caller's batch
    start: torch.Tensor  # the input at cost 0
    end: torch.Tensor  # the input at cost 1
    target: torch.Tensor
    goal: torch.Tensor
    cost: torch.Tensor  # per pixel and colour
    best: torch.Tensor  # the best cost seen, and its rank: the mean cost where the goal is met, above 1 elsewhere
    best_rank: torch.Tensor
    l1_weight: torch.Tensor
    l1_low: torch.Tensor
    l1_high: torch.Tensor
    round: torch.Tensor
    step: torch.Tensor  # of the round
    noise: torch.Tensor | None

    def select(self, indices: torch.Tensor) -> _State:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        rows: dict[str, Any] = {name: v if v is None else v.index_select(0, indices) for name, v in values.items()}
        return _State(**rows)


class _Search:
    """The rounds of every image of one batch, side by side."""

    def __init__(
        self,
        settings: _Settings,
        classifier: FrozenClassifier,
        guard: GradientDefence | None,
        start: torch.Tensor,
        end: torch.Tensor,
        target: torch.Tensor,
        goals: torch.Tensor,
    ):
        self.settings, self.game = settings, settings.game
        self.classifier, self.guard = classifier, guard
        self.round_steps = settings.budget // settings.rounds
        low, high = L1_RANGE
        weight = math.sqrt(low * high) if settings.l1_weight is None else settings.l1_weight
        noise = None
        if settings.noise:
            # Drawing anew in every step would cost more than the step of a small classifier: each image's own noise
            # is drawn once, and every step turns it by another number of places
            keys = image_keys(start if self.game.removes else end, seed=settings.seed)
            noise = random_normal(keys, start[0].numel()).mul_(settings.noise)
            shift_key = torch.tensor([settings.seed], device=start.device)
            self.shifts = random_bits(shift_key, min(settings.budget, _NUM_SHIFTS))[0].tolist()
        cost = torch.full_like(start, 0.0 if self.game.starts_free else 1.0, memory_format=torch.contiguous_format)
        self.state = _State(
            index=torch.arange(len(start), device=start.device),
            start=start,
            end=end,
            target=target,
            goal=goals,
            cost=cost,
            best=cost.clone(),
            best_rank=torch.full_like(goals, math.inf),
            l1_weight=torch.full_like(goals, weight),
            l1_low=torch.full_like(goals, low),
            l1_high=torch.full_like(goals, high),
            round=torch.zeros_like(target),
            step=torch.zeros_like(target),
            noise=noise,
        )
        self.result = cost.clone()

    def run(self) -> torch.Tensor:
        """The cost per pixel and colour of each image's best mask."""
        settings = self.settings
        with tqdm(total=settings.budget, disable=not settings.progress, desc="fgvis", unit="step") as bar:
            for iteration in range(settings.budget):
                done = self._step(iteration)
                bar.update()
                if done is not None:
                    self._retire(done)
                    bar.set_postfix(images=len(self.state.index), refresh=False)
                if not len(self.state.index) or time.monotonic() >= settings.deadline:
                    break
        self.result[self.state.index] = self.state.best
        return self.result

    def _retire(self, done: torch.Tensor) -> None:
        state = self.state
        self.result[state.index[done]] = state.best[done]
        self.state = state.select((~done).nonzero()[:, 0])
        if self.guard is not None and len(self.state.index):
            # Recorded again rather than cut: at another batch size the same image's activations may be rounded
            # otherwise, and then no untouched region would pass by equality any more
            self.guard.record(self.state.start if self.game.removes else self.state.end)

    def _step(self, iteration: int) -> torch.Tensor | None:
        """One step of every image; which images are done, or None."""
        state, removes = self.state, self.game.removes
        odds, gain = self._gradient(iteration)
        # amax and amin are vectorised on a CPU and aminmax is not; nor is a product with a boolean
        peak = torch.maximum(gain.flatten(1).amax(1), -gain.flatten(1).amin(1))
        finite = torch.isfinite(peak)
        if self.game.starts_free:
            # What can gain no more must not set the scale: it would hold everything else below the weight
            movable = (1 - state.cost).ceil_()
            peak = movable.mul_(gain).flatten(1).amax(1).maximum(_SMALLEST_SCALE * peak)
        score = odds.sigmoid()
        met = score <= state.goal if removes else score >= state.goal
        rank = torch.where(met, state.cost.flatten(1).mean(1), 1 + (score - state.goal).abs())
        better = rank < state.best_rank
        state.step += 1
        over = state.step >= self.round_steps
        if self.game.starts_free:
            over |= met
        # One transfer for every decision of the step
        broken, improved, round_over = torch.stack([~finite, better, over]).any(1).tolist()
        if broken:
            image = int(state.index[(~finite).nonzero()[0, 0]])
            raise ValueError(
                f"The gradient of image {image} is not finite at iteration {iteration + 1}; look for NaN or infinity "
                "in its `pixel_values` and the classifier's weights, or load the classifier in a wider dtype."
            )
        if improved:
            rows = better.nonzero()[:, 0]
            state.best.index_copy_(0, rows, state.cost.index_select(0, rows))
            state.best_rank = torch.where(better, rank, state.best_rank)
        # A game that gives cost back stops giving while its goal is lost, or it would never find back to it
        weight = state.l1_weight if self.game.starts_free else state.l1_weight * met
        # A flat image or classifier has no gain anywhere: 0 / tiny is the 0 wanted
        gain.div_(_per_image(peak.clamp_min(torch.finfo(peak.dtype).tiny))).sub_(_per_image(weight))
        state.cost.add_(gain, alpha=self.settings.learning_rate).clamp_(0, 1)
        return self._next_round(over, met) if round_over else None

    def _gradient(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of the target, and what each unit of cost gains for the game."""
        state = self.state
        perturbed = torch.lerp(state.start, state.end, state.cost)
        if state.noise is not None:
            shift = self.shifts[iteration % len(self.shifts)] % state.noise.shape[1]
            perturbed.add_(state.noise.roll(shift, 1).view_as(perturbed))
        with torch.enable_grad():
            perturbed.requires_grad_()
            logits = self.classifier(perturbed).float()
            own = logits.gather(1, state.target[:, None])[:, 0]
            others = logits.scatter(1, state.target[:, None], -math.inf).logsumexp(1)
            odds = own - others
            (gradient,) = torch.autograd.grad(odds.sum(), perturbed)
        towards = state.start - state.end if self.game.removes else state.end - state.start
        return odds.detach(), towards.mul_(gradient)

    def _next_round(self, over: torch.Tensor, met: torch.Tensor) -> torch.Tensor | None:
        """Bisect the weight of images whose round is over and start them again; which images are done, or None."""
        state = self.state
        state.l1_low = torch.where(over & met, state.l1_weight, state.l1_low)
        state.l1_high = torch.where(over & ~met, state.l1_weight, state.l1_high)
        state.l1_weight = torch.where(over, (state.l1_low * state.l1_high).sqrt(), state.l1_weight)
        state.cost.masked_fill_(_per_image(over), 0.0 if self.game.starts_free else 1.0)
        state.step.masked_fill_(over, 0)
        state.round += over
        done = state.round >= self.settings.rounds
        return done if bool(done.any()) else None


def _per_image(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _check_options(
    mode: str,
    budget: int,
    max_seconds: float | None,
    learning_rate: float,
    l1_weight: float | None,
    rounds: int,
    goal: float | None,
    noise: float,
) -> None:
    check_choice(mode, "mode", GAMES)
    check_count(budget, "budget")
    check_count(rounds, "rounds")
    check_number(max_seconds, "max_seconds", "(0, inf]", optional=True)
    check_number(learning_rate, "learning_rate", "(0, inf)")
    check_number(l1_weight, "l1_weight", "[0, 1)", "is in units of the largest gradient and", optional=True)
    check_number(goal, "goal", "(0, 1)", "is a softmax and", optional=True)
    check_number(noise, "noise", "[0, inf)")
