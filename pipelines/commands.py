"""What the commands of `e2e-tts` do; `cli` reads their arguments.

Every function raises ValueError, RuntimeError, ImportError or OSError with one line that says what to do. Packages that
take seconds to import are imported once everything that can be checked without them is checked.
"""

import argparse
import codecs
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from .audio_files import as_samples
from .audio_writer import AudioWriter, encode, format_of, writable_formats

DEFAULT_MODEL = Path("model_cards") / "small-en"
STANDARD = "-"  # standard input or output
EXIT_UNMARKED = 3
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_model(name: str | None) -> str:
    """A checkpoint's folder, or owner/model on the Hub; by default the checkpoint shipped beside this package or below
    the current directory. Raises ValueError where there is none."""
    if name is not None:
        if (Path(name) / "config.json").is_file():
            return name
        if _HUB_NAME.fullmatch(name) and not Path(name).exists():
            return name
        if (Path(name) / "adapter_config.json").is_file():
            raise ValueError(
                f"{name} holds an adapter, which speaks once it is merged into its checkpoint: "
                f"python -m e2e_tts.trainers.adapters --adapter {name} --output MERGED"
            )
        raise ValueError(f"{name} is not a checkpoint: it has no config.json.")
    places = [Path(__file__).resolve().parents[1] / DEFAULT_MODEL, Path.cwd() / DEFAULT_MODEL]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    raise ValueError(
        f"No model: pass --model DIR, or run from a clone of the repository. Looked in {', '.join(map(str, places))}."
    )


def list_voices(model: str) -> list[str]:
    """Names of the built-in voices of a checkpoint, the default one first."""
    path = Path(model) / "config.json"
    if path.is_file():
        config = json.loads(path.read_text())
        return sorted(config.get("voices") or {}, key=lambda name: name != config.get("default_voice"))
    return load_config(model).voice_names


def list_styles(model: str) -> str:
    """What may be asked for of a checkpoint, a style a line: "pitch: 1 to 3 (low, medium, high)"."""
    from e2e_tts.modeling.styles import describe_styles, known_styles

    config = load_config(model)
    styles = known_styles(config.styles, rate_is_set=config.lm_config.text_positions == "aligned")
    return "\n".join(describe_styles({name: levels}) for name, levels in styles.items())


def load_config(model: str) -> Any:
    """The configuration of a checkpoint. Raises ValueError for a folder that is not there, as `load_pipeline` does."""
    from e2e_tts.modeling import E2ETTSConfig

    from . import missing_folders_named

    with missing_folders_named(model):
        return E2ETTSConfig.from_pretrained(model)


def speak(options: argparse.Namespace) -> None:
    """Speaks a text to a file or to standard output, at once or while it is being spoken."""
    model = find_model(options.model)
    if options.list_voices:
        print("\n".join(list_voices(model)) or "This model has no built-in voices; use --reference.")
        return
    if options.list_styles:
        print(list_styles(model) or "This model has no styles; --speed sets how fast it speaks.")
        return
    if options.text is None:
        raise ValueError('Nothing to speak: e2e-tts speak "text" -o out.wav, or - for standard input.')
    audio_format = checked_format(options.output, options.format)
    text: str | Iterator[str] = options.text
    if options.text == STANDARD:
        # One byte at a time: a longer read would wait for more of a text that is still being written.
        text = input_text(1) if options.stream else "".join(input_text())
    if isinstance(text, str) and not text.strip():
        raise ValueError("The text is empty.")
    check_one_voice(options)
    pipe = load_pipe(model, options)
    sampling = ("temperature", "top_k", "top_p", "text_guidance", "candidates")
    names = ("voice", "reference_text", "seed", "speed", "num_steps", "guidance", "decoder_temperature", *sampling)
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.style:
        settings["style"] = ", ".join(options.style)
    if options.reference is not None:
        settings["reference_audio"] = options.reference
    if options.transcribe:
        settings["transcribe"] = True
    settings["watermark"] = options.watermark

    def progress(number: int, count: int | None, part: str) -> None:
        # A heading and its paragraph are parted by an empty line.
        say(options, f"[{number}{f'/{count}' if count else ''}] {' '.join(part.split())}")

    from .long_text import speak_long, speak_parts

    start, rate = time.perf_counter(), pipe.model.config.sampling_rate
    if not options.stream and only_grows(options.output):
        # Speech that is there as a whole has its length in its header, which readers of a pipe may need.
        samples = write_speech(speak_long(pipe, text, progress, **settings), options.output, audio_format)
    else:
        speak_in = pipe.stream if options.stream else partial(speak_parts, pipe)
        samples = write_stream(speak_in(text, progress=progress, **settings), rate, options.output, audio_format)
    seconds = samples / rate
    say(options, f"{options.output}: {seconds:.1f} s of speech in {time.perf_counter() - start:.1f} s")


