"""Several draws: the reward model keeps of them what it understands best, and rows that failed are drawn again."""

from typing import Any

import torch
from torch import nn

from .modeling_reward import RewardModel
from .modeling_speech_lm import GeneratedCodes, SpeechLM

MAX_CANDIDATES = 64
# How often a text whose speech finds no end is drawn again.
REDRAWS = 2
# Arguments of `SpeechLM.generate_codes` that have a row for each text.
_ROWS = ("text_ids", "text_mask", "speaker_embedding", "tokens_per_symbol", "style_levels", "prompt_ids")


def check_candidates(candidates: int, ctc_labels: torch.LongTensor | None, reward: RewardModel) -> None:
    """Raises ValueError where there is nothing to choose by, or for a number that makes no sense."""
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise ValueError(f"candidates must lie between 1 and {MAX_CANDIDATES}, got {candidates}.")
    if candidates == 1:
        return
    if reward.ctc_head is None:
        raise ValueError(
            "The reward model of this checkpoint has no CTC head, so it cannot choose among candidates: set "
            "candidates=1."
        )
    if ctc_labels is None:
        raise ValueError(
            "To choose among candidates the reward model needs ctc_labels, which the processor gives beside text_ids; "
            "or set candidates=1."
        )


def generate_ended(
    lm: SpeechLM, reward: RewardModel, arguments: dict[str, Any], ctc_labels: torch.LongTensor | None, candidates: int
) -> GeneratedCodes:
    """What the LM draws, the best of `candidates`; texts whose speech is empty or finds no end are drawn again.

    arguments and ctc_labels as for `generate_best`, which only needs labels for more than one candidate. After
    `REDRAWS` times a row may still not be `finished`.
    """

    def draw(rows: dict[str, Any], labels: torch.LongTensor | None) -> GeneratedCodes:
        return lm.generate_codes(**rows) if candidates == 1 else generate_best(lm, reward, rows, labels, candidates)[0]

    generated = draw(arguments, ctc_labels)
    for _ in range(REDRAWS):
        failed = ~generated.finished | ~generated.mask.any(dim=1)
        if not bool(failed.any()):
            break
        rows = {
            name: value[failed] if name in _ROWS and value is not None else value for name, value in arguments.items()
        }
        again = draw(rows, None if ctc_labels is None else ctc_labels[failed])
        generated = _with_rows_replaced(generated, failed, again)
    return generated


def generate_best(
    lm: SpeechLM, reward: RewardModel, arguments: dict[str, Any], ctc_labels: torch.LongTensor, candidates: int
) -> tuple[GeneratedCodes, torch.Tensor]:
    """Draws `candidates` times for each text and keeps, of those that ended, the one of the lowest CTC loss a label.

    arguments: of `SpeechLM.generate_codes`, for B texts; all candidates of all texts are one batch. ctc_labels (B, N):
    what should be heard in the codes, without what a prompt says; 0 or -100 in padding.

    Returns the codes and their losses (B,), infinite where no draw is of use.
    """
    repeated = {
        name: value.repeat_interleave(candidates, dim=0) if name in _ROWS and value is not None else value
        for name, value in arguments.items()
    }
    drawn = lm.generate_codes(**repeated)
    labels = ctc_labels.masked_fill(ctc_labels == 0, -100).repeat_interleave(candidates, dim=0)
    codes = lm.quantizer.indices_to_codes(drawn.ids) * drawn.mask[..., None]
    # A row without any code has nothing to recognise; its mask must still have a true entry.
    is_empty = ~drawn.mask.any(dim=1)
    mask = drawn.mask.clone()
    mask[:, 0] |= is_empty
    losses = reward.recognition_losses(codes, mask, labels).masked_fill(is_empty | ~drawn.finished, torch.inf)
    lowest, place = losses.view(-1, candidates).min(dim=1)
    best = place + torch.arange(len(place), device=place.device) * candidates
    kept = drawn.mask[best]
    length = int(kept.sum(dim=1).max())
    generated = GeneratedCodes(ids=drawn.ids[best, :length], mask=kept[:, :length], finished=drawn.finished[best])
    return generated, lowest


def _with_rows_replaced(codes: GeneratedCodes, rows: torch.BoolTensor, others: GeneratedCodes) -> GeneratedCodes:
    """Codes of B texts with those of `others`, one text for each true entry of rows (B,), in their place."""
    kept = codes.mask & ~rows[:, None]
    length = max(int(mask.sum(dim=1).max()) for mask in (kept, others.mask))

    def merged(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        first, second = (nn.functional.pad(part, (0, length - part.shape[1])) for part in (first, second))
        first[rows] = second
        return first

    finished = codes.finished.clone()
    finished[rows] = others.finished
    return GeneratedCodes(ids=merged(codes.ids, others.ids), mask=merged(kept, others.mask), finished=finished)
