"""What modules with style control have in common: a vector for each level, and styles that a trained model is given."""

from collections.abc import Mapping

import torch
from torch import nn

from .styles import UNSPECIFIED, Levels, count_levels


def merged_styles(have: Mapping[str, Levels], styles: Mapping[str, Levels]) -> dict[str, Levels]:
    """The styles of a model and further ones. Raises ValueError for one that it has with other levels."""
    for name, levels in styles.items():
        if have.get(name, levels) != levels:
            raise ValueError(f"The model has the style {name!r} with the levels {have[name]}, not {levels}.")
    return {**have, **styles}


class StyleEmbeddings(nn.ModuleDict):
    """Levels (B, S), of every style in the order of the configuration, -> the sum of their vectors (B, size).

    Vectors start at zero, so that a style which has learned nothing changes nothing; level 0 stays there.
    """

    def __init__(self, styles: Mapping[str, Levels], size: int) -> None:
        super().__init__(
            {name: nn.Embedding(1 + count_levels(levels), size, UNSPECIFIED) for name, levels in styles.items()}
        )
        self._size = size

    def holds(self, module: nn.Module) -> bool:
        """Whether a module is one of the embeddings: `_init_weights` of a model, which sets them to zero, asks this of
        every layer, since transformers passes over custom modules that hold no parameter of their own."""
        return any(module is embedding for embedding in self.values())

    def forward(self, style_levels: torch.LongTensor) -> torch.Tensor:
        """Raises ValueError for levels of fewer or more styles."""
        if style_levels.shape[1] != len(self):
            raise ValueError(
                f"The model has {len(self)} styles ({', '.join(self) or 'none'}), but style_levels has "
                f"{style_levels.shape[1]} columns."
            )
        total = style_levels.new_zeros((style_levels.shape[0], self._size), dtype=torch.get_default_dtype())
        for embedding, levels in zip(self.values(), style_levels.unbind(dim=1), strict=True):
            total = total + embedding(levels)
        return total


class StyleMixin:
    """For a PreTrainedModel with `style_embeddings` and a configuration with `styles` and `set_styles`."""

    def add_styles(self, styles: Mapping[str, Levels]) -> None:
        """Adds styles to a model, whose output stays the same until they have learned; those that it has stay.

        Raises ValueError for a style that the model has with other levels.
        """
        before = self.style_embeddings
        self.config.set_styles(merged_styles(self.config.styles, styles))
        grown = StyleEmbeddings(self.config.styles, before._size)
        for embedding in grown.values():
            nn.init.zeros_(embedding.weight)
        grown.update(before.items())
        self.style_embeddings = grown.to(device=self.device, dtype=self.dtype)
