"""A web page to explain pictures with: upload one, pick a class, compare explainers, take the maps home.

Everything but [`build_app`] and [`launch`] works without Gradio, which the extra `demo` installs.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from hf_explain.apps.arguments import DemoCommand
from hf_explain.apps.demo_explainers import (
    MAX_COMPARED,
    Demo,
    Visit,
    as_names,
    class_choices,
    download_files,
    example_files,
)
from hf_explain.io.files import write_atomically
from hf_explain.io.paths import exists_here, is_local_path
from hf_explain.io.pictures import OPACITY
from hf_explain.publish.hub import check_repo_id


_FORGET_SECONDS = 3600
_KEPT_FOLDERS = 6  # more than events of one visitor can be on their way at once
_CSS = """
.gradio-container, .gradio-container main {width: 100% !important}
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
.panel img, .panel button:has(img), .panel div:has(> img) {width: 100% !important; height: auto !important}
.panel img {max-height: 70vh; object-fit: contain}
#message {border-left: 4px solid #D55E00; padding: 6px 12px}
#classes .wrap {max-height: 320px; overflow-y: auto}
#hint {text-align: center; padding: 48px 12px}
@media (max-width: 600px) {.gradio-container main {padding: 8px !important} #title h1 {font-size: 1.4em}}
footer {display: none !important}
"""


# ------------------------------------------------------------------------------------------------------------ the page


def launch(
    models: str | os.PathLike | Sequence[str | os.PathLike],
    classifier: str | os.PathLike | None = None,
    *,
    examples: Sequence[str | os.PathLike] | None = None,
    device: str | None = None,
    share: bool = False,
    port: int | None = None,
    block: bool = True,
):
    """
    Start the demo.

    Args:
        models, classifier, device: As for [`Demo`].
        examples: As for [`example_files`].
        share (`bool`, *optional*, defaults to `False`): Also make a temporary public link, through Gradio's servers.
        port (`int`, *optional*): Of the local server; the first free one from 7860 on when not given.
        block (`bool`, *optional*, defaults to `True`): Return only when the server stops.

    Returns:
        `gradio.Blocks`: The running app; `close()` stops it, `local_url` says where it is.

    Raises:
        ImportError: If Gradio is not installed.
        ValueError: If `port` is none, or as for [`Demo`].
        OSError: If the port is taken, or as for [`Demo`].
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"`port` must lie in 1 to 65535, got {port}.")
    _need_gradio()
    app = build_app(Demo(models, classifier, device), examples)
    # without ssr_mode=False a Node server is started where there is one, and asks for more ports
    app.launch(
        share=share,
        server_port=port,
        prevent_thread_lock=not block,
        show_error=False,  # what a visitor can mend is on the page; anything else may name places of this machine
        footer_links=[],
        max_file_size="64mb",
        ssr_mode=False,
        css=_CSS,
        quiet=not block,
    )
    return app


def run(arguments: DemoCommand) -> None:
    """`hf-explain demo`: the page, or the files of a Space that shows it."""
    if arguments.write_space:
        print(f"Wrote {write_space(arguments.write_space, arguments.model, arguments.classifier)}")
        return
    launch(
        arguments.model,
        arguments.classifier,
        examples=arguments.examples or None,
        device=arguments.device,
        share=arguments.share,
        port=arguments.port,
    )