def clone(options: argparse.Namespace) -> None:
    """Makes a voice file of a recording."""
    model = find_model(options.model)
    if Path(options.output).suffix != ".safetensors":
        raise ValueError(f"A voice is saved to a .safetensors file, got {options.output}.")
    check_folder(options.output)
    recording = read_recording(options.recording)
    pipe = load_pipe(model, options)
    metadata = {} if options.name is None else {"name": options.name}
    voice = pipe.clone(
        recording, text=options.text, transcribe=options.transcribe, prompt=options.prompt, metadata=metadata
    )
    pipe.save_voice(voice, options.output)
    heard = f" It heard: {voice.symbols}" if options.transcribe else ""
    say(options, f"{options.output}: speak with it by --voice {options.output}.{heard}")


def convert(options: argparse.Namespace) -> None:
    """Speaks recordings again in another voice."""
    model = find_model(options.model)
    check_one_voice(options)
    formats, plan = plan_audio(options)
    recordings = {source: read_recording(source) for source, _ in plan}
    pipe = load_pipe(model, options)
    voice = find_voice(pipe, options)

    def work(source: str, target: str) -> None:
        speech = pipe.convert(recordings[source], voice=voice, watermark=options.watermark, **decoder_settings(options))
        write_speech(speech, target, formats[target])

    for_each(plan, work, options)


def tokenize(options: argparse.Namespace) -> None:
    """Writes recordings as speech tokens."""
    model = find_model(options.model)
    plan = plan_outputs(options.recordings, options.output, f".{options.format}")
    for _, target in plan:
        if target != STANDARD and Path(target).suffix not in (".json", ".npy", ".safetensors"):
            raise ValueError(f"Tokens are written to .json, .npy or .safetensors files, got {target}.")
    recordings = {source: read_recording(source) for source, _ in plan}
    pipe = load_pipe(model, options)

    def work(source: str, target: str) -> None:
        tokens = pipe.tokenize(recordings[source])
        if target == STANDARD:
            print(tokens.to_json(), flush=True)
        else:
            tokens.save(target)

    for_each(plan, work, options)


def detokenize(options: argparse.Namespace) -> None:
    """Speaks files of speech tokens."""
    from .speech_tokens import SpeechTokens

    model = find_model(options.model)
    check_one_voice(options)
    formats, plan = plan_audio(options)
    if [source for source, _ in plan] == [STANDARD]:
        line = "".join(input_text())
        try:
            tokens = {STANDARD: SpeechTokens.from_json(line)}
        except ValueError as error:
            raise ValueError(f"Standard input is not what e2e-tts tokenize prints: {error}") from error
    else:
        tokens = {source: SpeechTokens.load(source) for source, _ in plan}
    pipe = load_pipe(model, options)
    voice = find_voice(pipe, options)

    def work(source: str, target: str) -> None:
        speech = pipe.detokenize(tokens[source], voice=voice, watermark=options.watermark, **decoder_settings(options))
        write_speech(speech, target, formats[target])

    for_each(plan, work, options)


def detect(options: argparse.Namespace) -> int:
    """Says which recordings carry the mark of cloned speech. Returns EXIT_UNMARKED if one of them does not."""
    from .watermark import load_watermark

    recordings = {source: read_recording(source) for source in options.recordings}
    mark = load_watermark()
    unmarked = []

    def work(source: str, _: str) -> None:
        found = mark.detect(*mono(recordings[source]))
        place = f"\t{found.start:.1f}-{found.end:.1f} s" if found.is_marked else ""
        print(f"{'marked' if found.is_marked else 'not marked'}\t{found.confidence:.2f}\t{source}{place}", flush=True)
        if not found.is_marked:
            unmarked.append(source)

    for_each([(source, source) for source in recordings], work, options)
    return EXIT_UNMARKED if unmarked else 0


