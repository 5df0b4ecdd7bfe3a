"""A Gradio demo: text in, speech out while it is being made, and a picture of the speech tokens and the mel."""

import argparse
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
from checkpoints import VARIABLE, find_sources, load_checkpoints
from files import save_audio
from speech import MAX_CHARACTERS, Request, Speech, left_out, speak, to_int16, to_wav

MAX_QUEUE = 32
MAX_UPLOAD = "10mb"
MAX_SEED = 2**31 - 1
# Of a checkpoint that does not say better.
DEFAULT_SAMPLING = {"temperature": 1.0, "top_k": 25, "top_p": 0.8, "text_guidance": 1.0}
# One utterance at a time: several would share the same processor, and all would come late.
TURN = {"concurrency_limit": 1, "concurrency_id": "speech"}
EXAMPLES = (
    "The birds sang in the morning.",
    "Could you read this sentence aloud, please?",
    "Dr. Green paid $25 for two tickets.",
)
STYLE_FIELD = "style_"  # begins the names of the fields of styles
TITLE = "End-to-end text-to-speech"
INTRODUCTION = f"""# {TITLE}
The language model turns text into speech tokens, the flow-matching decoder turns tokens into a mel spectrogram, and the
vocoder makes it audible. Tokens, language model and decoder were trained together."""

MARKED = "This speech in a cloned voice carries an inaudible watermark; `e2e-tts detect` finds it."
UNMARKED = "This speech in a cloned voice carries no watermark: the package `resemble-perth` would add it here."


class Demo:
    """The functions behind the page, over one or several checkpoints. Names of their parameters are names in the API.

    Each takes the fields of `lay_out_inputs`, whose values on a fresh page are the defaults of the API too; only
    `stream` by default draws once. Where the LM draws several candidates, the sound of a sentence starts once all of
    them are there; 1 candidate sounds at once.
    """

    def __init__(self, sources: list[str]) -> None:
        self.checkpoints, self.own_vocoder = load_checkpoints(sources)
        # By checkpoint, the default one first. Checkpoints whose own code is older do not name it.
        configs = {name: pipe.model.config for name, pipe in self.checkpoints.items()}
        self.voices = {name: list(getattr(config, "voice_names", config.voices)) for name, config in configs.items()}
        # Checkpoints whose own code is older have no styles.
        words = [pipe.model.style_words() for pipe in self.checkpoints.values() if hasattr(pipe.model, "style_words")]
        self.styles = {name: levels for styles in words for name, levels in styles.items()}
        # What a fresh page shows: the first checkpoint's own sampling.
        config = next(iter(self.checkpoints.values())).model.config
        self.sampling = DEFAULT_SAMPLING | config.sampling | {"candidates": getattr(config, "candidates", 1)}

    def offer_voices(self, checkpoint: str) -> gr.Dropdown:
        """For the page: the field of voices once another checkpoint is chosen."""
        return gr.Dropdown(**voice_choices(self.voices[checkpoint]))

    def play(
        self, text: str, voice: str | None = None, reference: str | None = None, **inputs: Any
    ) -> Iterator[tuple[bytes | None, str | None, str, str]]:
        """For the page: a chunk for the player, the recording once it is complete, the picture as it grows, and a line
        about the watermark of cloned speech. With several candidates the chunks of a sentence come after its tries."""
        for chunk, speech in self._speak(True, text, voice, reference, **inputs):
            note = watermark_note(reference, speech)
            yield to_wav(chunk, speech.rate) if can_play() else None, None, speech.picture(), note
        yield None, speech.recording(), speech.picture(), note

    def stream(self, text: str, voice: str | None = None, reference: str | None = None, **inputs: Any) -> Iterator[str]:
        """Speaks a text and gives the audio in chunks, each as soon as it is there: with one candidate, the default
        here, before a sentence is drawn to its end."""
        for chunk, speech in self._speak(True, text, voice, reference, **inputs):
            yield save_audio(speech.rate, to_int16(chunk))

    def speak(
        self, text: str, voice: str | None = None, reference: str | None = None, **inputs: Any
    ) -> tuple[str, str]:
        """Speaks a text with a built-in voice or, where a clip is given, with the voice of the clip."""
        *_, (_, speech) = self._speak(False, text, voice, reference, **inputs)
        return speech.recording(), speech.picture()

    def compare(
        self, text: str, voice: str | None = None, reference: str | None = None, **inputs: Any
    ) -> Iterator[list[str | None]]:
        """Speaks a text with every checkpoint, one after the other, with the same seed and settings.

        Gives a recording and a picture for each; those of a checkpoint that does not speak, since its speech finds no
        end or the text is in another language, stay empty. A checkpoint without the voice takes its default one. Raises
        gr.Error where no checkpoint speaks or has the voice.
        """
        request = build_request(text, voice, reference, **inputs)
        known = dict.fromkeys(name for own in self.voices.values() for name in own)
        if reference is None and voice is not None and voice not in known:
            raise gr.Error(f"No checkpoint has a voice {voice!r}; there are {', '.join(known)}.", print_exception=False)
        results: list[str | None] = [None] * (2 * len(self.checkpoints))
        problems = []
        for index, (name, pipe) in enumerate(self.checkpoints.items()):
            try:
                for note in left_out(pipe, request.text):
                    gr.Warning(f"{name}: {note}")
                *_, (_, speech) = speak(name, pipe, self._in_a_voice_of(name, request), streamed=False)
            except (ValueError, RuntimeError, ImportError) as error:
                # What is wrong for one checkpoint is a result of the comparison too.
                gr.Warning(f"{name}: {error}")
                problems.append(str(error))
            else:
                results[2 * index : 2 * index + 2] = [speech.recording(), speech.picture()]
                if note := watermark_note(reference, speech):
                    gr.Info(f"{name}: {note}")
            yield results
        if len(problems) == len(self.checkpoints):
            raise gr.Error(problems[0], print_exception=False)

    def _in_a_voice_of(self, name: str, request: Request) -> Request:
        """The request, for a checkpoint that lacks its voice in the checkpoint's default one, which the page says."""
        own = self.voices[name]
        if request.reference is not None or request.voice is None or request.voice in own or not own:
            return request
        gr.Info(f"{name} has no voice {request.voice!r} and speaks in its own {own[0]!r}.")
        return replace(request, voice=own[0])

    def _speak(
        self,
        streamed: bool,
        text: str,
        voice: str | None,
        reference: str | None,
        checkpoint: str | None = None,
        **inputs: Any,
    ) -> Iterator[tuple[np.ndarray, Speech]]:
        name = checkpoint or next(iter(self.checkpoints))
        request = build_request(text, voice, reference, **inputs)
        pipe = self.checkpoints[name]
        report_left_out(pipe, request)
        with readable_errors():
            yield from speak(name, pipe, request, streamed)


