"""`hf-explain push`, `hf-explain push-metric` and `hf-explain card`."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_explain.apps.arguments import CardCommand, CardFields, PushCardFields, PushCommand, PushMetricCommand
from hf_explain.apps.command_line import part_of
from hf_explain.publish.cards import write_model_cards
from hf_explain.publish.hub import push_explainer, push_metric


def run(arguments: PushCommand) -> None:
    """Publish a trained head, see [`~hf_explain.publish.hub.push_explainer`]."""
    push_explainer(
        arguments.directory,
        arguments.repo,
        private=arguments.private,
        create_pr=arguments.create_pr,
        revision=arguments.revision,
        code=arguments.code,
        dry_run=arguments.dry_run,
        **_given(arguments, PushCardFields),
    )


def run_metric(arguments: PushMetricCommand) -> None:
    """Publish a metric, see [`~hf_explain.publish.hub.push_metric`]."""
    push_metric(arguments.metric, arguments.repo, private=arguments.private, dry_run=arguments.dry_run)


def run_card(arguments: CardCommand) -> None:
    """Write cards, see [`~hf_explain.publish.cards.write_model_cards`], and print where they are."""
    for path in write_model_cards(
        arguments.directories,
        arguments.output_dir,
        evaluations=arguments.evaluation,
        user=arguments.user,
        unreleased=arguments.unreleased,
        **_given(arguments, CardFields),
    ):
        print(path)


def _given(arguments: CardFields, kind: type[CardFields]) -> dict[str, Any]:
    fields = dataclasses.asdict(part_of(arguments, kind))
    return {name: value for name, value in fields.items() if value is not None}
