"""The command `e2e-tts`, also `python -m e2e_tts.pipelines.cli`: speaks a text to a WAV file."""

import argparse
import json
import sys
import time
from pathlib import Path

DEFAULT_MODEL = Path("model_cards") / "small-en"
EXAMPLES = """examples:
  e2e-tts speak "Hello, world! How are you today?" -o hello.wav
  e2e-tts speak "Hello again." -o hello.wav --voice NAME --speed 1.2 --seed 1
  e2e-tts speak - -o chapter.wav < chapter.txt          (standard input; any length)
  e2e-tts speak "In your own voice." -o mine.wav --reference me.wav --reference-text "What I say in me.wav."
  e2e-tts speak --list-voices
"""


def find_model(folder: str | None) -> Path:
    """The folder given, else the checkpoint shipped beside this package or below the current directory.

    Raises ValueError where there is none.
    """
    if folder is not None:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder} is not a checkpoint: it has no config.json.")
        return Path(folder)
    places = [Path(__file__).resolve().parents[1] / DEFAULT_MODEL, Path.cwd() / DEFAULT_MODEL]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ValueError(
        f"No model: pass --model DIR, or run from a clone of the repository. Looked in {', '.join(map(str, places))}."
    )


def list_voices(model: Path) -> list[str]:
    """Names of the built-in voices of a checkpoint, the default one first."""
    return list(json.loads((model / "config.json").read_text()).get("voices") or {})


def speak(options: argparse.Namespace) -> None:
    """Carries out `speak`. Raises ValueError or RuntimeError with one line that says what to do."""
    model = find_model(options.model)
    if options.list_voices:
        print("\n".join(list_voices(model)) or "This model has no built-in voices; use --reference.")
        return
    if options.text is None:
        raise ValueError('Nothing to speak: e2e-tts speak "text" -o out.wav, or - for standard input.')
    text = sys.stdin.read() if options.text == "-" else options.text
    if not text.strip():
        raise ValueError("The text is empty.")
    output = Path(options.output)
    if output.suffix.lower() not in (".wav", ".flac", ".ogg"):
        raise ValueError(f"The output must be a .wav, .flac or .ogg file, got {options.output}.")
    if not output.parent.is_dir():
        raise ValueError(f"There is no folder {output.parent}.")
    # Imported late: help, voices and mistakes answer at once.
    import soundfile
    import transformers

    from . import load_pipeline
    from .long_text import speak_long

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    pipe = load_pipeline(str(model), device=options.device)
    settings = {
        "voice": options.voice,
        "reference_audio": options.reference,
        "reference_text": options.reference_text,
        "seed": options.seed,
        "speed": options.speed,
        "num_steps": options.steps,
        "guidance": options.guidance,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
    }
    settings = {name: value for name, value in settings.items() if value is not None}

    def progress(number: int, count: int, part: str) -> None:
        if not options.quiet:
            print(f"[{number}/{count}] {part}", file=sys.stderr, flush=True)

    start = time.perf_counter()
    speech = speak_long(pipe, text, progress, **settings)
    soundfile.write(output, speech["audio"].clip(-1.0, 1.0), speech["sampling_rate"])
    if not options.quiet:
        seconds = len(speech["audio"]) / speech["sampling_rate"]
        print(f"{output}: {seconds:.1f} s of speech in {time.perf_counter() - start:.1f} s", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="e2e-tts",
        description="Text to speech on your own machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="speak")
    command = commands.add_parser(
        "speak",
        help="speak a text to a file",
        description="Speaks a text to a file. Long texts are spoken sentence by sentence.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("text", nargs="?", help="what to say; - reads standard input")
    command.add_argument("-o", "--output", default="speech.wav", help=".wav, .flac or .ogg (default: %(default)s)")
    command.add_argument("--model", metavar="DIR", help=f"checkpoint (default: the shipped {DEFAULT_MODEL.as_posix()})")
    command.add_argument("--voice", metavar="NAME", help="built-in voice (default: the model's first)")
    command.add_argument("--list-voices", action="store_true", help="print the names of the built-in voices")
    command.add_argument("--reference", metavar="FILE", help="recording whose voice is taken instead, 3 to 10 s say")
    command.add_argument("--reference-text", metavar="TEXT", help="what the recording says; its manner is copied too")
    command.add_argument("--seed", type=int, help="repeatable result")
    command.add_argument("--speed", type=float, help="0.25 to 4; 2 is twice as fast")
    command.add_argument("--steps", type=int, help="solver steps of the decoder; more is slower and finer")
    command.add_argument("--guidance", type=float, help="guidance of the decoder; 0 is off and twice as fast")
    command.add_argument("--temperature", type=float, help="0 always takes the likeliest token; below 1 is calmer")
    command.add_argument("--top-k", type=int, help="sample among the k likeliest tokens")
    command.add_argument("--top-p", type=float, help="sample among the likeliest tokens of this total probability")
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 after a one-line error."""
    options = build_parser().parse_args(arguments)
    try:
        speak(options)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
