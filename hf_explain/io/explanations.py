"""What the pipeline returns: dictionaries and a list, which show themselves in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from hf_explain.io.images import load_rgb
from hf_explain.io.labels import short_label


_CELL = 260  # pixels of a panel in a notebook: four fit its width


class Explanation(dict):
    """
    One map of one image: a dictionary with `label`, `score`, `saliency`, `saliency_map`, `method` and `method_options`
    (see [`SaliencyPipeline`]), that a notebook shows as a picture.

    Attributes:
        source: What the image was given as; the decoded image where it came from the net.
        crop (`tuple[int, int, int, int]`, *optional*): `(left, top, right, bottom)` of what the classifier saw, in
            pixels of the image; `None` where it saw all of it.
        signed (`bool`): Whether the map lies in [-1, 1].
    """

    def __init__(self, values: Mapping[str, Any], source: Any = None, crop=None, signed: bool = False):
        super().__init__(values)
        self.source, self.crop, self.signed = source, crop, signed

    @property
    def caption(self) -> str:
        """The score first: a long label is cut at its end."""
        return f"{self['score']:.2f} {short_label(self['label'])}"

    def picture(self, **options: Any):
        """As [`Explanations.picture`]."""
        return Explanations([self]).picture(**options)

    def _repr_png_(self) -> bytes:
        return Explanations([self])._repr_png_()

    def _repr_html_(self) -> str:
        return Explanations([self])._repr_html_()


class Explanations(list):
    """The maps of one image, an [`Explanation`] for each class; a notebook shows them beside the image."""

    def __init__(self, explanations: Iterable[Explanation] = ()):
        super().__init__(explanations)

    def picture(self, *, cell_size: int = _CELL, **options: Any):
        """
        The image and its maps side by side.

        Args:
            cell_size (`int`, *optional*, defaults to 260): Longer side of a panel in pixels.
            options: As for [`~hf_explain.io.pictures.explanation_sheet`].

        Returns:
            `PIL.Image.Image`: RGB. Without the image, where what it was given as cannot be read again.
        """
        from hf_explain.io.pictures import explanation_sheet  # matplotlib is for those who look

        first = self[0]
        maps = [one["saliency_map"] for one in self]
        try:
            image = load_rgb(first.source)
        except (ValueError, TypeError, OSError):
            image = None
        if image is not None and (image.height, image.width) != maps[0].shape:
            image = None  # another one by now
        methods, captions = [one["method"] for one in self], [[one.caption for one in self]]
        options = {"crop": first.crop, "signed": first.signed, **options}
        return explanation_sheet(image, [maps], methods, captions, cell_size=cell_size, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.picture().save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        from hf_explain.io.html import picture_source

        said = ", ".join(f"{one['label']} {one['score']:.2f}" for one in self)
        about = html.escape(f"Saliency by {self[0]['method']}: {said}", quote=True)
        return f'<img src="{picture_source(self.picture())}" alt="{about}" style="max-width: 100%">'
