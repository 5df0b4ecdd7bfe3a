"""Every kind of corpus gives the same rows; what is wrong with a row of one is found and named."""

import io
import json
import logging
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from recordings import CLIPS, noise, read_refused, real_clips

from e2e_tts.trainers.data import corpora, prepare
from e2e_tts.trainers.data.corpora import Corpus, CorpusOptions, detect_format, open_corpora
from e2e_tts.trainers.data.row_checks import CheckSettings, RowChecker
from e2e_tts.trainers.data.split_names import standard_split
from e2e_tts.trainers.data.splits import SplitFractions, Splits

ROWS = real_clips(4)
IDS = [Path(row["file"]).stem for row in ROWS]


def content(row: dict[str, str]) -> bytes:
    return (CLIPS / row["file"]).read_bytes()


def copy_clips(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for row in ROWS:
        shutil.copyfile(CLIPS / row["file"], folder / row["file"])
    return folder


def metadata(folder: Path) -> list[str]:
    copy_clips(folder)
    lines = [f'{row["file"]},"{row["text"]}",{row["speaker"]}' for row in ROWS]
    (folder / "metadata.csv").write_text("\n".join(["file,text,speaker", *lines]), encoding="utf-8")
    return [str(folder)]


def ljspeech(folder: Path) -> list[str]:
    copy_clips(folder / "wavs")
    lines = [f"{name}|{row['text'].upper()}|{row['text']}" for name, row in zip(IDS, ROWS, strict=True)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(folder)]


def ljspeech_list(folder: Path) -> list[str]:
    copy_clips(folder)
    lines = [f"{row['file']}|{row['text']}" for row in ROWS]
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(folder / "corpus.txt")]


def kaldi(folder: Path) -> list[str]:
    copy_clips(folder / "audio")
    tables = {
        "wav.scp": [f"{name} audio/{row['file']}" for name, row in zip(IDS, ROWS, strict=True)],
        "text": [f"{name} {row['text']}" for name, row in zip(IDS, ROWS, strict=True)],
        "utt2spk": [f"{name} {row['speaker']}" for name, row in zip(IDS, ROWS, strict=True)],
        "utt2lang": [f"{name} en" for name in IDS],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(folder)]


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for sample in samples:
            for name, data in sample.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def tar_sample(name: str, row: dict[str, str]) -> dict[str, bytes]:
    described = json.dumps({"reader": {"name": row["speaker"]}, "language": "en"})
    return {f"{name}.opus": content(row), f"{name}.txt": row["text"].encode(), f"{name}.json": described.encode()}


def webdataset(folder: Path) -> list[str]:
    folder.mkdir()
    samples = [tar_sample(name, row) for name, row in zip(IDS, ROWS, strict=True)]
    write_shard(folder / "0.tar", samples[:3])
    write_shard(folder / "1.tar.gz", samples[3:])
    return [str(folder), "--columns", "speaker=reader.name"]


def table() -> Dataset:
    rows = [
        {
            "recording": {"bytes": content(row), "path": row["file"]},
            "sentence": row["text"],
            "client_id": row["speaker"],
            "mood": index % 2,
        }
        for index, row in enumerate(ROWS)
    ]
    features = Features(
        {
            "recording": {"bytes": Value("binary"), "path": Value("string")},
            "sentence": Value("string"),
            "client_id": Value("string"),
            "mood": ClassLabel(names=["calm", "cross"]),
        }
    )
    # As on the Hub: the schema says that the column is audio, which `datasets` would decode if it were let.
    return (
        Dataset.from_list(rows, features=features)
        .cast_column("recording", Audio(decode=False))
        .cast_column("recording", Audio())
    )


def parquet(folder: Path) -> list[str]:
    folder.mkdir()
    for shard in range(2):
        table().select(range(2 * shard, 2 * shard + 2)).to_parquet(folder / f"{shard}.parquet")
    return [f"{folder}/*.parquet", "--columns", "emotion=mood"]


def saved(folder: Path) -> list[str]:
    table().save_to_disk(folder)
    return [str(folder), "--columns", "emotion=mood"]


def audiofolder(folder: Path) -> list[str]:
    copy_clips(folder)
    lines = [f'{row["file"]},"{row["text"]}",{row["speaker"]}' for row in ROWS]
    (folder / "metadata.csv").write_text("\n".join(["file_name,transcription,speaker", *lines]), encoding="utf-8")
    return [str(folder)]


