"""The latency benchmark measures what it says, and a stream of speech does begin before it is made to its end."""

import time
from collections.abc import Iterator

import pytest
from latency import Checkpoint, PocketTTS, Timing, compare, load_peers, main, profile_parts, table, time_system

from e2e_tts.modeling import SpeechGenerationError
from e2e_tts.pipelines import TextToSpeechPipeline

TEXT = "The birds sang in the morning, and nobody at all was there to hear them sing."


class Clockwork:
    """Ten chunks of 0.2 s of speech, 20 ms of work each; refuses an empty text."""

    name, parameters, streams = "clockwork", 2.5e6, True

    def speak(self, text: str) -> float:
        if not text:
            raise SpeechGenerationError("nothing came out")
        return sum(self.stream(text))

    def stream(self, text: str) -> Iterator[float]:
        for _ in range(10):
            time.sleep(0.02)
            yield 0.2


@pytest.fixture(scope="module")
def checkpoint(tiny_model, processor) -> Checkpoint:
    model = tiny_model()
    pipeline = TextToSpeechPipeline(model=model, processor=processor)
    return Checkpoint(pipeline, "tiny", seed=0)


def test_the_first_chunk_counts_as_the_first_sound():
    timing = time_system(Clockwork(), TEXT)
    assert timing.offline_speech == pytest.approx(2.0) and timing.streamed_speech == pytest.approx(2.0)
    assert timing.first < 0.5 * timing.streamed  # a tenth of it, on a machine without other load
    assert timing.offline_factor == timing.offline / timing.offline_speech


def test_ratios_are_taken_sentence_by_sentence_and_refusals_left_out():
    class Other(Clockwork):
        name, streams = "other", False

    times = {
        "clockwork": [Timing(0.1, 1.0, 2.0, 1.0, 2.0), None, Timing(0.4, 4.0, 2.0, 4.0, 2.0)],
        "other": [Timing(0.2, 3.0, 2.0, 3.0, 2.0), Timing(9.0, 9.0, 2.0, 9.0, 2.0), Timing(0.8, 12.0, 2.0, 9.0, 2.0)],
    }
    *_, first, second = table([Clockwork(), Other()], times).splitlines()
    assert first == "| clockwork | 2.5 | 250 | 1.25 | 1.25 | 1.00 | 1.00 |"
    assert second == "| other | 2.5 | 500 | 3.75 |  | 2.00 | 3.00 |"


def test_the_first_text_only_warms_up_and_a_refusal_is_no_time():
    times = compare([Clockwork()], ["warm up", "", TEXT])["clockwork"]
    assert times[0] is None and times[1].first > 0 and len(times) == 2


def test_a_checkpoint_streams_and_its_parts_add_up(checkpoint):
    checkpoint.speak("Once.")
    timing = time_system(checkpoint, TEXT)
    # The codes are drawn alike; one more sentence would make this differ.
    assert timing.streamed_speech == timing.offline_speech > 0
    assert timing.first < timing.streamed
    shares = [float(line.split("|")[3]) for line in profile_parts(checkpoint, [TEXT]).splitlines()[2:]]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1.0, abs=0.03)
    assert checkpoint.pipeline.model.lm.generate_codes.__name__ == "generate_codes"  # as it was


def test_peers_that_are_missing_are_named_with_the_way_to_get_them(monkeypatch):
    def unavailable(threads: int) -> None:
        raise ImportError("No module named 'pocket'")

    monkeypatch.setattr(PocketTTS, "__init__", lambda self, threads: unavailable(threads))
    systems, missing = load_peers(["pocket-tts"], 1)
    assert not systems
    assert missing == [
        "pocket-tts is left out (No module named 'pocket'); to have it: pip install 'transformers>=5.20'"
    ]


def test_help_says_what_is_measured(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "Time to first audio" in capsys.readouterr().out
