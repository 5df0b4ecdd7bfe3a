"""Configurations of the modules that are trained end to end. The vocoder's is in configuration_vocoder.py."""

from collections.abc import Mapping
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3Config
from transformers.models.parakeet import ParakeetEncoderConfig

from .audio_features import MelSpec
from .configuration_vocoder import VocoderConfig
from .styles import RATE, ordered_styles

# The LM's own output vocabulary is [codes | control tokens]: a code keeps its FSQ index, controls follow.
NUM_CONTROL_TOKENS = 4
SPEAKER, START, TASK, END_OF_SPEECH = range(NUM_CONTROL_TOKENS)


@strict
class SpeechEncoderConfig(PreTrainedConfig):
    r"""
    Configuration of the speech tokenizer: log-mel -> Conformer -> FSQ codes.

    encoder_config (`ParakeetEncoderConfig`): the Conformer below FSQ, subsampling included.
    mel (`dict`): the features it reads (fields of `MelSpec`).
    mel_normalization (`str`): "fixed" takes mel_mean and mel_std; "utterance" the mean and deviation of every bin over
        the utterance, which is what pretrained Parakeet encoders have learned on.
    levels (`list[int]`): FSQ levels per dimension; 3 ** 8 = 6561 codes in the paper.
    bounding (`str`): "sigmoid" keeps the outer levels in use, "tanh" is the classic form.
    conv_norm (`str`): "layer" makes the Conformer batch-invariant in training; "batch" keeps a pretrained encoder's
        statistics, frozen.
    subsampling_time_strides (`list[int]`, *optional*): stride in time of each subsampling convolution; by default
        every one halves the rate.
    """

    model_type = "e2e_tts_speech_encoder"
    sub_configs_defaults = {"encoder_config": ParakeetEncoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    mel: dict | None = None
    mel_mean: float | int = -5.0
    mel_std: float | int = 2.5
    mel_normalization: Literal["fixed", "utterance"] = "fixed"
    levels: list[int] | tuple[int, ...] | None = None
    bounding: Literal["sigmoid", "tanh"] = "sigmoid"
    conv_norm: Literal["layer", "batch"] = "layer"
    subsampling_time_strides: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs):
        self.mel = MelSpec.from_dict(self.mel).to_dict()
        self.levels = [3] * 8 if self.levels is None else list(self.levels)
        if any(level < 2 for level in self.levels):
            raise ValueError(f"Every FSQ dimension needs at least 2 levels, got {self.levels}.")
        super().__post_init__(**kwargs)
        convolutions = (self.encoder_config.subsampling_factor - 1).bit_length()
        if self.subsampling_time_strides is None:
            self.subsampling_time_strides = [2] * convolutions
        if len(self.subsampling_time_strides) != convolutions:
            raise ValueError(
                f"subsampling_time_strides {self.subsampling_time_strides} must have one entry for each of the "
                f"{convolutions} convolutions of subsampling_factor {self.encoder_config.subsampling_factor}."
            )
        if self.encoder_config.num_mel_bins != self.mel["num_mel_bins"]:
            raise ValueError(
                f"encoder_config.num_mel_bins is {self.encoder_config.num_mel_bins}, but mel.num_mel_bins is "
                f"{self.mel['num_mel_bins']}: they must be equal."
            )

    @property
    def frames_per_token(self) -> int:
        frames = 1
        for stride in self.subsampling_time_strides:
            frames *= stride
        return frames

    @property
    def token_rate(self) -> float:
        """Tokens a second."""
        return MelSpec.from_dict(self.mel).frames_per_second / self.frames_per_token


