"""`hf-explain push` and `hf-explain push-metric`."""

from __future__ import annotations

import argparse


def add_push_commands(commands) -> None:
    """
    Add both commands to a command line.

    Args:
        commands: What `ArgumentParser.add_subparsers` returned.
    """
    parser = commands.add_parser(
        "push",
        help="publish a trained head on the Hub",
        description="Publish a trained head: weights, configuration, image processor, card, records and pictures, in "
        "one commit. Lists the files before it sends them.",
    )
    parser.add_argument("directory", metavar="DIR", help="what training or save_pretrained wrote")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository; created where missing")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request on an existing repository")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    code = parser.add_mutually_exclusive_group()
    code.add_argument(
        "--self-contained-code",
        dest="code",
        action="store_const",
        const="self-contained",
        help="add a flat copy of the code, for people with Transformers alone and trust_remote_code=True",
    )
    code.add_argument(
        "--stub-code", dest="code", action="store_const", const="stub", help="add a file that says what to install"
    )
    card = parser.add_argument_group("the card, where the directory has no README.md; what is left out stays unknown")
    card.add_argument("--license", help="licence of the weights, such as apache-2.0")
    card.add_argument("--dataset", help="name of the training data, where the record has only a local path")
    card.add_argument("--evaluation-dataset", help="name of the evaluation's data, likewise")
    card.add_argument("--explainer", help="name of this head in an evaluation that compares several")
    card.add_argument("--picture", help="image file in DIR that the card shows")
    card.add_argument("--limitations", help="markdown added to the card's limitations")
    _add_shared(parser)
    parser.set_defaults(run=_push)

    parser = commands.add_parser(
        "push-metric",
        help="publish a metric as a Space, for evaluate.load",
        description="Publish one of the package's metrics as a Space, where evaluate.load finds it.",
    )
    parser.add_argument("metric", help="a metric of the package, such as auc_d")
    parser.add_argument("--repo", required=True, metavar="USER/METRIC", help="Space; ends in the metric's name")
    _add_shared(parser)
    parser.set_defaults(run=_push_metric)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="check and list, send nothing")


def _push(args: argparse.Namespace) -> None:
    from hf_explain.hub import push_explainer

    names = ("license", "dataset", "evaluation_dataset", "explainer", "picture", "limitations")
    push_explainer(
        args.directory,
        args.repo,
        private=args.private,
        create_pr=args.create_pr,
        revision=args.revision,
        code=args.code,
        dry_run=args.dry_run,
        **{name: getattr(args, name) for name in names if getattr(args, name) is not None},
    )


def _push_metric(args: argparse.Namespace) -> None:
    from hf_explain.hub import push_metric

    push_metric(args.metric, args.repo, private=args.private, dry_run=args.dry_run)