def build_request(
    text: str | None,
    voice: str | None,
    reference: str | None,
    transcript: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    **settings: Any,
) -> Request:
    """What the page's fields ask for; an empty seed is drawn. Raises gr.Error for what is too long or contradictory."""
    seed = secrets.randbelow(MAX_SEED) if seed is None else seed
    asked = {name: settings.pop(name) for name in list(settings) if name.startswith(STYLE_FIELD)}
    settings |= {"seed": seed, "num_steps": steps}
    if settings.get("candidates") == 1:
        del settings["candidates"]  # checkpoints whose own code is older do not know it
    if style := {name.removeprefix(STYLE_FIELD): level for name, level in asked.items() if level}:
        settings["style"] = style
    with readable_errors():
        return Request(text or "", voice, reference, (transcript or "").strip(), settings)


def report_left_out(pipe: Any, request: Request) -> None:
    """Shows which words are not spoken. Raises gr.Error where none is."""
    with readable_errors():
        for note in left_out(pipe, request.text):
            gr.Warning(note)


def watermark_note(reference: str | None, speech: Speech) -> str:
    """What the page says of the watermark: nothing of built-in voices."""
    if reference is None:
        return ""
    return MARKED if speech.watermarked else UNMARKED


@contextmanager
def readable_errors() -> Iterator[None]:
    """Shows the message of a ValueError, a RuntimeError or an ImportError, of a language's package say, to the user."""
    try:
        yield
    except (ValueError, RuntimeError, ImportError) as error:
        # A ValueError is about the input; of anything else the log should tell where it comes from.
        raise gr.Error(str(error), print_exception=not isinstance(error, ValueError)) from error


