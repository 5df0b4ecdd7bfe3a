"""English clean-up before gruut: the characters, addresses and capitals that gruut would drop or misread."""

import re
import unicodedata
from collections.abc import Container

from .abbreviations import write_out_abbreviations
from .english_numbers import say_as_written, write_out_numbers, write_out_powers, write_out_roman

PUNCTUATION = (",", ".", "?", "!", ";", ":")

# Letters whose accent does not come off by Unicode decomposition.
_FOLDED = str.maketrans(
    {"ø": "o", "æ": "ae", "œ": "oe", "ß": "ss", "ł": "l", "đ": "d", "ð": "th", "þ": "th", "ı": "i", "’": "'"}
)
# The replacement of a single character; quotes and brackets leave only a gap, what `_read_signs` has left does too.
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
    "≈": " approximately ",
    "≠": " is not equal to ",
    "&": " and ",
    "@": " at ",
    "№": " number ",
    "→": ", ",
    "−": "-",
    "‐": "-",
    "‑": "-",
}
_SPOKEN_SYMBOLS = frozenset("$€£¥₹%+°#'-–/…")

# Between two numbers, and before one.
_COMPARISONS = {
    **{"<": ("less than", "less than"), ">": ("greater than", "greater than")},
    **dict.fromkeys(("<=", "≤"), ("less than or equal to", "at most")),
    **dict.fromkeys((">=", "≥"), ("greater than or equal to", "at least")),
}
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"“”]*[^\s<>\"“”.,;:!?)\]}'’*_]", re.IGNORECASE)
_URL_SIGNS = {
    **{".": "dot", "/": "slash", "-": "dash", "_": "underscore", "?": "question mark", "=": "equals", "&": "and"},
    **{"#": "hash", ":": "colon", "~": "tilde", "%": "percent", "+": "plus", "@": "at", ",": "comma"},
}
# Read as words although written in capitals and short: what writers emphasise.
_EMPHASISED = re.compile(
    "ALL|AND|ANY|ARE|AS|AT|BE|BUT|BY|CAN|DID|DO|FOR|GET|GO|HAD|HAS|HE|HER|HIM|HIS|HOW|IF|IN|IS|ITS|ME|MY|NEW|NO|NOT|"
    "NOW|OF|OFF|OLD|ON|ONE|OR|OUR|OUT|SEE|SHE|SO|TEN|THE|TO|TOO|TWO|UP|WAS|WE|WHY|YES|YET|YOU"
)
# Abbreviations with a vowel that are spelled in small letters too, where the lexicon does not know them as words.
_SPELLED = frozenset(
    ["ai", "api", "atm", "ceo", "cfo", "cpu", "cto", "dna", "eu", "gpu", "ip", "os", "ui", "uk", "url", "usa", "usb"]
)
_HISSED = re.compile("s+h+|p+s+t+|t+s+k+|b+r+|g+r+|p+f+t*|z+|h*m+|h+")
# Few capitals of which syllables can be made: COVID and FIFA, not NAACP.
_PRONOUNCEABLE = re.compile("[^AEIOU][AEIOUY][^AEIOU]{1,2}[AEIOUY][^AEIOU]?")


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
    text, lost = _read_signs(_URL.sub(_read_url, write_out_powers(text)))
    text, dropped = _keep_speakable(text)
    dropped += lost
    if not any(character.isalnum() for character in text):
        return "", dropped
    for step in (_write_out, _separate, say_as_written, _settle_punctuation):
        text = step(text)
    return _read_capitals(_spell_small_letters(_join_words(text, lexicon), lexicon), lexicon), dropped


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


def _read_url(match: re.Match) -> str:
    """An address as it is said: "https://www.example.com/a" -> "WWW dot example dot com slash a"."""
    address = re.sub(r"^https?://", "", match[0], flags=re.IGNORECASE).rstrip("/")
    address = re.sub(r"^www(?=\.)", "WWW", address, flags=re.IGNORECASE)
    return "".join(f" {_URL_SIGNS[character]} " if character in _URL_SIGNS else character for character in address)


