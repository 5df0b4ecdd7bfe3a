"""Annotation: text tokens, labels and teachers' outputs for every row, and going on after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from factories import make_rows, speaker_settings
from recordings import CLIPS, read_refused
from transformers import (
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForSequenceClassification,
    WavLMForXVector,
)

from e2e_tts.modeling import SpeakerEncoderConfig, SpeakerEncoderModel, TextToSpeechProcessor
from e2e_tts.modeling.audio_features import MelSpec
from e2e_tts.modeling.text_frontend import TextFrontend, build_phoneme_tokenizer
from e2e_tts.trainers.data import annotate, prepare
from e2e_tts.trainers.data.annotate import Annotator
from e2e_tts.trainers.data.provenance import tokenizer_fingerprint, weights_fingerprint
from e2e_tts.trainers.data.speech_data import Collator, SpeechDataset, load_prepared
from e2e_tts.trainers.data.teacher_labels import EmotionTeacher, SpeakerTeacher
from e2e_tts.trainers.data.text_tokens import load_processor, text_tokens


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("data") / "prepared"
    prepare.main(["--source", str(CLIPS), "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def speaker_encoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "speaker"
    config = SpeakerEncoderConfig(**speaker_settings(embedding_size=12))
    SpeakerEncoderModel(config).save_pretrained(folder)
    return folder


def tiny_wavlm(cls: type, folder: Path, **settings: object) -> Path:
    torch.manual_seed(0)
    config = WavLMConfig(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"conv_dim": [8, 8], "conv_stride": [40, 8], "conv_kernel": [80, 8], "num_feat_extract_layers": 2},
        **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_buckets": 8},
        **{"tdnn_dim": [8, 8], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 10},
        **settings,
    )
    cls(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def run(data: Path, output: Path, *extra: object) -> Dataset:
    annotate.main(["--data", str(data), "--output", str(output), *map(str, extra)])
    return load_from_disk(str(output))


def test_annotation_adds_what_training_reads(prepared, speaker_encoder, tmp_path):
    rows = run(prepared, tmp_path / "annotated", "--speaker_encoder", speaker_encoder)
    before = load_from_disk(str(prepared))
    assert rows["id"][:] == before["id"][:] and rows["audio"][:] == before["audio"][:]
    assert "refused" not in rows.column_names
    frontend, tokenizer = TextFrontend("phonemes"), build_phoneme_tokenizer()
    for row in rows:
        symbols = frontend(row["text"])
        assert tokenizer.convert_ids_to_tokens(row["text_ids"]) == symbols.split()
        assert tokenizer.convert_ids_to_tokens(row["ctc_labels"]) == frontend.recognition_symbols(symbols).split()
        # 0 is the CTC blank and 1 the unknown symbol: a label must be neither.
        assert min(row["ctc_labels"]) > 1 and min(row["text_ids"]) > 1
        assert len(row["speaker_embedding"]) == 12
        assert np.linalg.norm(row["speaker_embedding"]) == pytest.approx(1.0, abs=1e-5)
    assert len({tuple(vector) for vector in rows["speaker_embedding"][:]}) == len(rows)
    settings = json.loads((tmp_path / "annotated" / "annotation.json").read_text())
    assert settings["tokenizer"] == "phonemes"
    # A release of the same weights, in half precision and without classes, is the same encoder.
    released = SpeakerEncoderModel.from_pretrained(speaker_encoder).half().float()
    released.classes = None
    fingerprints = {"text_tokenizer": tokenizer_fingerprint(load_processor()), "speaker_encoder": None}
    assert settings["fingerprints"] == fingerprints | {"speaker_encoder": weights_fingerprint(released)}


def test_folders_of_other_teachers_are_refused(prepared, speaker_encoder, tmp_path):
    first = run(prepared, tmp_path / "first", "--speaker_encoder", speaker_encoder)
    model = SpeakerEncoderModel.from_pretrained(speaker_encoder)
    for parameter in model.parameters():
        parameter.data += 0.01
    model.save_pretrained(tmp_path / "encoder")
    run(prepared, tmp_path / "voice", "--speaker_encoder", tmp_path / "encoder")
    folders = [str(tmp_path / name) for name in ("first", "voice")]
    with pytest.raises(ValueError, match=r"different speaker encoders: .*first \(\w+\); .*voice \(\w+\).*annotate"):
        load_prepared(folders, "train")
    # What reads sound alone takes them, and so it does where nobody knows what annotated a folder.
    sound = load_prepared(folders, "train", annotated=False)
    assert len(sound) == 2 * len(first) and "text_ids" not in sound.column_names
    settings = json.loads((tmp_path / "voice" / "annotation.json").read_text())
    (tmp_path / "voice" / "annotation.json").write_text(json.dumps({"tokenizer": settings["tokenizer"]}))
    assert len(load_prepared(folders, "train")) == 2 * len(first)
    settings["fingerprints"] = {"text_tokenizer": "another"}
    (tmp_path / "voice" / "annotation.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="different text tokenizers"):
        load_prepared(folders, "train")


def test_the_contract_columns_reach_a_batch(prepared, speaker_encoder, tmp_path):
    annotated = run(prepared, tmp_path / "annotated", "--speaker_encoder", speaker_encoder)
    rows = load_prepared([str(tmp_path / "annotated")], "train")
    assert rows.column_names == annotated.column_names
    dataset = SpeechDataset(rows, MelSpec())
    batch = Collator(MelSpec(), 2, emotions=["cross", "neutral"])([dataset[index] for index in range(4)])
    assert batch["emotion_labels"].tolist() == [1] * 4
    torch.testing.assert_close(batch["speaker_target"], torch.tensor(rows["speaker_embedding"][:4]))
    for index in range(4):
        assert batch["text_ids"][index][batch["text_mask"][index]].tolist() == rows[index]["text_ids"]
    assert batch["feature_mask"].sum(dim=1).tolist() == [
        2 * -(-round(row["seconds"] * 16000) // 640) for row in rows.select(range(4))
    ]


def test_rows_that_cannot_be_spoken_or_heard_are_refused(prepared, speaker_encoder, tmp_path):
    rows = load_from_disk(str(prepared)).select([0, 1, 2, 3]).to_list()
    rows[1]["text"] = "你好"
    rows[2]["audio"]["bytes"] = b"not audio"
    rows[3]["text"] = "Some words and 你好."
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    kept = run(tmp_path / "rows", tmp_path / "annotated", "--speaker_encoder", speaker_encoder)
    assert kept["id"][:] == [rows[0]["id"]]
    refused = read_refused(tmp_path / "annotated")
    assert [row["id"] for row in refused] == [row["id"] for row in rows[1:]]
    assert "can be spoken" in refused[0]["reason"] and "leaves out: 你好" in refused[2]["reason"]


def test_a_killed_annotation_goes_on_and_gives_the_same(prepared, speaker_encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(annotate, "ROWS_PER_PART", 3)
    call, seen = Annotator.__call__, []

    def counting(self: Annotator, row: dict) -> dict:
        seen.append(row["id"])
        return call(self, row)

    def failing(self: Annotator, row: dict) -> dict:
        if len(seen) == 7:
            raise KeyboardInterrupt
        return counting(self, row)

    monkeypatch.setattr(Annotator, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        run(prepared, tmp_path / "annotated", "--speaker_encoder", speaker_encoder)
    seen.clear()
    monkeypatch.setattr(Annotator, "__call__", counting)
    with pytest.raises(SystemExit):
        run(prepared, tmp_path / "annotated", "--speaker_encoder", speaker_encoder, "--emotion_threshold", 0.9)
    assert "other settings (emotion_threshold)" in capsys.readouterr().err
    resumed = run(prepared, tmp_path / "annotated", "--speaker_encoder", speaker_encoder)
    assert len(seen) == len(resumed) - 6
    whole = run(prepared, tmp_path / "whole", "--speaker_encoder", speaker_encoder)
    assert resumed.to_list() == whole.to_list()
    with pytest.raises(SystemExit):
        run(prepared, tmp_path / "whole", "--speaker_encoder", speaker_encoder)
    assert "--overwrite" in capsys.readouterr().err


def test_embeddings_of_the_corpus_are_taken_and_checked(tmp_path, capsys):
    rows = [{**row, "text": "Some words."} for row in make_rows(4)]
    rows = [{k: v for k, v in row.items() if k not in ("text_ids", "ctc_labels")} for row in rows]
    rows[2]["speaker_embedding"] = [0.0] * 16
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    kept = run(tmp_path / "rows", tmp_path / "annotated")
    assert kept["id"][:] == ["train-0", "train-1", "train-3"]
    for row, own in zip(kept, [rows[0], rows[1], rows[3]], strict=True):
        vector = np.array(own["speaker_embedding"])
        np.testing.assert_allclose(row["speaker_embedding"], vector / np.linalg.norm(vector))
    rows[1]["speaker_embedding"] = [1.0] * 5
    Dataset.from_list(rows).save_to_disk(tmp_path / "mixed")
    Dataset.from_list(rows).remove_columns("speaker_embedding").save_to_disk(tmp_path / "without")
    for data, complaint in (("mixed", "different sizes, [5, 16]"), ("without", "--speaker_encoder is needed")):
        with pytest.raises(SystemExit):
            run(tmp_path / data, tmp_path / "refused")
        assert complaint in capsys.readouterr().err


def test_xvectors_of_a_transformers_model(prepared, tmp_path):
    folder = tiny_wavlm(WavLMForXVector, tmp_path / "wavlm")
    rows = run(prepared, tmp_path / "annotated", "--speaker_encoder", folder)
    model = WavLMForXVector.from_pretrained(folder).eval()
    samples = SpeechDataset(rows, MelSpec())[0]["waveform"]
    inputs = Wav2Vec2FeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(**inputs).embeddings[0], dim=0)
    torch.testing.assert_close(torch.tensor(rows[0]["speaker_embedding"]), expected)
    with pytest.raises(ValueError, match="gives no speaker embedding"):
        SpeakerTeacher.from_pretrained(str(emotion_model(tmp_path / "bert", "bert")))


def emotion_model(folder: Path, kind: str = "wavlm") -> Path:
    if kind == "wavlm":
        labels = {"id2label": {0: "calm", 1: "cross"}, "label2id": {"calm": 0, "cross": 1}}
        return tiny_wavlm(WavLMForSequenceClassification, folder, classifier_proj_size=8, **labels)
    from transformers import BertConfig

    BertConfig().save_pretrained(folder)
    return folder


def test_pseudo_emotions_fill_only_what_the_corpus_leaves_open(prepared, speaker_encoder, tmp_path):
    folder = emotion_model(tmp_path / "emotions")
    rows = load_from_disk(str(prepared)).select(range(4)).to_list()
    for row in rows[:3]:
        row["emotion"] = ""
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    base = ["--speaker_encoder", speaker_encoder, "--emotion_model", folder]
    labelled = run(tmp_path / "rows", tmp_path / "labelled", *base, "--emotion_threshold", 0.0)
    assert set(labelled["emotion"][:3]) <= {"calm", "cross"} and labelled["emotion"][3] == "neutral"
    # An untrained model is never this sure.
    unsure = run(tmp_path / "rows", tmp_path / "unsure", *base, "--emotion_threshold", 0.99)
    assert unsure["emotion"][:] == ["", "", "", "neutral"]
    with pytest.raises(ValueError, match="threshold"):
        EmotionTeacher(str(folder), threshold=1.5)


def test_text_of_another_tokenizer(prepared, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "some", "words"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        tmp_path / "words"
    )
    ids, labels = text_tokens(load_processor(str(tmp_path / "words")), "some words")
    # A recogniser without phonemes spells bytes, 0 being the blank.
    assert ids == [2, 3] and labels == [byte + 1 for byte in b"some words"]
    with pytest.raises(ValueError, match="no token for part of 'some wards'"):
        text_tokens(load_processor(str(tmp_path / "words")), "some wards")
    # A saved model brings its frontend along: its folder means phonemes, not its bare tokenizer.
    TextToSpeechProcessor.build().save_pretrained(tmp_path / "model")
    assert text_tokens(load_processor(str(tmp_path / "model")), "Some words.") == text_tokens(
        load_processor(), "Some words."
    )


def test_an_unprepared_corpus_is_sent_to_prepare(speaker_encoder, tmp_path, capsys):
    arguments = ["--data", str(CLIPS), "--speaker_encoder", str(speaker_encoder), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        annotate.main(arguments)
    assert f"{CLIPS} is no prepared data set; write it with e2e_tts.trainers.data.prepare" in capsys.readouterr().err
