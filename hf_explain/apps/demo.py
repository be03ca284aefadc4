"""A web page to explain pictures with: pick one and a class, compare explainers, remove the pixels they point at.

Everything but [`build_app`] and [`launch`] works without Gradio, which the extra `demo` installs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import metadata, util
from itertools import zip_longest
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
from hf_explain.apps.demo_guard import MAX_FILE_BYTES, NOT_YOURS, Guard, Uploads, harmless, home, number, plain
from hf_explain.apps.demo_link import REMOVED, Links
from hf_explain.apps.demo_removal import FILL, STEP, STYLE, about, chart, shades
from hf_explain.io.files import write_atomically
from hf_explain.io.paths import exists_here, is_local_path
from hf_explain.io.pictures import OPACITY
from hf_explain.publish.hub import check_repo_id


_FORGET_SECONDS = 3600
_LONGEST_QUERY = 200  # characters
_KEPT_FOLDERS = 6  # more than events of one visitor can be on their way at once
# Reads the address once, and keeps it; on a Hub page the address bar is that of the page around this one
_READ_LINK = "(visit, link) => [visit, window.location.search]"
_WRITE_LINK = """(link) => {
  const kept = [...new URLSearchParams(window.location.search)].filter(([name]) => name.startsWith("__"));
  const query = [new URLSearchParams(kept).toString(), link].filter(Boolean).join("&");
  window.history.replaceState(null, "", "?" + query);
  if (window.parent !== window) window.parent.postMessage({queryString: link}, "https://huggingface.co");
}"""
_CSS = (
    """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important}
