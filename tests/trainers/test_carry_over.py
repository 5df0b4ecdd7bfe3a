"""What a stage has taught is added to another training of the module, in closed form, and only where it fits."""

import pytest
import torch
from factories import make_composite, shaken
from transformers import AutoModel

from e2e_tts.trainers.carry_over import carry_over, main


def test_the_change_is_added(tmp_path, capsys):
    before, after, other = (shaken(make_composite(), seed).lm for seed in (0, 1, 2))
    for name, model in {"before": before, "after": after, "other": other}.items():
        model.save_pretrained(tmp_path / name)
    folders = [f"--{role}={tmp_path / name}" for role, name in (("before", "before"), ("after", "after"))]
    main([*folders, f"--module={tmp_path / 'other'}", "--scale=0.5", f"--output={tmp_path / 'carried'}"])
    carried = AutoModel.from_pretrained(tmp_path / "carried").state_dict()
    for name, weight in other.state_dict().items():
        change = after.state_dict()[name] - before.state_dict()[name]
        torch.testing.assert_close(carried[name], weight + 0.5 * change)
    # Carried to where it came from, it is what the stage has left.
    main([*folders, f"--module={tmp_path / 'before'}", f"--output={tmp_path / 'whole'}"])
    whole = AutoModel.from_pretrained(tmp_path / "whole").state_dict()
    for name, weight in after.state_dict().items():
        torch.testing.assert_close(whole[name], weight)


def test_what_does_not_fit_is_refused(tmp_path):
    model = make_composite()
    with pytest.raises(ValueError, match=r"The models differ: .* has the shapes .*None"):
        carry_over(model.lm, model.decoder, model.lm)
    with pytest.raises(SystemExit, match="is no folder of a model"):
        main([f"--{role}={tmp_path}" for role in ("module", "after", "before", "output")])
