"""The composite: speech tokenizer, reward model, LM, flow decoder, speaker encoder and vocoder as one model."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ModelOutput

from .audio_features import MelSpec, length_mask
from .auto_classes import register
from .configuration_e2e_tts import E2ETTSConfig
from .gumbel_softmax import straight_through_codes
from .modeling_flow_decoder import FlowDecoderModel
from .modeling_reward import RewardModel
from .modeling_speaker import SpeakerEncoderModel
from .modeling_speech_encoder import SpeechEncoderModel
from .modeling_speech_lm import SpeechLM
from .modeling_vocoder import VocoderModel
from .own_history import OwnHistory, advantages, policy_loss
from .randomness import seeded_noise
from .speech_generation import SpeechGenerationError, SpeechGenerationMixin  # noqa: F401 - also found here
from .style_embeddings import merged_styles
from .styles import RATE, Levels

HISTORY = 12  # salt of the codes hidden from the LM
MODULES = ("encoder", "reward", "lm", "decoder", "speaker", "vocoder")


@dataclass
class E2ETTSOutput(ModelOutput):
    """
    Named losses (scalars; None where neither asked for nor made on the way): loss_lm, loss_asr, loss_spk, loss_ser,
    loss_flow, loss_prior on true codes, the same with the prefix `predicted_` on codes that the LM predicts,
    predicted_loss_policy of whole draws of the LM, and loss_kl, the divergence from a reference LM. `lm_logits` (B, T +
    1, vocab), `ids` and `mask` (B, T) are given for statistics.
    """

    loss_lm: torch.Tensor | None = None
    loss_asr: torch.Tensor | None = None
    loss_spk: torch.Tensor | None = None
    loss_ser: torch.Tensor | None = None
    loss_flow: torch.Tensor | None = None
    loss_prior: torch.Tensor | None = None
    predicted_loss_asr: torch.Tensor | None = None
    predicted_loss_spk: torch.Tensor | None = None
    predicted_loss_ser: torch.Tensor | None = None
    predicted_loss_flow: torch.Tensor | None = None
    predicted_loss_prior: torch.Tensor | None = None
    predicted_loss_policy: torch.Tensor | None = None
    loss_kl: torch.Tensor | None = None
    lm_logits: torch.Tensor | None = None
    ids: torch.LongTensor | None = None
    mask: torch.BoolTensor | None = None
    too_short: torch.BoolTensor | None = None


class E2ETTSModel(SpeechGenerationMixin, PreTrainedModel):
    """Text -> speech, and all losses of joint, separate and end-to-end training. Speaking is in speech_generation.py.

    `voices` in the configuration names the built-in voices; their embeddings are the buffer `voice_embeddings`.
    """

    config_class = E2ETTSConfig
    main_input_name = "text_ids"
    base_model_prefix = ""
    output_modalities = ("audio",)
    _no_split_modules = ("ParakeetEncoderBlock", "Qwen3DecoderLayer", "DiTBlock")
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: E2ETTSConfig) -> None:
        super().__init__(config)
        config.check_composition()  # again: what from_pretrained is given beside the folder is set without checks
        self.encoder = SpeechEncoderModel(config.encoder_config)
        self.reward = RewardModel(config.reward_config)
        self.lm = SpeechLM(config.lm_config)
        self.decoder = FlowDecoderModel(config.decoder_config)
        self.speaker = SpeakerEncoderModel(config.speaker_config)
        self.vocoder = VocoderModel(config.vocoder_config)
        width = config.speaker_config.embedding_size
        self.register_buffer("voice_embeddings", torch.zeros(len(config.voices), width))
        self._frozen: tuple[str, ...] = ()
        self.post_init()

    def freeze(self, modules: Sequence[str]) -> None:
        """Stops these modules from learning. They stay in eval mode inside train(); gradients still flow through.

        Modules that an earlier call froze learn again; others are left as they are, with adapters say.
        """
        before, self._frozen = self._frozen, tuple(modules)
        for name in MODULES:
            if name in self._frozen or name in before:
                getattr(self, name).requires_grad_(name not in self._frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "E2ETTSModel":
        super().train(mode)
        for name in self._frozen:
            getattr(self, name).eval()
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Modules are PreTrainedModels and initialise themselves; only what is the composite's own is left.
        if module is self:
            init.zeros_(self.voice_embeddings)

    def get_input_embeddings(self) -> nn.Module:
        """The text embeddings; sharded training (FSDP) asks for them."""
        return self.lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.lm.set_input_embeddings(value)

    @property
    def sampling_rate(self) -> int:
        return self.config.sampling_rate

    @classmethod
    def can_generate(cls) -> bool:
        return True

    # ---------------------------------------------------------------- training

    def forward(
        self,
        input_features: torch.Tensor,
        feature_mask: torch.Tensor,
        text_ids: torch.LongTensor | None = None,
        text_mask: torch.Tensor | None = None,
        mel: torch.Tensor | None = None,
        ctc_labels: torch.LongTensor | None = None,
        speaker_target: torch.Tensor | None = None,
        emotion_labels: torch.LongTensor | None = None,
        speaker_embedding: torch.Tensor | None = None,
        tokens_per_symbol: torch.Tensor | None = None,
        style_levels: torch.LongTensor | None = None,
        seeds: torch.LongTensor | None = None,
        given_ids: torch.LongTensor | None = None,
        history_dropout: float = 0.0,
        true_losses: Sequence[str] = ("lm", "reward", "flow"),
        predicted_losses: Sequence[str] = (),
        gumbel_temperature: float = 1.0,
        predict_from: str = "codes",
        reference_lm: SpeechLM | None = None,
        own_history: OwnHistory | None = None,
    ) -> E2ETTSOutput:
        """The losses named in true_losses ("lm", "reward", "flow", or "prior" for its cheap part alone) on the
        tokenizer's codes and those named in predicted_losses ("reward", "flow") on codes that the LM predicts by
        straight-through Gumbel-Softmax with teacher-forced history (PAPER section 3, stage 3), or on own_history.

        input_features (B, T_mel, n_mels) and feature_mask (B, T_mel) feed the tokenizer; mel (B, T_mel', n_mels) is
        the decoder's target, by default the same features. speaker_target (B, S) is the embedding that L_SPK asks
        for, speaker_embedding (B, S) the voice given to LM and decoder, taken from other audio of the speaker.
        style_levels (B, S) are those of `config.styles`. seeds (B,) key every random draw. given_ids (B, T): tokens
        that are known, in place of what the tokenizer makes of the features; negative where they are not.
        history_dropout: share of the codes that the LM, in training, does not see when it predicts those after them.
        predict_from: "codes", or "hidden" to condition the decoder on LM states.
        reference_lm: a frozen LM whose distribution anchors this one (loss_kl).
        own_history: tokens that the LM has drawn. "reward" and the anchor are then about this speech, each code
        predicted from what the LM itself drew before it, as when it speaks, and the predicted loss "policy" compares
        the draws of a text with each other (see `policy_loss`). No mel goes with it, so "flow" keeps the recording's
        history.
        """
        encoded = self.encoder(input_features, feature_mask)
        codes, ids, mask = encoded.codes, encoded.ids, encoded.mask
        if given_ids is not None:
            known = (given_ids >= 0) & mask
            ids = torch.where(known, given_ids, ids)
            codes = torch.where(known[..., None], self.lm.quantizer.indices_to_codes(ids), codes)
        if mel is None:
            mel = input_features
            specs = [MelSpec.from_dict(part.config.mel) for part in (self.decoder, self.encoder)]
            if (difference := specs[0].differences(specs[1])) and {"flow", "prior"} & {*true_losses, *predicted_losses}:
                raise ValueError(f"The decoder's and the tokenizer's mel differ ({difference}): pass mel, its target.")
        output = E2ETTSOutput(ids=ids, mask=mask)
        if "reward" in true_losses:
            reward = self.reward(codes, mask, ctc_labels, speaker_target, emotion_labels)
            output.loss_asr, output.loss_spk, output.loss_ser = reward.loss_asr, reward.loss_spk, reward.loss_ser
            output.too_short = reward.too_short
        from_hidden = predict_from == "hidden"
        reads = "hidden" if self.decoder.config.hidden_condition_size else "codes"
        if predict_from != reads and {"flow", "prior"} & {*true_losses, *predicted_losses}:
            raise ValueError(f"predict_from is {predict_from!r}; the decoder, by hidden_condition_size, reads {reads}.")
        lm_style, decoder_style = (self.style_columns(style_levels, name) for name in ("lm", "decoder"))
        voice = speaker_embedding if decoder_style is None else self.decoder.styled(speaker_embedding, decoder_style)
        lm_output = None
        teacher_forced = {"flow"} if own_history is not None else {"reward", "flow"}
        teacher_forced &= set(predicted_losses)
        anchored = reference_lm is not None and own_history is None
        if "lm" in true_losses or teacher_forced or anchored or from_hidden:
            seen = None
            if history_dropout and self.training:
                draws = seeded_noise(seeds, HISTORY, (mask.shape[1], 1), mask.device, kind="uniform")
                seen = draws[..., 0] >= history_dropout
            lm_inputs = (text_ids, text_mask, codes, mask, ids, speaker_embedding, tokens_per_symbol, lm_style, seen)
            lm_output = self.lm(*lm_inputs)
            output.loss_lm, output.lm_logits = lm_output.loss, lm_output.logits
            if anchored:
                output.loss_kl = self._anchor(reference_lm, lm_inputs, lm_output.logits)
        if "flow" in true_losses or "prior" in true_losses:
            source = lm_output.hidden_states[:, :-1] if from_hidden else codes
            flow = self.decoder(source, mask, mel, seeds, voice, only_prior="flow" not in true_losses)
            output.loss_flow, output.loss_prior = flow.loss_flow, flow.loss_prior
        if own_history is not None:
            self._own_losses(own_history, output, text_ids, ctc_labels, emotion_labels, seeds, predicted_losses,
                             gumbel_temperature, reference_lm)  # fmt: skip
        if teacher_forced:
            predicted = self.predict_codes(lm_output.logits, mask, seeds, gumbel_temperature)
            if "reward" in teacher_forced:
                reward = self.reward(predicted, mask, ctc_labels, speaker_target, emotion_labels)
                output.predicted_loss_asr, output.predicted_loss_spk = reward.loss_asr, reward.loss_spk
                output.predicted_loss_ser = reward.loss_ser
            if "flow" in teacher_forced:
                source = lm_output.hidden_states[:, :-1] if from_hidden else predicted
                flow = self.decoder(source, mask, mel, seeds, voice)
                output.predicted_loss_flow, output.predicted_loss_prior = flow.loss_flow, flow.loss_prior
        return output

    def predict_codes(
        self,
        logits: torch.Tensor,
        mask: torch.Tensor,
        seeds: torch.LongTensor,
        temperature: float,
        drawn: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """Straight-through Gumbel-Softmax: LM logits (B, T + 1, vocab) -> hard codes (B, T, D) with soft gradients; the
        codes `drawn` (B, T), where they have been drawn already."""
        logits = logits[:, :-1, : self.config.lm_config.num_codes].float()
        codes = straight_through_codes(logits, self.lm.quantizer.codebook, seeds, temperature, drawn)
        return codes * mask[..., None]

    def _own_losses(
        self,
        own: OwnHistory,
        output: E2ETTSOutput,
        text_ids: torch.LongTensor,
        ctc_labels: torch.LongTensor | None,
        emotion_labels: torch.LongTensor | None,
        seeds: torch.LongTensor,
        predicted_losses: Sequence[str],
        gumbel_temperature: float,
        reference_lm: SpeechLM | None,
    ) -> None:
        """Adds to output the losses of what the LM has drawn: L_RM of each code where the LM would have put another
        ("reward"), of the draws as wholes ("policy"), and the anchor."""
        text_ids, ctc_labels, emotion_labels = map(own.repeat, (text_ids, ctc_labels, emotion_labels))
        codes = self.lm.quantizer.indices_to_codes(own.ids) * own.mask[..., None]
        lm_inputs = (text_ids, own.text_mask, codes, own.mask, None, own.speaker_embedding, own.tokens_per_symbol)
        logits = self.lm(*lm_inputs).logits
        if reference_lm is not None:
            output.loss_kl = self._anchor(reference_lm, lm_inputs, logits)
        if "policy" in predicted_losses:
            losses = self.reward.compare(codes, own.mask, ctc_labels, own.speaker_target, own.reward)
            better = advantages(losses["all"].masked_fill(~own.finished, torch.inf), own.draws)
            # Behind its due length a draw is helped to its end.
            ended = own.finished & (own.mask.sum(dim=1) <= self.lm.due_lengths(own.text_mask, own.tokens_per_symbol))
            end = self.lm.end_token_id
            output.predicted_loss_policy = policy_loss(logits, own.ids, own.mask, ended, better, end, own.draws)
            output.predicted_loss_asr, output.predicted_loss_spk = (
                losses[name].mean() if name in losses else None for name in ("asr", "spk")
            )
        if "reward" in predicted_losses:
            scores = logits / own.temperature
            soft = self.predict_codes(scores, own.mask, own.seeds(seeds), gumbel_temperature, own.ids)
            reward = self.reward(soft, own.mask, ctc_labels, own.speaker_target, emotion_labels)
            output.predicted_loss_asr, output.predicted_loss_spk = reward.loss_asr, reward.loss_spk
            output.predicted_loss_ser = reward.loss_ser

    def _anchor(self, reference_lm: SpeechLM, lm_inputs: Sequence, logits: torch.Tensor) -> torch.Tensor:
        """Divergence from a frozen LM of one with these logits, given the same inputs."""
        with torch.no_grad():
            reference = reference_lm(*lm_inputs).logits
        return self._divergence(logits, reference, lm_inputs[3])

    @staticmethod
    def _divergence(logits: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """KL(reference || model) over codes and END_OF_SPEECH, a mean per utterance, then over utterances."""
        lengths = mask.sum(dim=1) + 1
        positions = length_mask(lengths, logits.shape[1])
        target = reference.log_softmax(dim=-1)
        divergence = (target.exp() * (target - logits.log_softmax(dim=-1))).sum(dim=-1)
        return ((divergence * positions).sum(dim=1) / lengths).mean()

    # ---------------------------------------------------------------- parts

    def style_columns(self, style_levels: torch.LongTensor | None, module: str) -> torch.LongTensor | None:
        """Of levels (B, S) of `config.styles` those of the styles that a module, "lm" or "decoder", has."""
        if style_levels is None:
            return None
        names = list(self.config.styles)
        if style_levels.shape[1] != len(names):
            raise ValueError(f"style_levels has {style_levels.shape[1]} columns, but the styles are {names}.")
        return style_levels[:, [names.index(name) for name in getattr(self, module).config.styles]]

    def add_styles(self, styles: Mapping[str, Levels], modules: Sequence[str] = ("lm", "decoder")) -> None:
        """Gives LM and decoder, or one of them, styles (see `StyleMixin.add_styles`); the rate is the LM's alone.

        Raises ValueError, and changes nothing, for a style that one of them has with other levels.
        """
        wanted = copy.deepcopy(self.config)
        own = {name: {style: n for style, n in styles.items() if name == "lm" or style != RATE} for name in modules}
        for name, added in own.items():
            config = getattr(wanted, f"{name}_config")
            config.set_styles(merged_styles(config.styles, added))
        wanted.check_composition()
        for name, added in own.items():
            getattr(self, name).add_styles(added)
        self.freeze(self._frozen)

    def replace_module(self, name: str, module: PreTrainedModel) -> None:
        """Puts another module, a vocoder of its own training say, in the place of `name`.

        Raises ValueError for an unknown name, and, naming both values, for a module that does not fit the others.
        """
        if name not in MODULES:
            raise ValueError(f"No module {name!r}; the composite has {', '.join(MODULES)}.")
        before = getattr(self.config, f"{name}_config")
        if module.config.model_type != before.model_type:
            raise ValueError(f"{name} must be a {before.model_type}, not a {module.config.model_type}.")
        setattr(self.config, f"{name}_config", module.config)
        try:
            self.config.check_composition()
        except ValueError:
            setattr(self.config, f"{name}_config", before)
            raise
        module.config.name_or_path = name  # the folder it came from means nothing elsewhere
        setattr(self, name, module.to(self.device))

    # ---------------------------------------------------------------- saving

    def save_pretrained(
        self,
        save_directory: str,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """Saves each module, loadable alone, to its sub-folder; the folder itself holds an index of their weights.

        Every folder also gets the code it needs, so that trust_remote_code=True loads it without this package (0.3 MB
        in all). state_dict: weights to write instead of the model's own, in another precision say. Of transformers'
        other arguments those about shards say nothing here, since a module is a file. A model with a PEFT adapter saves
        the adapter alone, as in transformers.

        Raises ValueError for push_to_hub and variant: push the saved folder with `push_to_hub` of the model; and for a
        module with an adapter of its own.
        """
        if push_to_hub or variant is not None:
            raise ValueError("Neither push_to_hub nor variant is known here: save, then call model.push_to_hub(name).")
        adapted = [name for name in MODULES if getattr(getattr(self, name), "_hf_peft_config_loaded", False)]
        if adapted:
            raise ValueError(
                f"{', '.join(adapted)} alone has an adapter, and what is saved would not be loaded again. Save it by "
                f"itself (model.{adapted[0]}.save_pretrained), or add the adapter to the whole model."
            )
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else state_dict
        weight_map, total = {}, 0
        for name in (*MODULES, None):
            prefix = f"{name}." if name else "voice_embeddings"
            weights = {k: v.detach().to("cpu").contiguous() for k, v in state.items() if k.startswith(prefix)}
            file = f"{name}/model.safetensors" if name else "voices.safetensors"
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            save_file(weights, path, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(weights, file))
            total += sum(v.numel() * v.element_size() for v in weights.values())
            if name:
                self._save_module_config(getattr(self, name), path.parent)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
        self._save_module_config(self, folder)

    @staticmethod
    def _save_module_config(model: PreTrainedModel, folder: Path) -> None:
        """Configuration and code of a module. A copy is written: what only describes the files stays out of memory."""
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        # Files may be narrower than the model (see state_dict); loading follows the configuration.
        config.dtype = model.dtype
        # A pipeline writes its own entry, next to its own file.
        vars(config).pop("custom_pipelines", None)
        custom_object_save(model, folder, config=config)
        if isinstance(model, E2ETTSModel):
            reference = config.auto_map[model._auto_class]
            config.auto_map |= {"AutoModel": reference, "AutoModelForTextToWaveform": reference}
        config.save_pretrained(folder)


register(E2ETTSConfig, AutoModel=E2ETTSModel, AutoModelForTextToWaveform=E2ETTSModel)
