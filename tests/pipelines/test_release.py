"""What a release stores beside weights: how it samples by default."""

import pytest
import torch
from transformers import AutoModel

from e2e_tts.pipelines.release import parse_sampling


def test_a_checkpoint_samples_as_it_says_unless_the_call_says_otherwise(tiny_model, tmp_path, monkeypatch):
    model = tiny_model()
    model.config.sampling = parse_sampling(["temperature=0.6", "top_k=10"])
    model.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    taken = []

    def generate_codes(self, **arguments):
        taken.append(arguments)
        raise StopIteration

    monkeypatch.setattr(type(model.lm), "generate_codes", generate_codes)
    embedding = torch.zeros(1, model.config.speaker_config.embedding_size)
    for given in ({}, {"temperature": 0.9}):
        with pytest.raises(StopIteration):
            model.generate(torch.ones(1, 4, dtype=torch.long), speaker_embedding=embedding, **given)
    assert [(arguments["temperature"], arguments["top_k"]) for arguments in taken] == [(0.6, 10), (0.9, 10)]


@pytest.mark.parametrize("entry", ["heat=1", "temperature", "top_k=many"])
def test_sampling_that_means_nothing_is_refused(entry):
    with pytest.raises(ValueError):
        parse_sampling([entry])