@strict
class RewardModelConfig(PreTrainedConfig):
    r"""
    Configuration of the reward model: FSQ codes -> Conformer (the encoder's upper part) -> CTC, speaker and emotion.

    ctc_vocab_size (`int`): size of the recognition alphabet with the blank at index 0; 0 removes the head.
    ctc_upsampling (`int`): CTC frames per token, so that fast speech has enough frames for its labels.
    speaker_dim (`int`): width of the speaker teacher's embedding; 0 removes the head.
    num_emotions (`int`): number of emotion classes; 0 removes the head.
    """

    model_type = "e2e_tts_reward_model"
    sub_configs_defaults = {"encoder_config": ParakeetEncoderConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    levels: list[int] | tuple[int, ...] | None = None
    conv_norm: Literal["layer", "batch"] = "layer"
    ctc_vocab_size: int = 0
    ctc_upsampling: int = 2
    speaker_dim: int = 192
    num_emotions: int = 0

    def __post_init__(self, **kwargs):
        self.levels = [3] * 8 if self.levels is None else list(self.levels)
        super().__post_init__(**kwargs)


@strict
class SpeechLMConfig(PreTrainedConfig):
    r"""
    Configuration of the autoregressive model of speech codes given text.

    text_config (`Qwen3Config`): the transformer; its vocab_size is that of the *text* tokenizer.
    input_adapter (`str`): map from code vector to embedding: "linear" (paper) or "mlp".
    output_adapter_size (`int`): hidden width of the non-linear map from codebook to output keys.
    speaker_dim (`int`): width of the speaker embedding put at the speaker slot; 0 leaves the slot empty.
    text_positions (`str`): "sequential" counts on through text and speech. "aligned" spreads the text over the time
        axis of the speech at a given number of tokens per symbol, which gives a small model the diagonal for free.
    styles (`dict`): style control, name -> number of levels, or the names of its classes: {"pitch": 5, "emotion":
        ["happy", "sad"]}. Kept in the order of their names. See `styles.py`.
    """

    model_type = "e2e_tts_speech_lm"
    sub_configs_defaults = {"text_config": Qwen3Config}

    text_config: dict | PreTrainedConfig | None = None
    levels: list[int] | tuple[int, ...] | None = None
    input_adapter: Literal["linear", "mlp"] = "linear"
    output_adapter_size: int = 512
    speaker_dim: int = 0
    text_positions: Literal["sequential", "aligned"] = "sequential"
    token_rate: float | int = 25.0
    styles: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.levels = [3] * 8 if self.levels is None else list(self.levels)
        self.set_styles(self.styles or {})
        super().__post_init__(**kwargs)

    def set_styles(self, styles: Mapping[str, int | list[str]]) -> None:
        """Raises ValueError for styles that no model, or none with these text positions, can have."""
        if RATE in styles and self.text_positions == "aligned":
            raise ValueError(
                f'text_positions="aligned" sets the speaking rate (tokens_per_symbol): take {RATE!r} out of styles.'
            )
        self.styles = ordered_styles(styles)

    @property
    def num_codes(self) -> int:
        count = 1
        for level in self.levels:
            count *= level
        return count

    @property
    def vocab_size(self) -> int:
        """Size of the output vocabulary: codes, then control tokens."""
        return self.num_codes + NUM_CONTROL_TOKENS


@strict
class FlowDecoderConfig(PreTrainedConfig):
    r"""
    Configuration of the flow-matching decoder: codes (B, T, D) -> mel (B, T * frames_per_token, n_mels).

    mel_mean, mel_std (`float`): normalisation of the log-mel target.
    condition_layers (`int`): convolution blocks on the codes at token rate, before upsampling.
    use_prior (`bool`): also regress the mel from the codes; the estimate is a further input of the transformer.
    styles (`dict`): style control as the LM's; what of a style the codes do not carry, pitch say, is the decoder's.
    hidden_condition_size (`int`): width of LM hidden states to condition on instead of codes (ablation); 0 is off.
    noise_temperature (`float`): scale of the noise that speech is made from, where a call does not say; below 1 the
        mel is calmer, with less noise of its own.
    """

    model_type = "e2e_tts_flow_decoder"

    mel: dict | None = None
    mel_mean: float | int = -5.0
    mel_std: float | int = 2.5
    levels: list[int] | tuple[int, ...] | None = None
    frames_per_token: int = 2
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    condition_layers: int = 2
    conv_kernel_size: int = 7
    speaker_dim: int = 192
    use_prior: bool = True
    hidden_condition_size: int = 0
    rope_theta: float | int = 10000.0
    dropout: float | int = 0.0
    condition_dropout: float | int = 0.15
    prompt_probability: float | int = 0.5
    max_prompt_fraction: float | int = 0.5
    time_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    noise_temperature: float | int = 1.0
    styles: dict | None = None

    def __post_init__(self, **kwargs):
        self.mel = MelSpec.from_dict(self.mel).to_dict()
        self.levels = [3] * 8 if self.levels is None else list(self.levels)
        self.set_styles(self.styles or {})
        super().__post_init__(**kwargs)
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, got {self.conv_kernel_size}.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of twice num_attention_heads "
                f"{self.num_attention_heads}: rotary positions turn pairs."
            )

    def set_styles(self, styles: Mapping[str, int | list[str]]) -> None:
        """Raises ValueError for styles that no decoder can have."""
        if RATE in styles:
            raise ValueError(f"The decoder keeps to the time of the codes: take {RATE!r} out of its styles.")
        if styles and not self.speaker_dim:
            raise ValueError("Styles come with the voice: a decoder with speaker_dim 0 has none.")
        self.styles = ordered_styles(styles)


