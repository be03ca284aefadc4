"""`hf-explain explain`: images in, pictures of where the classifier looked out."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_explain_arguments(commands) -> None:
    parser = commands.add_parser(
        "explain",
        help="explain images and write pictures",
        description="Explain one or more images and write each as a picture: the image, and the map of every class.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="path or http(s) URL")
    parser.add_argument("--model", required=True, help="trained head or plain classifier: directory or Hub id")
    parser.add_argument("-o", "--output", required=True, help="picture to write; a folder for several images")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument("--method", help="training-free method, such as gradcam; the head itself when not given")
    parser.add_argument("--target", action="append", help="class index or label name; repeat for several")
    parser.add_argument("--top_k", "--top-k", type=int, default=1, help="classes to explain (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=1, help="images per pass")
    parser.set_defaults(run=main_from_args)


def main_from_args(args: argparse.Namespace) -> None:
    from tqdm.auto import tqdm
    from transformers import pipeline

    import hf_explain.pipeline  # noqa: F401  registers the task
    from hf_explain.io.images import load_rgb
    from hf_explain.io.pictures import overlay, saliency_grid, save_image

    output = Path(args.output)
    several = len(args.images) > 1
    if several and output.suffix.lower() in {".png", ".jpg", ".jpeg"}:
        raise ValueError(f"--output {args.output!r} is one picture for {len(args.images)} images; give a folder.")
    if several:
        output.mkdir(parents=True, exist_ok=True)
    elif output.is_dir():
        output = output / f"{Path(args.images[0]).stem}.png"
    pipe = pipeline("saliency", model=args.model, revision=args.revision, device=args.device)
    target = None
    if args.target:
        target = [int(one) if one.lstrip("-").isdigit() else one for one in args.target]
    results = pipe(
        ({"image": source} for source in args.images),
        target=target,
        top_k=args.top_k,
        method=args.method,
        batch_size=args.batch_size,
    )
    pairs = zip(args.images, results)
    for source, result in tqdm(pairs, total=len(args.images), disable=not several):
        image = load_rgb(source)
        captions = [f"{one['label']} {one['score']:.2f}" for one in result]
        panels = [image, *(overlay(image, one["saliency_map"]) for one in result)]
        path = output / f"{Path(source).stem}.png" if several else output
        # the score first: a long label is cut at its end
        columns = ["image", *(f"{one['score']:.2f} {one['label']}" for one in result)]
        save_image(saliency_grid([panels], columns=columns, cell_size=256), path)
        print(f"{source}: {', '.join(captions)} -> {path}")
