"""From Mandarin text to a bilingual checkpoint that speaks: prepare, annotate, train, release."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from recordings import CLIPS, read_refused, real_clips
from stages import recipe_values

from e2e_tts.modeling import SpeakerEncoderConfig, SpeakerEncoderModel
from e2e_tts.modeling.text_frontend import TextFrontend, phoneme_vocabulary_size
from e2e_tts.pipelines import load_pipeline, release
from e2e_tts.trainers import train
from e2e_tts.trainers.data import annotate, prepare
from e2e_tts.trainers.data.corpus_files import COLUMNS
from e2e_tts.trainers.recipe import parse_recipe

TEXTS = ["他在银行工作了2年。", "今天5月1日，25℃。", "我用iPhone给John打电话。", "东京カラオケ店。", "你好，world！"]
TOKENIZER = ["--tokenizer", "phonemes-zh"]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    """Mandarin texts, and recordings that need not say them, on their way through the commands."""
    root = tmp_path_factory.mktemp("mandarin")
    (root / "speech").mkdir()
    with (root / "speech" / "metadata.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for text, clip in zip(TEXTS, real_clips(len(TEXTS)), strict=True):
            shutil.copy(CLIPS / clip["file"], root / "speech" / Path(clip["file"]).name)
            writer.writerow([Path(clip["file"]).name, text, clip["speaker"], "", "zh-CN", ""])
    torch.manual_seed(0)
    config = SpeakerEncoderConfig(hidden_size=32, num_hidden_layers=1, embedding_size=32)
    SpeakerEncoderModel(config).save_pretrained(root / "speaker")
    arguments = ["--source", str(root / "speech"), "--output", str(root / "prepared"), "--min-characters", "0.1"]
    prepare.main([*arguments, *TOKENIZER])
    arguments = ["--data", str(root / "prepared"), "--speaker_encoder", str(root / "speaker")]
    annotate.main([*arguments, "--output", str(root / "annotated"), *TOKENIZER])
    return root / "annotated"


def test_the_rows_hold_mandarin_symbols(annotated):
    frontend, rows = TextFrontend(language="zh"), load_from_disk(str(annotated))
    assert sorted(rows["text"][:]) == sorted(text for text in TEXTS if "カ" not in text)
    (refused,) = read_refused(annotated.parent / "prepared")
    assert "leaves out: カラオケ" in refused["reason"]
    symbols = frontend.symbols("zh")
    for row in rows:
        # Ids 0 and 1 are the blank and the unknown symbol.
        assert [symbols[index - 2] for index in row["text_ids"]] == frontend(row["text"]).split()
        heard = frontend.recognition_symbols(frontend(row["text"]))
        assert [symbols[index - 2] for index in row["ctc_labels"]] == heard.split()


def test_an_english_model_learns_and_speaks_mandarin(annotated, tiny_model, tmp_path, capsys):
    start = tiny_model()
    start.save_pretrained(tmp_path / "start")
    folders = {"data": str(annotated), "start": str(tmp_path / "start")}
    values = recipe_values("joint", folders, arguments={"max_steps": 2, "learning_rate": 1e-5, "save_steps": 100})
    values["data"] = {"folders": [str(annotated)], "seconds_per_batch": 20.0, "eval_rows": 0}
    values["text_vocab_size"] = phoneme_vocabulary_size("zh")
    values["voices"] = {"xiaoming": "*"}
    anew = {"lm.model.embed_tokens.weight", "reward.ctc_head.weight", "reward.ctc_head.bias", "voice_embeddings"}
    model = train.build_model(parse_recipe(values))
    assert start.config.voices and not model.config.voices
    weights = model.state_dict()
    assert {name for name, value in start.state_dict().items() if not torch.equal(value, weights[name])} == anew
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    train.main(["--recipe", str(tmp_path / "recipe.json"), "--output_dir", str(tmp_path / "run")])
    trained, released = str(tmp_path / "run" / "final"), str(tmp_path / "released")
    # Without its name the vocabulary would be the English one.
    with pytest.raises(SystemExit, match="79 tokens, the model's LM knows 141: --tokenizer"):
        release.main(["--model", trained, "--output", released])
    release.main(["--model", trained, "--output", released, *TOKENIZER])
    pipe = load_pipeline(released)
    ids = pipe.preprocess("你好，world！{ni3 hao3}")["text_ids"][0]
    assert pipe.processor.tokenizer.decode(ids) == "n- -i 2 h- -ao 3 , | w ˈɚ l d ! | n- -i 3 h- -ao 3 ."
    assert pipe.model.config.voice_names == ["xiaoming"]
    speech = pipe("你好，world！他在银行工作了2年。", seed=0)
    assert speech["sampling_rate"] == 16000 and np.abs(speech["audio"]).max() > 0
