"""English abbreviations: how they are read, and whether the full stop of one ends its sentence."""

import re

ABBREVIATIONS = {
    "e.g.": "for example",
    "i.e.": "that is",
    "etc.": "et cetera",
    "approx.": "approximately",
    "phd": "P H D",
    "ph.d.": "P H D",
    "prof.": "professor",
    "gen.": "general",
    "capt.": "captain",
    "lt.": "lieutenant",
    "sgt.": "sergeant",
    "gov.": "governor",
    "sen.": "senator",
    "rev.": "reverend",
    "hon.": "honorable",
    "sr.": "senior",
    "dept.": "department",
    "ave.": "avenue",
    "blvd.": "boulevard",
    "messrs.": "messers",
    "esq.": "esquire",
    "jan.": "january",
    "feb.": "february",
    "aug.": "august",
    "sept.": "september",
    "oct.": "october",
    "nov.": "november",
    "dec.": "december",
    "apr.": "april",
    "tues.": "tuesday",
    "thurs.": "thursday",
    "inc.": "incorporated",
    "ltd.": "limited",
    "corp.": "corporation",
    "jr.": "junior",
    "cf.": "compare",
    "a.k.a.": "also known as",
}
# Abbreviations that are words of their own elsewhere: only before a number.
BEFORE_NUMBERS = {
    **{"fig": "figure", "figs": "figures", "vol": "volume", "ch": "chapter", "sec": "section", "eq": "equation"},
    **{"p": "page", "pp": "pages", "est": "established", "max": "maximum", "min": "minimum"},
    **{"mar": "march", "jun": "june", "jul": "july", "sep": "september"},
}
# With a capital only: small letters are words of their own. `_NAMED` stand before a name.
_DAYS = {"Mon": "Monday", "Wed": "Wednesday", "Fri": "Friday"}
_NAMED = {"Col": "Colonel", "Rep": "Representative", "Ft": "Fort"}
_MONTHS = {
    **{"Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July"},
    **{"Aug": "August", "Sep": "September", "Sept": "September", "Oct": "October", "Nov": "November"},
    "Dec": "December",
}
# Before a name or with what follows; gruut reads most of these.
_TITLES = frozenset({"Mr", "Mrs", "Ms", "Dr", "St", "Mt", "vs"})
# Those of ABBREVIATIONS that a sentence may end with; the others always belong to what follows.
_MAY_END = frozenset(
    {"etc.", "ph.d.", "sr.", "jr.", "esq.", "dept.", "ave.", "blvd.", "inc.", "ltd.", "corp.", "tues.", "thurs."}
    | {"jan.", "feb.", "apr.", "aug.", "sept.", "oct.", "nov.", "dec."}
)
# Words that, with a capital, begin a sentence and are hardly ever a name, unlike "May", "Will" and "No".
_STARTERS = (
    "A|After|All|Although|An|And|Another|Are|As|At|Because|Before|Both|But|By|Can|Could|Did|Do|Does|Each|Even|Every|"
    "Everybody|Everyone|Finally|For|From|Had|Has|Have|He|Her|Here|His|How|However|I|If|In|Is|It|Its|Just|Later|Let|"
    "Many|Maybe|Meanwhile|Most|My|Never|Next|Nobody|Nothing|Now|Of|On|Once|Only|Or|Our|Perhaps|Please|She|Should|"
    "Since|So|Some|Soon|Still|That|The|Their|Then|There|Therefore|These|They|This|Those|Though|Today|Tomorrow|"
    "Tonight|Under|Until|Was|We|Were|What|When|Where|Which|While|Who|Why|With|Without|Would|Yesterday|Yet|You|Your"
)
# "A." and "I." are initials.
STARTER = rf"(?:{_STARTERS})\b(?!\.)"
_STARTER = re.compile(STARTER)
_LAST_WORD = re.compile(r"[\w.]*$")
_LONGEST = max(map(len, ABBREVIATIONS))
_UNIT_BEFORE = re.compile(
    r"\d\s?(?:oz|lbs?|ft|in|yds?|mi|mins?|secs?|hrs?|gal|qt|pt|tsp|tbsp|sq|cu|[kcm]?m|k?g|m[gl])$"
)
_ABBREVIATION = re.compile(
    r"(?<![\w.])(" + "|".join(re.escape(short) for short in ABBREVIATIONS) + r")(?!\w)", re.IGNORECASE
)
_BEFORE_NUMBER = re.compile(rf"(?<![\w.])({'|'.join(BEFORE_NUMBERS)})\.\s?(?=\d)", re.IGNORECASE)
# A street has a name before it, a saint has not. The towns are named after saints.
_STREET_NAME = (
    rf"(?<!\w)(?!(?:{_STARTERS}|Fort|Port|Mount|Old|East|West|North|South)\b)([A-Z][\w']*|\d+(?:st|nd|rd|th))\s+St"
)
_STREET = re.compile(rf"{_STREET_NAME}\.(?=(\s+{STARTER}|\s*$)?)(?=(\s+[A-Z])?)")
# Between a number and a name it is a drive, elsewhere a doctor.
_DRIVE_NAME = rf"(?<![\w.,])(\d+[A-Za-z]?\s+(?:(?!{STARTER})(?:[A-Z][\w']*\.?|\d+(?:st|nd|rd|th))\s+){{1,3}})Dr"
_DRIVE = re.compile(rf"{_DRIVE_NAME}\b(?!\.?\s+(?!{STARTER})[A-Z])(\.?)(?=(\s+{STARTER}|\s*$)?)")
_ENDS_WITH_STREET = re.compile(rf"(?:{_STREET_NAME}|{_DRIVE_NAME})$")
_DAY = re.compile(rf"(?<![\w.])({'|'.join(_DAYS)})\.(?=(\s+{STARTER}|\s*$)?)")
_BEFORE_NAME = re.compile(rf"(?<![\w.])({'|'.join(_NAMED)})\.\s+(?=[A-Z])(?!{STARTER})")
_MONTH = re.compile(
    rf"\b({'|'.join(_MONTHS)})\s+(?=(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?\b(?![.:]\d)|(?:1\d|20)\d\d\b)"
)
_LAST_LETTERS = re.compile(rf"(?<![\w.])((?:[A-Za-z]\.)*)([A-Za-z])\.(?=\s+{STARTER})")