def can_play() -> bool:
    """Whether Gradio can encode a stream for browsers. Without ffmpeg one listens to the recording."""
    return shutil.which("ffmpeg") is not None


def build_demo(*sources: str) -> gr.Blocks:
    """The demo of one or several checkpoints: each a folder or a name on the Hub, by itself or as NAME=FOLDER.

    Without any, those that the environment names, else this repository's small English model. Where the e2e_tts package
    is missing, the code in the folders is run (trust_remote_code): name only models whose authors you trust.

    Raises FileNotFoundError where no model is named and the default is missing.
    """
    demo = Demo(list(sources) or find_sources())
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                inputs = lay_out_inputs(demo)
                with gr.Row():
                    button = gr.Button("Speak", variant="primary", scale=3)
                    stop = gr.Button("Stop", scale=1)
                gr.Examples([[example] for example in EXAMPLES], inputs["text"], cache_examples=False)
            with gr.Column():
                live = gr.Audio(
                    label="Live: each sentence once its tries are drawn, at once with 1 candidate",
                    streaming=True,
                    autoplay=True,
                    visible=can_play(),
                    elem_id="live",
                    buttons=[],
                )
                audio, picture = lay_out_result("Recording", "recording")
                note = gr.Markdown(elem_id="watermark")
        chunk = gr.Audio(label="Chunk", visible=False, format="wav")
        speaking = gr.on(
            [button.click, inputs["text"].submit],
            demo.play,
            inputs_kwargs=inputs,
            outputs=[live, audio, picture, note],
            api_visibility="private",
            show_progress_on=[picture],
            **TURN,
        )
        events = [speaking]
        # Endpoints of programs alone: without the player, whose stream is made for browsers.
        gr.on([], demo.speak, inputs_kwargs=inputs, outputs=[audio, picture], api_name="speak", **TURN)
        once = inputs | {"candidates": gr.Slider(1, 8, 1, step=1, precision=0, label="Candidates", visible=False)}
        gr.on([], demo.stream, inputs_kwargs=once, outputs=[chunk], api_name="stream", **TURN)
        if len(demo.checkpoints) > 1:
            inputs["checkpoint"].change(
                demo.offer_voices, inputs["checkpoint"], inputs["voice"], api_visibility="private", queue=False
            )
            events.append(lay_out_comparison(demo, inputs))
        stop.click(None, cancels=events)
    return page.queue(max_size=MAX_QUEUE)


def lay_out_inputs(demo: Demo) -> dict[str, gr.components.Component]:
    """The fields by the names that they have in the API."""
    names, sampling = list(demo.checkpoints), demo.sampling
    has_voices = any(demo.voices.values())
    text = gr.Textbox(
        label="Text", info=f"Up to {MAX_CHARACTERS} characters", value=EXAMPLES[0], lines=3, max_length=MAX_CHARACTERS
    )
    checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint", visible=len(names) > 1)
    # Any text is let through to `Request`, which says what there is instead.
    voice = gr.Dropdown(**voice_choices(demo.voices[names[0]]), label="Built-in voice", allow_custom_value=True)
    with gr.Accordion("A voice of your own" if has_voices else "Voice", open=not has_voices):
        reference = gr.Audio(
            label="Reference clip, a few seconds of clear speech; it replaces the built-in voice",
            sources=["upload", "microphone"],
            type="filepath",
            buttons=["download"],
            elem_id="reference",
        )
        transcript = gr.Textbox(
            "",
            label="What the clip says (optional)",
            info="If given, the speech continues the clip and takes over its manner of speaking",
            max_length=MAX_CHARACTERS,
        )
        gr.Markdown("Use only your own voice, or one whose owner has agreed.")
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            seed = gr.Number(
                0, label="Seed", info="Empty: a new one each time", precision=0, minimum=0, maximum=MAX_SEED
            )
            speed = gr.Slider(0.5, 2.0, 1.0, step=0.05, label="Speed", info="2 is twice as fast")
        with gr.Row():
            guidance = gr.Slider(
                0.0, 3.0, 0.7, step=0.1, label="Guidance", info="How closely sound follows tokens and voice"
            )
            steps = gr.Slider(1, 32, 6, step=1, precision=0, label="Steps", info="More are slower and cleaner")
        with gr.Row():
            temperature = gr.Slider(
                0.0,
                max(1.5, sampling["temperature"]),
                sampling["temperature"],
                step=0.05,
                label="Temperature",
                info="Of the tokens; 0 takes the likeliest",
            )
            top_k = gr.Slider(
                1,
                max(100, sampling["top_k"]),
                sampling["top_k"],
                step=1,
                precision=0,
                label="Top k",
                info="So many likeliest tokens",
            )
            top_p = gr.Slider(
                min(0.05, sampling["top_p"]),
                1.0,
                sampling["top_p"],
                step=0.05,
                label="Top p",
                info="As many as make up this probability",
            )
            text_guidance = gr.Slider(
                min(1.0, sampling["text_guidance"]),
                max(4.0, sampling["text_guidance"]),
                sampling["text_guidance"],
                step=0.1,
                label="Text guidance",
                info="Above 1 closer to the text",
            )
            candidates = gr.Slider(
                1,
                max(8, sampling["candidates"]),
                sampling["candidates"],
                step=1,
                precision=0,
                label="Candidates",
                info="Tries at a sentence; the reward model keeps the best. Sound starts after all; with 1 at once",
            )
        styles = lay_out_styles(demo.styles)
    fields = {"text": text, "voice": voice, "reference": reference, "transcript": transcript, "seed": seed}
    fields |= {"speed": speed, "guidance": guidance, "steps": steps, "temperature": temperature}
    fields |= {"top_k": top_k, "top_p": top_p, "text_guidance": text_guidance, "candidates": candidates}
    return fields | {"checkpoint": checkpoint} | styles