def _read_signs(text: str) -> tuple[str, list[str]]:
    """Reads signs that mean something beside numbers and names, and collects those that mean something unknown."""
    text = re.sub(r"(?<!\w)([A-G])#(?!\w)", lambda match: f"{_spell(match[1])} sharp", text)
    text = re.sub(r"(?m)^\s*#+\s|~~", " ", text)  # headings and what is struck through, in Markdown
    text = re.sub(r"(?<![\w&])#(?=[A-Za-z])", " hashtag ", text)
    text = re.sub(r"\s*[-=]+>\s*", ", ", text)
    text = re.sub(r"(?<=[\w)])\s?(?:\^|\*\*)\s?(?=-?\d)|(?<=\d)\s?\^\s?(?=\w)", " to the power of ", text)
    text = re.sub(r"(?<=\d)\s?\*\s?(?=\d)", " times ", text)
    text = re.sub(r"</?([A-Za-z][^<>\n]*)>", r" \1 ", text)  # tags and addresses in brackets
    text = re.sub(
        r"(?<=\d)\s?([<>]=?|[≤≥])(?=[\s\d])|([<>]=?|[≤≥])\s?(?=[-−]?[$€£¥₹]?\.?\d)",
        lambda match: f" {_COMPARISONS[match[1] or match[2]][match[1] is None]} ",
        text,
    )
    text = re.sub(r"(?m)^\s*>[>\s]*", " ", text)  # quoted lines of a letter
    text = re.sub(r"~\s?(?=[$€£¥₹]?\d)", " about ", text)
    text = re.sub(r"§+\s?(?=\d)", " section ", text)
    return text, list(dict.fromkeys(re.findall(r"[<>^\\§]|~(?=[\w/])|#(?!\s?\d)|(?<=\S\s)\*(?=\s|$)", text)))


def _write_out(text: str) -> str:
    """Abbreviations and what stands around numbers. Units come first: "10 min. 5" is no minimum."""
    return write_out_abbreviations(write_out_roman(write_out_numbers(text)))


def _spell(letters: str) -> str:
    """Full stops mark letters as such; without them gruut takes an A for the article."""
    return "".join(f"{letter}." for letter in letters)


def _separate(text: str) -> str:
    """Splits what is written together: ranges, dashes, domain names, digits beside letters."""
    text = re.sub(r"(?<=\d)\s?–\s?(?=\d)", " to ", text)
    text = re.sub(r"\s*–\s*|\s+-+\s+|--+", ", ", text)
    text = re.sub(r"(?<=[a-z]{2})\.(?=[a-z]{2})|(?<=\w)\.(?=(?:com|org|net|edu|gov|io)\b)", " dot ", text)
    text = re.sub(r"(?<=[a-z])([.?!,;:]+)(?=[A-Z])", r"\1 ", text)
    text = re.sub(r"(?<=[A-Za-z])/(?=[A-Za-z])", " ", text)
    text = re.sub(r"(?<=\d)(st|nd|rd|th)-(?=[A-Za-z])", r"\1 ", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d)'(?=\d)", " ", text)
    text = re.sub(r"(?<=[A-Za-z])[-./]?(?=\d)", " ", text)
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


def _join_words(text: str, lexicon: Container[str]) -> str:
    """Without the hyphen between parts that are no words by themselves: "Wi-Fi" -> "WiFi"."""

    def join(match: re.Match) -> str:
        first, second = match.groups()
        whole = (first + second).lower()
        is_joint = whole in lexicon and not (first.lower() in lexicon and second.lower() in lexicon)
        return first + second if is_joint else match[0]

    return re.sub(r"(?<![\w'-])([A-Za-z]+)-([A-Za-z]+)(?!\w)", join, text)


def _spell_small_letters(text: str, lexicon: Container[str]) -> str:
    """Capitals for words in small letters that have no vowel, and so no sound: "pdf" -> "PDF", "pdfs" -> "PDF's"."""

    def spell(match: re.Match) -> str:
        word, ending = match[1].lower(), match[2] or ""
        if word in lexicon or _HISSED.fullmatch(word):
            return match[0]
        stem = re.sub("(?<=[^s]{3})s$|(?<=u)s$", "", word)
        if stem not in _SPELLED and re.search("[aeiouy]", stem):
            return match[0]
        return stem.upper() + (ending if stem == word else "'s")

    return re.sub(r"(?<![\w'.])([A-Za-z]?[a-z]+)('s)?(?![\w'])", spell, text)


def _read_capitals(text: str, lexicon: Container[str]) -> str:
    """Decides which words in capitals are read as words (lower-cased) and which are left for gruut to spell."""
    words = re.findall(r"[A-Za-z]+", text)
    shouted = len(words) > 2 and not any(c.islower() for c in text)

    def read(match: re.Match) -> str:
        word, ending = match.group(1), match.group(2) or ""
        lower = word.lower()
        is_word = lower in lexicon and (shouted or len(word) > 3 or _EMPHASISED.fullmatch(word))
        guessable = re.search("[AEIOUY]", word) if len(word) > 5 else _PRONOUNCEABLE.fullmatch(word)
        if not re.fullmatch("[IVX]+", word) and (is_word or guessable):
            return lower + ending.lower()
        # gruut spells capitals only where nothing is attached to them.
        return f"{_spell(word[:-1])} {word[-1]}{ending.lower()}" if ending else word

    return re.sub(r"(?<![\w'.])([A-Z]{2,})('[Ss])?(?![\w'])", read, text.replace("'S ", "'s ")) if words else text
