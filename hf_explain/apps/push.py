"""`hf-explain push`, `hf-explain push-metric` and `hf-explain card`."""

from __future__ import annotations

import argparse


def add_push_commands(commands) -> None:
    """
    Add the three commands to a command line.

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
    _add_card_fields(card)
    card.add_argument("--evaluation", metavar="FILE", help="results.json (default: evaluation.json in DIR)")
    card.add_argument("--explainer", help="name of this head in there, where its weights do not tell")
    card.add_argument("--picture", help="image file in DIR that the card shows")
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

    parser = commands.add_parser(
        "card",
        help="write model cards of trained heads into a folder",
        description="Write the model card of every head as HEAD-CLASSIFIER.md, to be read by a person before it is "
        "released. HEAD is the head's name in the evaluation that measured its weights; pictures/HEAD-CLASSIFIER.png "
        "in the folder is shown on the card.",
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", help="what training or save_pretrained wrote")
    parser.add_argument("-o", "--output_dir", "--output-dir", required=True, metavar="FOLDER", help="gets the cards")
    parser.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results.json of one or more evaluations; each head's is the one that measured its weights (default: "
        "evaluation.json in DIR)",
    )
    parser.add_argument("--user", help="whose repositories the snippets name")
    _add_card_fields(parser)
    parser.set_defaults(run=_card)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="check and list, send nothing")


_CARD_FIELDS = ("license", "dataset", "evaluation_dataset", "data_terms", "limitations")


def _add_card_fields(parser) -> None:
    """What no record can know, or knows by a local name only; what is left out is named as unknown on the card."""
    parser.add_argument("--license", help="licence of the weights, such as apache-2.0")
    parser.add_argument("--dataset", help="name of the training data, where the record has only a local one")
    parser.add_argument("--evaluation-dataset", help="name of the evaluation's data, likewise")
    parser.add_argument("--data-terms", help="terms of the training data, in a sentence")
    parser.add_argument("--limitations", help="markdown added to the card's limitations")


def _given(args: argparse.Namespace, *names: str) -> dict[str, str]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _card(args: argparse.Namespace) -> None:
    from hf_explain.publish.cards import write_model_cards

    fields = _given(args, *_CARD_FIELDS)
    for path in write_model_cards(
        args.directories, args.output_dir, evaluations=args.evaluation, user=args.user, **fields
    ):
        print(path)


def _push(args: argparse.Namespace) -> None:
    from hf_explain.publish.hub import push_explainer

    push_explainer(
        args.directory,
        args.repo,
        private=args.private,
        create_pr=args.create_pr,
        revision=args.revision,
        code=args.code,
        dry_run=args.dry_run,
        **_given(args, *_CARD_FIELDS, "evaluation", "explainer", "picture"),
    )


def _push_metric(args: argparse.Namespace) -> None:
    from hf_explain.publish.hub import push_metric

    push_metric(args.metric, args.repo, private=args.private, dry_run=args.dry_run)
