"""What the LM itself has drawn, and the loss by which it learns from whole draws (PAPER section 3, stage 3)."""

from dataclasses import dataclass, field

import torch

# Of a draw that cannot be what its text says, too short for its labels or without an end, in the units of the losses.
WORST = 5.0
# Draws of one text that differ by less than this, in the units of the losses, hardly teach anything.
LEAST_SPREAD = 0.1


@dataclass
class OwnHistory:
    """Speech tokens that the LM itself has drawn for the texts of a batch, and the voices it drew them in.

    ids, mask (B, T'): the tokens of `draws` draws of each text, one after the other. finished (B,): whether they came
    to an end. text_mask (B, N): of the texts as they were read. speaker_embedding (B, S) and tokens_per_symbol (B,): as
    given to the LM. speaker_target (B, S): what L_SPK asks of this speech. temperature: at which they were drawn.
    reward: weights of the reward model's losses ("asr", "spk") by which draws of one text are compared.
    """

    ids: torch.LongTensor
    mask: torch.BoolTensor
    finished: torch.BoolTensor
    text_mask: torch.Tensor
    speaker_embedding: torch.Tensor
    tokens_per_symbol: torch.Tensor
    speaker_target: torch.Tensor
    temperature: float = 1.0
    draws: int = 1
    reward: dict[str, float] = field(default_factory=lambda: {"asr": 1.0})

    def repeat(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        """What there is for each text, (B / draws, ...), for each of its draws (B, ...)."""
        return rows if rows is None or self.draws == 1 else rows.repeat_interleave(self.draws, dim=0)

    def seeds(self, seeds: torch.LongTensor) -> torch.LongTensor:
        """Seeds of texts (B / draws,) -> a seed of its own for each draw (B,)."""
        number = torch.arange(self.draws, device=seeds.device)
        return ((seeds[:, None] + 7_368_787 * number) % (2**31 - 1)).flatten()


def advantages(losses: torch.Tensor, draws: int) -> torch.Tensor:
    """Losses (B,) of draws, those of one text one after the other -> by how much each is better than the others (B,).

    In standard deviations among the text's draws, so that hard and easy texts count alike (Shao et al., arXiv
    2402.03300, section 4.1).
    """
    of_text = losses.clamp_max(WORST).view(-1, draws)
    spread = of_text.std(dim=1, keepdim=True) + LEAST_SPREAD
    return ((of_text.mean(dim=1, keepdim=True) - of_text) / spread).flatten()


def policy_loss(
    logits: torch.Tensor,
    ids: torch.LongTensor,
    mask: torch.BoolTensor,
    ended: torch.BoolTensor,
    better: torch.Tensor,
    end_token_id: int,
    draws: int,
) -> torch.Tensor:
    """Draws that are better than others of their text become likelier, the others less likely.

    logits (B, T + 1, vocab) of the draws ids and mask (B, T). ended (B,): rows whose end the LM drew itself, which then
    counts as one of their tokens; an end to which a poor draw was helped is not to become less likely. better (B,): see
    `advantages`. draws: of each text, one after the other. Returns minus the mean over rows of better times the log
    probability of what the row has drawn, divided by the mean length of its text's draws. By its own length, a draw
    that goes on and on would be held against the LM least of all (Liu et al., arXiv 2503.20783, section 3.1). It has
    the gradient of the expected reward where draws come from these probabilities; drawn more sharply (a low
    temperature, guidance) they show where speech will go, and the weights that would correct for it are left out.
    """
    lengths = mask.sum(dim=1, keepdim=True)
    taken = torch.nn.functional.pad(mask, (0, 1)).scatter(1, lengths, ended[:, None])
    ids = torch.nn.functional.pad(ids * mask, (0, 1)).scatter(1, lengths, end_token_id)
    log_probabilities = logits.float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
    usual_lengths = taken.sum(dim=1).view(-1, draws).float().mean(dim=1).clamp_min(1).repeat_interleave(draws)
    return -(better * (log_probabilities * taken).sum(dim=1) / usual_lengths).mean()
