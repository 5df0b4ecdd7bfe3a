"""Mandarin and mixed text, its vocabulary, and pronunciations in braces."""

import itertools
import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoProcessor, AutoTokenizer

from e2e_tts.modeling import mandarin_frontend, mandarin_normalization
from e2e_tts.modeling.mandarin_frontend import known_syllables, syllable_symbols
from e2e_tts.modeling.mandarin_normalization import normalize_mandarin
from e2e_tts.modeling.phoneme_symbols import ENGLISH_PHONEMES, FINALS, MANDARIN_SYMBOLS, TONES
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor
from e2e_tts.modeling.pronunciation import CMU_PHONEMES, take_pronunciations
from e2e_tts.modeling.text_frontend import TextFrontend, build_phoneme_tokenizer, phoneme_vocabulary_size

SENTENCES = [
    "他在银行工作了2年，每月挣¥8,500；昨天（5月1日）7:45才下班！",
    "我用iPhone 15 Pro Max给John Smith打电话，他说：“Hello, world! I have 3 apples.”真的吗？",
    "气温-5°C到25℃，速度60km/h，增长35%……",
    "請到重慶路123號，電話13800138000。",
    "嗯，哼，诶！绿色的女儿，月圆之夜，儿子学会了迂回。",
    "T恤、卡拉OK和AT&T；C++、MP3、5G网络。",
]


@pytest.fixture(scope="module")
def frontend() -> TextFrontend:
    return TextFrontend(language="zh")


@pytest.fixture(scope="module")
def english() -> TextFrontend:
    return TextFrontend()


def pinyin(syllables: str) -> str:
    """ "ni3 hao3" -> the symbols of a text that is spoken so."""
    return " ".join(syllable_symbols(syllable) for syllable in syllables.split()) + " ."


# ---- Mandarin


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("我在银行", "wo3 zai4 yin2 hang2"),
        ("他在路上行走", "ta1 zai4 lu4 shang4 xing2 zou3"),
        ("孩子长大了", "hai2 zi5 zhang3 da4 le5"),
        ("长江", "chang2 jiang1"),
        ("音乐快乐", "yin1 yue4 kuai4 le4"),
        ("重庆很重要", "chong2 qing4 hen3 zhong4 yao4"),
        ("銀行還錢", "yin2 hang2 huan2 qian2"),
        ("你好", "ni2 hao3"),
        ("不是一个", "bu2 shi4 yi2 ge4"),
        ("一起", "yi4 qi3"),
        ("绿色", "lv4 se4"),
        ("嗯", "en2"),
        ("我们 一起去", "wo3 men5 yi4 qi3 qu4"),
        ("“苹果”和《西游记》", "ping2 guo3 he2 xi1 you2 ji4"),
    ],
)
def test_readings(frontend, written, spoken):
    assert frontend(written) == pinyin(spoken)


@pytest.mark.parametrize(
    ("syllable", "symbols"),
    [
        ("hao3", "h- -ao 3"),
        ("zhi1", "zh- -i 1"),
        ("yuan2", "-van 2"),
        ("wu3", "-u 3"),
        ("jiu3", "j- -iou 3"),
        ("xue2", "x- -ve 2"),
        ("lü4", "l- -v 4"),
        ("lu:4", "l- -v 4"),
        ("er2", "-er 2"),
        ("huar1", "h- -ua 1 -er 5"),
        ("ng2", "-en 2"),
    ],
)
def test_syllables(syllable, symbols):
    assert syllable_symbols(syllable) == symbols


