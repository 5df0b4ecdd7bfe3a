"""Mandarin clean-up before pinyin: numbers, dates, times, money, percentages, units and signs become Chinese words.

cn2an writes the numbers; what stands around them decides which way they are read.
"""

import re
import unicodedata
from importlib import import_module
from typing import Any

HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f"
_NUMBER = r"\d+(?:\.\d+)?"
_TO = r"\s?[-~–—]\s?"
# English words in a row, with the numbers between them: "iPhone 15 Pro", "AT&T", "a@b.org", "U.S.".
_JOINER = r"[ '’&.\-/+@_]"
_ENGLISH_PART = rf"[{LATIN}]+|[\d.,:]*\d(?={_JOINER}*[{LATIN}])"
ENGLISH_RUN = re.compile(rf"([{LATIN}]+(?:{_JOINER}*(?:{_ENGLISH_PART}))*(?:(?<=\.[A-Z])\.)?)")

_UNITS = {
    "km/h": "公里每小时",
    "m/s": "米每秒",
    "km2": "平方公里",
    "cm2": "平方厘米",
    "m2": "平方米",
    "m3": "立方米",
    "cm3": "立方厘米",
    "km": "公里",
    "cm": "厘米",
    "mm": "毫米",
    "nm": "纳米",
    "kg": "千克",
    "mg": "毫克",
    "ml": "毫升",
    "kwh": "千瓦时",
    "kw": "千瓦",
    "mah": "毫安时",
    "khz": "千赫兹",
    "mhz": "兆赫兹",
    "ghz": "吉赫兹",
    "hz": "赫兹",
    "kcal": "千卡",
    "kpa": "千帕",
    "hpa": "百帕",
    "db": "分贝",
    "ms": "毫秒",
    "min": "分钟",
    "°c": "摄氏度",
    "°f": "华氏度",
    "°": "度",
}
# Of a single letter capitals mean something else ("5G"), and so does a letter after a name ("iPhone 5s").
_LETTER_UNITS = {"m": "米", "g": "克", "t": "吨", "h": "小时", "s": "秒", "l": "升", "L": "升", "V": "伏"}
_UNIT = re.compile(
    rf"(?<=\d)\s?({'|'.join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))})(?![A-Za-z])",
    re.IGNORECASE,
)
_LETTER_UNIT = re.compile(rf"(?<![\d.A-Za-z])(?<![A-Za-z]\s)({_NUMBER})\s?([{''.join(_LETTER_UNITS)}])(?![A-Za-z])")
_CURRENCIES = {"HK$": "港元", "US$": "美元", "$": "美元", "¥": "元", "€": "欧元", "£": "英镑", "₩": "韩元", "₹": "卢比"}
_MONEY = re.compile(
    rf"({'|'.join(re.escape(sign) for sign in _CURRENCIES)})\s?({_NUMBER}(?:{_TO}{_NUMBER})?)\s?([百千万亿]*)"
)
_MONEY_SIGN_LAST = re.compile(
    rf"(?<![\d.])({_NUMBER}(?:{_TO}{_NUMBER})?)\s?([百千万亿]*)\s?({'|'.join(map(re.escape, _CURRENCIES))})(?!\s?\d)"
)
_SIGNS = {
    **{"+": "加", "=": "等于", "×": "乘以", "÷": "除以", "±": "正负", "&": "和", "@": " at ", "%": "百分号"},
    **{"≈": "约等于", "≠": "不等于", "≥": "大于等于", "≤": "小于等于", "²": "的平方", "³": "的立方", "→": ","},
}
# Elsewhere these are marks of another kind: a bullet, an arrow.
_BETWEEN_NUMBERS = {"*": "乘以", ">": "大于", "<": "小于"}
# What stands after a number of two that is read 两 and not 二.
_MEASURES = (
    "个|只|条|张|块|瓶|杯|碗|盒|包|份|本|辆|台|匹|头|位|亩|件|家|岁|斤|公斤|公里|公分|千米|千克|千瓦|米|厘米|毫米|吨|升|毫升|元|美元|"
    "欧元|英镑|港元|天|周|年(?!级)|小时|分钟|秒|倍|次|人|名|遍|种|双|对|套|把|座|支|篇|句|场|部|间|棵|朵|颗|排|组|队|顿|趟|度|平方米|"
    "立方米|平方公里|万|千|亿|点"
)
_PHONE = re.compile(
    r"(?<![\d.])(?:(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}|0\d{2,3}[- ]\d{3,4}[- ]?\d{4}|400[- ]?\d{3}[- ]?\d{4}|"
    r"\d+(?:-\d+){2,})(?![\d.])"
)
_WIDE_PUNCTUATION = str.maketrans({"，": ", ", "：": ":", "．": ".", "　": " "})


