"""`hf-explain explain`: images in, pictures of where the classifier looked out."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm.auto import tqdm

from hf_explain.apps.arguments import ExplainCommand
from hf_explain.apps.command_line import parse_value
from hf_explain.io.images import load_rgb
from hf_explain.io.pictures import overlay, saliency_grid, save_image
from hf_explain.io.processes import choose_device
from hf_explain.pipeline import load_pipeline


def run(arguments: ExplainCommand) -> None:
    """
    Explain every image and write its picture.

    Args:
        arguments ([`ExplainCommand`]): Which images, by what, to where.

    Raises:
        ValueError: If an option cannot work, or an image cannot be read.
        OSError: If something does not exist or cannot be written.
    """
    images, output = arguments.images, Path(arguments.output)
    several = len(images) > 1
    if several and output.suffix.lower() in {".png", ".jpg", ".jpeg"}:
        raise ValueError(f"--output {arguments.output!r} is one picture for {len(images)} images; give a folder.")
    if several:
        output.mkdir(parents=True, exist_ok=True)
    elif output.is_dir():
        output = output / f"{Path(images[0]).stem}.png"
    pipe = load_pipeline(
        arguments.model,
        revision=arguments.revision,
        device=choose_device(arguments.device),
        trust_remote_code=arguments.trust_remote_code,
        **arguments.classes,
    )
    results = pipe(
        ({"image": source} for source in images),
        target=[_class(word) for word in arguments.target] or None,
        top_k=arguments.top_k,
        method=arguments.method,
        signed=arguments.signed,
        against=None if arguments.against is None else _class(arguments.against),
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        on_error="raise" if arguments.on_error == "raise" else "return",
    )
    for source, result in tqdm(zip(images, results), total=len(images), disable=not (several and arguments.progress)):
        if "error" in result[0]:
            print(f"{source}: skipped: {result[0]['error']}", file=sys.stderr)
            continue
        image = load_rgb(source)
        captions = [f"{one['label']} {one['score']:.2f}" for one in result]
        panels = [
            image,
            *(overlay(image, one["saliency_map"], signed=arguments.signed, legend=arguments.signed) for one in result),
        ]
        path = output / f"{Path(source).stem}.png" if several else output
        # the score first: a long label is cut at its end
        columns = ["image", *(f"{one['score']:.2f} {one['label']}" for one in result)]
        save_image(saliency_grid([panels], columns=columns, cell_size=256), path)
        print(f"{source}: {', '.join(captions)} -> {path}")
    if stated := pipe.stated_precision(arguments.method):
        print("precision: {dtype} ({reason})".format(**stated["precision"]))


def _class(word: str) -> int | str:
    """A class by its index, or else by its name, whatever else that could be."""
    value = parse_value(word)
    return value if type(value) is int else word
