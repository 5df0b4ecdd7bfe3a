"""Recognisers, speaker judges, quality judges and text normalisers for evaluation, by name.

Importing this module loads no judge and needs no optional package: a judge imports its package when it is loaded.
Models of the Hub are given as owner/model; "auto" takes the Hub's where it can be reached, and otherwise what packages
ship.
"""

import difflib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .judge_interface import QualityJudge, Recogniser, SpeakerJudge
from .normalisers import NORMALISERS, Normaliser
from .quality_judges import DnsmosJudge
from .recognisers import ParaformerRecogniser, TransformersRecogniser, load_whisper_base, load_whisper_tiny
from .speaker_judges import ResemblyzerJudge, TransformersSpeakerJudge

logger = logging.getLogger(__name__)

AUTO = "auto"
HUB_RECOGNISER = "openai/whisper-large-v3"
"""The benchmark's recogniser for English; it also knows Mandarin."""
HUB_SPEAKER_JUDGE = "microsoft/unispeech-sat-base-plus-sv"
"""WavLM's x-vector is what trains at paper scale, and a judge must be another model than the teacher."""

_RECOGNISERS: dict[str, Callable[..., Recogniser]] = {
    "whisper-base-offline": load_whisper_base,
    "whisper-tiny-offline": load_whisper_tiny,
    "paraformer-zh": ParaformerRecogniser,
}
_SPEAKER_JUDGES: dict[str, Callable[..., SpeakerJudge]] = {"resemblyzer": ResemblyzerJudge}
_QUALITY_JUDGES: dict[str, Callable[..., QualityJudge]] = {"dnsmos": DnsmosJudge}


def load_recogniser(name: str = AUTO, **options: Any) -> Recogniser:
    """Loads a recogniser by name.

    - "whisper-base-offline": Whisper base from installed packages. Options: cache_folder (keeps the assembled 145 MB
      between runs; otherwise a temporary folder), cpu_threads, beam_size (1 to 5), language.
    - "whisper-tiny-offline": Whisper tiny.en, for quick checks. Options: cpu_threads, beam_size, language.
    - "paraformer-zh": the benchmark's own for Mandarin, through the package funasr. Options: language, device.
    - "owner/model" or a local folder: any speech recognition model of transformers. Options: beam_size, language,
      device.
    - "auto": openai/whisper-large-v3 where the Hub, or its cache, gives it; otherwise whisper-base-offline. Options:
      language.

    Raises ValueError for an unknown name, TypeError for an option that the recogniser does not have, ImportError if its
    package is missing, OSError if a model cannot be fetched.
    """
    if name == AUTO:
        name = HUB_RECOGNISER if hub_has(HUB_RECOGNISER) else "whisper-base-offline"
    return _load("recogniser", name, _RECOGNISERS, TransformersRecogniser, options)


def load_speaker_judge(name: str = AUTO, **options: Any) -> SpeakerJudge:
    """Loads a speaker judge by name.

    - "resemblyzer": from an installed package. No options.
    - "owner/model" or a local folder: any x-vector model of transformers. Options: device.
    - "auto": microsoft/unispeech-sat-base-plus-sv where the Hub, or its cache, gives it; otherwise resemblyzer.

    Raises as `load_recogniser` does, and ValueError for a model without a trained speaker head.
    """
    if name == AUTO:
        name = HUB_SPEAKER_JUDGE if hub_has(HUB_SPEAKER_JUDGE) else "resemblyzer"
    return _load("speaker judge", name, _SPEAKER_JUDGES, TransformersSpeakerJudge, options)


def load_quality_judge(name: str = AUTO, **options: Any) -> QualityJudge:
    """Loads a quality judge by name: "dnsmos", which is "auto" too. Raises as `load_recogniser` does."""
    return _load("quality judge", "dnsmos" if name == AUTO else name, _QUALITY_JUDGES, None, options)


def load_normaliser(name: str = "english") -> Normaliser:
    """Loads a text normaliser by name; references and transcripts must go through the same one.

    - "english": Whisper's English normaliser as transformers carries it, without the table of British spellings.
    - "english-spelling": the same with that table ("colour" equals "color"), from the package whisper-normalizer.
    - "characters": any language; every character becomes a word, which turns the word error rate into a character
      error rate.
    - "seed-tts-en": as Seed-TTS-Eval does it: lower case, no punctuation but apostrophes; numbers stay as written.
    - "seed-tts-zh": as Seed-TTS-Eval does it: simplified characters, each a word, no punctuation. Package: opencc.

    Raises ValueError for an unknown name and ImportError if its package is missing.
    """
    if name not in NORMALISERS:
        raise ValueError(_unknown("normaliser", name, NORMALISERS))
    return NORMALISERS[name]()


def hub_has(name: str) -> bool:
    """Whether the Hub, or its cache on this machine, gives the model `name`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_download(name, "config.json", etag_timeout=5)
    except (OSError, HFValidationError) as error:  # no connection, offline mode, no such model, a path
        logger.info("The Hub does not give %s: %s", name, error)
        return False
    return True


def _load(
    kind: str, name: str, known: dict[str, Callable], from_hub: Callable[..., Any] | None, options: dict[str, Any]
) -> Any:
    if name in known:
        return _call(known[name], name, options)
    if from_hub is not None and ("/" in name or Path(name).is_dir()):
        return _call(from_hub, name, options, name)
    hint = " A model of the Hub is given as owner/model." if from_hub else ""
    raise ValueError(_unknown(kind, name, known) + hint)


def _call(factory: Callable[..., Any], name: str, options: dict[str, Any], *arguments: Any) -> Any:
    parameters = inspect.signature(factory).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(f"{name} has no option {', '.join(unknown)}; its options: {', '.join(accepted) or 'none'}.")
    return factory(*arguments, **options)


def _unknown(kind: str, name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} The known ones: {', '.join(known)}."