def normalize_mandarin(text: str) -> str:
    """A sentence in which only Chinese, English words and punctuation are left where there were numbers and signs.

    Numbers inside a run of English words stay for the English frontend.
    """
    text = _write_units(_clean(text))
    pieces = ENGLISH_RUN.split(text)
    return "".join(piece if index % 2 else _write_numbers(piece) for index, piece in enumerate(pieces))


def say(number: str) -> str:
    """A number as its value, "120" -> 一百二十; digit by digit where it begins with zero or is too long for cn2an."""
    whole = number.partition(".")[0]
    if len(whole) > 16 or (len(whole) > 1 and whole.startswith("0")):
        return say_digits(number)
    return load_package("cn2an").an2cn(number, "low")


def say_digits(digits: str) -> str:
    """Digit by digit: "2024" -> 二零二四."""
    return load_package("cn2an").an2cn(digits, "direct")


def load_package(name: str) -> Any:
    """A package that only Mandarin needs. Raises ImportError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"Mandarin needs {name}. Install: pip install pypinyin cn2an opencc") from error


def _clean(text: str) -> str:
    """One form of every character: digits and letters of full width, signs, spaces, superscripts of units."""
    # A full-width comma separates clauses, never thousands.
    text = text.translate(_WIDE_PUNCTUATION)
    text = re.sub(r"(\d\s?[kc]?m)([²³])", lambda match: match[1] + unicodedata.normalize("NFKC", match[2]), text)
    text = re.sub(r"(?<=\d)(?=[½¼¾⅓⅔⅛])", "又", text)
    out: list[str] = []
    for character in text:
        if character in _SIGNS or character == "…":
            out.append(character)
            continue
        for part in unicodedata.normalize("NFKC", character):
            out.append(str(unicodedata.decimal(part)) if part.isdecimal() else part)
    # "½" has become "1⁄2", and "−" is a minus.
    return re.sub(r"(\d),(?=\d{3}(?!\d))", r"\1", "".join(out).replace("⁄", "/").replace("−", "-"))


def _write_units(text: str) -> str:
    """What is written in Latin letters or signs around a number: units, money, codes."""
    text = re.sub(rf"(?<![A-Za-z\d.)])-\s?(?={_NUMBER}\s?°)", "零下", text)
    text = _MONEY.sub(lambda match: f"{_short(match[2])}{match[3]}{_CURRENCIES[match[1]]}", text)
    text = _MONEY_SIGN_LAST.sub(lambda match: f"{_short(match[1])}{match[2]}{_CURRENCIES[match[3]]}", text)
    # Years, before their letter is taken for seconds; `_write_dates` reads the digits.
    text = re.sub(r"(?<![\d.])((?:1\d|20)\d0)'?s(?![A-Za-z])(?:\s?年代)?", r"\1年代", text)
    text = _UNIT.sub(lambda match: _UNITS[match[1].lower()], text)
    text = _LETTER_UNIT.sub(lambda match: match[1] + _LETTER_UNITS[match[2]], text)
    text = re.sub(r"(?<![A-Za-z])[Nn]o\.\s?(?=\d)", "第", text)
    text = re.sub(r"#\s?(\d+)", r"\1号", text)
    # Flights, trains, models: "CA1234". A hyphen after letters is no minus.
    text = re.sub(rf"(?<=[{LATIN}])-(?=\d)", " ", text)
    return re.sub(rf"(?<=[{LATIN}])(\d{{3,}})(?![\d.])", lambda match: say_digits(match[1]), text)


def _write_numbers(text: str) -> str:
    """Everything with digits, and the signs between them, as Chinese words."""
    text = _PHONE.sub(_phone, _write_dates(_write_times(text)))
    # Behind a percentage or a number it is a range: "10%-20%", "3 - 5%".
    percentage = rf"{_NUMBER}(?:{_TO}-?{_NUMBER})?\s?[%‰]"
    text = re.sub(rf"(?<![A-Za-z\d)%‰])(?<![\d%‰]\s)-\s?(?={percentage})", "负", text)
    text = re.sub(rf"({_NUMBER})%?{_TO}(负?)({_NUMBER})%", r"百分之\1到\2百分之\3", text)
    text = re.sub(rf"({_NUMBER})\s?%", r"百分之\1", text)
    text = re.sub(rf"({_NUMBER})\s?‰", r"千分之\1", text)
    # Beside an equals sign a hyphen is a minus, elsewhere between numbers a range.
    text = re.sub(rf"({_NUMBER})\s?-\s?(?={_NUMBER}\s?=)", r"\1减", text)
    text = re.sub(rf"(?<=\d)\s?\^\s?({_NUMBER})", r"的\1次方", text)
    for sign, words in _BETWEEN_NUMBERS.items():
        text = re.sub(rf"(?<=\d)\s?{re.escape(sign)}\s?(?=\d)", words, text)
    # Behind a word that joins or compares, a hyphen is a minus: "-5到-3度".
    text = re.sub(rf"(?<=\d)([{HAN}]{{0,4}})(?<![到至和与或为是比]){_TO}(?=\d|零下)", r"\1到", text)
    text = re.sub(r"(?<![A-Za-z\d)])-\s?(?=\d)", "负", text)
    text = re.sub(r"(?<![\d.])(\d+)/(\d+)(?![\d.])", r"\2分之\1", text)
    text = re.sub(r"\d+(?:\.\d+){2,}", lambda match: "点".join(say(part) for part in match[0].split(".")), text)
    text = re.sub(r"(?<![\d.第])2(?=\s?(?:" + _MEASURES + "))", "两", text)
    text = re.sub(r"(?<![\d.])\d{10,}(?![\d.]|\s?[万亿元人个年])", lambda match: say_digits(match[0]), text)
    text = re.sub(_NUMBER, lambda match: say(match[0]), text)
    for sign, words in _SIGNS.items():
        text = text.replace(sign, words)
    return text


def _write_dates(text: str) -> str:
    text = re.sub(
        r"(?<![\d.])(\d{4})([-/.])(1[0-2]|0?[1-9])\2(3[01]|[12]\d|0?[1-9])(?![\d.]*\d)",
        lambda match: f"{say_digits(match[1])}年{say(str(int(match[3])))}月{say(str(int(match[4])))}日",
        text,
    )
    text = re.sub(rf"(?<!\d)(\d{{4}})(?={_TO}\d{{4}}年)", lambda match: say_digits(match[1]) + "年", text)
    text = re.sub(rf"(?<=年){_TO}(?=\d{{4}}年)", "到", text)
    # Years are read digit by digit; a round number of them is more likely a span: "5000年历史".
    text = re.sub(r"(?<!\d)(?![13-9]000)(\d{4})(?=\s?年)", lambda match: say_digits(match[1]), text)
    text = re.sub(r"(?<!\d)([05-9]0|[0-9]5)(?=后(?![面来天年]))", lambda match: say_digits(match[1]), text)
    return re.sub(r"(?<!\d)0(\d)(?=[月日号])", r"\1", text)


def _write_times(text: str) -> str:
    def clock(match: re.Match) -> str:
        hour, minute, second = int(match[1]), int(match[2]), match[3]
        words = f"{'两' if hour == 2 else say(str(hour))}点"
        if minute or second:
            words += f"{say_digits('0') if 0 < minute < 10 else ''}{say(str(minute))}分"
        return words + (f"{say(str(int(second)))}秒" if second else "")

    text = re.sub(rf"(?<=:\d\d){_TO}(?=\d{{1,2}}:\d\d)", "到", text)
    text = re.sub(r"(?<![\d:.])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:])", clock, text)
    return re.sub(rf"({_NUMBER})\s?:\s?(?={_NUMBER})", r"\1比", text)


def _short(amount: str) -> str:
    """Without the zeros that end a decimal: "3.50" -> "3.5"."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda match: match[1].rstrip("."), amount)


def _phone(match: re.Match) -> str:
    """Digit by digit, one as 幺, which no other digit sounds like."""
    return say_digits(re.sub(r"\D", "", match[0])).replace("一", "幺")