def serve(options: argparse.Namespace) -> None:
    """Answers OpenAI's speech requests until it is stopped."""
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must lie between 0 and 65535, got {options.port}.")
    model = find_model(options.model)
    try:
        import uvicorn

        from .speech_server import ServerLimits, create_app
    except ImportError as error:
        raise ImportError(f'The server needs more packages ({error}): pip install "e2e-tts[server]"') from error
    quieten()
    app = create_app(
        model,
        voices_folder=options.voices,
        aliases=options.alias,
        limits=ServerLimits(characters=options.max_characters, waiting=options.max_waiting),
        device=options.device,
        watermark=options.watermark,
    )
    say(options, f"http://{options.host}:{options.port}/v1/audio/speech")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning" if options.quiet else "info")


def say(options: argparse.Namespace, message: str) -> None:
    """Tells the user on standard error, unless --quiet."""
    if not options.quiet:
        print(message, file=sys.stderr, flush=True)


def quieten() -> None:
    """No chatter of transformers between our lines."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_pipe(model: str, options: argparse.Namespace) -> Any:
    """The pipeline of a checkpoint."""
    quieten()
    from . import load_pipeline

    return load_pipeline(model, device=options.device)


def check_one_voice(options: argparse.Namespace) -> None:
    """Raises ValueError where two voices are asked for."""
    if options.voice is not None and options.reference is not None:
        raise ValueError("Give either --voice or --reference, not both.")


def find_voice(pipe: Any, options: argparse.Namespace) -> Any:
    """The voice that --voice or --reference name, listened to once; None for the model's default."""
    return options.voice if options.reference is None else pipe.clone(options.reference)


def decoder_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("seed", "num_steps", "guidance", "decoder_temperature")}


def input_text(size: int = -1) -> Iterator[str]:
    """Standard input as text, in reads of `size` bytes or whole: UTF-8, or what a byte-order mark at its start says.

    Raises ValueError for anything else, whatever the locale would take it for: read wrongly it would be spoken as
    rubbish.
    """
    source = sys.stdin.buffer
    head = source.read(1)
    if head in (codecs.BOM_UTF16_LE[:1], codecs.BOM_UTF16_BE[:1]):
        head += source.read(1)
    encoding = "utf-16" if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    try:
        for data in chain([head], iter(lambda: source.read(size), b"")):
            text = decoder.decode(data)
            if "\0" in text:  # UTF-16 without its mark
                raise ValueError("it holds bytes of 0")
            if text:
                yield text
        yield decoder.decode(b"", final=True)
    except ValueError as error:
        reason = getattr(error, "reason", error)
        message = f"Standard input is not UTF-8 text ({reason}): convert it, with iconv -f ITS-ENCODING -t UTF-8 say."
        raise ValueError(message) from error


def read_recording(source: str) -> Any:
    """What the pipeline takes for a recording: the path, or for "-" the samples from standard input.

    Raises ValueError where there is no such file, or no audio in standard input.
    """
    if source != STANDARD:
        if not Path(source).is_file():
            raise ValueError(f"There is no recording {source}.")
        return source
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(sys.stdin.buffer.read()), dtype="float32")
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"Standard input cannot be read as an audio file: {error}") from error
    return {"array": samples, "sampling_rate": rate}


def mono(recording: Any) -> tuple[Any, int]:
    """Samples (samples,), several channels mixed down, and their rate in Hz. Raises ValueError for no audio file."""
    samples, rate = as_samples(recording, None)
    return samples.mean(axis=1) if samples.ndim == 2 else samples, rate


def check_folder(output: str) -> None:
    if not Path(output).parent.is_dir():
        raise ValueError(f"There is no folder {Path(output).parent}.")


