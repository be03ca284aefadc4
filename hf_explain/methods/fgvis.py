"""FGVis: a mask per pixel and colour, optimised for each image, that no adversarial evidence can enter."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from tqdm.auto import tqdm

from hf_explain.backbones import FrozenClassifier
from hf_explain.maps import min_max
from hf_explain.methods.gradient_defence import GradientDefence, gradient_defence
from hf_explain.outputs import SaliencyOutput
from hf_explain.perturbation import check_pixel_values, fill_values, image_keys, random_bits, random_normal


@dataclass(frozen=True)
class Game:
    """
    One of the paper's four optimisations, as a search for the least cost that meets a goal.

    The cost is what is removed (`removes`) or kept (otherwise), per pixel and colour. A game that starts free of cost
    ends when it meets its goal; one that starts at full cost meets it from the beginning and gives cost back.
    """

    removes: bool  # the cost is 1 - m and the score must fall; otherwise it is m and the score must rise
    starts_free: bool

    @property
    def direction(self) -> int:
        return -1 if self.removes else 1


GAMES: dict[str, Game] = {
    "deletion": Game(removes=True, starts_free=True),
    "preservation": Game(removes=False, starts_free=False),
    "generation": Game(removes=False, starts_free=True),
    "repression": Game(removes=True, starts_free=False),
}
# The L1 weight is in units of an image's largest gradient, so beyond 1 nothing moves
_L1_RANGE = (0.01, 1.0)
_NOISE_SALT = 0x46475649


def fgvis(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target=None,
    *,
    mode: str = "deletion",
    fill: str | Sequence[float] = "black",
    budget: int = 400,
    max_seconds: float | None = None,
    learning_rate: float = 0.1,
    l1_weight: float | None = None,
    rounds: int = 4,
    goal: float | None = None,
    noise: float = 0.0,
    defence: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> SaliencyOutput:
    goal_given = goal
    game = _check_options(mode, budget, max_seconds, learning_rate, l1_weight, rounds, goal, noise)
    pixel_values = check_pixel_values(pixel_values).to(classifier.device)
    image = pixel_values.detach().float()
    filled = fill_values(image, fill, classifier.image_mean, classifier.image_std).expand_as(image)
    deadline = math.inf if max_seconds is None else time.monotonic() + max_seconds

    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(gradient_defence(classifier)) if defence else None
        with torch.no_grad():
            logits = (classifier(image) if guard is None else guard.record(image)).float()
        if logits.shape[1] < 2:
            raise ValueError("`classifier` has one class; fgvis weighs a class against the others and needs two.")
        target = classifier.resolve_target(target, len(image), logits)
        image_score = logits.softmax(1).gather(1, target[:, None])[:, 0]
        if goal_given is not None:
            goals = torch.full_like(image_score, goal_given)
        else:
            goals = image_score * (0.1 if game.removes else 0.9)
        start, end = (image, filled) if game.removes else (filled, image)
        cost = _Search(
            classifier, guard, game, start, end, target, goals, budget, deadline, learning_rate, l1_weight, rounds, noise,
            seed, progress, image,
        ).run()
    explanation = torch.lerp(start, end, cost)
    with torch.no_grad():
        score = classifier(explanation).float().softmax(1).gather(1, target[:, None])[:, 0]
    saliency = cost.mean(1)
    return SaliencyOutput(
        saliency=min_max(saliency),
        logits=logits,
        target=target,
        saliency_logits=saliency,
        explanation=explanation.to(pixel_values.dtype),
        explanation_score=score,
    )


def _check_options(mode, budget, max_seconds, learning_rate, l1_weight, rounds, goal, noise) -> Game:
    return GAMES[mode]


@dataclass
class _State:
    """What one image's search carries from step to step; every field has the images still searched in front."""

    index: torch.Tensor  # its place in the caller's batch
    start: torch.Tensor  # the input where the cost is 0
    end: torch.Tensor  # the input where it is 1
    target: torch.Tensor
    goal: torch.Tensor
    cost: torch.Tensor
    best: torch.Tensor
    best_rank: torch.Tensor
    l1_weight: torch.Tensor
    l1_low: torch.Tensor
    l1_high: torch.Tensor
    round: torch.Tensor
    step: torch.Tensor  # within the round
    noise: torch.Tensor | None

    def select(self, indices: torch.Tensor) -> _State:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _State(**{k: None if v is None else v.index_select(0, indices) for k, v in values.items()})


