"""Long texts: split without loss or repetition, the same however they arrive, spoken one part at a time."""

import random
import re
import time
import warnings

import numpy as np
import pytest

from e2e_tts.modeling.abbreviations import _MAY_END, ABBREVIATIONS
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor
from e2e_tts.pipelines import long_text
from e2e_tts.pipelines.long_text import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    TextSplitter,
    fit_parts,
    speak_long,
    speak_parts,
    split_pieces,
    split_text,
)

WORDS = ("the", "a", "bird", "river", "letter", "train", "window", "winter", "question", "walked", "sang", "left")
OPENINGS = ("Dr. Smith", "Mrs. Jones", "Prof. Lee", "Davis Jr. and", "On Jan. 3 he",
            "It", "Nobody", "At 7:45 he", "For $3.50 they", "“Well,” she said; he")  # fmt: skip
ENDS = (".", ".", ".", "!", "?", "...", ".”", "?)")
PIECES = (*WORDS, "Dr.", "etc.", "vol.", "Ave.",
          "p.m.", "B.", "Main St.", "Then", "He", "5 oz.", "“No!” he", "- so",
          "no...", "so!", "why?", "3.5", "end.", "“Yes.”", ",", ".", "—", "(", "\n\n", "\n",
          "Chapter One\n\n", "Two\n \n ", "你好。", "吗？，", "我们一起去公园" * 3, "{HH AH0 L OW1}", "x" * 45,
          "supercalifragilisticexpialidocious;")  # fmt: skip

LETTER = re.compile(r"\w")


def make_sentences(words: int, seed: int = 0) -> list[str]:
    """Different sentences of 3 to 60 words with abbreviations, numbers, quotes and commas; `words` words at least."""
    draw = random.Random(seed)
    sentences: list[str] = []
    while sum(len(sentence.split()) for sentence in sentences) < words:
        body = [draw.choice(WORDS) + ("," if draw.random() < 0.1 else "") for _ in range(draw.choice([2, 6, 10, 60]))]
        sentences.append(f"{draw.choice(OPENINGS)} {' '.join(body).rstrip(',')} {len(sentences)}{draw.choice(ENDS)}")
    return sentences


def paragraph_ends(text: str) -> set[int]:
    """How many letters stand before each empty line."""
    return {len(LETTER.findall(text[: match.start()])) for match in re.finditer(r"\n\s*\n", text)}


def fake_pipe(spoken: list, fails: int = 0):
    """Speaks every text as 10 samples; the first `fails` calls find no end."""

    def pipe(text: str, **settings):
        spoken.append((text, settings))
        if len(spoken) <= fails:
            raise RuntimeError("did not end")
        return {"audio": np.full(10, len(spoken), dtype=np.float32), "sampling_rate": 100}

    return pipe


def test_2000_words_are_spoken_once_and_in_order():
    sentences = make_sentences(2000)
    text = "\n\n".join(" ".join(sentences[start : start + 9]) for start in range(0, len(sentences), 9))
    assert len(text.split()) >= 2000
    parts = split_text(text)
    # Every word once, in order ...
    assert " ".join(parts).split() == text.split()
    # ... and every sentence whole, unless it is too long to be one part or so short that it shares one.
    for sentence in sentences:
        holders = [part for part in parts if sentence in part]
        assert len(holders) == (len(sentence) <= MAX_CHARACTERS), sentence
        if holders and len(sentence) >= MIN_CHARACTERS and holders[0] != sentence:
            assert len(holders[0].replace(sentence, "").strip()) < MIN_CHARACTERS
    assert all(len(part) <= MAX_CHARACTERS for part in parts)
    spoken = []
    speech = speak_long(fake_pipe(spoken), text, pause_seconds=0.05)
    assert [part for part, _ in spoken] == parts
    assert len(speech["audio"]) == 15 * len(parts) - 5


