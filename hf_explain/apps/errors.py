"""`hf-explain errors`: a classifier and a labelled data set in; its mistakes, grouped by where it looked, out."""

from __future__ import annotations

from typing import Any

from hf_explain.apps.arguments import ErrorsCommand
from hf_explain.apps.command_line import part_of
from hf_explain.evaluation.arguments import ErrorStudyArguments
from hf_explain.evaluation.error_report import summary_lines, write_report
from hf_explain.evaluation.error_study import study_errors
from hf_explain.io.files import check_writable
from hf_explain.io.paths import output_folder
from hf_explain.io.processes import choose_device
from hf_explain.pipeline import load_pipeline
from hf_explain.registry import DEFAULT_METHOD, resolve_method


def run(arguments: ErrorsCommand) -> dict[str, Any]:
    """
    Load, study, write.

    Args:
        arguments ([`ErrorsCommand`]): Whose errors, on what, and what counts.

    Returns:
        `dict`: What `errors.json` holds.

    Raises:
        ValueError: If an option cannot work, a column is missing, or an image or label cannot be used.
        OSError: If something cannot be read or written.
    """
    folder = output_folder(arguments.output_dir)
    if arguments.method is not None:
        resolve_method(arguments.method)
    data = arguments.load()
    device = choose_device(arguments.device)
    pipe = load_pipeline(
        arguments.model, revision=arguments.revision, device=device, trust_remote_code=arguments.trust_remote_code
    )
    method = arguments.method or (DEFAULT_METHOD if pipe.head is None else None)
    for name in arguments.method_options:
        if name != method:
            raise ValueError(f"method_option names {name!r}, but the maps are made by {method or 'the trained head'}.")
    check_writable(folder)
    study = study_errors(
        pipe,
        data,
        part_of(arguments, ErrorStudyArguments),
        method=method,
        method_options=arguments.method_options.get(method) if method else None,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        mask_column=arguments.mask_column,
        batch_size=arguments.batch_size,
        max_examples=arguments.max_examples,
        seed=arguments.seed,
        dataset_info=arguments.describe(),
        progress=arguments.progress,
    )
    write_report(study, folder, arguments.pictures)
    print("\n".join(summary_lines(study.result)))
    print(f"\nPage: {folder / 'index.html'}")
    return study.result
