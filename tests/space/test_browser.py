"""The Space as a person uses it: the released checkpoint in a headless Chromium.

Screenshots go to the test's temporary folder, or to the folder in the variable SPACE_SCREENSHOTS.
"""

import io
import json
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser: pip install selenium")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "model_cards" / "small-en"
CLIP = REPOSITORY / "tests" / "fixtures" / "clips" / "LJ002-0002.opus"
TEXT = "The birds sang in the morning."
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=1280,1400",
)
# For what the page does and for what the model does, on a machine that does much else.
TIMEOUT = 600

Screenshots = Callable[[str], None]


@contextmanager
def chromium(profile: Path) -> Iterator["webdriver.Chrome"]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    try:
        driver.set_page_load_timeout(TIMEOUT)
        driver.set_script_timeout(TIMEOUT)
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator["webdriver.Chrome"]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(launch) -> Iterator[str]:
    with launch(str(MODEL)) as url:
        yield url


@pytest.fixture
def page(driver, address) -> "webdriver.Chrome":
    driver.get(address)
    wait(driver, lambda: button(driver, "Speak"))
    return driver


@pytest.fixture
def screenshot(driver, tmp_path) -> Screenshots:
    folder = Path(os.environ.get("SPACE_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: driver.save_screenshot(str(folder / f"{name}.png"))


def wait(driver: "webdriver.Chrome", condition: Callable[[], object]) -> object:
    return WebDriverWait(driver, TIMEOUT, ignored_exceptions=[StaleElementReferenceException]).until(
        lambda _: condition()
    )


def button(driver: "webdriver.Chrome", label: str) -> object:
    found = driver.find_elements(By.XPATH, f"//button[starts-with(normalize-space(), '{label}')]")
    return found[0] if found else None


def type_text(driver: "webdriver.Chrome", text: str) -> None:
    box = driver.find_element(By.CSS_SELECTOR, "textarea")
    box.clear()
    box.send_keys(text)


def recording_source(driver: "webdriver.Chrome") -> str:
    """What the audio element of the finished recording plays; empty as long as there is none."""
    players = driver.find_elements(By.CSS_SELECTOR, "#recording audio")
    return (players[0].get_attribute("src") or "") if players else ""


def speak(driver: "webdriver.Chrome") -> tuple[np.ndarray, int]:
    """Presses the button; the samples of the recording that comes."""
    before = recording_source(driver)
    button(driver, "Speak").click()
    source = wait(driver, lambda: (found := recording_source(driver)) != before and found)
    with urllib.request.urlopen(source, timeout=TIMEOUT) as response:
        return soundfile.read(io.BytesIO(response.read()))


def hosts(driver: "webdriver.Chrome") -> set[str]:
    """The hosts that the page has asked since the last call."""
    found = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            url = urllib.parse.urlsplit(parameters.get("request", parameters)["url"])
            if url.scheme in ("http", "https", "ws", "wss"):
                found.add(url.hostname)
    return found


def check_words(samples: np.ndarray, rate: int, record_property: Callable[[str, object], None]) -> None:
    """The recogniser of the card's figures hears the text, one word wrong at most; what it hears is reported."""
    try:
        from e2e_tts.pipelines.evaluation.judges import load_recogniser
        from e2e_tts.pipelines.evaluation.scoring import score_transcripts

        heard = load_recogniser("whisper-base-offline").transcribe(samples.astype(np.float32), rate)
    except ImportError as error:
        record_property("recognised", f"(no recogniser: {error})")
        return
    record_property("text", TEXT)
    record_property("recognised", heard)
    (row,) = score_transcripts([TEXT], [heard])
    assert row.edits <= 1, heard


def test_text_becomes_sound(page, screenshot, record_property):
    screenshot("start")
    type_text(page, TEXT)
    samples, rate = speak(page)
    screenshot("spoken")
    assert rate == 16000 and 0.5 < len(samples) / rate < 20
    assert np.sqrt(np.mean(samples**2)) > 1e-3
    # The live player has played a stream of its own, to the browser's satisfaction.
    player = page.find_element(By.CSS_SELECTOR, "#live audio")
    wait(page, lambda: page.execute_script("return arguments[0].readyState", player) >= 2)
    # Its length grows with the chunks that the browser has fetched.
    length = len(samples) / rate
    wait(page, lambda: page.execute_script("return arguments[0].duration", player) == pytest.approx(length, abs=0.5))
    assert page.execute_script("return arguments[0].error", player) is None
    pictures = page.find_elements(By.CSS_SELECTOR, "img[src*='/file=']")
    assert any(page.execute_script("return arguments[0].naturalWidth", picture) > 500 for picture in pictures)
    assert hosts(page) == {"127.0.0.1"}
    check_words(samples, rate, record_property)


def test_a_reference_is_taken(page, screenshot, tmp_path):
    built_in, _ = speak(page)
    button(page, "A voice of your own").click()
    clip = tmp_path / "reference.wav"
    soundfile.write(clip, *soundfile.read(CLIP))
    field = wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#reference input[type=file]"))[0]
    field.send_keys(str(clip))
    wait(page, lambda: page.find_elements(By.CSS_SELECTOR, "#reference #waveform, #reference audio"))
    cloned, rate = speak(page)
    screenshot("reference")
    assert len(cloned) > rate // 2 and np.abs(cloned).max() > 1e-3
    assert not np.array_equal(built_in, cloned)
    assert hosts(page) == {"127.0.0.1"}


def test_an_empty_text_is_refused_in_words(page, screenshot):
    type_text(page, " ")
    button(page, "Speak").click()
    wait(page, lambda: "The text is empty" in page.find_element(By.TAG_NAME, "body").text)
    screenshot("empty_text")
    assert "Traceback" not in page.page_source
    assert not recording_source(page)


def test_checkpoints_side_by_side(launch, folder, driver, screenshot):
    with launch(f"stage 1={folder}", f"stage 2={folder}") as url:
        driver.get(url)
        wait(driver, lambda: button(driver, "Compare the checkpoints"))
        button(driver, "Compare the checkpoints").click()
        wait(driver, lambda: len(driver.find_elements(By.CSS_SELECTOR, "audio[src$='.wav']")) == 2)
        screenshot("comparison")
