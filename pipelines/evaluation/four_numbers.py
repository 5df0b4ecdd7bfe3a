"""Where the loss of intelligibility is: `python -m e2e_tts.pipelines.evaluation.four_numbers --help`.

Word error rate, by one recogniser, of (1) the recordings, (2) the vocoder on their true mels, (3) reconstruction from
their true tokens and (4) speech from their text alone, on held-out sentences, with bootstrap 95 % intervals.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset
from transformers import AutoModel

from e2e_tts.modeling.modeling_e2e_tts import E2ETTSModel, SpeechGenerationError
from e2e_tts.modeling.text_frontend import TextFrontend, build_phoneme_tokenizer
from e2e_tts.trainers.speech_data import Collator, SpeechDataset, load_prepared

from .judges import load_recogniser
from .scoring import bootstrap_interval, corpus_wer, score_transcripts

CONDITIONS = ("recording", "vocoder", "reconstruction", "speech")


def held_out_rows(folders: list[str], split: str, source: str, limit: int) -> Dataset:
    """Up to `limit` rows of a source, one take of each text, in data-set order."""
    rows = load_prepared(folders, split)
    sources, texts = rows["source"][:], rows["text"][:]
    chosen, seen = [], set()
    for index, (origin, text) in enumerate(zip(sources, texts, strict=True)):
        if origin == source and text not in seen and len(chosen) < limit:
            seen.add(text)
            chosen.append(index)
    if not chosen:
        raise ValueError(f"No {split} rows of source {source!r} in {folders}.")
    return rows.select(chosen)


class Renderer:
    """Renders one held-out row under each condition."""

    def __init__(self, model: E2ETTSModel, voice: str, steps: int, guidance: float, sampling: dict) -> None:
        self.model = model.eval()
        self.voice, self.steps, self.guidance, self.sampling = voice, steps, guidance, sampling
        self.collate = Collator.for_model(model.config)
        self.spec = self.collate.audio_spec
        self.frontend, self.tokenizer = TextFrontend("phonemes"), build_phoneme_tokenizer()
        known = list(model.config.voices)
        self.embedding = model.voice_embeddings[known.index(voice)][None]

    @torch.no_grad()
    def __call__(self, item: dict, condition: str, seed: int) -> np.ndarray:
        model = self.model
        if condition == "recording":
            return item["waveform"]
        batch = self.collate([item])
        features, mask = batch["input_features"], batch["feature_mask"]
        if condition == "vocoder":
            return model.vocoder(batch.get("mel", features))[0].numpy()
        if condition == "reconstruction":
            return model.reconstruct(features, mask, self.embedding, self.steps, self.guidance)[0].numpy()
        return self.speak(item["text"], seed)

    @torch.no_grad()
    def speak(self, text: str, seed: int) -> np.ndarray:
        """Text -> waveform; silence if generation fails, so that a failure counts as an error."""
        ids = torch.tensor([self.tokenizer(self.frontend(text))["input_ids"]])
        try:
            result = self.model.generate(
                ids, voice=self.voice, seed=seed, num_steps=self.steps, guidance=self.guidance, **self.sampling
            )
        except SpeechGenerationError as error:
            print(f"failed: {text!r}: {error}")
            return np.zeros(self.spec.sampling_rate, dtype=np.float32)
        return result["audio"][0, : int(result["audio_lengths"][0])].numpy()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", required=True, help="annotated data sets")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--source", default="kathleen", help="the held-out rows to read")
    parser.add_argument("--voice", help="built-in voice; by default the one named like the source")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    parser.add_argument("--judge", default="whisper-tiny-offline")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=0.7)
    parser.add_argument("--temperature", type=float, help="by default the checkpoint's own, like top_k and top_p")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="folder for wavs, report.json and a test list of the sentences")
    options = parser.parse_args(arguments)
    model = AutoModel.from_pretrained(options.model, dtype=torch.float32)
    rows = held_out_rows(options.data, options.split, options.source, options.limit)
    settings = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    sampling = {name: value for name, value in settings.items() if value is not None}
    renderer = Renderer(model, options.voice or options.source, options.steps, options.guidance, sampling)
    dataset = SpeechDataset(rows, renderer.spec)
    judge = load_recogniser(options.judge)
    report = {"model": options.model, "split": options.split, "source": options.source, "judge": options.judge}
    for condition in options.conditions:
        references, hypotheses, seconds, started = [], [], 0.0, time.perf_counter()
        spent = 0.0
        for index in range(len(dataset)):
            item = dataset[index]
            begin = time.perf_counter()
            audio = renderer(item, condition, options.seed + index)
            spent += time.perf_counter() - begin
            seconds += len(audio) / renderer.spec.sampling_rate
            references.append(item["text"])
            hypotheses.append(judge.transcribe(audio, renderer.spec.sampling_rate))
            if options.output:
                folder = Path(options.output) / condition
                folder.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / f"{index:03d}.wav", audio, renderer.spec.sampling_rate)
        scores = score_transcripts(references, hypotheses)
        low, high = bootstrap_interval(scores)
        report[condition] = {
            "wer": corpus_wer(scores),
            "interval": [low, high],
            "utterances": len(scores),
            "seconds": seconds,
            "real_time_factor": spent / seconds,
            "transcripts": [[a, b] for a, b in zip(references, hypotheses, strict=True)],
        }
        print(
            f"{condition:15s} WER {100 * corpus_wer(scores):6.1f} % [{100 * low:.1f}, {100 * high:.1f}] "
            f"on {len(scores)} utterances, {seconds:.0f} s of speech, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    if options.output:
        lines = [f"{index:03d}|||{dataset[index]['text']}|recording/{index:03d}.wav\n" for index in range(len(dataset))]
        (Path(options.output) / "sentences.lst").write_text("".join(lines), encoding="utf-8")
        path = Path(options.output) / "report.json"
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        print(f"report: {path}")


if __name__ == "__main__":
    main()
