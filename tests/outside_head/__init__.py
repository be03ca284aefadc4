"""A head of somebody else's package, which registers it when it is imported."""

from hf_explain.heads.entry import Head
from hf_explain.registry import register_head

from .modeling_outside import OutsideForSaliency


register_head(
    Head(
        model=OutsideForSaliency,
        name="Outside",
        summary="One weight per channel, the same for every class.",
        paper="A Head From Outside",
        url="https://example.org/outside",
        citation="@misc{outside2026}",
    )
)
