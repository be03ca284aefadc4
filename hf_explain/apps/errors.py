"""`hf-explain errors`: a classifier and a labelled data set in; its mistakes, grouped by where it looked, out."""

from __future__ import annotations

import contextlib
from typing import Any

from hf_explain.apps.arguments import ErrorsCommand
from hf_explain.apps.command_line import part_of
from hf_explain.evaluation.arguments import ErrorStudyArguments
from hf_explain.evaluation.error_report import summary_lines, write_report
from hf_explain.evaluation.error_study import study_errors
from hf_explain.io.files import check_writable, lock_directory, remove_directory, remove_leftovers
from hf_explain.io.paths import output_folder
from hf_explain.io.processes import choose_device
from hf_explain.pipeline import load_pipeline
from hf_explain.registry import default_method, resolve_method


PARTIAL_FOLDER = "partial_results"  # in the output folder, while the study is going on


def run(arguments: ErrorsCommand) -> dict[str, Any]:
    """
    Load, study, write. A study that was killed goes on where it stopped.

    Args:
        arguments ([`ErrorsCommand`]): Whose errors, on what, and what counts.

    Returns:
        `dict`: What `errors.json` holds.

    Raises:
        ValueError: If an option cannot work, a column is missing, or an image or label cannot be used.
        OSError: If something cannot be read or written, or another run is writing there.
    """
    folder = output_folder(arguments.output_dir)
    if arguments.method is not None:
        resolve_method(arguments.method)
    data = arguments.load()
    device = choose_device(arguments.device)
    pipe = load_pipeline(
        arguments.model,
        revision=arguments.revision,
        device=device,
        trust_remote_code=arguments.trust_remote_code,
        **arguments.classes,
    )
    method = arguments.method or (default_method(pipe.classifier)[0] if pipe.head is None else None)
    for name in arguments.method_options:
        if name != method:
            raise ValueError(f"method_option names {name!r}, but the maps are made by {method or 'the trained head'}.")
    with lock_directory(folder):
        check_writable(folder)
        remove_leftovers(folder, r"(\.write_test|errors\.(md|json)|index\.html)\.tmp")
        partial = folder / PARTIAL_FOLDER
        try:
            study = study_errors(
                pipe,
                data,
                part_of(arguments, ErrorStudyArguments),
                method=arguments.method,
                method_options=arguments.method_options.get(method) if method else None,
                image_column=arguments.image_column,
                label_column=arguments.label_column,
                mask_column=arguments.mask_column,
                batch_size=arguments.batch_size,
                max_examples=arguments.max_examples,
                seed=arguments.seed,
                output_dir=partial,
                shard_size=arguments.shard_size,
                dtype=arguments.dtype,
                dataset_info=arguments.describe(),
                progress=arguments.progress,
            )
        except BaseException:
            with contextlib.suppress(OSError):
                partial.rmdir()  # where nothing was finished
            raise
        write_report(study, folder, arguments.pictures)
        remove_directory(partial)
    print("\n".join(summary_lines(study.result)))
    print(f"\nPage: {folder / 'index.html'}")
    return study.result
