"""The table of the ablation on constructed numbers."""

import json

import pytest

from e2e_tts.pipelines.evaluation import ablation_table
from e2e_tts.pipelines.evaluation.paired_bootstrap import holm


@pytest.fixture
def constructed(tmp_path) -> dict:
    return construct(tmp_path)


def construct(tmp_path, takes: int = 1) -> dict:
    """Three rows, two seeds, 60 sentences: `worse` adds an edit to every second sentence, `even` moves edits around."""
    edits = {
        "full": lambda sentence, seed: (sentence * 7 + seed) % 3,
        "worse": lambda sentence, seed: (sentence * 7 + seed) % 3 + sentence % 2,
        "even": lambda sentence, seed: (sentence * 7 + seed + 1) % 3,
    }
    cells = []
    for row, count in edits.items():
        for seed in (0, 1):
            utterances = [
                {"sentence": f"s{index:02d}", "measures": {"label_error_rate": [count(index, seed), 10]}}
                for index in range(60)
            ]
            rows = [{"reference": f"s{index:02d}", "edits": count(index, seed), "words": 5} for index in range(60)]
            table, score = tmp_path / f"{row}{seed}.json", tmp_path / f"{row}{seed}_speech.json"
            table.write_text(json.dumps({"utterances": utterances}))
            score.write_text(json.dumps({"rows": rows}))
            updates = dict.fromkeys(("encoder", "reward", "lm", "decoder"), 9)
            cells.append(
                {
                    "row": row,
                    "seed": seed,
                    "updates": updates,
                    "reward_table": str(table),
                    "judged": [{"measure": "speech", "file": str(score)}] * takes,
                }
            )
    rows = {"full": "full", "worse": "a worse one", "even": "another", "absent": "never run"}
    return {"reference": "full", "seeds": [0, 1], "rows": rows, "cells": cells}


def test_table_of_known_differences(constructed):
    full, worse, even = ablation_table.make_rows(constructed)
    assert full.figures["speech"].value == pytest.approx(0.2) and full.differences is None
    assert full.by_seed["label_error_rate"] == pytest.approx({0: 0.1, 1: 0.1})
    assert worse.differences["speech"].value == pytest.approx(0.1)
    assert worse.differences["speech"].low > 0.05 and worse.differences["speech"].p_value < 0.01
    assert abs(even.differences["speech"].value) < 1e-9 and even.differences["speech"].p_value > 0.3
    alone = {**constructed, "cells": [cell for cell in constructed["cells"] if cell["row"] != "even"]}
    (_, unadjusted) = ablation_table.make_rows(alone)
    assert worse.differences["speech"].p_value == pytest.approx(2 * unadjusted.differences["speech"].p_value)
    assert holm([unadjusted.differences["speech"].p_value])[0] == unadjusted.differences["speech"].p_value


def test_saying_a_sentence_again_alike_makes_nothing_surer(tmp_path):
    once, thrice = (ablation_table.make_rows(construct(tmp_path, takes)) for takes in (1, 3))
    for first, second in zip(once, thrice, strict=True):
        assert first.figures["speech"] == second.figures["speech"]
        assert first.differences == second.differences


def test_table_says_what_is_significant_and_what_is_missing(constructed, tmp_path, capsys):
    file = tmp_path / "cells.json"
    file.write_text(json.dumps(constructed))
    ablation_table.main(["--cells", str(file), "--output", str(tmp_path / "out"), "--resamples", "500"])
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("| row | seeds | steps learnt")
    assert "| full | 2 | 9, 9, 9, 9 | 20.0 [" in text
    (worse,) = [line for line in lines if line.startswith("| a worse one | +10.0 [")]
    (even,) = [line for line in lines if line.startswith("| another | ") and "[-" in line and ", p " in line]
    assert worse.count(" *") == 2 and even.count(" *") == 0
    assert "Not finished: absent, seed 0; absent, seed 1." in text and "Rows of one seed" not in text
    one_seed = {**constructed, "cells": [cell for cell in constructed["cells"] if cell["seed"] == 1]}
    assert "Rows of one seed" in ablation_table.to_markdown(ablation_table.make_rows(one_seed, resamples=10), one_seed)
    no_reference = {**constructed, "cells": constructed["cells"][2:]}
    assert all(row.differences is None for row in ablation_table.make_rows(no_reference, resamples=10))
    (tmp_path / "full0.json").write_text(json.dumps({"utterances": [{"sentence": "x", "measures": {}}]}))
    (tmp_path / "full0_speech.json").write_text(json.dumps({"rows": [{"reference": "x", "edits": 0, "words": 1}]}))
    with pytest.raises(SystemExit, match="same sentences"):
        ablation_table.main(["--cells", str(file), "--output", str(tmp_path / "out")])