def voice_choices(voices: list[str]) -> dict[str, Any]:
    """What the field of voices offers, the first one chosen; without any voice it is not there."""
    return {"choices": voices, "value": voices[0] if voices else None, "visible": bool(voices)}


def lay_out_styles(styles: dict[str, tuple[str, ...]]) -> dict[str, gr.Dropdown]:
    """A field for each style that some checkpoint has learned, given the words for its levels."""
    if not styles:
        return {}
    with gr.Row():
        return {
            f"{STYLE_FIELD}{name}": gr.Dropdown(
                [("as usual", ""), *words], value="", label=name.replace("_", " ").capitalize(), info="Of this voice"
            )
            for name, words in styles.items()
        }


def lay_out_result(label: str, elem_id: str | None = None) -> tuple[gr.Audio, gr.Image]:
    audio = gr.Audio(
        label=label,
        interactive=False,
        format="wav",
        buttons=["download"],
        waveform_options=gr.WaveformOptions(show_recording_waveform=False),
        elem_id=elem_id,
    )
    # It carries its own labels, which Gradio's would cover.
    picture = gr.Image(
        label="Mel and speech tokens", show_label=False, interactive=False, format="png", buttons=["fullscreen"]
    )
    return audio, picture


def lay_out_comparison(demo: Demo, inputs: dict[str, gr.components.Component]) -> Any:
    """A button and a column for each checkpoint; returns the event."""
    note = "The same text, voice and seed through every checkpoint, all with the vocoder of the first"
    if demo.own_vocoder:
        note += f" but {', '.join(demo.own_vocoder)}, whose mel it does not fit"
    if len(set(map(frozenset, demo.voices.values()))) > 1:
        note += "; one that lacks the voice speaks in its default one"
    gr.Markdown(f"## Side by side\n{note}.")
    button = gr.Button("Compare the checkpoints")
    with gr.Row():
        results = []
        for name in demo.checkpoints:
            with gr.Column(min_width=240):
                results += lay_out_result(name)
    inputs = {name: component for name, component in inputs.items() if name != "checkpoint"}
    return button.click(demo.compare, inputs_kwargs=inputs, outputs=results, api_name="compare", **TURN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="[NAME=]MODEL",
        help="folders or Hub names of models, the first one's vocoder for all; several are compared side by side "
        f"(default: those in the variable {VARIABLE}, with commas between them, else model_cards/small-en, else the "
        "folder model beside this file)",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    arguments = parser.parse_args()
    build_demo(*arguments.model).launch(server_port=arguments.port, max_file_size=MAX_UPLOAD)


if __name__ == "__main__":
    main()
