"""The command `e2e-tts`, also `python -m e2e_tts.pipelines.cli`: `e2e-tts --help` lists what it does."""

import importlib
import os
import sys
import warnings
from argparse import BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from e2e_tts.trainers.command_line import CommandParser

from . import commands
from .audio_writer import FORMATS

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130

OVERVIEW = """examples:
  e2e-tts speak "Hello, world! How are you today?" -o hello.wav
  e2e-tts clone me.wav -o me.safetensors
  e2e-tts speak "In my own voice." --voice me.safetensors -o mine.wav
  e2e-tts convert me.wav --voice NAME -o other.wav
  e2e-tts detect heard.mp3
  e2e-tts serve --port 8000
  e2e-tts train --recipe small_joint --output_dir runs/joint

Every command has its own --help. Messages go to standard error, so that - can stand for standard input and output.
Exit codes: 0 done, 1 failed (one line says why), 2 wrong usage, 3 no watermark (detect), 130 interrupted.
"""
SPEAK = """examples:
  e2e-tts speak "Hello, world! How are you today?" -o hello.wav
  e2e-tts speak "Hello again." -o hello.mp3 --voice NAME --speed 1.2 --seed 1
  e2e-tts speak - -o chapter.wav < chapter.txt                       (standard input; any length)
  e2e-tts speak - --stream -o - < chapter.txt | ffplay -nodisp -     (hear it while it is being spoken)
  my-chatbot | e2e-tts speak - --stream -o - --format raw | aplay -f S16_LE -r 16000
  e2e-tts speak "In your own voice." -o mine.wav --reference me.wav --reference-text "What I say in me.wav."
  e2e-tts speak --list-voices
"""
CLONE = """examples:
  e2e-tts clone me.wav -o me.safetensors
  e2e-tts clone me.wav --text "What I say in me.wav." -o me.safetensors     (copies the manner of speaking too)
  e2e-tts clone me.wav --transcribe -o me.safetensors                       (finds out by itself what it says)
  e2e-tts speak "Hello." --voice me.safetensors -o hello.wav

Clone only your own voice, or one whose owner has agreed. Speech in it carries an inaudible watermark, which the
command detect finds, where resemble-perth is installed; speak --no-watermark leaves it out.
"""
CONVERT = """examples:
  e2e-tts convert me.wav --voice NAME -o other.wav
  e2e-tts convert me.wav --reference you.wav -o you_say_it.wav
  e2e-tts convert takes/*.wav --voice me.safetensors -o converted/           (into a folder that exists)
  arecord -f S16_LE -r 16000 -d 5 | e2e-tts convert - -o - | aplay
"""
TOKENIZE = """examples:
  e2e-tts tokenize me.wav                                 (one line of JSON)
  e2e-tts tokenize takes/*.wav --format npy -o tokens/    (into a folder that exists)
  e2e-tts tokenize me.wav | e2e-tts detokenize - --voice NAME -o other.wav

.json and .safetensors files also know the tokenizer that they belong to; .npy files hold the tokens alone.
"""
DETOKENIZE = """examples:
  e2e-tts detokenize me.json -o again.wav
  e2e-tts detokenize tokens/*.npy --voice NAME --format flac -o speech/
  e2e-tts tokenize me.wav | e2e-tts detokenize - -o - | aplay
"""
DETECT = """examples:
  e2e-tts detect heard.mp3
  e2e-tts detect takes/*.wav && echo "all of them were made by a machine"

A line a file: marked or not marked, confidence from 0 to 1, name, and where in the file. Speech of cloned voices and
converted recordings carry the mark by default; so does speech of other programs that use Perth. The mark survives MP3,
Opus and resampling. Its absence proves nothing: speech made without the mark, or from which someone removed it, has
none. Exit codes: 0 all are marked, 3 some are not, 1 some could not be read.
"""
SERVE = """examples:
  e2e-tts serve
  curl http://127.0.0.1:8000/v1/audio/speech -H "Content-Type: application/json" \\
       -d '{"model": "small-en", "input": "Hello, world!", "response_format": "wav"}' -o hello.wav
  OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none my-program-with-the-openai-library

It speaks OpenAI's speech protocol: /v1/audio/speech, /v1/audio/voices, /v1/models, and /health. It asks for no key: let
strangers reach it only through a proxy that does.
"""


@dataclass(frozen=True)
class ModuleCommand:
    """A command that another module carries out by its `main(arguments)`, the reading of its arguments included."""

    module: str
    help: str
    settings: dict[str, str] = field(default_factory=dict)