@strict
class SpeakerEncoderConfig(PreTrainedConfig):
    r"""
    Configuration of the small x-vector network that embeds a voice: log-mel -> unit vector (B, embedding_size).

    num_speakers (`int`): classes of the training head; 0 builds the embedding network alone.
    """

    model_type = "e2e_tts_speaker_encoder"

    mel: dict | None = None
    mel_mean: float | int = -5.0
    mel_std: float | int = 2.5
    hidden_size: int = 192
    num_hidden_layers: int = 4
    kernel_size: int = 5
    embedding_size: int = 192
    num_speakers: int = 0
    margin: float | int = 0.2
    scale: float | int = 20.0

    def __post_init__(self, **kwargs):
        self.mel = MelSpec.from_dict(self.mel).to_dict()
        super().__post_init__(**kwargs)


@strict
class E2ETTSConfig(PreTrainedConfig):
    r"""
    Configuration of the composite: speech tokenizer, reward model, LM, flow decoder, speaker encoder and vocoder.

    Modules that disagree on the mel, the code levels, the frames per token or the speaker width are refused.

    voices (`dict[str, float]`): built-in voices and their speaking rates in speech tokens per text token, in the order
        of the rows of `voice_embeddings`.
    default_voice (`str`, *optional*): the one of them that speaks where a call names none; by default the first.
    sampling (`dict`): what `generate` takes for temperature, top_k and top_p where a call does not say.
    candidates (`int`): how many times `generate` lets the LM draw where a call does not say; the reward model keeps the
        speech that it understands best. `generate_stream` draws once where a call does not say.
    default_tokens_per_symbol (`float`): the rate for a voice whose own is unknown.
    """

    model_type = "e2e_tts"
    sub_configs_defaults = {
        "encoder_config": SpeechEncoderConfig,
        "reward_config": RewardModelConfig,
        "lm_config": SpeechLMConfig,
        "decoder_config": FlowDecoderConfig,
        "speaker_config": SpeakerEncoderConfig,
        "vocoder_config": VocoderConfig,
    }

    encoder_config: dict | PreTrainedConfig | None = None
    reward_config: dict | PreTrainedConfig | None = None
    lm_config: dict | PreTrainedConfig | None = None
    decoder_config: dict | PreTrainedConfig | None = None
    speaker_config: dict | PreTrainedConfig | None = None
    vocoder_config: dict | PreTrainedConfig | None = None
    voices: dict | None = None
    default_voice: str | None = None
    sampling: dict | None = None
    candidates: int = 1
    default_tokens_per_symbol: float | int = 2.0
    initializer_range: float | int = 0.02

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """Raises OSError for a folder without a configuration and for one that holds another kind of model."""
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = values.get("model_type")
        if kind != cls.model_type:
            found = f"config.json is of type {kind!r}; AutoModel loads it" if kind else "it has no usable config.json"
            raise OSError(f"{pretrained_model_name_or_path} is not a checkpoint of {cls.model_type!r}: {found}.")
        return values, kwargs

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.voices = dict(self.voices or {})
        if self.default_voice is not None and self.default_voice not in self.voices:
            raise ValueError(f"default_voice {self.default_voice!r} is none of the voices {list(self.voices)}.")
        self.sampling = dict(self.sampling or {})
        self.check_composition()

    @property
    def sampling_rate(self) -> int:
        return MelSpec.from_dict(self.decoder_config.mel).sampling_rate

    @property
    def voice_names(self) -> list[str]:
        """Names of the built-in voices, the default one first."""
        return sorted(self.voices, key=lambda name: name != self.default_voice)

    @property
    def styles(self) -> dict[str, int | list[str]]:
        """The styles of LM and decoder together: the columns of `style_levels`."""
        return ordered_styles({**self.lm_config.styles, **self.decoder_config.styles})

    def check_composition(self) -> None:
        """Raises ValueError, naming both values, for modules that cannot exchange codes, mels or embeddings."""
        encoder, decoder = self.encoder_config, self.decoder_config
        for name in ("reward_config", "lm_config", "decoder_config"):
            levels = getattr(self, name).levels
            if levels != encoder.levels:
                raise ValueError(f"FSQ levels differ: encoder_config has {encoder.levels}, {name} has {levels}.")
        decoder_mel = MelSpec.from_dict(decoder.mel)
        difference = decoder_mel.differences(MelSpec.from_dict(self.vocoder_config.mel))
        if difference:
            raise ValueError(f"The decoder's and the vocoder's mel differ ({difference}); retrain or replace one.")
        difference = MelSpec.from_dict(encoder.mel).differences(MelSpec.from_dict(self.speaker_config.mel))
        if difference:
            raise ValueError(
                f"The tokenizer's and the speaker encoder's mel differ ({difference}); both hear the reference clip."
            )
        for name in self.lm_config.styles.keys() & decoder.styles.keys():
            if self.lm_config.styles[name] != decoder.styles[name]:
                raise ValueError(
                    f"Levels of the style {name!r} differ: lm_config has {self.lm_config.styles[name]}, decoder_config "
                    f"has {decoder.styles[name]}."
                )
        rate = decoder_mel.frames_per_second / decoder.frames_per_token
        if abs(rate - encoder.token_rate) > 1e-6:
            raise ValueError(
                f"Token rates differ: the encoder gives {encoder.token_rate} tokens a second, the decoder reads "
                f"{rate} ({decoder_mel.frames_per_second} mel frames a second / {decoder.frames_per_token} a token)."
            )
        if abs(self.lm_config.token_rate - encoder.token_rate) > 1e-6:
            raise ValueError(f"Token rates differ: encoder {encoder.token_rate}, LM {self.lm_config.token_rate}.")
        states = self.lm_config.text_config.hidden_size
        if decoder.hidden_condition_size not in (0, states):
            raise ValueError(
                f"The decoder reads LM states of width {decoder.hidden_condition_size} (hidden_condition_size), but "
                f"the LM's have {states} (text_config.hidden_size)."
            )
        width = self.speaker_config.embedding_size
        for name in ("reward_config", "lm_config", "decoder_config"):
            if getattr(self, name).speaker_dim not in (0, width):
                raise ValueError(
                    f"Speaker widths differ: speaker_config has {width}, {name} has {getattr(self, name).speaker_dim}."
                )