def test_the_inventory_is_what_pypinyin_can_say():
    found = set()
    for syllable, tone in itertools.product(known_syllables(), TONES):
        found.update(syllable_symbols(syllable + tone).split())
    assert found == set(MANDARIN_SYMBOLS)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("120人", "一百二十人"),
        ("3.14", "三点一四"),
        ("1,234,567元", "一百二十三万四千五百六十七元"),
        ("10010", "一万零一十"),
        ("-5度", "负五度"),
        ("007", "零零七"),
        ("１２３", "一百二十三"),
        ("2个人，第2个，12个，2月", "两个人, 第二个, 十二个, 二月"),
        ("2024年5月1日", "二零二四年五月一日"),
        ("2024-05-01", "二零二四年五月一日"),
        ("5000年历史", "五千年历史"),
        ("90后", "九零后"),
        ("7:45、2:30、8:05、9:00", "七点四十五分、两点三十分、八点零五分、九点"),
        ("比分3:2", "比分三比二"),
        ("$5.30，¥3.50，€20", "五点三美元, 三点五元, 二十欧元"),
        ("$5万", "五万美元"),
        ("35%，10%-20%", "百分之三十五, 百分之十到百分之二十"),
        ("100号，205号，2005号文件", "一百号, 二百零五号, 二千零五号文件"),
        ("第100日，200日，05月01日", "第一百日, 二百日, 五月一日"),
        ("利润增长-3.5%，-5‰，同比-12%", "利润增长负百分之三点五, 负千分之五, 同比负百分之十二"),
        ("-10%-20%，3 - 5%", "负百分之十到百分之二十, 百分之三到百分之五"),
        ("-10~-5%，从-5%到-3%", "负百分之十到负百分之五, 从负百分之五到负百分之三"),
        ("温度是-5到-3度，第3天为-5度", "温度是负五到负三度, 第三天为负五度"),
        ("-5°C，25℃", "零下五摄氏度, 二十五摄氏度"),
        ("5kg，60km/h，100m²，250ml", "五千克, 六十公里每小时, 一百平方米, 二百五十毫升"),
        ("5G，iPhone 5s", "五G, iPhone 5s"),
        ("10~20公里，3-5天", "十到二十公里, 三到五天"),
        ("9:30-11:00，-10℃~5℃", "九点三十分到十一点, 零下十摄氏度到五摄氏度"),
        ("A-3座", "A 三座"),
        ("1/2，3½", "二分之一, 三又二分之一"),
        ("1+1=2，3-2=1", "一加一等于二, 三减二等于一"),
        ("13800138000", "幺三八零零幺三八零零零"),
        ("138 0013 8000，138-0013-8000", "幺三八零零幺三八零零零, 幺三八零零幺三八零零零"),
        ("010 1234 5678", "零幺零幺二三四五六七八"),
        ("400 820 8820，100 200 3000", "四零零八二零八八二零, 一百 二百 三千"),
        ("010-12345678", "零幺零幺二三四五六七八"),
        ("G1234次", "G一二三四次"),
        ("版本1.2.3", "版本一点二点三"),
        ("用iPhone 15 Pro", "用iPhone 15 Pro"),
        ("5€，20 $，5万€，10-20£", "五欧元, 二十美元, 五万欧元, 十到二十英镑"),
        ("$5 10元", "五美元十元"),
        ("1990s的音乐，2010年代，30s", "一九九零年代的音乐, 二零一零年代, 三十秒"),
        ("3*4=12，2^8，5 > 3", "三乘以四等于十二, 二的八次方, 五大于三"),
    ],
)
def test_written_forms(written, spoken):
    assert normalize_mandarin(written) == spoken


def test_symbols_of_a_text(frontend):
    assert frontend("你好，世界！") == "n- -i 2 h- -ao 3 , | sh- -i 4 j- -ie 4 !"
    assert frontend("好。好") == frontend("好.\n好。") == "h- -ao 3 . | h- -ao 3 ."
    assert frontend("好？！") == frontend("好！？") == "h- -ao 3 ?"
    assert frontend("一\n\n二") == "-i 1 . | -er 4 ."
    known = set(frontend.symbols("zh"))
    for sentence in SENTENCES:
        symbols = frontend(sentence).split()
        assert set(symbols) <= known and symbols[-1] in (".", "?", "!") and symbols[0] != "|"
        assert not any(first == second == "|" for first, second in pairwise(symbols))
        assert not set(frontend.recognition_symbols(" ".join(symbols)).split()) & set(",.?!;:ˈˌ")


def test_recognition_keeps_tones_and_has_boundaries_beside_english_only(frontend):
    symbols = frontend("你好，世界！Hello, my world。对")
    assert frontend.recognition_symbols(symbols) == (
        "n- -i 2 h- -ao 3 sh- -i 4 j- -ie 4 | h ɛ l oʊ | m aɪ | w ɚ l d | d- -uei 4"
    )


