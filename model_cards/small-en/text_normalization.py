"""English clean-up before gruut: the characters, capitals and abbreviations that gruut would drop or misread."""

import re
import unicodedata
from collections.abc import Container

from .abbreviations import ABBREVIATIONS, BEFORE_NUMBERS

PUNCTUATION = (",", ".", "?", "!", ";", ":")

# Letters whose accent does not come off by Unicode decomposition.
_FOLDED = str.maketrans(
    {"ø": "o", "æ": "ae", "œ": "oe", "ß": "ss", "ł": "l", "đ": "d", "ð": "th", "þ": "th", "ı": "i", "’": "'"}
)
# The replacement of a single character; quotes and brackets leave only a gap.
_CHARACTERS = {
    **dict.fromkeys("‘’ʼ`´", "'"),
    **dict.fromkeys('"“”„«»‹›()[]{}<>*_~^|\\§¶†‡•·®©™℠', " "),
    **dict.fromkeys("—―¦", ", "),
    "。": ". ",
    "、": ", ",
    "¿": " ",
    "¡": " ",
    "½": " 1/2 ",
    "¼": " 1/4 ",
    "¾": " 3/4 ",
    "²": " squared ",
    "³": " cubed ",
    "×": " times ",
    "÷": " divided by ",
    "±": " plus or minus ",
    "=": " equals ",
    "&": " and ",
    "@": " at ",
    "№": " number ",
    "→": ", ",
    "−": "-",
    "‐": "-",
    "‑": "-",
}
_SPOKEN_SYMBOLS = frozenset("$€£¥₹%+°#'-–/…")

_ABBREVIATION_PATTERN = re.compile(
    r"(?<![\w.])(" + "|".join(re.escape(short) for short in ABBREVIATIONS) + r")(?!\w)", re.IGNORECASE
)
_BEFORE_NUMBER_PATTERN = re.compile(rf"(?<![\w.])({'|'.join(BEFORE_NUMBERS)})\.\s?(?=\d)", re.IGNORECASE)
_UNITS = {
    "km/h": "kilometers per hour",
    "m/s": "meters per second",
    "km": "kilometers",
    "kg": "kilograms",
    "cm": "centimeters",
    "mm": "millimeters",
    "mg": "milligrams",
    "ml": "milliliters",
    "mph": "miles per hour",
    "lbs": "pounds",
    "lb": "pounds",
    "oz": "ounces",
    "ft": "feet",
    "khz": "kilohertz",
    "mhz": "megahertz",
    "ghz": "gigahertz",
    "hz": "hertz",
    "kb": "kilobytes",
    "mb": "megabytes",
    "gb": "gigabytes",
    "tb": "terabytes",
    "kw": "kilowatts",
    "kwh": "kilowatt hours",
    "mw": "megawatts",
    "mah": "milliamp hours",
    "ms": "milliseconds",
    "secs": "seconds",
    "sec": "seconds",
    "mins": "minutes",
    "min": "minutes",
    "hrs": "hours",
    "hr": "hours",
    "mi": "miles",
    "yd": "yards",
    "kcal": "kilocalories",
    "db": "decibels",
    "rpm": "revolutions per minute",
    "mbps": "megabits per second",
    "gbps": "gigabits per second",
    "kbps": "kilobits per second",
}
# Single letters are units in one case only: 5 g is a weight, 5G is not.
_LETTER_UNITS = {"m": "meters", "g": "grams", "L": "liters"}
_AMOUNT = r"(?<!\d)(?<!\d[.,])(\d[\d,]*(?:\.\d+)?)\s?"
_UNIT_PATTERN = re.compile(
    rf"{_AMOUNT}({'|'.join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))})\b(?!')", re.IGNORECASE
)
_LETTER_UNIT_PATTERN = re.compile(rf"(?<![A-Za-z$€£¥₹]){_AMOUNT}([mgL])\b(?!['/.&-]\w)")
_POWERS = {"²": "square", "³": "cubic"}
_SCALES = {"k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
_CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "₹": "rupees"}
_MONEY_PATTERN = re.compile(
    r"([$€£¥₹])\s?(\d[\d,]*(?:\.\d+)?)[\s-]?(thousand|million|billion|trillion|bn|mn|tn|[kKmMbB])\b"
)
_FRACTIONS = {"2": "half", "3": "third", "4": "quarter", "5": "fifth", "6": "sixth", "8": "eighth", "10": "tenth"}
_DECADES = ("tens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")
# Read as words although written in capitals and short: what writers emphasise.
_EMPHASISED = re.compile(
    "ALL|AND|ANY|ARE|AS|AT|BE|BUT|BY|CAN|DID|DO|FOR|GET|GO|HAD|HAS|HE|HER|HIM|HIS|HOW|IF|IN|IS|ITS|ME|MY|NEW|NO|NOT|"
    "NOW|OF|OFF|OLD|ON|ONE|OR|OUR|OUT|SEE|SHE|SO|TEN|THE|TO|TOO|TWO|UP|WAS|WE|WHY|YES|YET|YOU"
)