def checked_format(output: str, chosen: str | None) -> str:
    """The audio format of an output: the one chosen, else WAV for standard output, else what its suffix names.

    Raises ValueError for formats and places that cannot be written to.
    """
    if output == STANDARD:
        if sys.stdout.isatty():
            raise ValueError("Audio does not go to a terminal: redirect the output to a file or to a player.")
        audio_format = chosen or "wav"
    else:
        check_folder(output)
        audio_format = chosen or format_of(output)
    if audio_format not in writable_formats():
        raise ValueError(f"Cannot write {audio_format} here; use one of {', '.join(writable_formats())}.")
    return audio_format


def plan_audio(options: argparse.Namespace) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Formats by output, and the pairs of input and output, for commands that make audio of files."""
    plan = plan_outputs(options.recordings, options.output, f".{options.format or 'wav'}")
    return {target: checked_format(target, options.format) for _, target in plan}, plan


def plan_outputs(sources: list[str], output: str, suffix: str) -> list[tuple[str, str]]:
    """Pairs of input and output. output: a folder for several inputs or one; a file, or "-", for one.

    Raises ValueError where outputs would overwrite each other or an input.
    """
    if Path(output).is_dir():
        if STANDARD in sources:
            raise ValueError("What comes from standard input has no name: give an output file, not a folder.")
        plan = [(source, str(Path(output) / f"{Path(source).stem}{suffix}")) for source in sources]
    elif len(sources) > 1:
        raise ValueError(f"Several inputs need a folder that exists for their output, got {output}.")
    else:
        plan = [(sources[0], output)]
    targets = [target for _, target in plan]
    if twice := sorted({target for target in targets if targets.count(target) > 1}):
        raise ValueError(f"Several inputs would be written to {twice[0]}; give them one at a time.")
    inputs = {Path(source).resolve() for source in sources if source != STANDARD}
    for target in targets:
        if target != STANDARD and Path(target).resolve() in inputs:
            raise ValueError(f"{target} would be overwritten by its own output; name another file or folder.")
    return plan


def for_each(plan: list[tuple[str, str]], work: Callable[[str, str], None], options: argparse.Namespace) -> None:
    """Carries out `work` on every input, with a progress bar. One that fails does not keep the others from it.

    Raises what `work` raises for one input, and RuntimeError after several of which some failed.
    """
    if len(plan) == 1:
        work(*plan[0])
        return
    from tqdm import tqdm

    failed = 0
    for source, target in tqdm(plan, unit="file", disable=options.quiet, file=sys.stderr):
        try:
            work(source, target)
        except (ValueError, RuntimeError, OSError) as error:
            failed += 1
            tqdm.write(f"error: {source}: {' '.join(str(error).split())}", file=sys.stderr)
    if failed:
        raise RuntimeError(f"{failed} of {len(plan)} files failed, see above.")


def write_speech(speech: dict[str, Any], output: str, audio_format: str) -> int:
    """Writes {"audio", "sampling_rate"} whole; returns the number of samples."""
    data = encode(speech["audio"], speech["sampling_rate"], audio_format)
    if output == STANDARD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(output).write_bytes(data)
    return len(speech["audio"])


def only_grows(output: str) -> bool:
    """Whether an output is a pipe or a device, which cannot be returned to; what ">>" has written should not be."""
    return output == STANDARD or (Path(output).exists() and not Path(output).is_file())


def write_stream(chunks: Iterable[dict[str, Any]], rate: int, output: str, audio_format: str) -> int:
    """Writes chunks as they come; returns the number of samples. A file is left playable wherever it is stopped.

    Raises what the chunks raise and, once something is written, RuntimeError that says where what was spoken is.
    """
    # The first chunk is waited for: a text that cannot be spoken leaves no file behind.
    chunks = iter(chunks)
    first = next(chunks)
    growing = only_grows(output)
    file = sys.stdout.buffer if output == STANDARD else open(output, "wb" if growing else "w+b")  # noqa: SIM115
    count = 0
    try:
        with AudioWriter(file, audio_format, rate, grows=growing) as writer:
            for chunk in chain([first], chunks):
                writer.write(chunk["audio"])
                count += len(chunk["audio"])
                file.flush()
        file.flush()
    except (ValueError, RuntimeError) as error:
        if growing:
            raise
        raise RuntimeError(f"{error} The {count / rate:.1f} s of speech before that are in {output}.") from error
    finally:
        if output != STANDARD:
            file.close()
    return count
