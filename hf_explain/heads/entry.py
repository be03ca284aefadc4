"""What is known of a trained head besides its code: one entry, in the head's own folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel


@dataclass(frozen=True)
class Head:
    """
    A trained head: its classes, and the paper that its cards name.

    Args:
        model (`type[ExplainerPreTrainedModel]`): The model class. It names the configuration class (`config_class`),
            whose `model_type` is the head's name on the command line and in files, and its presets.
        name (`str`): What its paper calls it.
        summary (`str`): How it works, in a sentence or two.
        paper (`str`): The paper's title.
        url (`str`): Where to read it.
        citation (`str`): BibTeX.
        variants (`dict[str, str]`, *optional*): What the paper calls its variants, by the configuration's `variant`.
    """

    model: type[ExplainerPreTrainedModel]
    name: str
    summary: str
    paper: str
    url: str
    citation: str
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> type[ExplainerConfig]:
        """The configuration class."""
        return self.model.config_class

    @property
    def model_type(self) -> str:
        """The head's name on the command line and in files."""
        return self.config.model_type

    @property
    def package(self) -> str:
        """The package that brings the head: this one, or another one that registers it when it is imported."""
        return self.model.__module__.partition(".")[0]

    def title(self, config: Mapping[str, Any]) -> str:
        """
        The name of one trained head: the paper's for its variant, and what its configuration adds to the paper.

        Args:
            config (`dict`): The head's configuration, as config.json has it.
        """
        title = self.variants.get(config.get("variant", ""), self.name)
        added = [
            words
            for name, words in self.config.additions.items()
            if config.get(name, getattr(self.config, name)) != getattr(self.config, name)
        ]
        if added:
            listed = " and ".join(filter(None, [", ".join(added[:-1]), added[-1]]))
            title += f" (with this package's {listed}; not in the paper)"
        return title