def fold_letters(text: str) -> str:
    """Letters without their accents: "Björn" -> "Bjorn"."""
    decomposed = unicodedata.normalize("NFD", text.translate(_FOLDED))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def normalize_english(text: str, lexicon: Container[str]) -> tuple[str, list[str]]:
    """Returns the text in the form that gruut reads well, and the words and symbols that English cannot speak.

    `lexicon` tells which lower-case words exist, to read "NASA" as a word and to spell "USB". The text is empty if
    nothing is left.
    """
    text = _break_paragraphs(unicodedata.normalize("NFC", text))
    # "AT&T": short capitals before the sign are letters, never words.
    text = re.sub(r"\b([A-Z]{1,3})&(?=[A-Z]\b)", lambda match: f"{_spell(match[1])} and ", text)
    text = re.sub(r"(?<=\d)\s?([kcm]?m)([²³])", _area_or_volume, text)
    text, dropped = _keep_speakable(text)
    if not any(character.isalnum() for character in text):
        return "", dropped
    for step in (_write_out, _separate, _settle_punctuation):
        text = step(text)
    return _read_capitals(text, lexicon), dropped


def _break_paragraphs(text: str) -> str:
    """An empty line ends a sentence."""
    return re.sub(r"([^\s.?!,;:])[^\S\n]*\n[^\S\n]*\n\s*", r"\1. ", text.replace("\r", "\n"))


def _keep_speakable(text: str) -> tuple[str, list[str]]:
    """Maps characters to ASCII where they have a reading; collects words of other scripts and unknown symbols."""
    dropped: list[str] = []
    for word in dict.fromkeys(re.findall(r"\w[\w\u0300-\u036f]*", text)):
        folded = fold_letters(unicodedata.normalize("NFKC", word).lower())
        if any(c.isalpha() and not "a" <= c <= "z" for c in folded):
            dropped.append(word)
            text = re.sub(rf"(?<!\w){re.escape(word)}(?![\w\u0300-\u036f])", " ", text)
    out: list[str] = []
    for character in text:
        if character in _CHARACTERS:
            out.append(_CHARACTERS[character])
            continue
        for part in unicodedata.normalize("NFKC", character) if character != "…" else character:
            category = unicodedata.category(part)
            if part.isdecimal():
                out.append(str(unicodedata.decimal(part)))
            elif part.isspace() or category == "Cc":
                out.append(" ")
            elif part.isalpha() or part in _SPOKEN_SYMBOLS or part in PUNCTUATION:
                out.append(part)
            elif category[0] in "MC":
                # Accents that NFC could not join, zero-width characters, joiners: they have no sound of their own.
                continue
            else:
                out.append(_CHARACTERS.get(part, " "))
                if part not in _CHARACTERS:
                    dropped.append(character)
    return "".join(out), list(dict.fromkeys(dropped))


def _write_out(text: str) -> str:
    """Abbreviations, money in millions, units, degrees, fractions, long numbers."""

    def expand(match: re.Match) -> str:
        short = match.group(1).lower()
        words = ABBREVIATIONS.get(short) or BEFORE_NUMBERS[short]
        return words[0].upper() + words[1:] if match.group(1)[0].isupper() else words

    def money(match: re.Match) -> str:
        currency, amount, scale = match.groups()
        return f"{amount} {_SCALES.get(scale.lower(), scale)} {_CURRENCIES[currency]}"

    # At the end of a sentence the full stop counts twice.
    text = re.sub(r"\betc\.(?=\s+[A-Z]|\s*$)", "et cetera.", text)
    text = _ABBREVIATION_PATTERN.sub(expand, text)
    text = _BEFORE_NUMBER_PATTERN.sub(lambda match: f"{expand(match)} ", text)
    text = re.sub(r"\bMt\.\s(?=[A-Z])", "Mount ", text)
    text = re.sub(r"\bwww\b", "WWW", text)
    text = re.sub(r"\b(\d*?)(\d0)'?s\b", _decade, text)
    text = re.sub(r"\b[Nn]o\.\s?(?=\d)", "number ", text)
    text = re.sub(r"\bSt\.\s(?=[A-Z])", "Saint ", text)
    text = _MONEY_PATTERN.sub(money, text)
    text = re.sub(r"¥\s?(\d[\d,.]*\d|\d)", r"\1 yen", text)
    text = re.sub(r"₹\s?(\d[\d,.]*\d|\d)", r"\1 rupees", text)
    text = re.sub(r"(\d)\s?°\s?C\b", r"\1 degrees Celsius", text)
    text = re.sub(r"(\d)\s?°\s?F\b", r"\1 degrees Fahrenheit", text)
    text = text.replace("°", " degrees ")
    text = _UNIT_PATTERN.sub(lambda match: _quantity(match[1], _UNITS[match[2].lower()]), text)
    text = _LETTER_UNIT_PATTERN.sub(lambda match: _quantity(match[1], _LETTER_UNITS[match[2]]), text)
    text = re.sub(r"(\d)\s?%", r"\1 percent", text).replace("%", " percent ")
    text = re.sub(r"#\s?(?=\d)", "number ", text).replace("#", " ")
    text = re.sub(r"(?<![\w.,/])(\d+)\s+(?=\d/\d\b(?!/))", r"\1 and ", text)
    text = re.sub(r"(?<![\d/.-])(\d+)/(\d+)(?![\d/-])", _fraction, text)
    text = re.sub(r"(?<!\w)-(?=[\d.])", " minus ", text)
    # A number that starts with zero or is too long to be said as one is read digit by digit.
    return re.sub(r"(?<![\d.,:/-])(?:0\d+|\d{10,})(?![\d:/-]|[.,]\d)", lambda match: " ".join(match.group()), text)


