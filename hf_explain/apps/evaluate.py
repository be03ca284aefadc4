"""`hf-explain evaluate` and `scripts/evaluate_explainers.py`: explainers and a data set in, a comparison out."""

from __future__ import annotations

import os
import shlex
from typing import Any

from hf_explain.apps.arguments import EvaluateCommand
from hf_explain.apps.command_line import as_words, part_of
from hf_explain.evaluation.arguments import ComparisonArguments
from hf_explain.evaluation.comparison import parse_explainers, run_comparison


def run(arguments: EvaluateCommand) -> dict[str, Any]:
    """
    Load, compare, write.

    Args:
        arguments ([`EvaluateCommand`]): What is compared, on what and how.

    Returns:
        `dict`: See [`~hf_explain.evaluation.comparison.compare`].

    Raises:
        ValueError: If an option cannot work, or an explainer failed; the results of the others are kept.
        OSError: If something cannot be read or written.
    """
    explainers = parse_explainers(arguments.explainers)
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    program = ["accelerate", "launch", "scripts/evaluate_explainers.py"] if launched else ["hf-explain", "evaluate"]
    comparison = run_comparison(
        arguments.classifier,
        arguments.load(),
        explainers,
        part_of(arguments, ComparisonArguments),
        command=[*program, *as_words(arguments)],
        revision=arguments.classifier_revision,
        attn_implementation=arguments.attn_implementation,
        trust_remote_code=arguments.trust_remote_code,
        **arguments.classes,
    ).to_json()
    failed = [name for name, result in comparison["explainers"].items() if "error" in result]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(comparison['explainers'])} explainers failed ({', '.join(failed)}); the reasons "
            f"and the results of the others are in {shlex.quote(os.fspath(arguments.output_dir))}."
        )
    return comparison