ITS_OWN = "(default: the checkpoint's)"
MODULE_COMMANDS = {
    "prepare": ModuleCommand("e2e_tts.trainers.data.prepare", "turn speech corpora into a data set for training"),
    "doctor": ModuleCommand("e2e_tts.trainers.doctor", "examine a recipe before its run"),
    "train": ModuleCommand("e2e_tts.trainers.train", "train a stage, or the vocoder, from a recipe"),
    "evaluate": ModuleCommand(
        "e2e_tts.pipelines.evaluation.harness", "measure a checkpoint, or any recordings", {"prog": "e2e-tts evaluate"}
    ),
}


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="e2e-tts",
        description="Text to speech on your own machine.",
        epilog=OVERVIEW,
        formatter_class=RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[Namespace], int | None], summary: str, description: str, epilog: str
    ) -> CommandParser:
        command = subparsers.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    _add_speak(add("speak", commands.speak, "speak a text", "Speaks a text, sentence by sentence.", SPEAK))
    _add_clone(add("clone", commands.clone, "make a voice of a recording", "Makes a voice file of a recording.", CLONE))
    _add_convert(
        add(
            "convert",
            commands.convert,
            "speak recordings in another voice",
            "Speaks recordings again in another voice; words and timing stay.",
            CONVERT,
        )
    )
    _add_tokenize(
        add(
            "tokenize",
            commands.tokenize,
            "write recordings as speech tokens",
            "Writes recordings as the discrete tokens that the language model speaks in.",
            TOKENIZE,
        )
    )
    _add_detokenize(
        add("detokenize", commands.detokenize, "speak speech tokens", "Makes tokens audible again.", DETOKENIZE)
    )
    _add_detect(
        add(
            "detect",
            commands.detect,
            "find the watermark of cloned speech",
            "Says which recordings carry the inaudible mark of cloned speech.",
            DETECT,
        )
    )
    _add_serve(
        add(
            "serve",
            commands.serve,
            "answer OpenAI's speech requests",
            "A speech server for programs made for OpenAI's.",
            SERVE,
        )
    )
    for name, command in MODULE_COMMANDS.items():
        subparsers.add_parser(name, help=command.help, add_help=False)
    return parser


def _add_speak(command: CommandParser) -> None:
    command.add_argument("text", nargs="?", help="what to say; - reads standard input")
    _add_output(command, default="speech.wav")
    command.add_argument(
        "--stream", action="store_true", help="write each chunk at once, and speak standard input while it comes"
    )
    _add_model(command)
    _add_voice(command)
    command.add_argument("--list-voices", action="store_true", help="print the built-in voices, the default first")
    text = command.add_mutually_exclusive_group()
    text.add_argument("--reference-text", metavar="TEXT", help="what the reference says; its manner is copied too")
    text.add_argument("--transcribe", action="store_true", help="let the model find out what the reference says")
    command.add_argument("--speed", type=float, help="0.25 to 4; 2 is twice as fast")
    command.add_argument(
        "--style", action="append", metavar="NAME=LEVEL", help="manner of speaking, pitch=high say (repeatable)"
    )
    command.add_argument("--list-styles", action="store_true", help="print the styles that the checkpoint has")
    _add_decoder(command)
    command.add_argument(
        "--temperature",
        type=float,
        help=f"below 1 is calmer, 0 always takes the likeliest token {ITS_OWN}",
    )
    command.add_argument("--top-k", type=int, help=f"sample among the k likeliest tokens {ITS_OWN}")
    command.add_argument(
        "--top-p",
        type=float,
        help=f"sample among the likeliest tokens of this total probability {ITS_OWN}",
    )
    _add_watermark(command, "speech in the voice of a recording")
    command.add_argument("--text-guidance", type=float, help=f"above 1 keeps closer to the text; 1 is off {ITS_OWN}")
    command.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="draw N times and keep what the reward model understands best; by default as the checkpoint says, 1 with "
        "--stream",
    )


def _add_clone(command: CommandParser) -> None:
    command.add_argument("recording", help="3 to 10 seconds of clear speech, say; - reads an audio file from stdin")
    command.add_argument("-o", "--output", required=True, help="the voice, a .safetensors file")
    text = command.add_mutually_exclusive_group()
    text.add_argument("--text", help="what the recording says; its manner of speaking is copied too")
    text.add_argument("--transcribe", action="store_true", help="let the model find out what the recording says")
    command.add_argument(
        "--no-prompt", dest="prompt", action="store_false", help="keep the timbre alone, not the recording's sound"
    )
    command.add_argument("--name", help="kept in the file")
    _add_model(command)


def _add_convert(command: CommandParser) -> None:
    command.add_argument("recordings", nargs="+", metavar="FILE", help="recordings; - reads one from standard input")
    _add_output(command)
    _add_model(command)
    _add_voice(command)
    _add_decoder(command)
    _add_watermark(command, "all")


