"""A Gradio demo: text in, speech out, and a picture of the speech tokens and the mel that the model made on the way."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import PreTrainedModel, pipeline

HERE = Path(__file__).resolve().parent
# In the repository the released checkpoint; in a Space of its own, a copy of it beside this file.
DEFAULT_MODELS = (HERE.parent / "model_cards" / "small-en", HERE / "model")
MAX_CHARACTERS = 160
MAX_QUEUE = 16
MAX_UPLOAD = "10mb"
EXAMPLES = (
    "The birds sang in the morning.",
    "Could you read this sentence aloud, please?",
    "Dr. Green paid $25 for two tickets.",
)
INTRODUCTION = """# End-to-end text-to-speech
The language model turns text into speech tokens, the flow-matching decoder turns tokens into a mel spectrogram, and the
vocoder makes it audible. Tokens, language model and decoder were trained together."""

# Dark to light; the colours between are interpolated.
PALETTE = np.array([(13, 8, 35), (84, 20, 108), (183, 55, 98), (244, 125, 60), (252, 233, 170)], dtype=np.float64)
PAPER, INK = (255, 255, 255), (70, 70, 80)


def build_demo(model_path: str | None = None) -> gr.Blocks:
    """The demo of one model: its folder or its name on the Hub; by default this repository's small English model.

    The code in the model's folder is run (trust_remote_code): name only models whose authors you trust.

    Raises FileNotFoundError where no model is named and the default is missing.
    """
    speaker = pipeline("text-to-speech", model=str(model_path or find_model()), trust_remote_code=True)
    trace = record_generation(speaker.model)

    def speak(
        text: str,
        transcript: str,
        seed: int | None,
        speed: float,
        guidance: float,
        steps: int,
        temperature: float,
        voice: str | None = None,
        reference: str | None = None,
    ) -> tuple[tuple[int, np.ndarray], Image.Image]:
        """Speaks a text with a built-in voice or, where a clip is given, with the voice of the clip."""
        text, transcript = text or "", (transcript or "").strip()
        for name, value in (("text", text), ("transcript", transcript)):
            if len(value) > MAX_CHARACTERS:
                message = f"The {name} has {len(value)} characters, more than the {MAX_CHARACTERS} allowed; shorten it."
                raise gr.Error(message, print_exception=False)
        if transcript and reference is None:
            raise gr.Error("There is a transcript but no reference clip; add the clip.", print_exception=False)
        source = {"voice": voice} if reference is None else {"reference_audio": reference}
        try:
            report_left_out(speaker, text)
            speech = speaker(
                text,
                **source,
                reference_text=transcript or None,
                seed=seed,
                speed=speed,
                guidance=guidance,
                num_steps=steps,
                temperature=temperature,
            )
        except (ValueError, RuntimeError) as error:
            # A ValueError is about the input; of anything else the log should tell where it comes from.
            raise gr.Error(str(error), print_exception=not isinstance(error, ValueError)) from error
        # Given floats, Gradio would raise every utterance to full scale.
        samples = (speech["audio"].clip(-1.0, 1.0) * 32767).astype(np.int16)
        return (speech["sampling_rate"], samples), draw_speech(speaker.model, **trace)

    return lay_out(speak, list(speaker.model.config.voices))


def find_model() -> Path:
    """The first default model that is there. Raises FileNotFoundError."""
    for folder in DEFAULT_MODELS:
        if (folder / "config.json").is_file():
            return folder
    looked = " or ".join(str(folder) for folder in DEFAULT_MODELS)
    raise FileNotFoundError(f"There is no model in {looked}. Name one: python app.py --model FOLDER_OR_HUB_NAME")


def record_generation(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Lets `model.generate` note mel (T_mel, n_mels) and codes (T, D) of its last utterance in the returned dictionary.

    The pipeline returns audio only. One utterance is spoken at a time (see `lay_out`), so nothing is mixed up.
    """
    generate = model.generate
    trace: dict[str, np.ndarray] = {}

    def generate_and_note(*args: Any, **kwargs: Any) -> dict[str, Any]:
        output = generate(*args, **kwargs)
        mask = output["mask"][0]
        codes = model.lm.quantizer.indices_to_codes(output["ids"][0][mask])
        mel = output["mel"][0, : len(codes) * model.config.decoder_config.frames_per_token]
        trace.update(mel=mel.float().cpu().numpy(), codes=codes.float().cpu().numpy())
        return output

    model.generate = generate_and_note
    return trace


