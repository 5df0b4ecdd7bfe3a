"""The option that says where a model runs."""

import argparse
from typing import TypeVar

from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="of the model: cpu, cuda, cuda:1 and so on")


def on_device(model: Model, device: str) -> Model:
    """The model, moved. Raises ValueError for a device that is not there."""
    try:
        return model.to(device)
    # PyTorch built without CUDA says so with an AssertionError.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
