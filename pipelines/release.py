"""Makes a checkpoint fit for release: `python -m e2e_tts.pipelines.release --help`.

The folder holds model, processor, pipeline and all their code, in half precision: what a Hub repository needs beside
its card. Loading it gives float32 again. What only training uses is left out.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from e2e_tts.modeling import E2ETTSModel, TextToSpeechFeatureExtractor, TextToSpeechProcessor
from e2e_tts.trainers.built_in_voices import mean_voice
from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data import text_tokens
from e2e_tts.trainers.data.text_tokens import PHONEMES, TOKENIZER_HELP

from .text_to_speech import TextToSpeechPipeline, check_number

# Weights that no inference reads: the classes that the speaker encoder was trained to tell apart.
TRAINING_WEIGHTS = ("speaker.classes.",)
# What transformers notes of the place that a tokenizer came from, which means nothing elsewhere.
WHERE_LOADED = ("is_local", "local_files_only")


def save_release(
    model: E2ETTSModel, processor: TextToSpeechProcessor, folder: str | Path, dtype: torch.dtype = torch.float16
) -> None:
    """Saves everything that speaking needs to `folder`, weights as `dtype`. The model itself stays as it is.

    Raises ValueError where the processor's vocabulary or features are not the model's, and for weights too large for
    dtype.
    """
    check_processor(model, processor)
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
        if not name.startswith(TRAINING_WEIGHTS)
    }
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"Weights that are not finite as {dtype}: {broken[:5]}; release as torch.float32.")
    speaker = model.config.speaker_config
    speakers, speaker.num_speakers = speaker.num_speakers, 0
    try:
        pipe = TextToSpeechPipeline(model=model, processor=processor, device=model.device)
        pipe.save_pretrained(folder, state_dict=state)
    finally:
        speaker.num_speakers = speakers


def check_processor(model: E2ETTSModel, processor: TextToSpeechProcessor) -> None:
    """Raises ValueError, naming both values, where processor and model do not belong together."""
    known, given = model.config.lm_config.text_config.vocab_size, len(processor.tokenizer)
    # Vocabularies of language models are padded, those of phonemes are of one language or another.
    if given > known or (processor.frontend == PHONEMES and given < known):
        raise ValueError(
            f"The processor's tokenizer has {given} tokens, the model's LM knows {known}: --tokenizer names the one "
            "that the model was trained with."
        )
    mel, expected = processor.feature_extractor.mel, model.config.encoder_config.mel
    if mel != expected:
        raise ValueError(f"The processor's mel {mel} is not the encoder's {expected}.")


def load_checkpoint(folder: str | Path) -> E2ETTSModel:
    """The composite in a folder. Raises ValueError, saying what is there instead, if there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json.")
    kind = json.loads(path.read_text()).get("model_type")
    if kind != "e2e_tts":
        raise ValueError(f"{folder} holds a model of type {kind!r}; a complete model (type 'e2e_tts') is needed.")
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def load_average(folders: Sequence[str]) -> PreTrainedModel:
    """A module whose weights are the mean of those in the folders ("model soups", arXiv 2203.05482); they should have
    been trained from one start, or their mean means nothing.

    Raises ValueError for a folder without a saved module, and for modules of different kinds or sizes.
    """
    for folder in folders:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"--module is NAME=FOLDER with the folder of a saved module, got {folder!r}.")
    first, *others = [AutoModel.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    sums = {name: value.clone() for name, value in first.state_dict().items()}
    for folder, other in zip(folders[1:], others, strict=True):
        weights = other.state_dict()
        if {name: value.shape for name, value in weights.items()} != {name: sums[name].shape for name in sums}:
            raise ValueError(f"{folder} and {folders[0]} hold modules of different sizes: there is no mean of them.")
        for name, value in sums.items():
            if value.is_floating_point():
                value += weights[name]
    first.load_state_dict(
        {name: value / len(folders) if value.is_floating_point() else value for name, value in sums.items()}
    )
    return first


def load_processor(folder: str | Path, model: E2ETTSModel, tokenizer: str | None = None) -> TextToSpeechProcessor:
    """The processor with a tokenizer (see `text_tokens.load_processor`), else the one saved beside a model, or, as
    trainers save none, a new one for English phonemes."""
    if tokenizer is None and (Path(folder) / "processor_config.json").is_file():
        processor = AutoProcessor.from_pretrained(folder)
        for name in WHERE_LOADED:
            processor.tokenizer.init_kwargs.pop(name, None)
        return processor
    encoder, text = model.config.encoder_config, text_tokens.load_processor(tokenizer or PHONEMES)
    return TextToSpeechProcessor(
        TextToSpeechFeatureExtractor(mel=encoder.mel, frames_per_token=encoder.frames_per_token),
        text.tokenizer,
        frontend=text.frontend,
        language=text.language,
    )


def measure_voice(folder: str, source: str, speaker: str | None, token_rate: float) -> tuple[torch.Tensor, float]:
    """A speaker's mean embedding (S,), normalised, and mean speaking rate in speech tokens per text token.

    Over the training rows of an annotated data set (see `e2e_tts.trainers.data.annotate`) with this source, and this
    speaker if given. Raises ValueError, naming what there is, if there are none.
    """
    rows = load_from_disk(folder)
    missing = {"speaker_embedding", "text_ids", "seconds", "source", "speaker", "split"} - set(rows.column_names)
    if missing:
        raise ValueError(f"{folder} lacks the columns {sorted(missing)}; annotate it first.")
    sources, speakers, splits = rows["source"][:], rows["speaker"][:], rows["split"][:]
    chosen = [
        index
        for index, row in enumerate(zip(sources, speakers, splits, strict=True))
        if row[0] == source and speaker in (None, row[1]) and row[2] == "train"
    ]
    if not chosen:
        at_source = sorted({str(name) for name, origin in zip(speakers, sources, strict=True) if origin == source})
        there = f"speakers {at_source[:20]}" if at_source else f"sources {sorted(set(sources))}"
        wanted = f"{source}:{speaker}" if speaker else source
        raise ValueError(f"{folder} has no training rows of {wanted}; it has {there}.")
    return mean_voice(rows.select(chosen), token_rate)


def add_voices(model: E2ETTSModel, voices: list[str]) -> None:
    """Replaces the built-in voices. voices: NAME=DATASET_FOLDER:SOURCE[:SPEAKER]; the first one is the default."""
    embeddings, rates = {}, {}
    for entry in voices:
        name, _, place = entry.partition("=")
        folder, _, rest = place.partition(":")
        source, _, speaker = rest.partition(":")
        if not (name and folder and source):
            raise ValueError(f"--voice is NAME=DATASET_FOLDER:SOURCE[:SPEAKER], got {entry!r}.")
        embeddings[name], rates[name] = measure_voice(
            folder, source, speaker or None, model.config.encoder_config.token_rate
        )
        print(f"voice {name}: {rates[name]:.3f} speech tokens per text token")
    model.set_voices(embeddings, rates)


def parse_sampling(entries: list[str]) -> dict[str, float | int]:
    """["temperature=0.6", "top_k=10"] -> a mapping. Raises ValueError for other names, and for what is no number
    or beyond the pipeline's ranges."""
    kinds = {"temperature": float, "top_k": int, "top_p": float, "text_guidance": float}
    sampling = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if name not in kinds:
            raise ValueError(f"--sampling takes {', '.join(kinds)}, got {entry!r}.")
        sampling[name] = kinds[name](value)
        check_number(name, sampling[name])
    return sampling


def speaking_rate(option: str, value: str | float) -> float:
    """Speech tokens a text token. Raises ValueError for what is no number above 0."""
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0.0 < rate < math.inf:
        raise ValueError(f"{option} is a rate above 0, got {value!r}.")
    return rate


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        description=__doc__.split("\n")[0].split(":")[0] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""example:
  python -m e2e_tts.pipelines.release --model runs/end_to_end/final --module vocoder=runs/vocoder/final \\
      --voice anna=runs/data/annotated:my_corpus:speaker_3 --output model_cards/small-en""",
    )
    parser.add_argument("--model", required=True, help="folder of a trained composite")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="NAME=FOLDER[,FOLDER]",
        help="replace a module (repeatable); of several folders of one training line, by the mean of their weights",
    )
    parser.add_argument(
        "--voice",
        action="append",
        default=[],
        metavar="NAME=DATASET:SOURCE[:SPEAKER]",
        help="built-in voice, a mean over training rows of an annotated data set (repeatable; first is default)",
    )
    parser.add_argument(
        "--sampling",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="what the checkpoint samples with by default: temperature=0.6 top_k=10 top_p=0.8 text_guidance=1.5",
    )
    parser.add_argument(
        "--decoder-temperature",
        type=float,
        metavar="T",
        help="scale of the decoder's noise by default; below 1 the sound is calmer",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="how many times the checkpoint draws a text by default, for the reward model to keep the best",
    )
    parser.add_argument(
        "--voice-rate",
        nargs="+",
        default=[],
        metavar="NAME=R",
        help="speech tokens a text token of a built-in voice, by default its recordings' mean; an LM that by itself is "
        "faster than this says words twice",
    )
    parser.add_argument(
        "--clone-rate",
        type=float,
        metavar="R",
        help="speech tokens a text token, as voices above have them, of clones whose own rate is not known",
    )
    parser.add_argument(
        "--tokenizer",
        help=f"what annotate was given: {TOKENIZER_HELP}, or a tokenizer by folder or Hub name; by default the "
        f"processor beside the model, else {PHONEMES}",
    )
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"], help="of the files")
    options = parser.parse_args(arguments)
    try:
        model = load_checkpoint(options.model)
        for entry in options.module:
            name, _, folders = entry.partition("=")
            model.replace_module(name, load_average(folders.split(",")))
        if options.voice:
            add_voices(model, options.voice)
        if options.sampling:
            model.config.sampling = parse_sampling(options.sampling)
        if options.decoder_temperature is not None:
            check_number("decoder_temperature", options.decoder_temperature)
            for config in (model.config.decoder_config, model.decoder.config):
                config.noise_temperature = options.decoder_temperature
        if options.candidates is not None:
            check_number("candidates", options.candidates)
            if options.candidates > 1 and model.reward.ctc_head is None:
                raise ValueError("--candidates needs a reward model with a CTC head, which this one lacks.")
            model.config.candidates = options.candidates
        for entry in options.voice_rate:
            name, _, rate = entry.partition("=")
            if name not in model.config.voices:
                raise ValueError(f"--voice-rate takes {', '.join(model.config.voices)}, got {entry!r}.")
            model.config.voices[name] = speaking_rate("--voice-rate", rate)
        if options.clone_rate is not None:
            model.config.default_tokens_per_symbol = speaking_rate("--clone-rate", options.clone_rate)
        processor = load_processor(options.model, model, options.tokenizer)
        save_release(model, processor, options.output, getattr(torch, options.dtype))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    size = sum(file.stat().st_size for file in Path(options.output).rglob("*") if file.is_file())
    print(f"{options.output}: {size / 1e6:.1f} MB, voices {model.config.voice_names}")


if __name__ == "__main__":
    main()
