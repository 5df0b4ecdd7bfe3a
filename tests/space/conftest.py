"""The Space over a tiny random model, launched once."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from e2e_tts.pipelines import TextToSpeechPipeline

SPACE = Path(__file__).resolve().parents[2] / "space"
LONGEST_TEXT = 60  # tokens of the tiny model's processor, so that texts which the demo takes are more than that


@pytest.fixture(scope="session")
def app() -> Iterator[ModuleType]:
    """space/app.py, which finds its neighbours as it does when run as a script."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPACE))
        yield importlib.import_module("app")
        for name in [name for name, module in sys.modules.items() if _folder(module) == SPACE]:
            del sys.modules[name]


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).parent if file else None


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_model, processor) -> Path:
    """A released model, as the Hub would hold it."""
    path = tmp_path_factory.mktemp("space") / "model"
    pipe = TextToSpeechPipeline(model=tiny_model(), processor=processor)
    longest, processor.max_text_tokens = processor.max_text_tokens, LONGEST_TEXT
    try:
        pipe.save_pretrained(path)
    finally:
        processor.max_text_tokens = longest
    return path


@pytest.fixture(scope="session")
def launch(app, tmp_path_factory) -> Callable:
    """launch(*checkpoints): a context in which the demo runs; its address."""

    @contextmanager
    def launched(*sources: str) -> Iterator[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
            patch.setenv("HF_HUB_OFFLINE", "1")
            demo = app.build_demo(*sources)
            _, url, _ = demo.launch(
                prevent_thread_lock=True,
                server_name="127.0.0.1",
                quiet=True,
                inbrowser=False,
                max_file_size=app.MAX_UPLOAD,
            )
            try:
                yield url
            finally:
                demo.close()

    return launched