def report_left_out(speaker: Any, text: str) -> None:
    """Shows what the text frontend warns about, such as words it cannot speak. Raises its ValueError."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        speaker.processor.text_frontend(text)
    for note in notes:
        gr.Warning(str(note.message))


def lay_out(speak: Any, voices: list[str]) -> gr.Blocks:
    """The page around `speak`."""
    with gr.Blocks(title="End-to-end text-to-speech", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(
                    label="Text",
                    info=f"English, up to {MAX_CHARACTERS} characters",
                    value=EXAMPLES[0],
                    lines=3,
                    max_length=MAX_CHARACTERS,
                )
                voice = gr.Dropdown(
                    voices, value=voices[0] if voices else None, label="Built-in voice", visible=bool(voices)
                )
                with gr.Accordion("A voice of your own" if voices else "Voice", open=not voices):
                    reference = gr.Audio(
                        label="Reference clip, a few seconds of clear speech; it replaces the built-in voice",
                        sources=["upload", "microphone"],
                        type="filepath",
                    )
                    transcript = gr.Textbox(
                        "",
                        label="What the clip says (optional)",
                        info="If given, the speech continues the clip and takes over its manner of speaking",
                        max_length=MAX_CHARACTERS,
                    )
                    gr.Markdown("Use only your own voice, or one whose owner has agreed.")
                with gr.Accordion("Advanced", open=False):
                    seed = gr.Number(
                        0, label="Seed", info="Empty: a new one each time", precision=0, minimum=0, maximum=2**31 - 1
                    )
                    speed = gr.Slider(0.5, 2.0, 1.0, step=0.05, label="Speed")
                    guidance = gr.Slider(
                        0.0,
                        3.0,
                        0.7,
                        step=0.1,
                        label="Guidance",
                        info="How closely the decoder follows tokens and voice",
                    )
                    steps = gr.Slider(1, 32, 10, step=1, precision=0, label="Steps", info="More are slower and cleaner")
                    temperature = gr.Slider(
                        0.0,
                        1.5,
                        1.0,
                        step=0.05,
                        label="Temperature",
                        info="Of the tokens; 0 always takes the likeliest",
                    )
                button = gr.Button("Speak", variant="primary")
            with gr.Column():
                audio = gr.Audio(label="Speech", interactive=False, format="wav")
                picture = gr.Image(label="Mel and speech tokens", interactive=False, format="png")
                gr.Examples([[example] for example in EXAMPLES], text, cache_examples=False)
        gr.on(
            [button.click, text.submit],
            speak,
            inputs=[text, transcript, seed, speed, guidance, steps, temperature, voice, reference],
            outputs=[audio, picture],
            api_name="speak",
            concurrency_limit=1,
        )
    return demo.queue(max_size=MAX_QUEUE)


def draw_speech(model: PreTrainedModel, mel: np.ndarray, codes: np.ndarray) -> Image.Image:
    """Mel (T_mel, n_mels) above codes (T, D), one row a dimension of the code, over a common axis in seconds."""
    spec = model.config.decoder_config.mel
    seconds = len(mel) * spec["hop_length"] / spec["sampling_rate"]
    left, top, width, mel_height, row, gap = 64, 28, 920, 280, 24, 32
    code_top = top + mel_height + gap
    bottom = code_top + row * codes.shape[1]
    image = Image.new("RGB", (left + width + 24, bottom + 28), PAPER)
    # What lies 10 nepers below the loudest is black: silence would take most of the colours otherwise.
    panels = (
        (((mel.T - mel.max()) / 10.0 + 1.0)[::-1], top, mel_height),
        ((codes.T + 1.0) / 2.0, code_top, bottom - code_top),
    )
    for values, y, height in panels:
        image.paste(Image.fromarray(colour(values)).resize((width, height), Image.Resampling.NEAREST), (left, y))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)

    def write(x: float, y: float, label: str, anchor: str) -> None:
        draw.text((x, y), label, fill=INK, font=font, anchor=anchor)

    write(left, top - 6, f"mel: {len(mel)} frames, {mel.shape[1]} bands", "ls")
    write(left, code_top - 6, f"speech tokens: {len(codes)}, {len(codes) / seconds:g} a second", "ls")
    write(left - 8, top, f"{spec['f_max'] / 1000:g} kHz", "rt")
    write(left - 8, top + mel_height, f"{spec['f_min'] / 1000:g}", "rb")
    for index in range(codes.shape[1]):
        write(left - 8, code_top + row * (index + 0.5), f"code {index + 1}", "rm")
    step = next((step for step in (0.1, 0.2, 0.5, 1.0, 2.0) if seconds / step <= 12), 5.0)
    for tick in range(int(seconds / step) + 1):
        x = left + width * tick * step / seconds
        draw.line([(x, bottom), (x, bottom + 5)], fill=INK)
        write(x, bottom + 8, f"{tick * step:g}{' s' if tick == 0 else ''}", "ma")
    return image


def colour(values: np.ndarray) -> np.ndarray:
    """Values (H, W), cut to 0 .. 1, as uint8 colours (H, W, 3)."""
    points = np.linspace(0.0, 1.0, len(PALETTE))
    channels = [np.interp(values, points, PALETTE[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        help="folder or Hub name of a model; default: model_cards/small-en, or the folder model beside this file",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    arguments = parser.parse_args()
    build_demo(arguments.model).launch(server_port=arguments.port, max_file_size=MAX_UPLOAD)


if __name__ == "__main__":
    main()
