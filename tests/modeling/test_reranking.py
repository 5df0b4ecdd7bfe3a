"""Several draws: the reward model's loss of each row, the choice, how generate and streams make it, and new draws of
what found no end."""

import pytest
import torch
from factories import make_reward, random_ids, random_tensor

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.modeling.modeling_speech_lm import GeneratedCodes
from e2e_tts.modeling.reranking import REDRAWS, generate_best
from e2e_tts.modeling.speech_generation import SpeechGenerationError
from e2e_tts.pipelines import TextToSpeechPipeline

TEXTS = ["Hello, world!", "A longer sentence follows here."]
CHUNKING = {"first": 2, "size": 3, "look_ahead": 1}


@pytest.fixture(scope="module")
def model(tiny_model) -> E2ETTSModel:
    return tiny_model()


def test_losses_of_rows_are_those_of_the_loss():
    reward = make_reward()
    codes, labels = random_tensor(4, 8, 3), random_ids(4, 5, low=1, high=12)
    labels[2, 3:] = -100
    mask = torch.arange(8)[None] < torch.tensor([8, 6, 4, 2])[:, None]
    losses = reward.recognition_losses(codes, mask, labels)
    assert losses[3] == torch.inf  # five labels in four frames
    for row, length in enumerate((8, 6, 4)):
        alone = reward(codes[row : row + 1, :length], None, labels[row : row + 1]).loss_asr
        torch.testing.assert_close(losses[row], alone)
    with pytest.raises(ValueError, match="no CTC head"):
        make_reward(ctc_vocab_size=0).recognition_losses(codes, mask, labels)


def test_keeps_of_each_text_what_is_understood_best(model, processor):
    inputs = processor(text=TEXTS)
    rates = torch.tensor([1.5, 2.0])
    arguments = {"text_ids": inputs["text_ids"], "text_mask": inputs["text_mask"], "tokens_per_symbol": rates}
    best, lowest = generate_best(
        model.lm, model.reward, arguments | {"generator": torch.Generator().manual_seed(0)}, inputs["ctc_labels"], 3
    )
    repeated = {name: value.repeat_interleave(3, dim=0) for name, value in arguments.items()}
    drawn = model.lm.generate_codes(**repeated, generator=torch.Generator().manual_seed(0))
    kept = []
    for text in range(2):
        losses = []
        for row in range(3 * text, 3 * text + 3):
            codes = model.lm.quantizer.indices_to_codes(drawn.ids[row][drawn.mask[row]])[None]
            losses.append(model.reward(codes, None, inputs["ctc_labels"][text : text + 1]).loss_asr.item())
        assert len(set(losses)) == 3
        kept.append(3 * text + losses.index(min(losses)))
        assert lowest[text].item() == pytest.approx(min(losses), rel=1e-4)
    for row, chosen in enumerate(kept):
        assert torch.equal(best.ids[row][best.mask[row]], drawn.ids[chosen][drawn.mask[chosen]])
    assert best.mask[:, -1].any()
    # A pipeline pads labels of several texts with the blank.
    padded = inputs["ctc_labels"].clamp_min(0)
    again, _ = generate_best(
        model.lm, model.reward, arguments | {"generator": torch.Generator().manual_seed(0)}, padded, 3
    )
    assert torch.equal(again.ids, best.ids)


def test_what_did_not_end_or_is_empty_is_not_kept(model, monkeypatch):
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1] = False
    mask[2, 5:] = False
    drawn = GeneratedCodes(
        ids=random_ids(4, 6, high=9) * mask, mask=mask, finished=torch.tensor([False, True, True, False])
    )
    monkeypatch.setattr(model.lm, "generate_codes", lambda **arguments: drawn)
    labels = torch.tensor([[5, 6]])
    best, _ = generate_best(model.lm, model.reward, {}, labels, 4)
    assert best.finished.item() and torch.equal(best.ids[0], drawn.ids[2, :5]) and best.mask.all()
    drawn.finished[:] = False
    none, losses = generate_best(model.lm, model.reward, {}, labels, 4)
    assert not none.finished.any() and losses.item() == torch.inf


def test_generate_and_streams_choose_alike(model, processor):
    inputs = processor(text=TEXTS[1])
    chosen = model.generate(**inputs, seed=0, candidates=6, chunking=CHUNKING)
    chunks = list(model.generate_stream(**inputs, seed=0, candidates=6, chunking=CHUNKING))
    assert len(chunks) > 1
    assert torch.equal(torch.cat([chunk["audio"] for chunk in chunks], dim=1), chosen["audio"])