def _spell(letters: str) -> str:
    """Full stops mark letters as such; without them gruut takes an A for the article."""
    return "".join(f"{letter}." for letter in letters)


def _quantity(amount: str, unit: str) -> str:
    """An amount with the plural of its unit, or the singular: "1 kilometer per hour"."""
    if amount == "1":
        unit = "foot" if unit == "feet" else re.sub(r"s\b", "", unit, count=1)
    return f"{amount} {unit}"


def _area_or_volume(match: re.Match) -> str:
    return f" {_POWERS[match[2]]} {(_UNITS | _LETTER_UNITS)[match[1]]}"


def _fraction(match: re.Match) -> str:
    part, whole = match.group(1), match.group(2)
    if whole not in _FRACTIONS or int(part) >= int(whole):
        return f"{part} slash {whole}"
    name = _FRACTIONS[whole]
    if part == "1":
        return f"one {name}"
    return f"{part} {name}s"


def _decade(match: re.Match) -> str:
    """The words of a decade: "1990s" -> "19 nineties", "1900s" -> "19 hundreds", "2000s" -> "two thousands"."""
    century, tens = match.group(1), match.group(2)
    if tens == "00":
        if century.endswith("0"):
            return f"{century[:-1]} thousands"
        return f"{century} hundreds".strip()
    return f"{century} {_DECADES[int(tens[0]) - 1]}".strip()


def _separate(text: str) -> str:
    """Splits what is written together: ranges, dashes, domain names, digits beside letters."""
    text = re.sub(r"(?<=\d)\s?–\s?(?=\d)", " to ", text)
    text = re.sub(r"\s*–\s*|\s+-+\s+|--+", ", ", text)
    text = re.sub(r"(?<=[a-z]{2})\.(?=[a-z]{2})|(?<=\w)\.(?=(?:com|org|net|edu|gov|io)\b)", " dot ", text)
    text = re.sub(r"(?<=[a-z])([.?!,;:]+)(?=[A-Z])", r"\1 ", text)
    text = re.sub(r"(?<=[A-Za-z])/(?=[A-Za-z])", " ", text)
    text = re.sub(r"(?<=\d)(st|nd|rd|th)-(?=[A-Za-z])", r"\1 ", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)'(?=\d)", " ", text)
    # Version and network numbers: more points than a number can have.
    text = re.sub(r"\d+(?:\.\d+){2,}", lambda match: match.group().replace(".", " dot "), text)
    text = re.sub(r"(?<=[A-Za-z])[-.]?(?=\d)", " ", text)
    text = re.sub(r"(?<=\d)-?(?!(?:st|nd|rd|th|am|pm|a\.m|p\.m)\b)(?=[A-Za-z])", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\+", " plus ", text)
    # Plural of a spelled abbreviation: "CDs" -> "CD's", which is spelled with a z at the end.
    return re.sub(r"\b([A-Z]{2,})s\b", r"\1's", text)


def _settle_punctuation(text: str) -> str:
    """One mark where several stand together; an ellipsis is a pause inside and a stop at the end of a sentence."""
    text = re.sub(r"(?:…|\.{2,})[.…\s]*(?=[a-z\d])", ", ", text)
    text = re.sub(r"…|\.{2,}", ". ", text)
    for mark in "?!":
        text = re.sub(rf"[.?!]*\{mark}[.?!]+|[.?!]+\{mark}[.?!]*", mark, text)
    text = re.sub(r"([,;:])[\s,;:]*(?=[,;:.?!](?:\s|$))", "", text)
    return " ".join(text.split())


def _read_capitals(text: str, lexicon: Container[str]) -> str:
    """Decides which words in capitals are read as words (lower-cased) and which are left for gruut to spell."""
    words = re.findall(r"[A-Za-z]+", text)
    shouted = len(words) > 2 and not any(c.islower() for c in text)

    def read(match: re.Match) -> str:
        word, ending = match.group(1), match.group(2) or ""
        lower = word.lower()
        is_word = lower in lexicon and (shouted or len(word) > 3 or _EMPHASISED.fullmatch(word))
        guessable = len(word) > 5 and re.search("[AEIOUY]", word) is not None
        if not re.fullmatch("[IVX]+", word) and (is_word or guessable):
            return lower + ending.lower()
        # gruut spells capitals only where nothing is attached to them.
        return f"{_spell(word[:-1])} {word[-1]}{ending.lower()}" if ending else word

    return re.sub(r"(?<![\w'.])([A-Z]{2,})('[Ss])?(?![\w'])", read, text.replace("'S ", "'s ")) if words else text
