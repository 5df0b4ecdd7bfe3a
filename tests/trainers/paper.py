"""The paper's recipes narrowed to a thirty-second of their width, with data and pretrained models of that size."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from factories import make_rows
from transformers import AutoModel, ParakeetCTCConfig, ParakeetForCTC, Qwen3Config, Qwen3Model

from e2e_tts.modeling import E2ETTSConfig, SpeakerEncoderModel, VocoderModel
from e2e_tts.trainers.convert_pretrained import convert
from e2e_tts.trainers.recipe import load_recipe

WIDTH, HEADS, LAYERS = 32, 8, 12
DIVISORS = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "output_adapter_size", "subsampling_conv_channels"), WIDTH),
    **dict.fromkeys(("speaker_dim", "embedding_size", "upsample_initial_channel"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), HEADS),
    **{"num_hidden_layers": LAYERS, "vocab_size": 1000},
}
STAGES = ("joint", "refine_lm", "refine_decoder", "refine_reward", "end_to_end")
EMOTIONS = ("neu", "hap", "", "sad")


def narrow(settings: dict) -> dict:
    """The same model, every width, number of heads and of layers divided; no dropout: its draws belong to a process."""
    narrowed = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = narrow(value)
        elif key in DIVISORS:
            value = max(1, value // DIVISORS[key])
        elif key == "activation_dropout":
            value = 0.0
        narrowed[key] = value
    return narrowed


def narrowed_recipe(stage: str, root: Path, **arguments: object) -> dict:
    """A paper recipe as a mapping: narrowed, in float32, its folders moved from runs/paper to root."""
    values = asdict(load_recipe(f"paper_{stage}"))
    if values["model"] is not None:
        values["model"] = narrow(values["model"])
    if values["init"] is not None:
        values["init"] = moved(values["init"], root)
    values["init_modules"] = {name: moved(folder, root) for name, folder in values["init_modules"].items()}
    values["data"] |= {
        "folders": [str(root / "data")],
        **{"seconds_per_batch": 2.0, "max_seconds": 1.0, "max_rows": 3, "eval_rows": 3},
    }
    values["arguments"] |= {
        **{"bf16": False, "dataloader_num_workers": 0, "logging_steps": 1, "disable_tqdm": True, "use_cpu": True},
        **{"learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 1},
        **arguments,
    }
    return values


def moved(folder: str, root: Path) -> str:
    return str(root / Path(folder).relative_to("runs/paper"))


def make_paper_folders(root: Path) -> None:
    """What has to be there before stage 1, and the vocoder: annotated data, pretrained modules, a speaker encoder."""
    config = E2ETTSConfig(**narrowed_recipe("joint", root)["model"])
    text, labels = config.lm_config.text_config.vocab_size, config.reward_config.ctc_vocab_size
    random, rows = np.random.default_rng(0), []
    for split, count in (("train", 12), ("dev", 3)):
        for index, row in enumerate(make_rows(count, split=split, sampling_rate=24000)):
            row["text_ids"] = random.integers(1, text, 4).tolist()
            row["ctc_labels"] = random.integers(1, labels, 5).tolist()
            row["speaker_embedding"] = random.standard_normal(config.speaker_config.embedding_size).tolist()
            rows.append(row | {"emotion": EMOTIONS[index % len(EMOTIONS)]})
    Dataset.from_list(rows).save_to_disk(root / "data")
    torch.manual_seed(0)
    lower, upper = config.encoder_config.encoder_config, config.reward_config.encoder_config
    # As large as a layer's own scale: hidden states that hardly differ would have gradients of 1e8 behind their norms.
    conformer = lower.to_dict() | {
        "num_hidden_layers": lower.num_hidden_layers + upper.num_hidden_layers,
        "initializer_range": lower.hidden_size**-0.5,
    }
    ParakeetForCTC(ParakeetCTCConfig(encoder_config=conformer)).save_pretrained(root / "sources" / "ctc")
    Qwen3Model(Qwen3Config(**config.lm_config.text_config.to_dict())).save_pretrained(root / "sources" / "lm")
    (root / "pretrained").mkdir()
    convert(config, root / "pretrained", str(root / "sources" / "ctc"), str(root / "sources" / "lm"))
    lm = AutoModel.from_pretrained(root / "pretrained" / "lm")
    # An untrained LM hardly ever ends: now each token is the last one with a fair chance.
    lm.end_head.bias.data.fill_(6.0)
    lm.save_pretrained(root / "pretrained" / "lm")
    SpeakerEncoderModel(config.speaker_config).save_pretrained(root / "speaker" / "final")
    VocoderModel(config.vocoder_config).save_pretrained(root / "vocoder" / "final")