def build_app(demo: Demo, examples: Sequence[str | os.PathLike] | None = None):
    """
    The page, not yet served.

    Args:
        demo ([`Demo`]): What it shows.
        examples: As for [`example_files`].

    Returns:
        `gradio.Blocks`.

    Raises:
        ImportError: If Gradio is not installed.
    """
    _need_gradio()
    import gradio as gr

    work = tempfile.TemporaryDirectory(prefix="hf-explain-demo-")
    page = _Page(demo, gr, work.name)
    percentiles = [explainer.name for explainer in demo.explainers.values() if explainer.takes_percentile]
    wanted = any(name in percentiles for name in demo.default)
    first = demo.explainers[percentiles[0]].pipe.head.config.percentile if percentiles else 95.0
    with gr.Blocks(
        title="Where did the classifier look?",
        analytics_enabled=False,
        delete_cache=(_FORGET_SECONDS, _FORGET_SECONDS),
        fill_width=True,
    ) as app:
        gr.Markdown("# Where did the classifier look?", elem_id="title")
        message = gr.Markdown(visible=False, elem_id="message")
        visit = gr.State(Visit(), time_to_live=_FORGET_SECONDS, delete_callback=_forget)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], height=280, elem_id="picture", buttons=[]
                )
                gr.Examples([[path] for path in example_files(work.name, examples)], [image], label="Examples")
                chosen = gr.Dropdown(
                    list(demo.explainers),
                    value=demo.default,
                    multiselect=True,
                    max_choices=MAX_COMPARED,
                    label="Explainers",
                    info=f"Up to {MAX_COMPARED}, shown side by side.",
                    elem_id="explainers",
                )
                search = gr.Textbox(
                    label=f"Search all {len(demo.id2label)} classes", placeholder="part of a name", elem_id="search"
                )
                classes = gr.Radio([], label="Explained class", elem_id="classes", visible=False)
                opacity = gr.Slider(0, 1, value=OPACITY, step=0.05, label="Opacity", elem_id="opacity")
                percentile = gr.Slider(
                    0, 100, value=first, step=1, label="Percentile (SCAN)", visible=wanted, elem_id="percentile"
                )
            with gr.Column(scale=2, min_width=300):
                hint = gr.Markdown("Upload a picture or pick an example.", elem_id="hint")
                panels = [hint]
                with gr.Row():
                    for place in range(MAX_COMPARED):
                        with gr.Column(min_width=220, visible=False) as column:
                            title = gr.Markdown(elem_classes="panel-title")
                            picture = gr.Image(
                                format="png",
                                interactive=False,
                                show_label=False,
                                elem_id=f"overlay{place}",
                                elem_classes="panel",
                                buttons=["fullscreen"],
                            )
                            with gr.Row():
                                save_map = gr.DownloadButton("Map", size="sm", elem_id=f"map{place}", min_width=90)
                                save_overlay = gr.DownloadButton(
                                    "Overlay", size="sm", elem_id=f"save_overlay{place}", min_width=90
                                )
                        panels += [column, title, picture, save_map, save_overlay]
        controls = [chosen, percentile, opacity]
        shown = [visit, message, classes, percentile, *panels]
        # Values come as they are: Gradio would open the picture itself, and refuse a class that a search has since
        # taken off the list. One event at a time where the model runs, as there is one model.
        raw = {"preprocess": False, "api_visibility": "private"}
        model = {**raw, "concurrency_limit": 1, "concurrency_id": "model"}
        light = {**raw, "show_progress": "hidden", "trigger_mode": "always_last"}
        image.change(page.new_image, [visit, image, *controls], [image, search, *shown], **model)
        classes.input(page.choose, [visit, classes, *controls], shown, **model)
        chosen.input(page.explain, [visit, *controls], shown, **model)
        percentile.change(page.explain, [visit, *controls], shown, **{**light, **model})
        opacity.change(page.draw, [visit, opacity], [visit, *panels], **light)
        search.input(page.search, [visit, search, chosen], classes, **light)
        search.submit(page.take_first, [visit, search, *controls], shown, **model)
    app.work_directory = work  # lives, and is removed, with the app
    return app


class _Page:
    """What the page does when something on it is touched."""

    def __init__(self, demo: Demo, gr, directory: str):
        self.demo, self.gr, self.directory = demo, gr, directory

    def new_image(self, visit: Visit | None, file: dict[str, Any] | None, chosen, percentile, alpha):
        visit = visit or Visit()
        path = file["path"] if file else None
        visit.image, visit.target, visit.scores, visit.maps, visit.shown = None, None, {}, {}, []
        picture, problem = self.gr.update(), None
        if path is None:  # also what taking away a damaged picture comes back as: its problem stays on the page
            problem, visit.problem = visit.problem, None
        else:
            try:
                visit.image, visit.problem = self.demo.open(path), None
            except (ValueError, TypeError, OSError) as error:
                problem = visit.problem = str(error)
                picture = self.gr.update(value=None)
        return picture, "", *self._show(visit, chosen, percentile, alpha, problem)

    def choose(self, visit: Visit | None, target: int | None, chosen, percentile, alpha):
        visit = visit or Visit()
        visit.target = target if target in self.demo.id2label else visit.target
        return self._show(visit, chosen, percentile, alpha)

    def explain(self, visit: Visit | None, chosen, percentile, alpha):
        return self._show(visit or Visit(), chosen, percentile, alpha)

    def draw(self, visit: Visit | None, alpha: float):
        visit = visit or Visit()
        return visit, *self._panels(visit, alpha)

    def search(self, visit: Visit | None, query: str, chosen):
        target = visit.target if visit else None
        choices = class_choices(self.demo.id2label, self._scores(visit, chosen), query, keep=target)
        return self.gr.update(choices=choices, value=target, visible=bool(choices))

    def take_first(self, visit: Visit | None, query: str, chosen, percentile, alpha):
        visit = visit or Visit()
        found = class_choices(self.demo.id2label, self._scores(visit, chosen), query)
        if query.strip() and found:
            visit.target = found[0][1]
        elif query.strip():
            problem = f"No class is called {query.strip()!r}; search for a part of a name."
            return self._show(visit, chosen, percentile, alpha, problem)
        return self._show(visit, chosen, percentile, alpha)

    def _scores(self, visit: Visit | None, chosen) -> list[float] | None:
        if visit is None or visit.image is None or not 1 <= len(chosen) <= MAX_COMPARED:
            return None
        return self.demo.scores(visit, self.demo.check(chosen)[0])

    def _show(self, visit: Visit, chosen, percentile, alpha, problem: str | None = None):
        gr, demo = self.gr, self.demo
        classes, slider = gr.update(), gr.update()
        try:
            explainers = demo.check(chosen)
            slider = gr.update(visible=any(explainer.takes_percentile for explainer in explainers))
            if visit.image is not None:
                if visit.target is None:
                    choices = class_choices(demo.id2label, demo.scores(visit, explainers[0]))
                    visit.target = choices[0][1]
                    classes = gr.update(choices=choices, value=visit.target, visible=True)
                else:
                    classes = gr.update(value=visit.target)
                demo.explain(visit, chosen, visit.target, percentile)
            elif visit.target is None:
                classes = gr.update(choices=[], value=None, visible=False)
        except (ValueError, TypeError, OSError) as error:
            visit.shown, problem = [], problem or str(error)
        message = gr.update(value=problem or "", visible=problem is not None)
        return visit, message, classes, slider, *self._panels(visit, alpha)

    def _panels(self, visit: Visit, alpha: float) -> list:
        shown = visit.shown  # once: an event beside this one may replace it
        gr, updates = self.gr, [self.gr.update(visible=not shown)]
        home = tempfile.mkdtemp(dir=self.directory)
        visit.folders.append(home)
        alpha = min(max(float(alpha), 0.0), 1.0)
        for place in range(MAX_COMPARED):
            if place >= len(shown):
                updates += [gr.update(visible=False), "", None, None, None]
                continue
            folder = Path(home, str(place))
            folder.mkdir()
            explained = shown[place]
            map_path, overlay_path = download_files(folder, explained.image, explained, alpha)
            caption = f"**{html.escape(explained.explainer)}**: {html.escape(explained.caption)}"
            updates += [gr.update(visible=True), caption, overlay_path, map_path, overlay_path]
        _forget(visit, keep=_KEPT_FOLDERS)
        return updates