class _Search:
    def __init__(
        self, classifier, guard: GradientDefence | None, game: Game, start, end, target, goals, budget, deadline,
        learning_rate, l1_weight, rounds, noise, seed, progress, image,
    ):
        self.classifier, self.guard, self.game = classifier, guard, game
        self.budget, self.deadline, self.learning_rate = budget, deadline, learning_rate
        self.rounds = 1 if l1_weight is not None else min(rounds, budget)
        self.round_steps = budget // self.rounds
        self.noise, self.progress = noise, progress
        ones = torch.ones_like(goals)
        low, high = _L1_RANGE
        first = math.sqrt(low * high) if l1_weight is None else l1_weight
        cost = torch.zeros_like(start) if game.starts_free else torch.ones_like(start)
        noise_values = None
        if noise:
            keys = image_keys(image, seed=seed)
            noise_values = random_normal(keys, start[0].numel()).view_as(start)
        self.state = _State(
            index=torch.arange(len(start), device=start.device), start=start, end=end, target=target, goal=goals,
            cost=cost, best=cost.clone(), best_rank=ones * math.inf, l1_weight=ones * first, l1_low=ones * low,
            l1_high=ones * high, round=torch.zeros_like(target), step=torch.zeros_like(target), noise=noise_values,
        )
        self.result = torch.empty_like(start)
        shift_key = torch.full((1,), seed + _NOISE_SALT, dtype=torch.long, device=start.device)
        self.shifts = random_bits(shift_key, 4096)[0].tolist() if noise else None

    def run(self) -> torch.Tensor:
        with tqdm(total=self.budget, disable=not self.progress, desc="fgvis", unit="step") as bar:
            for iteration in range(1, self.budget + 1):
                done = self._iterate(iteration)
                bar.update()
                if done is not None:
                    self._retire(done)
                    bar.set_postfix(images=len(self.state.index), refresh=False)
                if not len(self.state.index) or time.monotonic() > self.deadline:
                    break
        self.result[self.state.index] = self.state.best
        return self.result

    def _retire(self, done: torch.Tensor) -> None:
        state = self.state
        self.result[state.index[done]] = state.best[done]
        left = (~done).nonzero()[:, 0]
        self.state = state.select(left)
        if self.guard is not None and len(left):
            self.guard.select(left)

    def _iterate(self, iteration: int) -> torch.Tensor | None:
        state, game = self.state, self.game
        perturbed = torch.lerp(state.start, state.end, state.cost)
        if self.noise:
            shift = self.shifts[iteration % len(self.shifts)] % perturbed[0].numel()
            perturbed.add_(state.noise.flatten(1).roll(shift, 1).view_as(perturbed), alpha=self.noise)
        with torch.enable_grad():
            perturbed.requires_grad_()
            logits = self.classifier(perturbed).float()
            own = logits.gather(1, state.target[:, None])[:, 0]
            others = logits.scatter(1, state.target[:, None], -math.inf).logsumexp(1)
            odds = own - others
            (gradient,) = torch.autograd.grad(odds.sum(), perturbed)
        with torch.no_grad():
            score = odds.detach().sigmoid()
            # what one unit of cost, at each pixel and colour, does for the game
            gain = gradient.mul_(state.end - state.start)
            if game.removes:
                gain.neg_()
            free = gain * (state.cost < 1)
            peak = free.flatten(1).amax(1)
            met = score <= state.goal if game.removes else score >= state.goal
            spent = state.cost.flatten(1).mean(1)
            shortfall = (score - state.goal).abs()
            rank = torch.where(met, spent, 1 + shortfall)
            better = rank < state.best_rank
            state.step += 1
            over = state.step >= self.round_steps
            if game.starts_free:
                over = over | met
            flags = torch.stack([~torch.isfinite(peak), better, over]).any(1).tolist()
            if flags[0]:
                bad = int((~torch.isfinite(peak)).nonzero()[0])
                raise ValueError(
                    f"The gradient for image {int(state.index[bad])} is not finite at iteration {iteration}; check the "
                    "classifier's weights and `pixel_values`, or use a wider dtype."
                )
            if flags[1]:
                state.best = torch.where(better[:, None, None, None], state.cost, state.best)
                state.best_rank = torch.where(better, rank, state.best_rank)
            peak = peak.clamp_min(torch.finfo(peak.dtype).tiny)
            move = gain.div_(peak[:, None, None, None]).sub_(state.l1_weight[:, None, None, None])
            state.cost = move.mul_(self.learning_rate).add_(state.cost).clamp_(0, 1)
            if not flags[2]:
                return None
            # Round over: bisect the L1 weight, and start again
            state.l1_low = torch.where(over & met, state.l1_weight, state.l1_low)
            state.l1_high = torch.where(over & ~met, state.l1_weight, state.l1_high)
            state.l1_weight = torch.where(over, (state.l1_low * state.l1_high).sqrt(), state.l1_weight)
            state.round += over
            state.step.masked_fill_(over, 0)
            state.cost[over] = 0.0 if game.starts_free else 1.0
            done = state.round >= self.rounds
        return done if bool(done.any()) else None