.gradio-container, .gradio-container main {width: 100% !important}
footer {display: none !important}
#title h1 {margin: .2em 0 .1em}
#title p {max-width: 46rem; color: var(--body-text-color-subdued)}
#message {border-left: 4px solid var(--error-border-color); padding: 6px 12px}
#classes .wrap {max-height: 320px; overflow-y: auto; flex-direction: column; gap: 4px}
#classes label {width: 100%}
#hint {text-align: center; padding: 48px 12px}
.panel img, .panel button:has(img), .panel div:has(> img) {width: 100% !important; height: auto !important}
.panel img {max-height: 70vh; object-fit: contain}
.panel-title p {font-size: .95rem; line-height: 1.35; margin: 0}
.panel-title strong {display: block; overflow-wrap: anywhere}
.panel-column {border-top: 4px solid var(--kind); padding-top: 6px}
@media (max-width: 600px) {
  .gradio-container main {padding: 8px !important}
  #title h1 {font-size: 1.4em}
  .panel-column {min-width: 100% !important}
}
"""
    + STYLE
)


# ------------------------------------------------------------------------------------------------------------ the page


def launch(
    models: str | os.PathLike | Sequence[str | os.PathLike],
    classifier: str | os.PathLike | None = None,
    *,
    examples: Sequence[str | os.PathLike] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    share: bool = False,
    port: int | None = None,
    block: bool = True,
    trust_remote_code: bool = False,
    candidate_labels: Sequence[str] | None = None,
    hypothesis_template: str | None = None,
):
    """
    Start the demo.

    Visitors are strangers. A picture is an example or what its visitor has uploaded here, of at most 64 MB and 24
    megapixels; no other file is opened and no URL fetched. What a visitor uploads and is shown is removed when its
    page closes, and all of it when the server stops: at `close()`, at Ctrl-C, and with `block` at SIGTERM too.

    Args:
        models, classifier, device, dtype, trust_remote_code, candidate_labels, hypothesis_template: As for [`Demo`].
        examples: As for [`example_files`].
        share (`bool`, *optional*, defaults to `False`): Also make a temporary public link, through Gradio's servers.
        port (`int`, *optional*): Of the local server; the first free one from 7860 on when not given.
        block (`bool`, *optional*, defaults to `True`): Return only when the server stops.

    Returns:
        `gradio.Blocks`: The running app; `close()` stops it, `local_url` says where it is.

    Raises:
        ImportError: If Gradio is not installed.
        ValueError: If `port` is not the number of a port, or as for [`Demo`].
        OSError: If the port is taken, or as for [`Demo`].
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"`port` must lie in 1 to 65535, got {port}.")
    _need_gradio()
    with _ended_by_sigterm() if block else nullcontext():
        demo = Demo(models, classifier, device, dtype, trust_remote_code, candidate_labels, hypothesis_template)
        app = build_app(demo, examples)
        try:
            # without ssr_mode=False a Node server is started where there is one, and asks for more ports
            app.launch(
                share=share,
                server_port=port,
                prevent_thread_lock=not block,
                show_error=False,  # what a visitor can mend is on the page; the rest may name places of this machine
                footer_links=[],
                max_file_size=MAX_FILE_BYTES,
                ssr_mode=False,
                css=_CSS,
                theme=_theme(),
                quiet=not block,
                app_kwargs={"middleware": [app.guard]},
            )
        except BaseException:
            app.close()
            raise
    return app


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, which stops servers, end this process as an exception does, so that files are removed."""
    if threading.current_thread() is not threading.main_thread():  # where no signal can be handled
        yield
        return

    def end(number: int, frame) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run(arguments: DemoCommand) -> None:
    """`hf-explain demo`: the page, or the files of a Space that shows it."""
    if arguments.write_space:
        found = write_space(
            arguments.write_space,
            arguments.models,
            arguments.classifier,
            arguments.trust_remote_code,
            **arguments.classes,
        )
        print(f"Wrote {found}")
        return
    launch(
        arguments.models,
        arguments.classifier,
        examples=arguments.examples or None,
        device=arguments.device,
        dtype=arguments.dtype,
        share=arguments.share,
        port=arguments.port,
        trust_remote_code=arguments.trust_remote_code,
        **arguments.classes,
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
    from starlette.middleware import Middleware

    os.makedirs(home(), exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = home()
    work = tempfile.mkdtemp(prefix="app-", dir=home())
    pictures = _copied(example_files(examples), work)
    page = _Page(demo, gr, work, pictures)

    class Blocks(gr.Blocks):
        """Gradio's page, which a client's value reaches as what it is, and never as a file or a URL to look up."""

        async def preprocess_data(self, block_fn, inputs, *args, **kwargs):
            wanted = block_fn.inputs
            pairs = zip_longest(wanted, inputs[: len(wanted)])
            values = [harmless(value, isinstance(block, gr.Image)) for block, value in pairs]
            try:
                return await super().preprocess_data(block_fn, values, *args, **kwargs)
            except Exception as error:
                raise gr.Error("The page sent something that does not fit; load it again.") from error

        def block_thread(self):
            try:
                super().block_thread()
            finally:
                self.close()

        def close(self, verbose=False):
            super().close(verbose)
            page.uploads.clear()
            shutil.rmtree(work, ignore_errors=True)

    percentiles = [explainer.name for explainer in demo.explainers.values() if explainer.takes_percentile]
    wanted = any(name in percentiles for name in demo.default)
    heads = [demo.explainers[name].pipe.head for name in percentiles]
    first = next((head.config.percentile for head in heads if head is not None), 95.0)
    with Blocks(
        title="Where did the classifier look?",
        analytics_enabled=False,
        delete_cache=(_FORGET_SECONDS, _FORGET_SECONDS),
        fill_width=True,
    ) as app:
        gr.Markdown(
            f"# Where did the classifier look?\n\n**{plain(demo.title)}**, {len(demo.id2label)} classes. An explainer "
            "marks what a prediction rests on. Whether it does can be tested: without those pixels, the classifier "
            "should no longer see the class.",
            elem_id="title",
            latex_delimiters=[],
        )
        message = gr.Markdown(visible=False, elem_id="message", latex_delimiters=[])
        visit = gr.State(Visit(), time_to_live=_FORGET_SECONDS, delete_callback=page.forget)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], height=280, elem_id="picture", buttons=[]
                )
                gr.Examples([[path] for path in pictures], [image], label="Examples", api_visibility="private")
                image.keep_in_cache.update(pictures)  # or they are removed as if a visitor had sent them
                classes = gr.Radio([], label="Explained class", elem_id="classes", visible=False)
                search = gr.Textbox(
                    label=f"Another of the {len(demo.id2label)} classes",
                    placeholder="part of a name",
                    elem_id="search",
                )
                chosen = gr.Dropdown(
                    list(demo.explainers),
                    value=demo.default,
                    multiselect=True,
                    max_choices=MAX_COMPARED,
                    label="Explainers",
                    info=f"Up to {MAX_COMPARED}, shown side by side.",
                    elem_id="explainers",
                )
                opacity = gr.Slider(0, 1, value=OPACITY, step=0.05, label="Opacity", elem_id="opacity")
                percentile = gr.Slider(
                    0, 100, value=first, step=1, label="Percentile (SCAN)", visible=wanted, elem_id="percentile"
                )
            with gr.Column(scale=2, min_width=300):
                hint = gr.Markdown("Upload a picture or pick an example.", elem_id="hint")
                panels = [hint]
                with gr.Row():
                    for place in range(MAX_COMPARED):
                        with gr.Column(min_width=150, visible=False, elem_classes="panel-column") as column:
                            title = gr.Markdown(elem_classes="panel-title", latex_delimiters=[])
                            picture = gr.Image(
                                format="png",
                                interactive=False,
                                show_label=False,
                                elem_id=f"overlay{place}",
                                elem_classes="panel",
                                buttons=["fullscreen"],
                            )
                            with gr.Row():
                                save_map = gr.DownloadButton(
                                    "Save map", size="sm", elem_id=f"map{place}", min_width=60
                                )
                                save_overlay = gr.DownloadButton(
                                    "Save overlay", size="sm", elem_id=f"save_overlay{place}", min_width=60
                                )
                        panels += [column, title, picture, save_map, save_overlay]
                removed = gr.Slider(
                    0,
                    100,
                    value=REMOVED,
                    step=STEP,
                    label="Remove the most salient pixels (%)",
                    info=f"They turn {FILL}, as for the metric AUC-D; below is what the classifier then sees.",
                    visible=False,
                    elem_id="removed",
                )
                removal = gr.HTML(elem_id="removal")
                with gr.Accordion("How these explainers work", open=False, visible=False) as fold:
                    described = gr.HTML(elem_id="about")
        link = gr.Textbox(visible="hidden", elem_id="link")
        controls = [chosen, percentile, opacity, removed]
        shown = [visit, message, classes, percentile, *panels, removed, removal, fold, described, link]
        settings = [visit, message, image, chosen, percentile, opacity, removed]

        def event(handler):
            def handle(request, visit, *values):
                return page.during(request.session_hash, visit, handler, *values)

            handle.__annotations__["request"] = gr.Request  # how Gradio knows what to pass
            return handle

        def leave(request):
            page.leave(request.session_hash)

        leave.__annotations__["request"] = gr.Request
        # Values come as they are: Gradio would open the picture itself, and refuse a class that a search has since
        # taken off the list. One event at a time where the model runs, as there is one model.
        raw = {"preprocess": False, "api_visibility": "private"}
        model = {**raw, "concurrency_limit": 1, "concurrency_id": "model"}
        light = {**raw, "show_progress": "hidden", "trigger_mode": "always_last"}
        app.load(event(page.arrive), [visit, link], settings, js=_READ_LINK, **{**raw, "show_progress": "hidden"})
        for explained in (  # maps first, as what removing their pixels does takes longer
            image.change(event(page.new_image), [visit, image, *controls], [image, search, *shown], **model),
            classes.input(event(page.choose), [visit, classes, *controls], shown, **model),
            chosen.input(event(page.explain), [visit, *controls], shown, **model),
            percentile.change(event(page.explain), [visit, *controls], shown, **{**light, **model}),
            search.submit(event(page.take_first), [visit, search, *controls], shown, **model),
        ):
            explained.then(event(page.measure), [visit, removed], [visit, removal], **model)
        opacity.change(event(page.draw), [visit, opacity], [visit, *panels, link], **light)
        removed.input(event(page.remove), [visit, removed], [visit, removal, link], **light)
        search.input(event(page.search), [visit, search, chosen], classes, **light)
        link.change(None, link, None, js=_WRITE_LINK)
        app.unload(leave)
    app.guard = Middleware(Guard, uploads=page.uploads)
    return app


class _Page:
    """What the page does when something on it is touched."""

    def __init__(self, demo: Demo, gr, directory: str, examples: Sequence[str] = ()):
        self.demo, self.gr, self.directory = demo, gr, directory
        self.examples = _named(examples)
        self.links = Links(demo.id2label, list(demo.explainers), demo.default, list(self.examples))
        self.uploads = Uploads(examples)
        self._visits: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()  # Gradio holds them

    def during(self, session: str, visit: Visit | None, handler, *values):
        """Handle an event of a visitor, so that nothing of it stays when it has left."""
        visit = visit or Visit()
        if self._visits.get(session) is not visit:
            self._visits[session] = visit
            weakref.finalize(visit, _remove, visit.folders, visit.uploads, self.uploads)
        visit.away = False
        try:
            return handler(visit, *values)
        finally:
            if visit.away:  # since the event began
                self.forget(visit)

    def leave(self, session: str) -> None:
        """A page is closed, or has lost its connection: it may come back, and finds its picture then, but no files."""
        visit = self._visits.get(session)
        if visit is not None:
            visit.away = True
            self.forget(visit)

    def forget(self, visit: Visit | None) -> None:
        if visit is not None:
            _remove(visit.folders, visit.uploads, self.uploads)

    def arrive(self, visit: Visit | None, query: str | None):
        """A page is opened, maybe by a link; the picture it is set to comes as an event of its own."""
        visit, update = visit or Visit(), self.gr.update
        visit.view, problem = self.links.read(query if isinstance(query, str) else "")
        visit.problem, view = problem, visit.view
        message = update(value=plain(problem or ""), visible=problem is not None)
        path = self.examples.get(view.picture)
        picture = update() if path is None else update(value=path)
        percentile = update() if view.percentile is None else update(value=view.percentile)
        values = (list(view.explainers), view.opacity, view.removed)
        chosen, opacity, removed = (update(value=value) for value in values)
        return visit, message, picture, chosen, percentile, opacity, removed

    def new_image(self, visit: Visit | None, file: dict[str, Any] | None, chosen, percentile, alpha, removed=None):
        visit = visit or Visit()
        visit.image, visit.target, visit.scores, visit.maps, visit.shown = None, None, {}, {}, []
        picture = self.gr.update()
        problem, visit.problem = visit.problem, None
        if file is None:  # also what taking away a damaged picture comes back as: its problem stays on the page
            visit.view.picture = ""
            self.uploads.release(visit.uploads)
        else:
            try:
                path = file["path"]
                if not self.uploads.claim(path, visit.uploads):
                    raise ValueError(NOT_YOURS)
                visit.image = self.demo.open(path)
                visit.target, visit.view.target = visit.view.target, None  # that a link asks for
                visit.view.picture = next((name for name, own in self.examples.items() if own == path), "")
            except (ValueError, TypeError, OSError) as error:
                problem = visit.problem = str(error)
                picture = self.gr.update(value=None)
        return picture, "", *self._show(visit, chosen, percentile, alpha, removed, problem, is_new=True)

    def choose(self, visit: Visit | None, target: int | None, chosen, percentile, alpha, removed=None):
        visit = visit or Visit()
        if isinstance(target, int) and target in self.demo.id2label:
            visit.target = int(target)
        return self._show(visit, chosen, percentile, alpha, removed)

    def explain(self, visit: Visit | None, chosen, percentile, alpha, removed=None):
        return self._show(visit or Visit(), chosen, percentile, alpha, removed)

    def draw(self, visit: Visit | None, alpha: float):
        visit = visit or Visit()
        return visit, *self._panels(visit, alpha), self._link(visit)

    def measure(self, visit: Visit | None, removed: float):
        visit = visit or Visit()
        self.demo.measure(visit)
        return visit, self._chart(visit, removed)

    def remove(self, visit: Visit | None, removed: float):
        visit = visit or Visit()
        return visit, self._chart(visit, removed), self._link(visit)

    def search(self, visit: Visit | None, query: str | None, chosen):
        query = _query(query)
        target = visit.target if visit else None
        choices = class_choices(self.demo.id2label, self._scores(visit, chosen), query, keep=target)
        return self.gr.update(choices=choices, value=target, visible=bool(choices))

    def take_first(self, visit: Visit | None, query: str | None, chosen, percentile, alpha, removed=None):
        visit, query = visit or Visit(), _query(query)
        found = class_choices(self.demo.id2label, self._scores(visit, chosen), query)
        problem = None
        if query and found:
            visit.target = found[0][1]
        elif query:
            problem = f"No class is called {query!r}; search for a part of a name."
        return self._show(visit, chosen, percentile, alpha, removed, problem)

    def _scores(self, visit: Visit | None, chosen) -> list[float] | None:
        if visit is None or visit.image is None:
            return None
        try:
            return self.demo.scores(visit, self.demo.check(chosen)[0])
        except ValueError:  # which the page says where it shows maps
            return None

    def _show(
        self, visit: Visit, chosen, percentile, alpha, removed, problem: str | None = None, is_new: bool = False
    ):
        gr, demo = self.gr, self.demo
        classes, slider = gr.update(), gr.update()
        percentile = number(percentile, 0, 100, default=None)
        try:
            explainers = demo.check(chosen)
            takes_percentile = any(explainer.takes_percentile for explainer in explainers)
            slider = gr.update(visible=takes_percentile)
            visit.view.explainers = tuple(explainer.name for explainer in explainers)
            visit.view.percentile = percentile if takes_percentile else None
            if visit.image is not None:
                if is_new or visit.target is None:
                    scores = demo.scores(visit, explainers[0])
                    visit.target = class_choices(demo.id2label, scores)[0][1] if visit.target is None else visit.target
                    choices = class_choices(demo.id2label, scores, keep=visit.target)
                    classes = gr.update(choices=choices, value=visit.target, visible=True)
                else:
                    classes = gr.update(value=visit.target)
                demo.explain(visit, chosen, visit.target, percentile)
            elif visit.target is None:
                classes = gr.update(choices=[], value=None, visible=False)
        except (ValueError, TypeError, OSError) as error:
            visit.shown, problem = [], problem or str(error)
        message = gr.update(value=plain(problem or ""), visible=problem is not None)
        there = gr.update(visible=bool(visit.shown))
        below = [there, self._chart(visit, removed), there, about([one.choice for one in visit.shown])]
        return visit, message, classes, slider, *self._panels(visit, alpha), *below, self._link(visit)

    def _panels(self, visit: Visit, alpha: float | None) -> list:
        shown = visit.shown  # once: an event beside this one may replace it
        gr, updates = self.gr, [self.gr.update(visible=not shown)]
        home = tempfile.mkdtemp(dir=self.directory)
        visit.folders.append(home)
        opacity = number(alpha, 0, 1, default=None)
        visit.view.opacity = opacity = OPACITY if opacity is None else opacity
        marks = shades([one.choice.kind for one in shown])
        for place in range(MAX_COMPARED):
            if place >= len(shown):
                updates += [gr.update(visible=False), "", None, None, None]
                continue
            folder = Path(home, str(place))
            folder.mkdir()
            explained = shown[place]
            map_path, overlay_path = download_files(folder, explained.image, explained, opacity)
            caption = f"**{plain(explained.explainer)}** {plain(explained.caption)}"
            column = gr.update(visible=True, elem_classes=["panel-column", marks[place]])
            updates += [column, caption, overlay_path, map_path, overlay_path]
        _remove_folders(visit.folders, keep=_KEPT_FOLDERS)
        return updates

    def _chart(self, visit: Visit, removed: float | None) -> str:
        shown = visit.shown
        percent = number(removed, 0, 100, default=None)
        step = round((REMOVED if percent is None else percent) / STEP)
        visit.view.removed = step * STEP
        if any(one.is_unmeasured for one in shown):
            return '<p class="note">Removing pixels and running the classifier on what is left …</p>'
        lines = [(one.choice, one.removal) for one in shown if one.removal is not None]
        return chart(lines, shown[0].label, step) if lines else ""

    def _link(self, visit: Visit) -> str:
        return self.links.write(replace(visit.view, target=visit.target))


def _theme():
    """Gradio's own, in the package's blue, with no font to fetch."""
    import gradio as gr

    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=fonts)
    return theme.set(  # its grey texts are too faint
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def _named(examples: Sequence[str]) -> dict[str, str]:
    """Examples by their names in a link."""
    named: dict[str, str] = {}
    for path in examples:
        stem = Path(path).stem
        named[f"{stem}-{len(named) + 1}" if stem in named else stem] = path
    return named


def _query(value: Any) -> str:
    return value.strip()[:_LONGEST_QUERY] if isinstance(value, str) else ""


def _copied(examples: Sequence[str], directory: str) -> list[str]:
    """Examples in the demo's own folder, the only one that pictures are served from."""
    paths = []
    for path in map(Path, examples):
        if path.parent != Path(directory):
            path = Path(shutil.copyfile(path, Path(tempfile.mkdtemp(dir=directory), path.name)))
        paths.append(str(path))
    return paths


