"""`hf-explain errors`: a classifier and a labelled data set in; its mistakes, grouped by where it looked, out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

from hf_explain.apps.evaluate import add_data_arguments, parse_dotted
from hf_explain.evaluation.error_report import summary_lines, write_report
from hf_explain.evaluation.error_study import ErrorStudyArguments, study_errors
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.files import check_writable
from hf_explain.io.paths import public_name
from hf_explain.registry import DEFAULT_METHOD, resolve_method
from hf_explain.tensors.scalars import check_count


def add_errors_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of `main_from_args` to `parser`."""
    default = ErrorStudyArguments()
    what = parser.add_argument_group("whose errors")
    what.add_argument("--model", required=True, help="trained head or plain classifier: directory or Hub id")
    what.add_argument("--revision", help="branch, tag or commit of the model")
    what.add_argument("--method", help="training-free method; the head itself, or gradcam for a plain classifier")
    what.add_argument(
        "--method_option",
        action="append",
        default=[],
        metavar="METHOD.OPTION=VALUE",
        help="an option of the method, e.g. rise.num_masks=1000; may be repeated",
    )
    add_data_arguments(parser, masks="column of the object's masks; without it the border is looked at")
    how = parser.add_argument_group("what counts")
    how.add_argument(
        "--region_percent",
        type=float,
        default=default.region_percent,
        help="size of a map's region, in percent of its pixels (default: %(default)s)",
    )
    how.add_argument(
        "--same_region",
        type=float,
        default=default.same_region,
        help="least share in common of regions that are the same (default: %(default)s)",
    )
    how.add_argument(
        "--different_regions",
        type=float,
        default=default.different_regions,
        help="greatest share in common of regions that differ (default: %(default)s)",
    )
    how.add_argument(
        "--min_images",
        type=int,
        default=default.min_images,
        help="least images of a class that is tested for a bias (default: %(default)s)",
    )
    how.add_argument(
        "--min_excess",
        type=float,
        default=default.min_excess,
        help="least share of a class' region off the object above the other classes' (default: %(default)s)",
    )
    how.add_argument(
        "--significance",
        type=float,
        default=default.significance,
        help="greatest corrected p-value of a bias (default: %(default)s)",
    )
    how.add_argument(
        "--permutations",
        type=int,
        default=default.permutations,
        help="reassignments of the permutation test (default: %(default)s)",
    )
    how.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    how.add_argument("--batch_size", type=int, default=8, help="images per pass (default: %(default)s)")
    how.add_argument("--device", help="torch device; a GPU where there is one")
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output_dir", required=True, help="folder of errors.json, errors.md and index.html")
    out.add_argument("--pictures", type=int, default=4, help="images shown of each kind (default: %(default)s)")
    out.add_argument("--no_progress", action="store_true", help="no progress bars")


def main_from_args(args: argparse.Namespace) -> dict[str, Any]:
    """
    Load, study, write.

    Args:
        args (`argparse.Namespace`): What a parser with `add_errors_arguments` parsed.

    Returns:
        `dict`: What `errors.json` holds.

    Raises:
        ValueError: If an option cannot work, a column is missing, or an image or label cannot be used.
        OSError: If something cannot be read or written.
    """
    arguments = ErrorStudyArguments(
        region_percent=args.region_percent,
        same_region=args.same_region,
        different_regions=args.different_regions,
        min_images=args.min_images,
        min_excess=args.min_excess,
        significance=args.significance,
        permutations=args.permutations,
    )
    check_count(args.pictures, "pictures", minimum=0)
    options = parse_dotted(args.method_option, "method_option")
    if args.method is not None:
        resolve_method(args.method)
    data = load_image_dataset(
        args.dataset, args.split, args.dataset_config, args.dataset_revision, streaming=args.streaming
    )
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = pipeline("saliency", model=args.model, revision=args.revision, device=device)
    method = args.method or (DEFAULT_METHOD if pipe.head is None else None)
    for name in options:
        if name != method:
            raise ValueError(f"method_option names {name!r}, but the maps are made by {method or 'the trained head'}.")
    folder = Path(args.output_dir)
    check_writable(folder)
    study = study_errors(
        pipe,
        data,
        arguments,
        method=method,
        method_options=options.get(method),
        image_column=args.image_column,
        label_column=args.label_column,
        mask_column=args.mask_column,
        batch_size=args.batch_size,
        max_examples=args.max_examples,
        seed=args.seed,
        dataset_info={
            "name": public_name(args.dataset),
            "split": args.split,
            "config": args.dataset_config,
            "revision": args.dataset_revision,
        },
        progress=not args.no_progress,
    )
    write_report(study, folder, args.pictures)
    print("\n".join(summary_lines(study.result)))
    print(f"\nPage: {folder / 'index.html'}")
    return study.result
