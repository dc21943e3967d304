"""The explorer as a Gradio app, for `mmsr-pt explore` and as a Hugging Face Space.

Choose a user or click a history together; see what every model recommends, what is similar, where cold items land. It
loads nothing from elsewhere and tells nobody of its use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# read when the library is imported: no word to its makers, no question for newer versions
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from mmsr_pt.explore import views
from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.explore.questions import found_by_title, scores_of
from mmsr_pt.log import UserError

PAGE_SIZE = 12
"""Items of the catalogue shown at once."""
_STYLE = Path(__file__).with_name("page.css")
_CLICKS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) {
    const {action, row, place} = button.dataset;
    trigger("click", {action, row: Number(row), place: Number(place ?? -1)});
  }
});
"""


class Explorer:
    """The page's parts, and what happens when they are touched."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit
        self._users = exhibit.users["user_id"].to_list()

    def of_user(self, user: str | None) -> tuple[Any, ...]:
        """Shows what is known of a user, the last item apart."""
        if user not in self._users:
            return self._shown([], None, user=None)
        history, target = self.exhibit.users.select("history", "test").row(self._users.index(user))
        return self._shown(list(history), target, user=user)

    def clicked(self, event: gr.EventData, history: list[int], target: int | None, user: str | None) -> tuple[Any, ...]:
        """Does what a click on an item asks for."""
        if event.action == "similar":
            similar = views.similar_page(self.exhibit, event.row)
            return *(gr.skip() for _ in range(6)), similar, gr.Tabs(selected="similar")
        if event.action == "add":
            return self._shown([*history, event.row], None, user=None)
        assert event.action == "remove", event.action
        kept = [row for place, row in enumerate(history) if place != event.place]
        return self._shown(kept, None, user=None)

    def cleared(self) -> tuple[Any, ...]:
        """Begins anew."""
        return self._shown([], None, user=None)

    def turned(self, words: str, page: int, by: int) -> tuple[str, str, int]:
        """A piece of the catalogue, by how many pages from the present one; its bounds in words; its number."""
        rows = found_by_title(self.exhibit, words or "")
        page = max(0, min(page + by, (len(rows) - 1) // PAGE_SIZE))
        shown = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        first = page * PAGE_SIZE
        said = f"{first + 1:,} to {first + len(shown):,} of {len(rows):,}" if shown else "none"
        return views.catalogue_page(self.exhibit, shown), said, page

    def _shown(self, history: list[int], target: int | None, user: str | None) -> tuple[Any, ...]:
        """The values of all that depends on the history."""
        scores = scores_of(self.exhibit, history) if history else {}
        return (
            history,
            target,
            user,
            views.history_page(self.exhibit, history, target),
            views.recommended_page(self.exhibit, scores, history, target),
            views.cold_page(self.exhibit, scores, history),
            views.similar_page(self.exhibit, history[-1] if history else None),
            gr.skip(),
        )


def build(exhibit: Exhibit) -> gr.Blocks:
    """The app, not yet running."""
    explorer = Explorer(exhibit)
    users = exhibit.users["user_id"].to_list()
    name = exhibit.domain["name"]
    with gr.Blocks(title=f"Explore {name}", analytics_enabled=False, fill_width=True) as app:
        gr.HTML(views.header(exhibit), elem_id="head", apply_default_css=False)
        history, target, page = gr.State([]), gr.State(None), gr.State(0)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Row(elem_id="who"):
                    user = gr.Dropdown(users, value=None, label="User", visible=bool(users), elem_id="user", scale=3)
                    clear = gr.Button("Clear", elem_id="clear", scale=1, min_width=80)
                strip = _clickable("history")
                words = gr.Textbox(label="Catalogue", placeholder="Words of the title", elem_id="words")
                grid = _clickable("catalogue")
                with gr.Row(elem_id="pager"):
                    back = gr.Button("Back", size="sm", min_width=60, scale=1, elem_id="back")
                    bounds = gr.HTML(elem_id="bounds", apply_default_css=False)
                    on = gr.Button("On", size="sm", min_width=60, elem_id="on")
            with gr.Column(scale=8, min_width=320), gr.Tabs(elem_id="answers") as tabs:
                with gr.Tab("Recommended", id="recommended"):
                    recommended = _clickable("recommended")
                with gr.Tab("Similar", id="similar"):
                    similar = _clickable("similar")
                with gr.Tab("Cold items", id="cold"):
                    cold = _clickable("cold")
        shown = [history, target, user, strip, recommended, cold, similar, tabs]
        clicks: dict[str, Any] = {"inputs": [history, target, user], "outputs": shown, "show_progress": "hidden"}
        for part in (strip, grid, recommended, similar, cold):
            part.click(explorer.clicked, **clicks)
        user.input(explorer.of_user, user, shown, show_progress="hidden")
        clear.click(explorer.cleared, None, shown, show_progress="hidden")
        piece: dict[str, Any] = {"outputs": [grid, bounds, page], "show_progress": "hidden"}
        words.change(lambda said: explorer.turned(said, 0, 0), words, trigger_mode="always_last", **piece)
        back.click(lambda said, at: explorer.turned(said, at, -1), [words, page], **piece)
        on.click(lambda said, at: explorer.turned(said, at, 1), [words, page], **piece)
        app.load(lambda: explorer.of_user(users[0] if users else None), None, shown, show_progress="hidden")
        app.load(lambda: explorer.turned("", 0, 0), None, **piece)
    return app


def launch(exhibit: Exhibit, host: str | None = None, port: int | None = None, wait: bool = True) -> gr.Blocks:
    """Answers at an address until it is stopped.

    Args:
        exhibit: what is shown.
        host: None: as GRADIO_SERVER_NAME says, else loopback.
        port: None: as GRADIO_SERVER_PORT says, else the first free one from 7860 on.
        wait: False: returns once it answers.

    Raises:
        UserError: the port is taken.
    """
    app = build(exhibit)
    system = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    try:
        app.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=not wait,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            css_paths=[_STYLE],
        )
    except OSError as error:
        raise UserError(f"--port {port} cannot be listened at ({error}): choose another") from error
    return app


def _clickable(name: str) -> gr.HTML:
    return gr.HTML(js_on_load=_CLICKS, elem_id=name, apply_default_css=False)