@pytest.mark.parametrize("eager", [False, True])
def test_parts_do_not_depend_on_the_pieces(eager):
    draw = random.Random(1)

    def parts(pieces: list[str], limit: int) -> list[str]:
        splitter = TextSplitter(limit, eager)
        found = [part for piece in pieces for part in splitter.push(piece)]
        return [*found, *splitter.finish()]

    for _ in range(400):
        text = " ".join(draw.choice(PIECES) for _ in range(draw.randint(1, 40)))
        limit = draw.choice([10, 40, MAX_CHARACTERS])
        cuts = sorted(draw.sample(range(len(text) + 1), min(len(text), draw.choice([1, 5, 1000]))))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        whole = parts([text], limit)
        assert parts(pieces, limit) == whole, (text, limit)
        assert LETTER.findall("".join(whole)) == LETTER.findall(text)
        assert paragraph_ends("".join(whole)) <= paragraph_ends(text)


@pytest.mark.parametrize(
    "sentences",
    [
        ["Yesterday we heard Prof. Smith and the old Gen. Lee speak on top of Mt. Everest."],
        ["It stands on the corner of Fifth Ave. and Main, say Smith Jr. and Jones Inc. of Boston."],
        ["They sell tables, lamps, chairs, etc. at a good price, i.e. for less than approx. fifty."],
        ["What you are looking for is in vol. 3, on pp. 12 to 14, and drawn in fig. 7 of no. 5."],
        ["The meeting of the committee was moved from Jan. 5 to the first days of Sept. this year."],
        ["They were written by J. Smith, by George W. Bush and by the people of the U.S. army."],
        ["Visit the town of St. Petersburg, or mix 5 oz. of flour with 3 lb. of sugar for 10 min. at least."],
        # The same at the end of a sentence.
        [
            "The train came at exactly 5 p.m.",
            "Then we left, all following plan B.",
            "She now lives somewhere in the U.S.",
        ],
        ["He lives in a house on Main St.", "She was working for Acme Inc.", "The other two live with us."],
        ["The house where we live now is on Fifth Ave.", "They sell tables, lamps, chairs, etc."],
        ["We have eaten every single fig.", "The room is as large as the min.", "He was asked, and the answer was no."],
        # An empty line ends a sentence whatever stands before it.
        ["The talk will be given by the Prof.\n\n", "The building is across the street."],
    ],
)
def test_full_stops_of_abbreviations(sentences):
    text = " ".join([*sentences, "And here is another sentence."])
    expected = [*(sentence.strip() for sentence in sentences), "And here is another sentence."]
    assert split_text(text) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        '"You must come back here again!" he shouted.',
        "“Is it really you, my dear old friend?” (he asked) and left.",
        "we would like to go there... but then we did not go",
        "She went to the shop on the corner ... and never came back.",
        "mix everything with 5 oz. of flour for 10 min. or so",
        "The whole of it was about 5 vols. or more, as they say.",
    ],
)
def test_sentences_do_not_end_before_small_letters(sentence):
    assert split_text(f"{sentence} And here is another sentence.")[0].startswith(sentence)


def test_small_letters_tell_nothing_where_there_are_no_others():
    sentences = ["so this is how it all began.", "i do not know what to say."]
    assert split_text(" ".join(sentences)) == sentences


def test_abbreviations_that_may_end_a_sentence_are_known_ones():
    assert ABBREVIATIONS.keys() >= _MAY_END and len(_MAY_END) > 10


def test_pieces_are_spoken_after_the_first_clause():
    taken = []

    def pieces():
        for character in "Once upon a time in a far country, there lived a bird that sang. It sang, day by day. End":
            taken.append(character)
            yield character

    parts = split_pieces(pieces())
    assert next(parts) == "Once upon a time in a far country," and taken[-2:] == [" ", "t"]
    # Later parts are sentences: clauses by themselves would sound chopped.
    assert list(parts) == ["there lived a bird that sang.", "It sang, day by day. End"]
    assert list(split_pieces(["Wait, what?"])) == ["Wait, what?"]
    with pytest.raises(ValueError, match=r"str.*got int"):
        list(split_pieces(["One ", 2]))