def _add_tokenize(command: CommandParser) -> None:
    command.add_argument("recordings", nargs="+", metavar="FILE", help="recordings; - reads one from standard input")
    command.add_argument(
        "-o",
        "--output",
        default=commands.STANDARD,
        help=".json, .npy or .safetensors file, a folder, or - for a line of JSON (default: %(default)s)",
    )
    command.add_argument(
        "--format", choices=("json", "npy", "safetensors"), default="json", help="in a folder (default: %(default)s)"
    )
    _add_model(command)


def _add_detokenize(command: CommandParser) -> None:
    command.add_argument(
        "recordings", nargs="+", metavar="FILE", help="what tokenize wrote; - reads a line of JSON from standard input"
    )
    _add_output(command)
    _add_model(command)
    _add_voice(command)
    _add_decoder(command)
    _add_watermark(command, "all")


def _add_detect(command: CommandParser) -> None:
    command.add_argument("recordings", nargs="+", metavar="FILE", help="recordings; - reads one from standard input")
    command.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def _add_serve(command: CommandParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="address; 0.0.0.0 for all (default: %(default)s)")
    command.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    command.add_argument("--voices", metavar="DIR", help="folder of voice files: NAME.safetensors is offered as NAME")
    command.add_argument(
        "--alias", nargs="*", default=[], metavar="NAME", help="other names of the model for clients to ask for: tts-1"
    )
    command.add_argument(
        "--max-characters", type=int, default=4096, help="longest text of a request (default: %(default)s)"
    )
    command.add_argument(
        "--max-waiting", type=int, default=16, help="requests that may wait; more are refused (default: %(default)s)"
    )
    _add_model(command)
    _add_watermark(command, "speech in voices of --voices")


def _add_output(command: CommandParser, default: str | None = None) -> None:
    suffixes = ", ".join(f".{name}" for name in FORMATS)
    kinds = f"{suffixes} file, {'a folder, ' if default is None else ''}or - for standard output"
    command.add_argument(
        "-o",
        "--output",
        required=default is None,
        default=default,
        help=kinds if default is None else f"{kinds} (default: %(default)s)",
    )
    command.add_argument(
        "--format",
        choices=list(FORMATS),
        help="by default as the suffix says, else wav; raw is 16-bit little-endian samples without a header",
    )


def _add_model(command: CommandParser) -> None:
    command.add_argument(
        "--model", metavar="DIR", help=f"checkpoint (default: the shipped {commands.DEFAULT_MODEL.as_posix()})"
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: %(default)s)")
    command.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _add_voice(command: CommandParser) -> None:
    command.add_argument(
        "--voice", metavar="NAME", help="built-in voice, or a file of e2e-tts clone (default: the first one listed)"
    )
    command.add_argument("--reference", metavar="FILE", help="recording whose voice is taken instead, 3 to 10 s say")


def _add_watermark(command: CommandParser, default: str) -> None:
    command.add_argument(
        "--watermark",
        action=BooleanOptionalAction,
        help=f"mark all speech inaudibly, or none (default: {default}, where resemble-perth is installed)",
    )


def _add_decoder(command: CommandParser) -> None:
    command.add_argument("--seed", type=int, help="repeatable result")
    command.add_argument(
        "--steps",
        dest="num_steps",
        metavar="N",
        type=int,
        help="solver steps of the decoder, 6 by default",
    )
    command.add_argument("--guidance", type=float, help="guidance of the decoder, 0.7 by default; 0 is off and faster")
    command.add_argument("--decoder-temperature", type=float, help=f"below 1 the sound is calmer {ITS_OWN}")


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Users read what a warning says, not where in the code it was raised."""

    def show(message: Warning | str, category: type[Warning], *place: object) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _run_module(name: str, arguments: list[str]) -> int:
    """Hands the arguments to the module of a command; its messages and help call it by the command's name."""
    command = MODULE_COMMANDS[name]
    program = sys.argv[0]
    sys.argv[0] = f"e2e-tts {name}"  # what argparse shows in usage lines
    try:
        return importlib.import_module(command.module).main(arguments, **command.settings) or 0
    finally:
        sys.argv[0] = program


def _wait_for_busy_cores() -> None:
    """Where another process keeps a core busy, has threads sleep while they wait, unless the environment says how.

    OpenMP reads this when torch is loaded. Threads that spin hold the cores that the others would work on: on two cores
    beside a busy process, speaking took seven times as long. On an idle machine spinning is the faster by a fifth.
    """
    if hasattr(os, "getloadavg") and os.getloadavg()[0] >= 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: a command's own or 0, 1 after a one-line error, 130 after an interrupt. Raises SystemExit
    as argparse does: with 0 after help, with 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in MODULE_COMMANDS:
            return _run_module(arguments[0], arguments[1:])
        options = build_parser().parse_args(arguments)
        _wait_for_busy_cores()
        with _warnings_in_one_line():
            return options.run(options) or 0
    except BrokenPipeError:
        # The reader has left, which is its right. Nothing is left to flush to it when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if arguments[0] in MODULE_COMMANDS:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