# ---- mixed text


def test_english_words_sound_as_in_english(frontend, english):
    hello = english("Hello world").removesuffix(" .")
    assert frontend("他说Hello world。") == f"t- -a 1 sh- -uo 1 | {hello} ."
    assert frontend("John Smith来了").startswith(english("John Smith").removesuffix(".") + "| l- -ai 2")
    assert frontend("在U.S.工作") == "z- -ai 4 | j ˈu | ˈɛ s | g- -ong 1 z- -uo 4 ."
    assert frontend("A股") == "ˈeɪ | g- -u 3 ."
    for sentence in ("I paid $3.50 at 7:45 a.m. to Dr. Smith, e.g. 5kg.", "NASA!"):
        assert frontend(sentence) == english(sentence)


def test_numbers_are_read_in_the_language_around_them(frontend, english):
    three = english("three").removesuffix(" .")
    assert three in frontend("I have 3 apples. 我也是。") and three in frontend("用iPhone 3 Pro打电话")
    assert "s- -an 1" in frontend("我有3个苹果。 So do I.") and "s- -an 1" in frontend("MP3坏了")
    assert frontend("25%") == frontend("百分之二十五")


@pytest.mark.parametrize("text", ["!?", "Привет", "カラオケ", "😀"])
def test_nothing_to_speak(frontend, text):
    with pytest.raises(ValueError, match="Mandarin frontend"):
        frontend(text)


def test_what_cannot_be_spoken_is_reported_every_time(frontend):
    readings = mandarin_normalization.load_package("pypinyin.constants").PINYIN_DICT
    unread = next(chr(code) for code in range(0x20000, 0x2FFFF) if code not in readings and chr(code).isalpha())
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"カラオケ, 😀, {unread}, Привет") as found:
            assert frontend(f"好カラオケ店😀{unread}，Привет，ok好") == frontend("好店，ok好")
        assert len(found) == 1


