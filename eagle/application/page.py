"""The page: a conversation, and how it is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from eagle.application.html import STYLE, escape, legend_html
from eagle.application.service import NEW, Failed, Running, Service, Talk
from eagle.decoding.method import VERIFIERS
from eagle.errors import InputError
from eagle.tree.shape import TREES

MOST_WAITING = 32
"""Tabs that may watch their answer, or wait for it, at the same time."""
USUAL = ("as the switch says", "")
WELCOME = '<div class="welcome">Say something. What the draft head guessed right is shaded.</div>'
THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    # Fonts of the reader's system: none is fetched.
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)


def build(service: Service) -> gr.Blocks:
    """Lay out the page.

    Args:
        service: what answers.
    """
    default = service.settings
    with gr.Blocks(title="EAGLE-3 and HSD", analytics_enabled=False, fill_width=True) as page:
        talk, message = gr.State(Talk()), gr.State("")
        gr.HTML(f"<h1>{escape(service.chat_model.name)}</h1>{legend_html()}")
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                with gr.Column(elem_id="talk"), gr.Column():
                    history = gr.HTML("", elem_classes="talk", elem_id="history")
                    current = gr.HTML(WELCOME, elem_classes="talk", elem_id="current")
                with gr.Row(equal_height=True):
                    box = gr.Textbox(
                        placeholder="Message",
                        show_label=False,
                        container=False,
                        max_lines=8,
                        scale=8,
                        autofocus=True,
                        elem_id="box",
                    )
                    send = gr.Button("Send", variant="primary", min_width=90, elem_id="send")
                    stop = gr.Button("Stop", variant="stop", min_width=90, elem_id="stop", visible=False)
            with gr.Column(scale=1, min_width=260):
                hsd = gr.Checkbox(
                    default.hsd, label="HSD", info="Hybrid trees, joint verification. Off: EAGLE-3", elem_id="hsd"
                )
                side_by_side = gr.Checkbox(
                    label="Side by side", info="With autoregressive decoding of the same prompt", elem_id="side"
                )
                temperature = gr.Slider(
                    0,
                    max(2, default.temperature),
                    default.temperature,
                    step=0.05,
                    label="Temperature",
                    info="0 is greedy",
                )
                top_p = gr.Slider(0, 1, default.top_p, step=0.01, label="Top-p", info="0 and 1 are off")
                longest = gr.Slider(
                    1, max(2048, default.max_new_tokens), default.max_new_tokens, step=1, label="New tokens at most"
                )
                with gr.Accordion("Ablations", open=bool(default.tree or default.verifier), elem_id="ablations"):
                    tree = _choice("Tree", TREES, default.tree)
                    verifier = _choice("Verification", VERIFIERS, default.verifier)
                clear = gr.Button(NEW, elem_id="clear")

        def begin(text: str, request: gr.Request) -> tuple[Any, ...]:
            if not text.strip():
                raise gr.Error("Write a message first.", title="Nothing to answer", print_exception=False)
            try:
                service.begin(str(request.session_hash))
            except InputError as error:
                raise gr.Error(str(error), title="Not yet", print_exception=False) from error
            return text.strip(), "", gr.update(visible=False), gr.update(visible=True), gr.update(interactive=False)

        def answer(
            text: str,
            so_far: Talk,
            hsd: bool,
            side_by_side: bool,
            temperature: float,
            top_p: float,
            longest: int,
            tree: str,
            verifier: str,
            request: gr.Request,
        ) -> Iterator[tuple[Any, ...]]:
            choices = {
                "hsd": hsd,
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": longest,
                "tree": tree or None,
                "verifier": verifier or None,
            }
            for shown in service.answer(str(request.session_hash), text, so_far, choices, side_by_side):
                match shown:
                    case Running(html):
                        yield gr.skip(), gr.skip(), html, gr.skip()
                    case Failed(html, again):
                        # The message goes back to where it can be sent again.
                        yield gr.skip(), gr.skip(), html, again
                    case Talk():
                        yield shown, shown.html, "", gr.skip()

        def ready() -> tuple[Any, ...]:
            return gr.update(visible=True), gr.update(visible=False), gr.update(interactive=True)

        def leave(request: gr.Request) -> None:
            service.leave(str(request.session_hash))

        def stop_answer(request: gr.Request) -> None:
            service.stop(str(request.session_hash))

        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        at_once = hidden | {"concurrency_limit": None}
        controls = [send, stop, clear]
        gr.on([box.submit, send.click], begin, [box], [message, box, *controls], **at_once).success(
            answer,
            [message, talk, hsd, side_by_side, temperature, top_p, longest, tree, verifier],
            [talk, history, current, box],
            concurrency_limit=MOST_WAITING,
            **hidden,
        ).then(ready, None, controls, **at_once)
        stop.click(stop_answer, **at_once)
        clear.click(lambda: (Talk(), "", WELCOME), None, [talk, history, current], **at_once)
        page.unload(leave)
    return page


def _choice(label: str, names: tuple[str, ...], chosen: str | None) -> gr.Dropdown:
    """A name, or none."""
    options = [USUAL, *((name, name) for name in names)]
    return gr.Dropdown(options, value=chosen or "", label=label, elem_id=label.lower())


def launch(page: gr.Blocks, port: int | None) -> str:
    """Serve the page to this machine only, in the background; returns its address.

    Args:
        page: of ``build``.
        port: None: the first free one from 7860.

    Raises:
        InputError: the port is taken.
    """
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            theme=THEME,
            css=STYLE,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_threads=2 * MOST_WAITING,
        )
    except OSError as error:
        raise InputError(f"cannot serve on port {port or '7860 to 7959'}: taken; choose another with --port") from error
    return str(address)
