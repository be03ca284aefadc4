"""`hf-explain onnx`: a head and its classifier as one ONNX graph, and a page that runs it in a browser."""

from __future__ import annotations

from pathlib import Path

from hf_explain.apps.arguments import OnnxCommand
from hf_explain.publish.onnx import OPSET, export_onnx, write_page
from hf_explain.registry import AutoModelForSaliency


def run(arguments: OnnxCommand) -> None:
    """
    Write the graph, see [`~hf_explain.publish.onnx.export_onnx`], and print what it is.

    Args:
        arguments ([`OnnxCommand`]): Which head, to where.

    Raises:
        ValueError: If the head cannot be written, or its graph is not the same function.
        OSError: If something does not exist or cannot be written.
    """
    output = Path(arguments.output)
    if not arguments.page and output.is_dir():
        raise IsADirectoryError(
            f"`output` {arguments.output!r} is a folder; name a file in it, such as {output / 'head.onnx'}, or add "
            "--page."
        )
    head = AutoModelForSaliency.from_pretrained(
        arguments.directory, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code
    )
    if arguments.page:
        export, page = write_page(head, output, runtime=arguments.runtime)
    else:
        export, page = export_onnx(head, output), None
    print(
        f"{export.path}: {type(head).__name__} on {type(head.attached.model).__name__}, opset {OPSET}, "
        f"{export.num_bytes / 2**20:.1f} MiB; maps within {export.saliency_error:.1e} and logits within "
        f"{export.logits_error:.1e} of PyTorch's"
    )
    if page is not None:
        print(f"{page}: serve the folder and open it, e.g. python -m http.server --directory {output}")
