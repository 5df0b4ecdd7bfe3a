"""Streaming: the same speech however the tokens arrive, early, without clicks, and stopped when nobody listens."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import soundfile
import torch
from factories import WIDTH, decoder_settings, make_composite, random_ids, random_mel

from e2e_tts.modeling import Chunking, E2ETTSModel, SpeechGenerationError, TextToSpeechFeatureExtractor, VocoderModel
from e2e_tts.modeling.griffin_lim import initial_phase
from e2e_tts.modeling.modeling_flow_decoder import NOISE
from e2e_tts.modeling.modeling_speech_lm import GeneratedCodes
from e2e_tts.modeling.randomness import NoiseWindow, seeded_noise
from e2e_tts.modeling.streaming import ChunkDecoder, CoreSharing, TokenStream

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "tests" / "fixtures" / "clips" / "LJ002-0002.opus"
SMALL = Chunking(first=3, size=5, look_ahead=2, context=4)
TEXT = torch.tensor([[5, 9, 14, 20, 33, 41, 7, 12]])


@pytest.fixture(scope="module")
def model(tiny_model) -> E2ETTSModel:
    return tiny_model()


@pytest.fixture(scope="module")
def released() -> E2ETTSModel:
    return E2ETTSModel.from_pretrained(ROOT / "model_cards" / "small-en").eval()


@pytest.fixture(scope="module")
def speech(released) -> tuple[torch.Tensor, torch.Tensor]:
    """Speech tokens (1, T) and speaker embedding (1, S) of a real recording."""
    audio, rate = soundfile.read(CLIP, dtype="float32")
    extractor = TextToSpeechFeatureExtractor(released.config.encoder_config.mel)
    features = extractor(audio, sampling_rate=rate)["input_features"]
    with torch.no_grad():
        return released.encoder(features).ids, released.embed_speaker(features)


def long_speech(model: E2ETTSModel, seed: int, **settings) -> dict[str, torch.Tensor]:
    return model.generate(TEXT, seed=seed, num_steps=2, min_tokens_per_symbol=3.0, **settings)


def joined(chunks: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    return torch.cat([chunk[name] for chunk in chunks], dim=1)


# ---- parts of an utterance know their place


def test_a_part_has_the_noise_and_the_phases_of_the_whole():
    seeds = torch.tensor([3, 4])
    whole = seeded_noise(seeds, NOISE, (20, 80))
    window = NoiseWindow(seeds[:1], NOISE, 80)
    for first, count in ((2, 5), (4, 9), (11, 6), (11, 9)):
        assert torch.equal(window.take(first, count), whole[:1, first : first + count])
    with pytest.raises(ValueError, match="before frame 11 is forgotten"):
        window.take(10, 3)
    assert torch.equal(initial_phase(6, 960, 320, first_frame=7), initial_phase(20, 960, 320)[7:13])


def test_the_vocoder_on_a_part_with_enough_around_it(tiny_config):
    config = tiny_config(
        vocoder_config={"hidden_size": 16, "num_layers": 1, "istft_n_fft": 960, "phase_prior_iterations": 2}
    ).vocoder_config
    torch.manual_seed(0)
    vocoder = VocoderModel(config).eval()
    mel = random_mel(1, 60, 80)
    with torch.no_grad():
        whole = vocoder(mel)
        # Two frames an iteration, three for each of two convolutions, one for the overlap of windows.
        part = vocoder(mel[:, 8:52], first_frame=8)
        misplaced = vocoder(mel[:, 8:52])
    inside = slice(12 * 320, 32 * 320)
    torch.testing.assert_close(part[:, inside], whole[:, 20 * 320 : 40 * 320], atol=1e-5, rtol=1e-4)
    assert (misplaced[:, inside] - part[:, inside]).abs().max() > 1e-3


# ---- chunks


@pytest.mark.parametrize("steps", [1, 4, 100])
def test_chunks_do_not_depend_on_how_tokens_arrive(model, steps):
    ids = random_ids(37, high=27)
    expected = model.decode(ids[None], voice="anna", seed=5, num_steps=2, chunking=SMALL)
    condition = model._condition("anna", 1)
    seed = torch.randint(0, 2**31, (1,), generator=torch.Generator().manual_seed(5))
    parts = (model.decoder, model.vocoder, model.lm.quantizer)
    decoder = ChunkDecoder(*parts, condition.embedding, seed, chunking=SMALL, num_steps=2, guidance=0.7)
    chunks = [chunk for piece in ids.split(steps) for chunk in decoder.push(piece)]
    # A chunk waits for its look-ahead and for nothing else.
    assert [chunk["ids"].shape[1] for chunk in chunks] == [3, 5, 5, 5, 5, 5, 5]
    assert decoder.codes.shape[1] == 4 and decoder.mel.shape[1] == 8 and decoder.pending.shape[1] == 4
    chunks += decoder.finish()
    for name in ("audio", "mel", "ids"):
        assert torch.equal(joined(chunks, name), expected[name])
    assert expected["audio"].shape[1] == int(expected["audio_lengths"]) == 37 * 640
    assert list(decoder.finish()) == []


def test_one_chunk_is_the_whole(model):
    chunking = {"first": 1000}
    for voice in ("anna", model.make_voice(random_mel(1, 20, 80))):
        whole = long_speech(model, 1, voice=voice)
        once = long_speech(model, 1, voice=voice, chunking=chunking)
        for name in ("ids", "mel", "audio"):
            torch.testing.assert_close(once[name], whole[name], atol=1e-5, rtol=1e-5)


def test_stream_is_what_generate_gives(model):
    for voice in ("ben", model.make_voice(random_mel(1, 20, 80), text_ids=torch.tensor([[3, 4, 5, 6]]))):
        expected = long_speech(model, 2, voice=voice, chunking=SMALL)
        stream = model.generate_stream(
            TEXT, voice=voice, seed=2, num_steps=2, chunking=SMALL, min_tokens_per_symbol=3.0
        )
        chunks = list(stream)
        assert len(chunks) > 2
        for name in ("audio", "mel", "ids"):
            assert torch.equal(joined(chunks, name), expected[name])
        # Whole utterances have the same tokens: only the decoder sees less at a time.
        assert torch.equal(long_speech(model, 2, voice=voice)["ids"], expected["ids"])


def test_the_first_chunk_comes_before_the_last_token(model, monkeypatch):
    heard = threading.Event()

    def generate_codes(streamer, **_):
        ids = random_ids(1, 30, high=27)
        streamer.put(torch.zeros(1, 0, dtype=torch.long))
        for token in ids[0, :6]:
            streamer.put(token[None])
        # With a listener that waits for all tokens this would never go on.
        assert heard.wait(timeout=300)
        for token in ids[0, 6:]:
            streamer.put(token[None])
        streamer.put(torch.tensor([model.lm.end_token_id]))
        return GeneratedCodes(ids=ids, mask=ids >= 0, finished=torch.tensor([True]))

    monkeypatch.setattr(model.lm, "generate_codes", generate_codes)
    stream = model.generate_stream(TEXT, num_steps=1, chunking=SMALL)
    first = next(stream)
    assert first["ids"].shape[1] == 3 and not heard.is_set()
    heard.set()
    assert torch.equal(joined([first, *stream], "ids"), random_ids(1, 30, high=27))


def test_leaving_stops_the_lm(tiny_model):
    model = tiny_model()
    model.lm.end_head.bias.data.fill_(-1e4)
    stream = model.generate_stream(TEXT, seed=0, num_steps=1, chunking=SMALL, max_tokens_per_symbol=1000.0)
    next(stream)
    assert any(thread.name.startswith("speech-tokens") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("speech-tokens") for thread in threading.enumerate())


def test_streams_side_by_side_are_as_alone(model):
    def stream(seed: int) -> torch.Tensor:
        chunks = model.generate_stream(TEXT, seed=seed, num_steps=1, chunking=SMALL, min_tokens_per_symbol=3.0)
        return joined(list(chunks), "audio")

    alone = [stream(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(stream, range(4)))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_errors(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="batch of 2"):
        model.generate_stream(TEXT.repeat(2, 1))
    with pytest.raises(ValueError, match="batch of 2"):
        model.generate(TEXT.repeat(2, 1), seed=0, chunking=SMALL)
    with pytest.raises(ValueError, match="Nothing to speak"):
        model.generate_stream(None)
    for wrong, message in (
        ({"look_ahead": 0}, r"chunking\.look_ahead must be a whole number, at least 1, got 0"),
        ({"first": 2.5}, r"chunking\.first must be a whole number, at least 1, got 2\.5"),
        ({"length": 3, "first": 1}, "chunking has no length; it has first, size, look_ahead, context"),
        (5, "chunking is a Chunking or a mapping of its fields, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_stream(TEXT, chunking=wrong)
    # An error in the thread of the LM comes out where the chunks do.
    with pytest.raises(ValueError, match="top_k"):
        list(model.generate_stream(TEXT, top_k=0))
    model.lm.end_head.bias.data.fill_(-1e4)
    stream = model.generate_stream(TEXT, seed=0, num_steps=1, chunking=SMALL)
    assert next(stream)["audio"].shape[1] == 3 * 640
    with pytest.raises(SpeechGenerationError, match="did not end"):
        list(stream)
    reads_states = make_composite(decoder_config=decoder_settings(hidden_condition_size=WIDTH))
    with pytest.raises(ValueError, match="need a text"):
        reads_states.generate_stream(TEXT % 20, speaker_embedding=torch.ones(1, 16))


def test_seeds_are_of_one_call(model):
    before = torch.get_rng_state()
    first = long_speech(model, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(long_speech(model, 3)["audio"], first["audio"])
    # Without a seed the process's generator decides.
    drawn = []
    for seed in (8, 8, 9):
        torch.manual_seed(seed)
        drawn.append(long_speech(model, None)["ids"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# ---- a real checkpoint


def seam_steps(audio: torch.Tensor, seams: list[int]) -> list[float]:
    """The step of the waveform into each seam over the large ones (99th percentile) of the 100 ms around it."""
    steps = audio[0].diff().abs()
    return [float(steps[seam - 1] / steps[seam - 800 : seam + 800].quantile(0.99)) for seam in seams]


@torch.no_grad()
def test_no_click_and_little_difference(released, speech):
    ids, voice = speech
    chunking = Chunking()
    # The decoder's own noise: calmed, as the checkpoint has it, two draws are near to each other already.
    settings = {"voice": voice, "decoder_temperature": 1.0}
    whole = released.decode(ids, seed=1, **settings)
    chunked = released.decode(ids, seed=1, chunking=chunking, **settings)
    other = released.decode(ids, seed=2, vocoder=False, **settings)
    # Decoded in chunks, the mel is far nearer to the whole utterance's than two draws of the decoder to each other.
    distance = (chunked["mel"] - whole["mel"]).abs().mean()
    assert distance < 0.5 * (other["mel"] - whole["mel"]).abs().mean()
    samples = 640 * torch.tensor([chunking.first, *[chunking.size] * 2]).cumsum(0)
    seams = [int(seam) for seam in samples if seam < chunked["audio"].shape[1] - 640]
    assert len(seams) == 3
    assert max(seam_steps(chunked["audio"], seams)) < 0.8
    # What is heard without care: each piece of mel vocoded by itself.
    edges = [0, *(seam // 320 for seam in seams), chunked["mel"].shape[1]]
    careless = torch.cat([released.vocoder(chunked["mel"][:, a:b]) for a, b in pairwise(edges)], dim=1)
    assert max(seam_steps(careless, seams)) > 1.2 * max(seam_steps(chunked["audio"], seams))


def test_no_click_in_a_tiny_model(model):
    ids = random_ids(1, 60, high=27)
    audio = model.decode(ids, voice="anna", num_steps=2, chunking=SMALL)["audio"]
    seams = [640 * (3 + 5 * index) for index in range(1, 10)]
    assert max(seam_steps(audio, seams)) < 1.5


# ---- LM and decoder at the same time


def test_threads_that_share_the_cores_leave_them_as_they_were():
    threads = torch.get_num_threads()
    sharing, both, left = CoreSharing(), threading.Barrier(2), threading.Event()

    def other() -> tuple[int, int]:
        with sharing():
            inside = torch.get_num_threads()
            both.wait()
            left.wait()
        return inside, torch.get_num_threads()

    try:
        torch.set_num_threads(4)
        with ThreadPoolExecutor(2) as pool:
            # The second leaves when the first has left, whose number of threads it must not take for the process's.
            with sharing():
                assert torch.get_num_threads() == 2
                running = pool.submit(other)
                both.wait()
                with sharing():
                    assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 4
            left.set()
            assert running.result() == (2, 4)
            # Neither does a thread that begins later.
            assert pool.submit(torch.get_num_threads).result() == 4
        with pytest.raises(KeyError), sharing():
            raise KeyError
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        with sharing():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_stream_leaves_the_threads_as_they_were(model):
    threads = torch.get_num_threads()
    inside = []
    for _ in model.generate_stream(TEXT, seed=0, num_steps=1, chunking=SMALL, voice="anna"):
        inside.append(torch.get_num_threads())
    assert {*inside, torch.get_num_threads()} == {threads}


def test_the_lm_runs_under_the_autocast_of_the_caller():
    def generate(**arguments):
        return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    with torch.autocast("cpu", torch.bfloat16), TokenStream(generate) as tokens:
        assert tokens.result() == (True, torch.bfloat16)
    with TokenStream(generate) as tokens:
        assert not tokens.result()[0]