def hub_layout(folder: Path) -> list[str]:
    """A folder as a repository on the Hub: configurations in the README, a file for every split."""
    (folder / "en").mkdir(parents=True)
    (folder / "de").mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files: de/*.parquet\n- config_name: en\n  data_files:\n"
        "  - {split: train, path: en/train.parquet}\n  - {split: validation, path: en/validation.parquet}\n---\n"
    )
    table().select(range(3)).to_parquet(folder / "en" / "train.parquet")
    table().select([3]).to_parquet(folder / "en" / "validation.parquet")
    table().select([0]).to_parquet(folder / "de" / "0.parquet")
    return [str(folder), "--config", "en", "--columns", "emotion=mood"]


KINDS = [metadata, ljspeech, ljspeech_list, kaldi, webdataset, parquet, saved, audiofolder, hub_layout]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Dataset:
    """The four clips through metadata.csv."""
    folder = tmp_path_factory.mktemp("reference")
    prepare.main(["--source", *metadata(folder / "corpus"), "--output", str(folder / "prepared")])
    return load_from_disk(str(folder / "prepared"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_corpus_gives_the_same_rows(kind: Callable[[Path], list[str]], reference, tmp_path):
    prepare.main(["--source", *kind(tmp_path / "corpus"), "--output", str(tmp_path / "prepared")])
    rows = load_from_disk(str(tmp_path / "prepared"))
    assert read_refused(tmp_path / "prepared") == []
    assert rows["id"][:] == [f"corpus/{name}" for name in IDS]
    # Where the list has no speaker the corpus is one voice.
    voices = [row["speaker"] for row in ROWS] if "ljspeech" not in kind.__name__ else ["corpus"] * 4
    assert rows["speaker"][:] == voices
    assert set(rows["source"][:]) == {"corpus"}
    for name in ("audio", "text", "seconds"):
        assert rows[name][:] == reference[name][:], name
    if kind in (parquet, saved, hub_layout):
        assert rows["emotion"][:] == ["calm", "cross", "calm", "cross"]
    if kind in (kaldi, webdataset):
        assert set(rows["language"][:]) == {"en"}
    assert rows["split"][:] == ["train"] * 3 + (["dev"] if kind is hub_layout else ["train"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_on_from_its_state(kind: Callable[[Path], list[str]], tmp_path):
    def opened() -> list[Corpus]:
        options = prepare.build_parser().parse_args(["--output", "x", "--source", *arguments])
        return open_corpora(arguments[0], CorpusOptions(config=options.config, columns=dict(options.columns)))

    arguments = kind(tmp_path / "corpus")
    whole = [row for corpus in opened() for row in corpus]
    for stop in range(len(whole)):
        first, *others = opened()
        if stop >= (3 if others else 4):
            continue
        stream = iter(first)
        before = [next(stream) for _ in range(stop)]
        state = json.loads(json.dumps(first.state()))
        again, *others = opened()
        again.resume(state)
        assert before + [row for corpus in [again, *others] for row in corpus] == whole


def test_a_corpus_on_the_hub_is_streamed_or_downloaded(reference, tmp_path, monkeypatch):
    """The Hub's part is played by a folder with the same layout, since no network is at hand."""
    hub_layout(tmp_path / "repository")
    calls = []

    def load(name: str, *arguments: str, **settings: bool):
        calls.append((name, *arguments, settings["streaming"]))
        return datasets.load_dataset(str(tmp_path / "repository"), *arguments, **settings)

    monkeypatch.setattr(corpora, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, extra in (("streamed", ["--streaming"]), ("downloaded", [])):
        source = ["--source", "someone/speech", "--config", "en", "--split", "train", *extra]
        prepare.main([*source, "--output", str(tmp_path / name)])
        rows = load_from_disk(str(tmp_path / name))
        assert rows["id"][:] == [f"speech/{stem}" for stem in IDS[:3]]
        assert rows["audio"][:] == reference["audio"][:3]
    assert calls == [("someone/speech", "en", True), ("someone/speech", "en", False)]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("owner/name", "datasets"),
        ("name", "datasets"),
        ("hf://datasets/owner/name/data/*.tar", "webdataset"),
        ("https://host/shard-000.tar.gz", "webdataset"),
        ("data/*.parquet", "parquet"),
    ],
)
def test_names_that_are_no_local_paths(source, kind):
    assert detect_format(source) == kind


def test_mistaken_sources_are_named(tmp_path):
    for source in ("/nowhere/at/all", "./nowhere", "some/path/to/nowhere"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            detect_format(source)
    (tmp_path / "notes.txt").write_text("Nothing of use.\n")
    with pytest.raises(ValueError, match=r"a list of id\|text"):
        detect_format(str(tmp_path / "notes.txt"))
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        detect_format(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="No shard"):
        open_corpora(f"{tmp_path}/*.tar", CorpusOptions())
    with pytest.raises(ValueError, match="Unknown format"):
        CorpusOptions(format="zip")
    (path,) = ljspeech(tmp_path / "corpus")
    with pytest.raises(ValueError, match="no splits of its own"):
        open_corpora(path, CorpusOptions(splits=["train"]))
    source, *_ = hub_layout(tmp_path / "repository")
    with pytest.raises(ValueError, match=r"has no splits \['test'\]; it has \['train', 'validation'\]"):
        open_corpora(source, CorpusOptions(config="en", splits=["test"], columns={"audio": "recording"}))


def test_missing_columns_are_named(tmp_path, caplog):
    folder = tmp_path / "corpus"
    folder.mkdir()
    Dataset.from_list([{"audio": {"bytes": b"", "path": "a.wav"}, "words": "A b."}]).to_parquet(folder / "0.parquet")
    with pytest.raises(ValueError, match=r"no column for text; it has \['audio', 'words'\]. .* --columns text=NAME"):
        open_corpora(f"{folder}/0.parquet", CorpusOptions())
    with pytest.raises(ValueError, match="Did you mean words"):
        open_corpora(f"{folder}/0.parquet", CorpusOptions(columns={"text": "word"}))
    with caplog.at_level(logging.INFO):
        (corpus,) = open_corpora(f"{folder}/0.parquet", CorpusOptions(columns={"text": "words"}))
    assert "corpus: text <- words" in caplog.text
    assert [row.text for row in corpus] == ["A b."]


def test_who_speaks_where_the_corpus_does_not_say(tmp_path):
    folder = copy_clips(tmp_path / "corpus")
    lines = [f'{row["file"]},"{row["text"]}"' for row in ROWS]
    (folder / "metadata.csv").write_text("\n".join(["file,text", *lines]), encoding="utf-8")
    for name, extra in (("unknown", []), ("known", ["--speaker", "anna", "--language", "en"])):
        prepare.main(["--source", str(folder), "--output", str(tmp_path / name), *extra])
    # Two clips of nobody in particular must not pass for the same voice.
    unknown = load_from_disk(str(tmp_path / "unknown"))
    assert unknown["speaker"][:] == unknown["id"][:]
    known = load_from_disk(str(tmp_path / "known"))
    assert set(known["speaker"][:]) == {"anna"} and set(known["language"][:]) == {"en"}


def test_a_split_column_is_kept(tmp_path):
    audio = {"bytes": b"-", "path": None}
    rows = [{"audio": audio, "text": "A.", "split": name} for name in ("validation", "x", "test")]
    Dataset.from_list(rows).save_to_disk(tmp_path / "corpus")
    (corpus,) = open_corpora(str(tmp_path / "corpus"), CorpusOptions())
    assert [row.split for row in corpus] == ["dev", None, "test"]
    (without,) = open_corpora(str(tmp_path / "corpus"), CorpusOptions(columns={"split": ""}))
    assert {row.split for row in without} == {None}


def parts_of_a_corpus(folder: Path, texts: dict[str, str], with_ids: bool = True) -> str:
    """A corpus that is saved in parts of these names, each with a row of its own text, its id being the text."""
    rows = {
        name: [{"audio": {"bytes": b"-", "path": None}, "text": text} | ({"id": text} if with_ids else {})]
        for name, text in texts.items()
    }
    DatasetDict({name: Dataset.from_list(part) for name, part in rows.items()}).save_to_disk(folder)
    return str(folder)


def found(source: str, *splits: str) -> list[tuple[str | None, str]]:
    corpora = open_corpora(source, CorpusOptions(splits=splits))
    prepare.Preparation(corpora, RowChecker(CheckSettings(tokenizer="none")), Splits(), SplitFractions())
    return [(row.split, row.id.partition("/")[2]) for corpus in corpora for row in corpus]


def test_several_parts_of_one_split_are_read_together(tmp_path):
    """As LibriTTS has them. Rows that are in two parts are found by their ids, and only by these."""
    names = ("train.clean.100", "train.clean.360", "dev.clean", "dev.other")
    libri = parts_of_a_corpus(tmp_path / "libri", {name: name for name in names})
    assert found(libri) == [(name.partition(".")[0], name) for name in names]
    assert found(libri, "train.clean.100", "train.clean.360") == [(None, name) for name in names[:2]]
    nameless = parts_of_a_corpus(tmp_path / "nameless", dict.fromkeys(names, "A."), with_ids=False)
    assert len({row_id for _, row_id in found(nameless)}) == 4
    # Two sources are not two parts of one.
    corpora = [corpus for _ in range(2) for corpus in open_corpora(libri, CorpusOptions())]
    with pytest.raises(ValueError, match=r"Several sources are called \['libri'\]"):
        prepare.Preparation(corpora, RowChecker(CheckSettings(tokenizer="none")), Splits(), SplitFractions())


def test_rejected_recordings_are_read_only_if_asked_for(tmp_path, caplog):
    names = ("train", "test", "validated", "invalidated", "other")
    voices = parts_of_a_corpus(tmp_path / "voices", {name: name for name in names})
    # Validated are also the clips of train and test, and other clips of the speakers of test.
    assert found(voices) == [("train", "train"), ("test", "test")]
    assert "['validated', 'invalidated', 'other'] are not read; --split" in caplog.text
    assert found(voices, "validated", "test") == [("test", "test"), ("train", "validated")]
    assert found(voices, "other") == [(None, "other")]
    accepted = parts_of_a_corpus(tmp_path / "accepted", {name: name for name in names[2:]})
    assert found(accepted) == [(None, "validated")]
    for texts in ({"en": "a", "de": "b"}, {"invalidated": "a"}):
        source = parts_of_a_corpus(tmp_path / "-".join(texts), texts)
        with pytest.raises(ValueError, match="none of which is called train, dev or test: name those to read with"):
            open_corpora(source, CorpusOptions())
    assert found(parts_of_a_corpus(tmp_path / "single", {"full": "a"})) == [(None, "a")]


def test_split_names_are_whole_words():
    names = {"train": ["train", "train.clean.100", "Training_2", "train-0001.tar", "train360", "validated"]}
    names |= {"dev": ["dev.other", "val", "validation", "valid-0.tar"], "test": ["test_clean", "eval-1", "Evaluation"]}
    names |= {None: ["invalidated", "other", "trains", "devices", "valued", "testimony", "", "0.tar"]}
    for split, members in names.items():
        assert {name: standard_split(name) for name in members} == dict.fromkeys(members, split)


def test_rows_of_a_rejected_split_are_refused(tmp_path):
    folder = copy_clips(tmp_path / "corpus")
    splits = ("train", "invalidated", "dev", "other")
    lines = [f'{row["file"]},"{row["text"]}",anna,{split}' for row, split in zip(ROWS, splits, strict=True)]
    (folder / "metadata.csv").write_text("\n".join(["file,text,speaker,split", *lines]), encoding="utf-8")
    prepare.main(["--source", str(folder), "--output", str(tmp_path / "prepared")])
    assert load_from_disk(str(tmp_path / "prepared"))["split"][:] == ["train", "dev"]
    refused = read_refused(tmp_path / "prepared")
    assert [row["check"] for row in refused] == ["not accepted"] * 2 and "'invalidated'" in refused[0]["reason"]


# ---------------------------------------------------------------- metadata.csv


def test_clips_of_the_same_name_in_two_folders_are_two(tmp_path):
    """And an id column is the user's own; Excel's mark before the first column is no part of its name."""
    for index, name in enumerate(("alice", "bob")):
        (tmp_path / "corpus" / name).mkdir(parents=True)
        shutil.copyfile(CLIPS / ROWS[index]["file"], tmp_path / "corpus" / name / "001.opus")
    lines = [f'{name}/001.opus,"{row["text"]}",{name}' for name, row in zip(("alice", "bob"), ROWS, strict=False)]
    table = tmp_path / "corpus" / "metadata.csv"
    table.write_text("\n".join(["file,text,speaker", *lines]), encoding="utf-8-sig")
    prepare.main(["--source", str(tmp_path / "corpus"), "--output", str(tmp_path / "prepared")])
    assert load_from_disk(str(tmp_path / "prepared"))["id"][:] == ["corpus/alice/001", "corpus/bob/001"]
    own = [f"{line},{row_id}" for line, row_id in zip(lines, ("one", ""), strict=True)]
    table.write_text("\n".join(["file,text,speaker,id", *own]), encoding="utf-8")
    prepare.main(["--source", str(tmp_path / "corpus"), "--output", str(tmp_path / "named")])
    assert load_from_disk(str(tmp_path / "named"))["id"][:] == ["corpus/one", "corpus/bob/001"]


# ---------------------------------------------------------------- lists


def read_list(folder: Path, lines: list[str], **columns: str) -> list[tuple[str, str]]:
    """Text and speaker of each row of a list with these lines."""
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    (corpus,) = open_corpora(str(folder / "list.csv"), CorpusOptions(columns=columns))
    return [(row.text, row.speaker) for row in corpus]


SPOKEN = [(row["text"], name) for row, name in zip(ROWS, ("anna", "ben", "anna", "ben"), strict=True)]


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("wavs/{0}.opus|{2}|{1}", None),
        ("{0}.opus|{1}|{2}", None),
        ("{0}|{2}|{3}|{1}", None),
        ("{0}.opus|{1}|{2}|calm", "audio_file|text|speaker_name|emotion_name"),
        ("{2}|{1}|{0}", "speaker|text|id"),
        ("{1}|{0}|{2}", "Words|audio_file|speaker_name"),
    ],
)
def test_the_speakers_of_a_list_are_not_spoken(line, first, tmp_path):
    """As Piper, VITS and Coqui have them."""
    copy_clips(tmp_path / "corpus" / "wavs")
    lines = [first] if first else []
    lines += [line.format(name, text, who, text.upper()) for name, (text, who) in zip(IDS, SPOKEN, strict=True)]
    asked = {"text": "Words"} if first and "Words" in first else {}
    assert read_list(tmp_path / "corpus", lines, **asked) == SPOKEN
    opened = open_corpora(str(tmp_path / "corpus" / "list.csv"), CorpusOptions(columns=asked))
    assert [row.emotion for row in opened[0]] == ["calm" if first and "emotion" in first else ""] * 4
    assert all(Path(row.audio).is_file() and not row.problem for row in opened[0])


def test_a_list_whose_columns_do_not_tell_themselves_apart_is_refused(tmp_path):
    names = ("anna", "ben", "carl", "dora")
    lines = [f"{name}|{who}|{text}" for name, who, (text, _) in zip(IDS, names, SPOKEN, strict=True)]
    with pytest.raises(ValueError, match=rf"first line is \"{IDS[0]}\|anna\|.*--columns text=2 speaker=3"):
        read_list(tmp_path, lines)
    said = [(text, who) for who, (text, _) in zip(names, SPOKEN, strict=True)]
    assert read_list(tmp_path, lines, text="3", speaker="2") == said
    assert read_list(tmp_path, lines, speaker="2") == said
    # Two columns of labels may be speaker and language, or anything.
    labels = [f"{name}|{who}|en|{text}" for name, (text, who) in zip(IDS, SPOKEN, strict=True)]
    with pytest.raises(ValueError, match="which of its columns, 4,"):
        read_list(tmp_path, labels)
    assert read_list(tmp_path, labels, speaker="2", language="3") == SPOKEN


def test_lines_of_a_list_that_are_not_like_the_others(tmp_path):
    copy_clips(tmp_path / "corpus")
    lines = [f"{name}|{text}|{who}" for name, (text, who) in zip(IDS, SPOKEN, strict=True)]
    lines += [f"{IDS[0]}|No speaker.", f"{IDS[0]}|One|more|anna"]
    (tmp_path / "corpus" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    (corpus,) = open_corpora(str(tmp_path / "corpus"), CorpusOptions())
    problems = [f"the line has {count} columns, the list 3" for count in (2, 4)]
    assert [row.problem for row in corpus] == [""] * 4 + problems
    # LJSpeech's normalised text may be left out.
    short = [
        f"{IDS[0]}|{SPOKEN[0][0]}",
        *(f"{name}|{text}|{text}" for name, (text, _) in zip(IDS, SPOKEN, strict=True)),
    ]
    assert [text for text, _ in read_list(tmp_path / "corpus", short)] == [SPOKEN[0][0], *(text for text, _ in SPOKEN)]


# ---------------------------------------------------------------- Kaldi


def test_kaldi_segments_are_cut_and_commands_are_not_run(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    waves = [np.sin(2 * np.pi * f * np.arange(16000) / 16000) for f in (300, 1200)]
    soundfile.write(folder / "long.wav", 0.3 * np.concatenate(waves), 16000)
    (folder / "wav.scp").write_text(f"long long.wav\npipe touch {tmp_path}/ran |\ngone gone.wav\n")
    (folder / "segments").write_text("a long 0.0 0.9\nb long 1.1 2.0\nc long 2 x\nd pipe 0 1\ne gone 0 1\nf lost 0 1\n")
    (folder / "text").write_text("".join(f"{key} Some words\n" for key in "abcdefg"))
    prepare.main(["--source", str(folder), "--output", str(tmp_path / "prepared"), "--tokenizer", "none"])
    rows = load_from_disk(str(tmp_path / "prepared"))
    assert rows["id"][:] == ["corpus/a", "corpus/b"]
    assert rows["seconds"][:] == pytest.approx([0.9, 0.9], abs=0.02)
    for row, frequency in zip(rows, (300, 1200), strict=True):
        samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        peak = np.abs(np.fft.rfft(samples)).argmax() * 16000 / len(samples)
        assert peak == pytest.approx(frequency, abs=5)
    reasons = {row["id"][-1]: row["reason"] for row in read_refused(tmp_path / "prepared")}
    assert reasons.keys() == set("cdefg")
    assert "no time span" in reasons["c"] and "a command" in reasons["d"] and "missing: gone.wav" in reasons["e"]
    assert "no recording" in reasons["f"] and reasons["g"] == "not in segments"
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- tar shards


def test_shards_of_rejected_clips_are_left_out(tmp_path, caplog):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, index in (("train-0", 0), ("train_1", 1), ("invalidated-0", 2), ("other-0", 3)):
        write_shard(folder / f"{name}.tar", [tar_sample(IDS[index], ROWS[index])])
    assert found(str(folder)) == [(None, name) for name in IDS[:2]]
    assert "['invalidated', 'other'] are not read" in caplog.text
    assert found(str(folder), "train", "other") == [(None, name) for name in (*IDS[:2], IDS[3])]
    # Shards that are called after nothing in particular are all of one corpus.
    for path, name in zip(sorted(folder.glob("*.tar")), ("part-0", "part-1", "2", "anna"), strict=True):
        path.rename(folder / f"{name}.tar")
    assert len(found(str(folder))) == 4


def test_a_damaged_shard_costs_only_what_is_damaged(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    samples = [tar_sample(name, row) for name, row in zip(IDS, ROWS, strict=True)]
    samples[1][f"{IDS[1]}.json"] = b"{not json"
    samples[2][f"{IDS[2]}.txt"] = b"\xff\xfe\xfd"
    write_shard(folder / "0.tar", samples[:3])
    write_shard(folder / "1.tar", [{"x/lost.opus": noise(1.0).tobytes(), "x/lost.txt": b"Lost."}])
    whole = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(whole[:4096])
    write_shard(folder / "2.tar", [samples[3], {"folder/silent.json": b'{"text": "No sound.", "language": "en"}'}])
    prepare.main(["--source", str(folder), "--output", str(tmp_path / "prepared")])
    rows = load_from_disk(str(tmp_path / "prepared"))
    assert rows["id"][:] == [f"corpus/{IDS[0]}", f"corpus/{IDS[3]}"]
    refused = [(row["id"], row["reason"]) for row in read_refused(tmp_path / "prepared")]
    assert [row_id for row_id, _ in refused] == [
        *(f"corpus/{name}" for name in IDS[1:3]),
        "corpus/1.tar after x/lost",
        "corpus/folder/silent",
    ]
    assert "json cannot be read" in refused[0][1] and "the shard breaks off" in refused[2][1]


def test_shards_are_split_by_their_names(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, index in (("train-0", 0), ("train-1", 1), ("valid-0", 2), ("test-0", 3)):
        write_shard(folder / f"{name}.tar", [tar_sample(IDS[index], ROWS[index])])
    found = {corpus.split: [row.id for row in corpus] for corpus in open_corpora(f"{folder}/*.tar", CorpusOptions())}
    first, second, third, fourth = (f"corpus/{name}" for name in IDS)
    assert found == {"train": [first, second], "dev": [third], "test": [fourth]}
    (chosen,) = open_corpora(str(folder), CorpusOptions(splits=["dev"]))
    assert [row.id for row in chosen] == [third]
    (remote,) = open_corpora(f"file://{folder}/valid-0.tar", CorpusOptions())
    assert [row.id for row in remote] == [third]
