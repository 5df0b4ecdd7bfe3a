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
    **{"p": "page", "pp": "pages", "est": "established", "mar": "march", "max": "maximum", "min": "minimum"},
}
# Before a name or with what follows; these are read elsewhere.
_TITLES = frozenset({"Mr", "Mrs", "Ms", "Dr", "St", "Mt", "vs"})
# Those of ABBREVIATIONS that a sentence may end with; the others always belong to what follows.
_MAY_END = frozenset(
    {"etc.", "ph.d.", "sr.", "jr.", "esq.", "dept.", "ave.", "blvd.", "inc.", "ltd.", "corp.", "tues.", "thurs."}
    | {"jan.", "feb.", "apr.", "aug.", "sept.", "oct.", "nov.", "dec."}
)
_LAST_WORD = re.compile(r"[\w.]*$")
_LONGEST = max(map(len, ABBREVIATIONS))


def sentence_goes_on(before: str, after: str) -> bool:
    """Whether a full stop is an abbreviation's within a sentence. before: the text up to it; after: the next letter."""
    word = _LAST_WORD.search(before[-2 * _LONGEST :])[0]
    short = f"{word.lower()}."
    if short in _MAY_END:
        return after.islower() or after.isdigit()
    if short in ABBREVIATIONS or word in _TITLES or re.search(r"\b[A-Za-z]$", before[-2:]):
        return True
    return after.isdigit() and (word.lower() in BEFORE_NUMBERS or word.lower() == "no")