def test_more_candidates_are_better_understood(model, processor):
    inputs = processor(text=TEXTS[0])

    def loss(candidates: int) -> float:
        total = 0.0
        for seed in range(4):
            ids = model.generate(**inputs, seed=seed, candidates=candidates, vocoder=False, num_steps=1)["ids"]
            codes = model.lm.quantizer.indices_to_codes(ids)
            total += float(model.reward.recognition_losses(codes, None, inputs["ctc_labels"]))
        return total

    assert loss(8) < loss(1)


def test_the_configuration_says_how_many(tiny_model, processor, tmp_path):
    model = tiny_model()
    model.config.candidates = 3
    pipe = TextToSpeechPipeline(model=model, processor=processor)
    pipe.save_pretrained(tmp_path)
    again = E2ETTSModel.from_pretrained(tmp_path)
    assert again.config.candidates == 3
    inputs = processor(text=TEXTS[0])
    expected = model.generate(**inputs, seed=0, candidates=3)
    assert torch.equal(again.generate(**inputs, seed=0)["ids"], expected["ids"])
    torch.testing.assert_close(torch.from_numpy(pipe(TEXTS[0], seed=0)["audio"]), expected["audio"][0])
    # Without labels there is nothing to choose by, and one draw is what there is; streams draw once.
    text_alone = {name: value for name, value in inputs.items() if name != "ctc_labels"}
    once = model.generate(**inputs, seed=0, candidates=1)
    assert torch.equal(model.generate(**text_alone, seed=0)["ids"], once["ids"])
    streamed = torch.cat([chunk["ids"] for chunk in model.generate_stream(**inputs, seed=0)], dim=1)
    assert torch.equal(streamed, once["ids"])
    assert len(pipe(TEXTS, batch_size=2, seed=0)) == 2


@pytest.mark.parametrize("candidates", [1, 2])
def test_what_found_no_end_is_drawn_again(model, processor, monkeypatch, candidates):
    inputs = processor(text=[*TEXTS, "A third one."])
    settings = {"seed": 0, "candidates": candidates, "vocoder": False, "num_steps": 1}
    expected = model.generate(**inputs, **settings)
    draw, calls = model.lm.generate_codes, []

    def fail(unfinished: list[int]):
        def drawn(**arguments):
            speech = draw(**arguments)
            rows = len(speech.finished) // candidates
            calls.append(arguments["text_ids"][::candidates])
            if len(calls) <= len(unfinished):
                failed = unfinished[len(calls) - 1]
                speech.finished.view(rows, candidates)[failed] = False
            return speech

        calls.clear()
        monkeypatch.setattr(model.lm, "generate_codes", drawn)
        return model.generate(**inputs, **settings)

    # The second text fails twice: it is drawn again, alone, and the others stay as they were.
    speech = fail([1, 0])
    assert [len(texts) for texts in calls] == [3, 1, 1]
    assert all(torch.equal(texts[0], inputs["text_ids"][1]) for texts in calls[1:])
    for row in (0, 2):
        kept, ids = speech["mask"][row], expected["ids"][row][expected["mask"][row]]
        assert torch.equal(speech["ids"][row][kept], ids)
    again = speech["ids"][1][speech["mask"][1]]
    assert len(again) and not torch.equal(again, expected["ids"][1][expected["mask"][1]])
    assert speech["mask"][:, -1].any()
    with pytest.raises(SpeechGenerationError, match="did not end"):
        fail([1] + [0] * REDRAWS)


def test_refusals(model, processor, tiny_model):
    inputs = processor(text=TEXTS[0])
    with pytest.raises(ValueError, match="candidates must lie between 1 and 64, got 0"):
        model.generate(**inputs, candidates=0)
    with pytest.raises(ValueError, match="needs ctc_labels, which the processor gives"):
        model.generate(inputs["text_ids"], candidates=2)
    with pytest.raises(ValueError, match="candidates must lie between"):
        TextToSpeechPipeline(model=model, processor=processor)(TEXTS[0], candidates=100)
    deaf = tiny_model()
    deaf.reward.ctc_head = None
    with pytest.raises(ValueError, match="no CTC head"):
        deaf.generate(**inputs, candidates=2)