def test_ordinary_text_does_not_warn(frontend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sentence in SENTENCES:
            frontend(sentence)


@pytest.mark.parametrize("missing", ["pypinyin", "cn2an", "opencc"])
def test_missing_packages_say_how_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    mandarin_frontend.mandarin_words.cache_clear()
    mandarin_frontend._simplifier.cache_clear()
    with pytest.raises(ImportError, match=rf"Mandarin needs {missing}.*pip install"):
        TextFrontend(language="zh")("今天1号")


# ---- pronunciations


def test_cmu_phonemes_are_the_english_inventory():
    unstressed = {symbol for symbol in ENGLISH_PHONEMES if symbol != "ʌ"}
    assert set(CMU_PHONEMES.values()) == unstressed


def test_pronunciations_of_english(english, frontend):
    assert english("{HH EH0 L OW1} world") == english("{HH EH0 L OW1 | W ER1 L D}") == english("Hello world")
    assert english("{HH AH0 L OW1}, world!") == "h ə l ˈoʊ , | w ˈɚ l d !"
    assert english("The {K AE1 T}'s and the {M AW1 S}'s {T EY1 L}") == (
        "ð ə | k ˈæ t s | ˈæ n d | ð ə | m ˈaʊ s ɪ z | t ˈeɪ l ."
    )
    # Eleven of them, glued to words: none is lost, none mixed up with another.
    words = "".join(f"{{{name}}}x" for name in ("B", "D", "F", "G", "K", "L", "M", "N", "P", "S", "T"))
    assert english(words) == " | ".join(f"{CMU_PHONEMES[name]} | ˈɛ k s" for name in "BDFGKLMNPST") + " ."
    assert frontend("{HH AH0 L OW1}, world!") == english("{HH AH0 L OW1}, world!")


def test_a_released_checkpoint_takes_pronunciations():
    processor = AutoProcessor.from_pretrained(Path(__file__).parents[2] / "model_cards" / "small-en")
    given, written = (processor(text=text)["text_ids"] for text in ("{HH EH0 L OW1 | W ER1 L D}!", "Hello world!"))
    assert given.tolist() == written.tolist()
    with pytest.raises(ValueError, match="Mandarin vocabulary"):
        processor(text="{ni3 hao3}")


def test_pronunciations_of_mandarin(frontend):
    # Taken as they are: no sandhi, and no boundary to the Mandarin around.
    assert frontend("{ni3 hao3}世界") == "n- -i 3 h- -ao 3 sh- -i 4 j- -ie 4 ."
    assert frontend("{ni3hao3}世界") == frontend("{ni3 hao3}世界")
    assert frontend("银{xing2}") == "-in 2 x- -ing 2 ."
    assert frontend("你好{HH AH0 L OW1}吗") == "n- -i 2 h- -ao 3 | h ə l ˈoʊ | m- -a 5 ."
    assert frontend("{ni3 hao3} 3") == "n- -i 3 h- -ao 3 s- -an 1 ."
    assert frontend("say {ni3 hao3} to John") == "s ˈeɪ | n- -i 3 h- -ao 3 | t ə | d͡ʒ ˈɑ n ."


@pytest.mark.parametrize(
    ("text", "language", "message"),
    [
        ("{HH AH0 L OWW1}", "en", r"Unknown phoneme 'OWW1' in {HH AH0 L OWW1}; did you mean OW1"),
        ("{hh AH0}", "en", "'hh'.*did you mean HH.*capitals"),
        ("{K1}", "zh", "Unknown phoneme 'K1'"),
        ("{K AE T}", "en", "AE in {K AE T} needs a stress digit"),
        ("say {HH AH0 L", "en", "no closing brace"),
        ("{HH {K AE1 T}", "en", "no closing brace"),
        ("{ni3 hao3}", "en", "'ni3'.*needs a Mandarin vocabulary.*CMU"),
        ("{nii3}", "zh", "Unknown pinyin 'nii3'.*did you mean ni3"),
        ("{ni6}", "zh", "Unknown pinyin 'ni6'.*tone from 1 to 5"),
        ("{Ni3}", "zh", "Unknown pinyin 'Ni3'.*did you mean ni3"),
        ("{ni hao}", "zh", "Unknown pinyin 'ni'.*tone"),
    ],
)
def test_wrong_pronunciations_say_what_to_write(text, language, message):
    with pytest.raises(ValueError, match=message):
        TextFrontend(language=language)(text)


def test_other_braces_are_brackets(english):
    for text in ("{name} is {some one}", "\\frac{1}{2} {", "{} } {"):
        assert take_pronunciations(text, "en") == (text, ())
    assert english("{name} is, {here") == english("name is, here")


def test_plain_text_warns_of_pronunciations():
    with pytest.warns(UserWarning, match="phoneme frontend"):
        assert TextFrontend("none")("say {HH AH0}") == "say {HH AH0}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextFrontend("none")("{name} says")


# ---- vocabulary and processor


def test_the_mandarin_vocabulary_begins_with_the_english_one(frontend, tmp_path):
    english, tokenizer = build_phoneme_tokenizer(), build_phoneme_tokenizer("zh")
    assert len(tokenizer) == phoneme_vocabulary_size("zh") == 79 + 21 + len(FINALS) + len(TONES)
    assert tokenizer.convert_ids_to_tokens(list(range(79))) == english.convert_ids_to_tokens(list(range(79)))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for sentence in SENTENCES:
        symbols = frontend(sentence)
        ids = tokenizer(symbols)["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == symbols
        assert again(symbols)["input_ids"] == ids


def test_processor_round_trip(frontend, tmp_path):
    processor = TextToSpeechProcessor.build(language="zh")
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.language == again.text_frontend.language == "zh"
    batch = again(text=["你好，world！", "{ni3 hao3}"])
    assert again.tokenizer.decode(batch["text_ids"][0]) == "n- -i 2 h- -ao 3 , | w ˈɚ l d !"
    assert batch["text_mask"].sum(dim=1).tolist() == [13, 7]
    labels, lengths = again.ctc_labels("你好，world！")
    assert lengths.tolist() == [11] and int(labels.max()) < again.ctc_vocab_size == 141
    assert again.ctc_decode(labels) == ["n- -i 2 h- -ao 3 | w ɚ l d"]
    with pytest.raises(ValueError, match=re.escape("79 symbols, but the language 'zh' needs 141")):
        TextToSpeechProcessor(processor.feature_extractor, build_phoneme_tokenizer(), language="zh")
