"""The settings of an evaluation: the fields are the command line's arguments."""

import argparse
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .judges import AUTO

NONE = "none"
NORMALISER_OF_LANGUAGE = {"en": "seed-tts-en", "zh": "seed-tts-zh"}
STUDY_NORMALISERS = NORMALISER_OF_LANGUAGE | {"en": "english"}
"""Of the studies beside the harness, whose figures are not those of the benchmark."""
_SET_BY_OPTIONS = ("voice", "seed", "batch_size", "reference_audio", "reference_text", "sampling_rate", "transcribe")
"""Settings of the pipeline that other options and the test set decide."""
_NOT_SETTINGS = ("output_dir", "device", "samples", "resamples", "bootstrap_seed")
"""What may change when an evaluation continues, since speech and judgement do not; of a device, its number."""


@dataclass
class EvaluationOptions:
    """Speech for a test set is made by a checkpoint, or taken from a folder, and judged."""

    output_dir: str = field(
        metadata={"help": "folder of the reports; the same command again continues a killed evaluation"}
    )
    test_list: str | None = field(
        default=None,
        metadata={
            "help": "list in Seed-TTS-Eval's format: name|prompt text|prompt wav|text[|reference wav]; or everyday_en, "
            "everyday_zh: 200 and 100 sentences that come with this package"
        },
    )
    dataset: str | None = field(
        default=None, metadata={"help": "instead of a list: what datasets.load_dataset or load_from_disk takes"}
    )
    split: str = field(default="test", metadata={"help": "split of the data set"})
    columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "columns of the data set where they differ: name=id text=text reference=audio prompt=prompt_audio "
            "prompt_text=prompt_text; prompt= takes none"
        },
    )
    filters: list[str] = field(default_factory=list, metadata={"help": "rows of the data set to keep: source=NAME"})
    limit: int | None = field(default=None, metadata={"help": "only the first so many utterances"})

    model: str | None = field(default=None, metadata={"help": "checkpoint that speaks: a folder or owner/model"})
    audio: str | None = field(default=None, metadata={"help": "instead of a checkpoint: a folder of NAME.wav to judge"})
    voice: str | None = field(
        default=None, metadata={"help": "built-in voice; by default each utterance's prompt, or the default voice"}
    )
    continue_prompt: bool = field(default=False, metadata={"help": "give the prompt's text too and continue it"})
    sampling: list[str] = field(
        default_factory=list, metadata={"help": "settings of the pipeline: temperature=0.8 num_steps=16 speed=1.1"}
    )
    batch_size: int = field(default=4, metadata={"help": "texts spoken at once"})
    seed: int = field(default=0, metadata={"help": "of the synthesis"})
    device: str = field(default="cpu", metadata={"help": "of the checkpoint: cpu, cuda:0, mps"})

    language: str = field(default="en", metadata={"help": "of the texts; en and zh have the benchmark's normaliser"})
    normaliser: str | None = field(default=None, metadata={"help": "what texts and transcripts go through"})
    recogniser: str = field(default=AUTO, metadata={"help": "name, owner/model, folder, auto or none"})
    recogniser_options: list[str] = field(
        default_factory=list, metadata={"help": "for example beam_size=1 cpu_threads=2 cache_folder=DIR"}
    )
    speaker_judge: str = field(default=AUTO, metadata={"help": "name, owner/model, folder, auto or none"})
    quality_judge: str = field(default=AUTO, metadata={"help": "dnsmos, auto or none"})
    speaker_recordings: str | None = field(
        default=None,
        metadata={"help": "folder of recordings of the speaker to resemble, instead of each utterance's prompt"},
    )
    judge_recordings: bool = field(
        default=True, metadata={"help": "judge the reference recordings too, which shows the judges' own error"}
    )

    samples: int = field(default=50, metadata={"help": "utterances with sound and picture in the page, worst first"})
    resamples: int = field(default=2000, metadata={"help": "of the bootstrap"})
    bootstrap_seed: int = field(default=0, metadata={"help": "of the bootstrap"})

    def check(self) -> None:
        """Raises ValueError, saying what to do, for settings that do not fit together."""
        if (self.test_list is None) == (self.dataset is None):
            raise ValueError("Give what is to be said: either --test_list FILE or --dataset NAME.")
        if (self.model is None) == (self.audio is None):
            raise ValueError("Give who speaks: either --model CHECKPOINT or --audio FOLDER.")
        for name, least in (("batch_size", 1), ("resamples", 1), ("samples", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}.")
        if self.dataset is None and (self.columns or self.filters):
            raise ValueError("--columns and --filters are for --dataset; a list has neither.")
        if taken := sorted(parse_settings(self.sampling, "sampling").keys() & set(_SET_BY_OPTIONS)):
            raise ValueError(f"--sampling cannot set {', '.join(taken)}: the test set or an option of its own does.")
        if self.audio is not None and (self.voice or self.continue_prompt or self.sampling):
            raise ValueError("--voice, --continue_prompt and --sampling steer a checkpoint; --audio has none.")
        if self.voice is not None and self.continue_prompt:
            raise ValueError("Give either --voice or --continue_prompt: a built-in voice continues no prompt.")
        choose_normaliser(self.language, self.normaliser)

    @property
    def normaliser_name(self) -> str:
        return choose_normaliser(self.language, self.normaliser)

    def settings(self) -> dict[str, Any]:
        """What decides which speech is judged and how; it must not change when an evaluation continues."""
        values = {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}
        # Other kinds of devices draw other numbers from a seed, and are faster or slower.
        kind = self.device.partition(":")[0]
        drawn_on = {"device": kind} if self.model is not None and kind != "cpu" else {}
        return values | {"normaliser": self.normaliser_name} | drawn_on


def choose_normaliser(language: str, named: str | None, defaults: dict[str, str] = NORMALISER_OF_LANGUAGE) -> str:
    """The normaliser that is named, else the language's. Raises ValueError where there is neither."""
    if named is None and language not in defaults:
        known = " and ".join(defaults)
        raise ValueError(f"There is a normaliser for {known} only; for {language} name one with --normaliser.")
    return named or defaults[language]


def add_language_options(parser: argparse.ArgumentParser) -> None:
    """--language and --normaliser of a study; `choose_normaliser` with `STUDY_NORMALISERS` reads them."""
    known = ", ".join(f"{language}: {name}" for language, name in STUDY_NORMALISERS.items())
    parser.add_argument("--language", default="en", help="of the texts, for the recogniser (default: %(default)s)")
    parser.add_argument("--normaliser", help=f"what texts and transcripts go through; by default of {known}")


def check_language(processor: Any, language: str) -> None:
    """Raises ValueError where a checkpoint's processor turns texts into the phonemes of another language."""
    # Sub-word tokenizers read every language, and another kind of pipeline has no processor.
    if getattr(processor, "frontend", None) == "phonemes" and processor.language != language:
        spoken = processor.language
        raise ValueError(f"The checkpoint speaks {spoken!r}, and --language is {language!r}: give --language {spoken}.")


def parse_pairs(pairs: list[str], option: str) -> dict[str, str]:
    """["source=NAME"] -> {"source": "NAME"}. Raises ValueError, naming the option, for what has another form."""
    result = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ValueError(f"--{option} takes NAME=VALUE, got {pair!r}.")
        result[key.strip()] = value.strip()
    return result


def parse_settings(pairs: list[str], option: str) -> dict[str, Any]:
    """The same for settings: what is a number, true, false or null in JSON becomes one, the rest stays text."""
    result: dict[str, Any] = {}
    for key, value in parse_pairs(pairs, option).items():
        try:
            result[key] = json.loads(value)
        except ValueError:
            result[key] = value
    return result