def _remove(folders: list[str], own: set[str], uploads: Uploads) -> None:
    """Remove a visitor's files: what was drawn, and what it sent."""
    _remove_folders(folders)
    uploads.release(own)


def _remove_folders(folders: list[str], keep: int = 0) -> None:
    """Remove all but the latest: the page asks for a picture once the event that wrote it has returned."""
    while len(folders) > keep:
        shutil.rmtree(folders.pop(0), ignore_errors=True)


# --------------------------------------------------------------------------------------------------------------- Space


def write_space(
    directory: str | os.PathLike,
    model: str | Sequence[str],
    classifier: str | None = None,
    trust_remote_code: bool = False,
    **classes: Any,
) -> Path:
    """
    Write the files of a Hugging Face Space that runs this demo.

    Args:
        directory (`str` or `os.PathLike`): A folder, made where missing; `app.py`, `requirements.txt` and `README.md`
            in it are replaced.
        model (`str` or `Sequence[str]`): Hub ids of heads or classifiers.
        classifier (`str`, *optional*): Hub id of a classifier to use instead of the one that the heads name.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether the Space runs code of the repositories.
        classes: `candidate_labels` and `hypothesis_template`, as for [`Demo`].

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
    arguments += ", trust_remote_code=True" if trust_remote_code else ""
    arguments += "".join(f", {name}={value!r}" for name, value in classes.items())
    files = {
        "app.py": f"from hf_explain.apps.demo import launch\n\n\nlaunch({arguments})\n",
        "requirements.txt": "hf-explain[demo]\n",
        "README.md": f"---\n{header}\n---\n\n# Where did the classifier look?\n\nUpload a picture, pick a class and "
        f"compare explainers of {linked}. Pictures are removed when the page closes. Made with hf-explain.\n",
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
