"""What tokens and embeddings of a data set were made by, as fingerprints beside it, and whether they go together.

Folders from before there were fingerprints, and embeddings that a corpus brought, are of unknown origin and pass.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor

KEY = "fingerprints"
ANNOTATION, SELF_SPEECH = "annotation.json", "self_speech.json"
TEXT_TOKENIZER, SPEAKER_ENCODER, SPEECH_TOKENIZER = "text_tokenizer", "speaker_encoder", "speech_tokenizer"
# Classes that a speaker encoder was trained to tell apart play no part in its embeddings, and releases lack them.
TRAINING_WEIGHTS = ("classes.", "objective.")


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A short hash of a module's weights in half precision: a release, which is saved in that, has the same."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(TRAINING_WEIGHTS):
            value = value.half() if value.is_floating_point() else value
            digest.update(f"{name} {tuple(value.shape)}".encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(processor: TextToSpeechProcessor) -> str:
    """A short hash of what gives text its token ids: the vocabulary, and whether it is one of phonemes."""
    parts = [processor.frontend, sorted(processor.tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_fingerprints(folder: str | Path) -> dict[str, str]:
    """The fingerprints of a data set; those that are not known are left out."""
    found: dict[str, str] = {}
    for name in (ANNOTATION, SELF_SPEECH):
        file = Path(folder) / name
        if file.is_file():
            found |= json.loads(file.read_text(encoding="utf-8")).get(KEY, {})
    return {kind: value for kind, value in found.items() if value is not None}


def carried(folder: str | Path) -> dict[str, str]:
    """Files by name that a data set made from the annotated rows of `folder` keeps, to say where they came from."""
    files = (Path(folder) / name for name in (ANNOTATION, SELF_SPEECH))
    return {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}


def check_folders(folders: Sequence[str]) -> None:
    """Raises ValueError, naming the folders, where tokens or embeddings of some are not those of the others."""
    fingerprints = {folder: read_fingerprints(folder) for folder in folders}
    for kind, what in ((TEXT_TOKENIZER, "text tokenizers"), (SPEAKER_ENCODER, "speaker encoders")):
        found = {folder: known[kind] for folder, known in fingerprints.items() if kind in known}
        if len(set(found.values())) > 1:
            raise ValueError(
                f"The folders were annotated with different {what}: {_groups(found)}. Annotate those of one kind anew "
                "(e2e_tts.trainers.data.annotate) with what the others have."
            )


def foreign_voices(folders: Sequence[str], model: E2ETTSModel) -> str | None:
    """What is wrong with folders whose voice embeddings another speaker encoder made than the model's; None if nothing.

    LM and decoder would learn embeddings that the model's own encoder, which clones voices, never makes.
    """
    known = {folder: read_fingerprints(folder).get(SPEAKER_ENCODER) for folder in folders}
    found = [folder for folder, value in known.items() if value is not None]
    if not found:
        return None
    own = weights_fingerprint(model.speaker)
    if not (other := [folder for folder in found if known[folder] != own]):
        return None
    return (
        f"The voices in {other} were measured with another speaker encoder than the model's: it will not clone voices. "
        "Annotate them with the encoder that the model has (--speaker_encoder MODEL/speaker), or name theirs in "
        "init_modules.speaker."
    )


def check_provenance(folders: Sequence[str], model: E2ETTSModel) -> None:
    """Raises ValueError where the speech tokens of a folder are of another tokenizer than the model's encoder."""
    known = {folder: read_fingerprints(folder).get(SPEECH_TOKENIZER) for folder in folders}
    found = {folder: value for folder, value in known.items() if value is not None}
    if not found:
        return
    own = weights_fingerprint(model.encoder)
    if other := [folder for folder, value in found.items() if value != own]:
        raise ValueError(
            f"The tokens in speech_ids of {other} were drawn with another speech tokenizer than this model's encoder: "
            "the LM would learn codes that mean something else. Speak the sentences again with a checkpoint of this "
            "encoder (e2e_tts.trainers.data.self_speech --model), or take the folders out of data.folders."
        )


def _groups(found: Mapping[str, str]) -> str:
    groups: dict[str, list[str]] = {}
    for folder, value in found.items():
        groups.setdefault(value, []).append(folder)
    return "; ".join(f"{', '.join(members)} ({value})" for value, members in groups.items())
