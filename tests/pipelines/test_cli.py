"""The command line: with the shipped checkpoint where speech counts, with a tiny one where mistakes do."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import constants

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.pipelines import cli, commands, load_pipeline
from e2e_tts.pipelines import release as releasing

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "model_cards" / "small-en"
CLIPS = ROOT / "tests" / "fixtures" / "clips"
LJ, KATHLEEN = CLIPS / "LJ001-0170.opus", CLIPS / "arctic_b0327_1592531640.opus"
LJ_TEXT = "being thin, tough, and opaque."
QUICK = ["--seed", "0", "--steps", "2", "--guidance", "0"]


@pytest.fixture(scope="module")
def folder(tiny_model, processor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("release")
    releasing.save_release(tiny_model(), processor, path)
    return path


@pytest.fixture(scope="module")
def shipped() -> object:
    return load_pipeline(str(MODEL), device="cpu")


@pytest.fixture
def loaded(shipped, monkeypatch, tmp_path) -> None:
    """Commands of the test take the shipped checkpoint, which is loaded once, and run in an empty folder."""
    monkeypatch.setattr("e2e_tts.pipelines.load_pipeline", lambda model, device: shipped)
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def give_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def last_error(capsys: pytest.CaptureFixture) -> str:
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("error: ")
    return error


# ---- speak


def test_speak_to_a_file(folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.wav"
    text = "The first sentence is this one. The second sentence comes after it."
    options = ["--model", folder, "-o", output, "--seed", "1", "--voice", "ben", "--steps", "2"]
    run("speak", text, *options)
    audio, rate = soundfile.read(output)
    assert rate == 16000 and len(audio) > 0.3 * rate
    assert "[2/2] The second" in capsys.readouterr().err
    give_input(monkeypatch, text.encode())
    run("speak", "-", *options, "-q")
    assert np.array_equal(soundfile.read(output)[0], audio) and capsys.readouterr().err == ""
    run("speak", text, *options, "--candidates", "4")
    assert not np.array_equal(soundfile.read(output)[0], audio)
    run("speak", "Hello.", *options[:4], "--reference", output, "--guidance", "0")


def test_speak_while_the_text_comes(loaded, shipped, monkeypatch, capfdbinary):
    text = "One sentence is spoken here. And then another one, which is longer."
    chunks = list(shipped.stream(iter(text), voice="lj", seed=0, num_steps=2, guidance=0.0))
    expected = (np.concatenate([chunk["audio"] for chunk in chunks]).clip(-1, 1) * 32767).astype(np.int16)
    for form, header in (("raw", 0), ("wav", 44)):
        give_input(monkeypatch, text.encode())
        run("speak", "-", "--stream", "-o", "-", "--format", form, "--voice", "lj", *QUICK)
        output = capfdbinary.readouterr()
        assert np.array_equal(np.frombuffer(output.out[header:], "<i2"), expected)
        assert b"[2] And then" in output.err
    give_input(monkeypatch, text.encode())
    run("speak", "-", "--stream", "-o", "out.flac", "--voice", "lj", *QUICK)
    # libsndfile rounds, to another full scale by one.
    assert np.abs(soundfile.read("out.flac", dtype="int16")[0].astype(int) - expected).max() <= 2


def test_a_stopped_stream_leaves_a_playable_file(loaded, shipped, monkeypatch, capsys):
    stream = shipped.stream

    def interrupted(*arguments: object, **settings: object) -> Iterator[dict]:
        yield next(stream(*arguments, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(shipped, "stream", interrupted)
    assert cli.main(["speak", "The birds sang in the morning.", "--stream", "-o", "out.wav", *QUICK]) == 130
    assert "stopped" in capsys.readouterr().err
    assert len(soundfile.read("out.wav")[0]) > 0


def test_list_voices(folder, capsys, monkeypatch, tmp_path):
    run("speak", "--list-voices", "--model", folder)
    assert capsys.readouterr().out.split() == ["anna", "ben"]
    changed = tmp_path / "changed"
    changed.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"default_voice": "ben"}))
    run("speak", "--list-voices", "--model", changed)
    assert capsys.readouterr().out.split() == ["ben", "anna"]
    shipped = tmp_path / commands.DEFAULT_MODEL
    shipped.parent.mkdir()
    shipped.symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "elsewhere" / "pipelines" / "commands.py"))
    run("speak", "--list-voices")


@pytest.mark.parametrize(
    ("load", "given", "then"), [(1.2, None, "PASSIVE"), (1.2, "ACTIVE", "ACTIVE"), (0.3, None, None)]
)
def test_waiting_threads_do_not_spin_on_a_busy_machine(load, given, then, folder, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setenv("OMP_WAIT_POLICY", str(given))
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    run("speak", "--list-voices", "--model", folder)
    assert os.environ.get("OMP_WAIT_POLICY") == then


@pytest.mark.parametrize("name", ["out.wav", "out.mp3", "out.flac", "out.raw"])
def test_speech_that_fails_leaves_what_was_spoken_before(folder, tmp_path, capsys, monkeypatch, name):
    output = tmp_path / name
    options = ["--model", str(folder), "-o", str(output), "--seed", "1", "--steps", "2"]
    good = "The first sentence is this one. The second sentence comes after it."
    run("speak", good, *options)

    def read() -> np.ndarray:
        return np.frombuffer(output.read_bytes(), "<i2") if name == "out.raw" else soundfile.read(output)[0]

    expected = read()
    output.unlink()
    capsys.readouterr()
    bad = "The third one has a {HH AH0 L OWW1} in it. And this is the last one."
    assert cli.main(["speak", f"{good} {bad}", *options]) == 1
    error = last_error(capsys)
    assert "part 3 of 4" in error and str(output) in error and re.search(r"\d\.\d s of speech", error)
    assert np.array_equal(read(), expected)


def test_files_are_written_while_they_are_spoken(loaded, shipped, monkeypatch):
    """A long text is not kept in memory until its end."""
    sizes, preprocess = [], type(shipped).preprocess

    def watched(self, inputs):
        sizes.append(Path("out.wav").stat().st_size if Path("out.wav").exists() else 0)
        return preprocess(self, inputs)

    monkeypatch.setattr(type(shipped), "preprocess", watched)
    run("speak", "The first sentence is this one. The second sentence comes after it.", "-o", "out.wav", *QUICK)
    assert sizes[0] == 0 and sizes[-1] > 8000


# ---- the other commands


def test_clone_and_speak(loaded, shipped, capsys):
    run("clone", LJ, "--text", LJ_TEXT, "--name", "reader", "-o", "me.safetensors")
    assert "--voice me.safetensors" in capsys.readouterr().err
    voice = shipped.load_voice("me.safetensors")
    assert voice.metadata == {"name": "reader"} and voice.prompt_text_ids is not None
    run("speak", "Yes, of course.", "--voice", "me.safetensors", "-o", "cloned.wav", *QUICK)
    run("speak", "Yes, of course.", "--reference", LJ, "--reference-text", LJ_TEXT, "-o", "same.wav", *QUICK)
    run("speak", "Yes, of course.", "--voice", "kathleen", "-o", "other.wav", *QUICK)
    cloned, same, other = (soundfile.read(f"{name}.wav")[0] for name in ("cloned", "same", "other"))
    assert np.array_equal(cloned, same) and not np.array_equal(cloned, other)
    run("clone", LJ, "--no-prompt", "-o", "timbre.safetensors")
    assert shipped.load_voice("timbre.safetensors").prompt_ids is None
    run("clone", LJ, "--transcribe", "-o", "heard.safetensors")
    assert f"It heard: {shipped.load_voice('heard.safetensors').symbols}" in capsys.readouterr().err


def test_tokens_and_back_are_a_conversion(loaded, capsys, monkeypatch):
    run("convert", LJ, "--voice", "kathleen", "-o", "converted.wav", *QUICK)
    run("tokenize", LJ, "-o", "tokens.json")
    run("detokenize", "tokens.json", "--voice", "kathleen", "-o", "again.wav", *QUICK)
    converted, again = (soundfile.read(f"{name}.wav")[0] for name in ("converted", "again"))
    assert np.array_equal(converted, again)
    seconds = soundfile.info(LJ).duration
    assert len(converted) / 16000 == pytest.approx(seconds, abs=0.05)
    # From standard input to standard output and on.
    capsys.readouterr()
    give_input(monkeypatch, LJ.read_bytes())
    run("tokenize", "-")
    line = capsys.readouterr().out
    assert json.loads(line) == json.loads(Path("tokens.json").read_text())
    give_input(monkeypatch, line.encode())
    run("detokenize", "-", "--reference", KATHLEEN, "-o", "referred.wav", *QUICK)
    assert len(soundfile.read("referred.wav")[0]) == len(converted)


def test_standard_output(loaded, capfdbinary):
    run("convert", LJ, "--voice", "kathleen", "-o", "-", "--format", "flac", *QUICK)
    audio, rate = soundfile.read(io.BytesIO(capfdbinary.readouterr().out))
    assert rate == 16000 and np.abs(audio).max() > 0.01


def test_many_files(loaded, tmp_path, capsys):
    output = tmp_path / "tokens"
    output.mkdir()
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16000), 16000)
    arguments = ["tokenize", str(LJ), str(silent), str(KATHLEEN), "-o", str(output), "--format", "npy"]
    # One that fails does not keep the others from being done, and is named.
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert f"error: {silent}" in error and "1 of 3 files failed" in error
    assert sorted(path.name for path in output.iterdir()) == [f"{LJ.stem}.npy", f"{KATHLEEN.stem}.npy"]
    run("detokenize", *sorted(output.iterdir()), "-o", tmp_path, "--format", "raw", *QUICK)
    assert (tmp_path / f"{LJ.stem}.raw").stat().st_size > (tmp_path / f"{KATHLEEN.stem}.raw").stat().st_size > 0


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speak"], "Nothing to speak"),
        (["speak", " "], "empty"),
        (["speak", "?!"], "can be spoken"),
        (["speak", "?!", "--stream"], "can be spoken"),
        (["speak", "Hello.", "--voice", "carl"], "anna"),
        (["speak", "Hello.", "--reference", "missing.wav"], "missing.wav"),
        (["speak", "Hello.", "--transcribe"], "reference"),
        (["speak", "Hello.", "--speed", "9"], "speed"),
        (["speak", "Hello.", "-o", "out.xyz"], ".wav"),
        (["speak", "Hello.", "-o", "no/such/folder/out.wav"], "no/such/folder"),
        (["speak", "Hello.", "--voice", "ben", "--reference", LJ], "not both"),
        (["speak", "Hello.", "--model", "nowhere"], "nowhere"),
        (["speak", "Hello.", "--model", "runs/jiont"], "There is no folder runs/jiont"),
        (["speak", "--list-voices", "--model", "runs/jiont"], "There is no folder runs/jiont"),
        (["speak", "--list-styles", "--model", "runs/jiont"], "There is no folder runs/jiont"),
        (["clone", "missing.wav", "-o", "me.safetensors"], "missing.wav"),
        (["clone", LJ, "-o", "me.pt"], ".safetensors"),
        (["clone", LJ, "-o", "no/such/folder/me.safetensors"], "no/such/folder"),
        (["convert", "missing.wav", "-o", "out.wav"], "missing.wav"),
        (["convert", LJ, "-o", "out.txt"], ".wav"),
        (["convert", LJ, "-o", LJ], "overwritten"),
        (["convert", LJ, KATHLEEN, "-o", "out.wav"], "folder"),
        (["convert", LJ, LJ, "-o", "."], "one at a time"),
        (["convert", LJ, "-o", "out.wav", "--voice", "ben", "--reference", LJ], "not both"),
        (["tokenize", LJ, "-o", "tokens.pt"], ".json"),
        (["detokenize", "missing.npy", "-o", "out.wav"], "missing.npy"),
        (["serve", "--max-characters", "0"], "characters"),
        (["serve", "--voices", "nowhere"], "nowhere"),
        (["serve", "--port", "70000"], "70000"),
        (["serve", "--port", "-1"], "65535"),
    ],
)
def test_errors_take_one_line(folder, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    command, *rest = map(str, arguments)
    assert cli.main([command, "--model", str(folder), *rest]) == 1
    assert message in last_error(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["speak", "Hello."], ["convert", LJ], ["detokenize", "missing.npy"]])
def test_two_voices_are_refused_before_the_model_is_loaded(tmp_path, capsys, arguments):
    (tmp_path / "config.json").write_text("{}")
    voices = ["--voice", "ben", "--reference", str(LJ), "-o", str(tmp_path / "out.wav")]
    assert cli.main([*map(str, arguments), "--model", str(tmp_path), *voices]) == 1
    assert "Give either --voice or --reference, not both" in last_error(capsys)


def test_standard_input_that_is_something_else(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("detokenize", "convert"):
        for data in (b"", b"{}", b"nothing of this kind"):
            give_input(monkeypatch, data)
            assert cli.main([command, "-", "-o", "out.wav", "--model", str(folder)]) == 1
            assert "Standard input" in last_error(capsys)


@pytest.mark.parametrize("size", [-1, 1])
def test_text_of_standard_input_is_what_was_written(monkeypatch, size):
    text = "Ein Käse, «naïve».\n\nUnd 孩子们。\n"
    for data in (
        text.encode(),
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        b"\xfe\xff" + text.encode("utf-16-be"),
    ):
        give_input(monkeypatch, data)
        assert "".join(commands.input_text(size)) == text
    give_input(monkeypatch, b"One.\r\n\r\nTwo.\r")
    assert "".join(commands.input_text(size)) == "One.\n\nTwo.\n"


@pytest.mark.parametrize("options", [[], ["--stream"]])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "gbk"])
def test_text_that_is_not_utf_8_is_not_spoken(folder, tmp_path, capsys, monkeypatch, options, encoding):
    monkeypatch.chdir(tmp_path)
    give_input(monkeypatch, ("孩子们" if encoding == "gbk" else "Une fête à Noël.").encode(encoding))
    assert cli.main(["speak", "-", "-o", "out.wav", "--model", str(folder), *options]) == 1
    assert "Standard input is not UTF-8 text" in last_error(capsys)
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_merged_before_it_speaks(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert cli.main(["speak", "Hello.", "--model", str(tmp_path)]) == 1
    assert f"e2e_tts.trainers.adapters --adapter {tmp_path} --output MERGED" in last_error(capsys)


def test_without_any_model(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "pipelines" / "commands.py"))
    assert cli.main(["speak", "Hello."]) == 1
    assert "--model DIR" in last_error(capsys)


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["speak", "a", "--sed", "1"], ["convert", "a.wav"], ["speak", "a", "--format", "aac"]]
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage: e2e-tts" in capsys.readouterr().err


# ---- help, and the commands of other modules


@pytest.mark.parametrize("command", ["speak", "clone", "convert", "tokenize", "detokenize", "detect", "serve"])
def test_help_teaches(command, capsys):
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        text = capsys.readouterr().out
        assert stop.value.code == 0 and "examples:" in text
        parser = cli.build_parser()
        # Every example is a command line that is understood.
        examples = re.findall(r"e2e-tts (\w+[^|<(\n]*)", text[text.index("examples:") :])
        assert examples
        for example in examples:
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', example)]
            if words[0] not in cli.MODULE_COMMANDS:
                parser.parse_args(words)


def test_help_names_the_defaults_that_hold(capsys):
    with pytest.raises(SystemExit):
        cli.main(["speak", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    defaults = inspect.signature(E2ETTSModel.generate).parameters
    for option in ("num_steps", "guidance"):
        assert f"of the decoder, {defaults[option].default} by default" in text


def test_options_are_taken_with_hyphens_and_with_underscores(tmp_path, capsys):
    for argument in ("--text-guidance=2", "--text_guidance=2"):
        options = cli.build_parser().parse_args(["speak", "a", argument, "--reference-text", "b_c--d_e"])
        assert options.text_guidance == 2.0 and options.reference_text == "b_c--d_e"
    for option in ("--split-file", "--split_file"):
        with pytest.raises(SystemExit):
            cli.main(["prepare", "--source", "a", "--output", str(tmp_path / "b"), option, "nowhere.json"])
        assert capsys.readouterr().err == "[Errno 2] No such file or directory: 'nowhere.json'\n"


@pytest.mark.parametrize(
    ("command", "option"),
    [("train", "--recipe"), ("prepare", "--source"), ("doctor", "--steps"), ("evaluate", "--test_list")],
)
def test_modules_read_their_own_arguments(command, option, capsys):
    program = sys.argv[0]
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and option in text and f"usage: e2e-tts {command}" in text
    assert sys.argv[0] == program
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--no-such-option"])
    assert stop.value.code == 2


def test_processes(tmp_path):
    """Exit codes and streams as a shell sees them; help comes without the heavy packages."""

    def start(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
        program = ["-c", code] if code else ["-m", "e2e_tts.pipelines.cli"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, *program, *arguments], capture_output=True, cwd=tmp_path, env=environment, check=False
        )

    heavy = "import sys; from e2e_tts.pipelines.cli import build_parser; build_parser().format_help(); "
    heavy += "sys.exit(bool({'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules)))"
    assert start(code=heavy).returncode == 0
    assert start("speak", "--help").returncode == 0
    assert start("speak", "a", "--nonsense").returncode == 2
    failed = start("speak", "Hello.", "-o", "out.xyz")
    assert failed.returncode == 1 and failed.stdout == b"" and failed.stderr.count(b"\n") == 1
    spoken = start("speak", "Yes, of course.", "-o", "-", "--model", str(MODEL), *QUICK)
    assert spoken.returncode == 0, spoken.stderr
    audio, rate = soundfile.read(io.BytesIO(spoken.stdout))
    assert rate == 16000 and np.abs(audio).max() > 0.01
    assert spoken.stderr.startswith(b"[1/1] Yes, of course.")