def test_ideographs_count_for_more():
    sentence = "今天天气很好，我们一起去公园散步吧。"
    assert split_text(sentence * 3) == [sentence] * 3
    clause = "今天天气很好我们一起去公园散步，"
    assert split_text(clause * 4) == [clause * 2] * 2
    # Without any mark or space a cut between two characters is all that is left.
    assert split_text("今天天气很好" * 10) == ["今天天气很好今天天气很好" * 3 + "今天天气", "很好" + "今天天气很好" * 3]


def test_a_heading_does_not_run_into_its_paragraph():
    sentence = "The birds sang in the morning."
    assert split_text(f"Chapter One\n \n  {sentence}") == [f"Chapter One\n\n{sentence}"]
    assert split_text(f"第一章\n\n{sentence}") == [f"第一章\n\n{sentence}"]
    assert split_text(f"Chapter One.\n{sentence}") == [f"Chapter One. {sentence}"]
    # The empty line counts.
    assert split_text(f"Chapter One\n\n{sentence}", max_characters=43) == [f"Chapter One\n\n{sentence}"]
    assert split_text(f"Chapter One\n\n{sentence}", max_characters=42) == ["Chapter One", sentence]
    symbols = TextToSpeechProcessor.build().text_frontend(split_text(f"Chapter One\n\n{sentence}")[0])
    assert symbols.count(".") == 2


@pytest.mark.parametrize("unit", ["word other ", "今天天气很好", "word, other; ", "A. b"])
def test_time_grows_with_the_length(unit, monkeypatch):
    """Ten times the text without an end of a sentence takes about ten times as long, and not a hundred times."""
    measured = []
    length = long_text._length
    monkeypatch.setattr(long_text, "_length", lambda text: measured.append(len(text)) or length(text))

    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        start = time.process_time()
        parts = split_text(text)
        assert "".join("".join(parts).split()) == "".join(text.split())
        return time.process_time() - start

    assert seconds(50_000) < 50 * min(seconds(5_000) for _ in range(3))
    assert max(measured) <= MAX_CHARACTERS + 1


def test_marks_of_chinese_end_sentences():
    sentences = ["“今天天气很好，我们去公园散步吧！”", "你说的那个人真的会来吗？", "他说：《红楼梦》我已经读过了。"]
    assert split_text("".join(sentences)) == sentences


def test_pronunciations_are_not_cut():
    pronunciation = "{HH AH0 L OW1 | W ER1 L D}"
    parts = split_text(f"{pronunciation} and " * 12)
    assert len(parts) > 1 and all(part.count("{") == part.count("}") for part in parts)
    assert " ".join(parts).count(pronunciation) == 12


def test_one_part_at_a_time():
    spoken, seen = [], []
    text = "The first sentence is this one. The second sentence comes after it. And here is the third one."
    parts = speak_parts(fake_pipe(spoken), text, lambda *step: seen.append(step[:2]), pause_seconds=0.1, voice="eve")
    assert spoken == []
    first = next(parts)
    assert len(spoken) == 1 and first["text"] == "The first sentence is this one." and len(first["audio"]) == 10
    second = next(parts)
    assert len(spoken) == 2 and np.array_equal(second["audio"], [0] * 10 + [2] * 10)
    list(parts)
    assert seen == [(1, 3), (2, 3), (3, 3)] and all(settings == {"voice": "eve"} for _, settings in spoken)


def test_failed_speech_is_tried_again():
    text = "The first sentence is this one. The second sentence comes after it."
    spoken = []
    assert len(list(speak_parts(fake_pipe(spoken, fails=2), text, seed=7))) == 2
    assert [settings["seed"] for _, settings in spoken] == [7, 8, 9, 7]
    with pytest.raises(RuntimeError, match=r"did not end \(In part 1 of 2: 'The first"):
        speak_long(fake_pipe([], fails=3), text, seed=7)
    with pytest.raises(ValueError, match="attempts"):
        speak_long(fake_pipe([]), text, attempts=0)


