#!/usr/bin/env python
"""
How near a Shapley head's values, made in one pass, come to those of long Kernel SHAP runs on the same cells and fill.

    python scripts/measure_shapley.py --head DIR --dataset data.parquet --split test --max_examples 12 -o FILE

Kernel SHAP runs twice, with different samples: what one run says of the other is the most that can be asked of the
head. Beside it stand the positive part of a training-free method's map, and what the values lack to add up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.evaluation.inputs import ExampleReader
from hf_explain.heads.shapley.modeling_shapley import ShapleyForSaliency
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.files import write_json_file
from hf_explain.methods.sampling import kernel_shap
from hf_explain.metrics.statistics import bootstrap_interval
from hf_explain.registry import default_method
from hf_explain.tensors.grids import cell_means


# What Kernel SHAP calls the fills that both know
MASK_SPACES = {"mean": "normalized", "black": "pixel"}


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """
    By what is compared with the first long run: each image's correlation over the cells, and, where the values are
    Shapley values too, the mean absolute error as a part of the mean absolute value.
    """
    head = ShapleyForSaliency.from_pretrained(args.head).eval()
    if head.config.fill not in MASK_SPACES:
        raise SystemExit(
            f"error: --head {args.head!r} fills with {head.config.fill}, which Kernel SHAP cannot; train one with "
            f"--head_option fill={' or fill='.join(MASK_SPACES)}."
        )
    method, options = default_method(head.backbone)
    explainer, other = resolve_explainer(head), resolve_explainer(head.backbone, method, options)
    reader = ExampleReader(load_image_dataset(args.dataset, args.split), explainer, max_examples=args.max_examples)
    found: dict[str, dict[str, list[float]]] = {}

    def add(name: str, key: str, values: torch.Tensor) -> None:
        found.setdefault(name, {}).setdefault(key, []).extend(values.tolist())

    for _, rows in reader.shards(args.batch_size, lambda shard: True):
        pixel_values = torch.stack([reader.read(index, row).pixel_values for index, row in rows])
        pixel_values, ids = pixel_values.to(head.backbone.device), torch.tensor([index for index, _ in rows])
        output = explainer.explain(pixel_values, None, ids)
        values = output.contributions
        assert values is not None
        cells = tuple(values.shape[-2:])
        long = [
            kernel_shap(
                head.backbone,
                pixel_values,
                output.target,
                num_samples=args.num_samples,
                grid=cells,
                mask_space=MASK_SPACES[head.config.fill],
                seed=seed,
                batch_size=64,
            ).contributions
            for seed in (args.seed, args.seed + 1)
        ]
        simple = other.explain(pixel_values, output.target, ids).saliency.float()
        simple = cell_means(simple, cells, pixel_values.shape[-2:])
        for name, one in (("head", values), ("second run", long[1]), (method, simple)):
            add(name, "correlation", correlation(one, long[0]))
        for name, one in (("head", values), ("second run", long[1])):
            add(name, "error", (one - long[0]).abs().mean((1, 2)) / long[0].abs().mean((1, 2)))
        whole = output.logits.float().softmax(-1).gather(1, output.target[:, None])[:, 0]
        nothing = head.nothing.float()[output.target]
        add("head", "lacks", (values.sum((1, 2)) - (whole - nothing)).abs())
        print(f"{len(found['head']['lacks'])} of {reader.total} images", flush=True)
    return found


def correlation(maps: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Pearson's, of each image; shape `(batch_size,)`."""
    one, two = (values.flatten(1).double() for values in (maps, others))
    return F.cosine_similarity(one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True))


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = ["| against one long run | correlation | error, part of the mean value |", "|---|---:|---:|"]
    for name, numbers in found.items():
        cells = []
        for key in ("correlation", "error"):
            if key not in numbers:
                cells.append("–")
                continue
            values = torch.tensor(numbers[key], dtype=torch.float64)
            low, high = (bound.item() for bound in bootstrap_interval(values))
            cells.append(f"{values.mean():.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"\nThe head's values lack {max(found['head']['lacks']):.1e} at most to add up.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", required=True, help="directory or Hub id of a Shapley head")
    parser.add_argument("--dataset", required=True, help="data set: file, directory or Hub id")
    parser.add_argument("--split", default="test", help="its split (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=4000, help="of a long run (default: %(default)s)")
    parser.add_argument("--max_examples", type=int, default=12, help="only the first images (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="images at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first long run; the second has the next")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file of every image's numbers")
    args = parser.parse_args()
    found = measure(args)
    write_json_file(args.output, found)
    print(table(found))


if __name__ == "__main__":
    main()
