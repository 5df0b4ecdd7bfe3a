"""What a model in training sounds like: held-out sentences as wav files, mels and the LM's attention as pictures."""

from pathlib import Path

import soundfile
import torch
from transformers.utils import logging

from e2e_tts.modeling import E2ETTSModel, SpeechGenerationError, SpeechLM

from .data.speech_data import Collator, SpeechDataset, rows_of_all_sources

logger = logging.get_logger(__name__)


@torch.no_grad()
def text_attention(
    lm: SpeechLM,
    text_ids: torch.LongTensor,
    codes: torch.Tensor,
    speaker_embedding: torch.Tensor,
    tokens_per_symbol: torch.Tensor,
) -> torch.Tensor:
    """Attention of one utterance's speech positions to its text, teacher-forced, a mean over layers and heads.

    text_ids (1, N), codes (1, T, D), speaker_embedding (1, S), tokens_per_symbol (1,) -> (T + 1, N); row t belongs to
    the state that predicts code t. A row sums to less than 1: the rest goes to speech and control positions.
    """
    maps: list[torch.Tensor] = []
    handles = [
        layer.self_attn.register_forward_hook(lambda module, inputs, output: maps.append(output[1].mean(dim=1)))
        for layer in lm.model.layers
    ]
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")  # the only one that returns its weights
    try:
        lm(text_ids, codes=codes, speaker_embedding=speaker_embedding, tokens_per_symbol=tokens_per_symbol)
    finally:
        lm.model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    symbols = text_ids.shape[1]
    return torch.stack(maps).mean(dim=0)[0, symbols + 2 :, 2 : symbols + 2]


@torch.no_grad()
def write_samples(
    model: E2ETTSModel, dataset: SpeechDataset, collator: Collator, folder: str | Path, count: int, seed: int
) -> None:
    """Speaks `count` rows of a held-out data set, of all sources in turn, from their own tokens and from their text.

    Writes N-recording.wav, N-reconstruction.wav, N-speech.wav and, where matplotlib is installed, N.png to `folder`.
    Neither the model's mode nor the random state of the training is changed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    training, device = model.training, model.device
    model.eval()
    try:
        with torch.random.fork_rng():
            for index, place in enumerate(rows_of_all_sources(dataset.rows, count)):
                row = dataset[place]
                batch = {name: value.to(device) for name, value in collator([row]).items()}
                _write_sample(model, row, batch, folder / str(index), seed)
    finally:
        model.train(training)


def _write_sample(model: E2ETTSModel, row: dict, batch: dict[str, torch.Tensor], path: Path, seed: int) -> None:
    def write(kind: str, waveform: torch.Tensor) -> None:
        soundfile.write(f"{path}-{kind}.wav", waveform.float().cpu().numpy(), model.sampling_rate)

    voice = batch["speaker_target"]
    write("recording", torch.from_numpy(row["waveform"]))
    encoded = model.encoder(batch["input_features"], batch["feature_mask"])
    mel = model.decoder.sample(encoded.codes, encoded.mask, voice)
    write("reconstruction", model.vocoder(mel)[0])
    try:
        speech = model.generate(
            batch["text_ids"], speaker_embedding=voice, tokens_per_symbol=batch["tokens_per_symbol"], seed=seed
        )
        write("speech", speech["audio"][0])
    except SpeechGenerationError as error:  # nothing unusual early in training
        logger.warning(f"No sample {path}-speech.wav: {error}")
    attention = text_attention(model.lm, batch["text_ids"], encoded.codes, voice, batch["tokens_per_symbol"])
    _draw(path.with_suffix(".png"), row, batch.get("mel", batch["input_features"])[0], mel[0], attention)


def _draw(path: Path, row: dict, target: torch.Tensor, mel: torch.Tensor, attention: torch.Tensor) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning_once("Samples come without pictures: they need matplotlib, pip install 'e2e-tts[report]'.")
        return
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots(3, 1)
    panels = (
        (target, "mel of the recording", "mel band"),
        (mel, "mel reconstructed from its tokens", "mel band"),
        (attention, "attention of the LM, a mean over layers and heads", "text token"),
    )
    for axis, (image, title, label) in zip(axes, panels, strict=True):
        axis.imshow(image.float().cpu().numpy().T, origin="lower", aspect="auto", interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_ylabel(label)
    axes[1].set_xlabel("mel frame")
    axes[2].set_xlabel("speech token")
    figure.suptitle(str(row.get("text", "")), fontsize=9, wrap=True)
    figure.savefig(path, dpi=80)