def _forget(visit: Visit | None, keep: int = 0) -> None:
    """Remove a visitor's files but for the latest: Gradio copies those once the event that wrote them has returned."""
    while visit is not None and len(visit.folders) > keep:
        shutil.rmtree(visit.folders.pop(0), ignore_errors=True)


# --------------------------------------------------------------------------------------------------------------- Space


def write_space(directory: str | os.PathLike, model: str | Sequence[str], classifier: str | None = None) -> Path:
    """
    Write the files of a Hugging Face Space that runs this demo.

    Args:
        directory (`str` or `os.PathLike`): A folder, made where missing; `app.py`, `requirements.txt` and `README.md`
            in it are replaced.
        model (`str` or `Sequence[str]`): Hub ids of heads or classifiers.
        classifier (`str`, *optional*): Hub id of a classifier to use instead of the one that the heads name.

    Returns:
        `pathlib.Path`: The folder; publish it with `HfApi().upload_folder(..., repo_type="space")`.

    Raises:
        ValueError: If there is no model, or one is not a Hub id: a Space has no directory of this machine.
    """
    models = as_names(model)
    for name in [*models, *([classifier] if classifier else [])]:
        if is_local_path(name) or exists_here(name):
            raise ValueError(
                f"`model` {name!r} is a directory of this machine, which a Space does not have; push it and give its "
                "Hub id."
            )
        check_repo_id(name)
    version = metadata.version("gradio") if util.find_spec("gradio") else None
    front = {
        "title": f"Saliency: {models[0].split('/')[-1]}",
        "emoji": "\N{RIGHT-POINTING MAGNIFYING GLASS}",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        **({"sdk_version": version} if version else {}),
        "app_file": "app.py",
        "models": [*models, *([classifier] if classifier else [])],
        "tags": ["saliency", "explainability", "hf-explain"],
    }
    # JSON strings and lists are YAML too, so nothing in a name can break out of its line
    header = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    linked = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in models)
    arguments = json.dumps(models) + (f", classifier={json.dumps(classifier)}" if classifier else "")
    files = {
        "app.py": f"from hf_explain.apps.demo import launch\n\n\nlaunch({arguments})\n",
        "requirements.txt": "hf-explain[demo]\n",
        "README.md": f"---\n{header}\n---\n\n# Where did the classifier look?\n\nUpload a picture, pick a class and "
        f"compare explainers of {linked}. Made with hf-explain.\n",
    }
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(path / name, text.encode())
    return path


def _need_gradio() -> None:
    if util.find_spec("gradio") is None:
        raise ImportError("The demo needs Gradio, which is not installed: pip install 'hf-explain[demo]'.")


__all__ = ["Demo", "build_app", "launch", "write_space"]