def write_out_abbreviations(text: str) -> str:
    """Abbreviations as words, with a full stop where they end their sentence."""

    def expand(match: re.Match) -> str:
        short = match[1].lower()
        words = ABBREVIATIONS.get(short) or BEFORE_NUMBERS[short]
        # At the end of a sentence the full stop counts twice.
        ends = short in _MAY_END and re.match(r"\s+[A-Z]|\s*$", match.string[match.end() :])
        return (words[0].upper() + words[1:] if match[1][0].isupper() else words) + ("." if ends else "")

    def street(match: re.Match) -> str:
        name, ends, capital = match.groups()
        opens_sentence = re.search(r"(?:^|[.?!:;])\s*$", match.string[: match.start()])
        if capital and ends is None and opens_sentence:  # "Visit St. Petersburg"
            return match[0]
        return f"{name} Street{'' if ends is None else '.'}"

    def drive(match: re.Match) -> str:
        name, stop, ends = match.groups()
        return f"{name}Drive{'' if ends is None else stop}"

    text = _ABBREVIATION.sub(expand, text)
    text = _BEFORE_NUMBER.sub(lambda match: f"{expand(match)} ", text)
    text = _MONTH.sub(lambda match: f"{_MONTHS[match[1]]} ", text)
    text = _DAY.sub(lambda match: _DAYS[match[1]] + ("" if match[2] is None else "."), text)
    text = _BEFORE_NAME.sub(lambda match: f"{_NAMED[match[1]]} ", _DRIVE.sub(drive, text))
    text = re.sub(r"\bMt\.\s(?=[A-Z])", "Mount ", text)
    text = re.sub(r"\b[Nn]o\.\s?(?=\d)", "number ", text)
    text = re.sub(r"\bSt\.\s(?=[A-Z])", "Saint ", _STREET.sub(street, text))
    # gruut takes the full stop of a letter for the letter's, unless it stands apart.
    return _LAST_LETTERS.sub(r"\1\2. .", text)


def sentence_goes_on(before: str, after: str) -> bool:
    """Whether a full stop stands within a sentence, as an abbreviation's does.

    before: the text up to the full stop. after: what follows, from its first letter or digit to beyond its first word.
    """
    word = _LAST_WORD.search(before[-2 * _LONGEST :])[0]
    short = f"{word.lower()}."
    starter = _STARTER.match(after) is not None
    if short in _MAY_END:
        return after[:1].islower() or after[:1].isdigit()
    if short in ABBREVIATIONS:
        return True
    if word in ("St", "Dr"):
        return not (starter and _ENDS_WITH_STREET.search(before))
    if word in _DAYS or word in _NAMED:
        return not starter
    if word in _TITLES:
        return True
    if re.search(r"\b[A-Za-z]$", before[-2:]) and not _UNIT_BEFORE.search(before):
        return not starter
    if after[:1].islower():
        # In a text without any capital the next word's says nothing.
        return _UNIT_BEFORE.search(before) is not None or any(character.isupper() for character in before)
    return after[:1].isdigit() and (word.lower() in BEFORE_NUMBERS or word.lower() == "no")