class ProcessorPipe:
    """What `fit_parts` and `speak_parts` need of a pipeline."""

    def __init__(self, max_text_tokens: int = 400) -> None:
        self.processor = TextToSpeechProcessor.build(max_text_tokens=max_text_tokens)
        self.spoken: list[str] = []

    def __call__(self, text: str) -> dict:
        assert self.processor(text=text)["text_ids"].shape[1] <= self.processor.max_text_tokens
        self.spoken.append(text)
        return {"audio": np.zeros(10, dtype=np.float32), "sampling_rate": 100}


@pytest.mark.parametrize(
    "text",
    [
        "4815162342 " * 14,
        "4815162342" * 15,
        "https://www.example.com/search?" + "&".join(f"name_{number}=value-{number}" for number in range(12)),
        "W W W dot {HH AH0 L OW1 | W ER1 L D} XKCD " * 4,
    ],
)
def test_parts_of_too_many_tokens_are_halved(text):
    pipe = ProcessorPipe(max_text_tokens=100)
    seen = []
    before, after = "The first sentence is this one.", "And this is the last of them."
    list(speak_parts(pipe, f"{before} It is {text.strip()}. {after}", lambda *step: seen.append(step)))
    assert len(pipe.spoken) > 4 and (pipe.spoken[0], pipe.spoken[-1]) == (before, after)
    # Nothing is lost, said twice or cut inside a pronunciation.
    assert "".join("".join(pipe.spoken).split()) == "".join(f"{before}It is{text}.{after}".split())
    assert all(part.count("{") == part.count("}") for part in pipe.spoken)
    assert [number for number, _, _ in seen] == list(range(1, len(pipe.spoken) + 1))
    assert seen[-1][:2] == (len(pipe.spoken), len(pipe.spoken))


def test_parts_that_nothing_can_speak_are_left_out():
    pipe, first, last = ProcessorPipe(), "The first sentence is this one.", "And this is the last of them."
    seen = []
    with pytest.warns(UserWarning, match="leaves out: Она, пришла, домой, очень, поздно") as warned:
        list(speak_parts(pipe, f"{first} Она пришла домой очень поздно. {last}", lambda *step: seen.append(step)))
    assert len(warned) == 1 and pipe.spoken == [first, last]
    assert seen == [(1, 3, first), (2, 2, last)]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"Nothing in .* can be spoken"):
        speak_long(pipe, "Она пришла домой очень поздно. Она пришла домой очень рано.")
    # The error is enough where there is one part, and what is wrong in a part is said with its number.
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"Nothing in .* can be spoken"):
        warnings.simplefilter("error")
        speak_long(pipe, "Она пришла.")
    with pytest.raises(ValueError, match=r"OWW1.*In part 2 of 2"):
        speak_long(pipe, f"{first} And this is {{HH AH0 L OWW1}} it.")


def test_parts_that_come_in_pieces_fit_too():
    pipe = ProcessorPipe(max_text_tokens=60)
    parts = ["A short one.", "東京東京", "4815162342 " * 4]
    with pytest.warns(UserWarning, match="東京"):
        fitting = list(fit_parts(pipe, iter(parts), None))
    assert [number for number, *_ in fitting] == list(range(1, len(fitting) + 1)) and len(fitting) > 2
    assert all(count is None for _, count, _ in fitting)
    with pytest.raises(ValueError, match="nothing to speak"):
        list(fit_parts(pipe, iter([]), None))


def test_a_reference_is_listened_to_once():
    cloned, spoken = [], []

    class Pipe:
        def __call__(self, text, **settings):
            return fake_pipe(spoken)(text, **settings)

        def clone(self, *reference):
            cloned.append(reference)
            return "a voice"

    text = "The first sentence is this one. The second sentence comes after it."
    speak_long(Pipe(), text, reference_audio="me.wav", reference_text="Hello.", seed=1)
    assert cloned == [("me.wav", None, "Hello.", False)]
    assert [settings for _, settings in spoken] == [{"seed": 1, "voice": "a voice"}] * 2
    with pytest.raises(ValueError, match="Give either a voice or reference_audio, not both"):
        speak_long(Pipe(), text, reference_audio="me.wav", voice="anna")
