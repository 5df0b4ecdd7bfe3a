"""English numbers before gruut, which reads plain ones.

Lists, telephone numbers, ranges, times, money, units, decades, fractions, decimals, Roman numerals.
"""

import re

from .abbreviations import STARTER

# Units in every case in which they are written. Other capitals are names or acronyms: "Ms.", "SEC", "HR".
_UNITS = {
    form: words
    for words, forms in {
        **{"kilometers per hour": "km/h kmh kph", "meters per second": "m/s", "miles per hour": "mph MPH"},
        **{"kilometers": "km Km KM", "centimeters": "cm CM", "millimeters": "mm", "miles": "mi", "feet": "ft"},
        **{"yards": "yd yds", "kilograms": "kg Kg KG", "milligrams": "mg", "pounds": "lb lbs LBS", "ounces": "oz"},
        **{"milliliters": "ml mL", "hertz": "Hz hz", "kilohertz": "kHz khz KHz KHZ", "megahertz": "MHz mhz Mhz MHZ"},
        **{"gigahertz": "GHz ghz Ghz GHZ", "kilobytes": "kB KB kb Kb", "megabytes": "MB mb Mb"},
        **{"gigabytes": "GB gb Gb", "terabytes": "TB tb Tb", "kilowatts": "kW KW kw", "megawatts": "MW"},
        **{"kilowatt hours": "kWh KWh kwh KWH", "milliamp hours": "mAh mah MAH", "milliseconds": "ms"},
        **{"seconds": "sec secs", "minutes": "min mins", "hours": "hr hrs", "kilocalories": "kcal"},
        **{"decibels": "dB db", "revolutions per minute": "rpm RPM", "kilobits per second": "kbps Kbps KBPS"},
        **{"megabits per second": "Mbps mbps MBPS", "gigabits per second": "Gbps gbps GBPS"},
    }.items()
    for form in forms.split()
}
# Single letters are units in one case only: 5 g is a weight, 5G is not.
_LETTER_UNITS = {"m": "meters", "g": "grams", "L": "liters"}
# What an amount is "per" where that is neither a unit nor a word.
_PER = {"s": "second", "h": "hour", "d": "day", "wk": "week", "mo": "month", "yr": "year", "l": "liter"}
_POWERS = {"²": "square", "³": "cubic"}
_NUMBER = r"\d+(?:,\d+)*(?:\.\d+)?"
_AMOUNT = rf"(?<!\d)(?<!\d[.,])({_NUMBER})"
_PER_WHAT = r"(?:\s?/\s?([A-Za-z]+)\b)?"
# The full stop of a unit within its sentence goes with it: "5 oz. of flour", "6 ft. 2 in".
_AFTER_UNIT = rf"(?:\.(?=\s+(?:[a-z]|\d+\s?(?:in|oz|secs?|mins?)\b)|[,;:]))?{_PER_WHAT}"
_UNIT = re.compile(
    rf"{_AMOUNT}(\s?)({'|'.join(map(re.escape, sorted(_UNITS, key=len, reverse=True)))})\b(?!'){_AFTER_UNIT}"
)
# "5 L. Smith" is somebody.
_LETTER_UNIT = re.compile(
    rf"(?<![A-Za-z$€£¥₹]){_AMOUNT}(\s?)([mgL])\b(?!['.&-]\w|\.\s+(?!{STARTER})[A-Z]|"
    rf"/(?!(?:{'|'.join([*_UNITS, *_LETTER_UNITS, *_PER])})\b)){_AFTER_UNIT}"
)

_SCALES = {"k": "thousand", "m": "million", "mn": "million", "bn": "billion", "b": "billion", "tn": "trillion"}
# One and several; one and several hundredths.
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "", ""),
}
_DOLLARS = {
    **{"US": "US", "C": "Canadian", "CA": "Canadian", "A": "Australian", "AU": "Australian", "NZ": "New Zealand"},
    **{"HK": "Hong Kong", "S": "Singapore"},
}
_SIGN = f"[{''.join(_CURRENCIES)}]"
_DOLLAR = rf"(?:\b({'|'.join(_DOLLARS)})(?=\$))?"
_SCALE_NAMES = "thousand|million|billion|trillion|bn|mn|tn|[kKmMbB]"
_SCALE = rf"(?:[\s-]?({_SCALE_NAMES})\b)?"
_MONEY = re.compile(rf"{_DOLLAR}({_SIGN})\s?({_NUMBER}){_SCALE}{_PER_WHAT}")
_MONEY_SIGN_LAST = re.compile(rf"(?<![\w.,]){_AMOUNT}{_SCALE}\s?{_DOLLAR}({_SIGN})(?!\w){_PER_WHAT}")
# "1.234,56" and "5,50", if a currency stands beside them.
_CONTINENTAL = re.compile(
    rf"(?<![\d.,])(?:(?<={_SIGN})|(?<={_SIGN}\s)|(?=[\d.,]+\s?{_SIGN}))(\d{{1,3}}(?:\.\d{{3}})+|\d+),(\d\d)(?![\d.,]*\d)"
)

# A comma between digits belongs to a number only before three of them, or before pairs and three: "1,50,000". A colon
# between digits is a time or a ratio.
_LIST = re.compile(
    rf"(?:(?<=[^\W\d_])|(?<=[%°]|{_SIGN}))[,;:](?=\w|{_SIGN}\d)|(?<=\d)[,;:](?=[A-Za-z])|"
    r"(?<=\d);(?=\d)|(?<=\d),(?=\d)(?!(?:\d\d,)*\d{3}(?!\d))"
)

# Brackets have become spaces: "(555) 123-4567".
_GAP = r"(?: {1,2}| ?[-–] ?|\.)"
_PHONE = re.compile(
    rf"(?<![\w/+$€£¥₹-])(?<!\d[ .,:])(?:\+[1-9]\d{{0,3}}(?:{_GAP}\d{{1,4}})?(?:{_GAP}\d{{2,11}}){{1,4}}|"
    rf"(?:1{_GAP})?[2-9]\d\d{_GAP}\d{{3}}{_GAP}\d{{4}}|0\d{{1,4}}{_GAP}\d{{3,4}}{_GAP}\d{{3,4}}|"
    rf"0\d{{2,4}}[ -]\d{{5,8}}|0\d(?:[ .-]\d\d){{4}}|(?P<local>\d{{3}}-\d{{4}}))(?![\w%°]|[.,:-]\d)"
)
_CALLING = re.compile(
    r"\b(?:call|dial|fax|hotline|mobile|phone|tel|telephone)\b[.:]?"
    r"(?:\s+(?:at|her|him|is|me|no|now|number|on|or|them|us)\b[.:]?)*\s*$",
    re.IGNORECASE,
)

_WHOLE = r"(?:[1-9]\d*(?:,\d{3})*|0)"
_RANGE = re.compile(
    rf"(?<![\w.,:/+-])({_SIGN}?)({_WHOLE}(?:\.\d+)?)([%$€£¥₹]?)-({_SIGN}?)({_WHOLE}(?:\.\d+)?)(?![\d:/]|[.,-]\d)"
)
_SCALED = re.compile(rf"[\s-]?(?:{_SCALE_NAMES})\b")
_CLOCK = re.compile(r"(?<![\d:.,])(\d{1,2}):([0-5]\d):([0-5]\d)(?![\d:]|[.,]\d)")
_RATIO = re.compile(r"(?<![\d:.,])(\d+):(\d+)(?![\d:]|[.,]\d)")
_DECADES = ("tens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")
# "Wait 30s.": what stands around seconds, where "the 30s", "in her 30s" and "80s music" are something else.
_SECONDS = re.compile(
    r"\b((?i:wait|waits|waited|waiting|for|after|within|every|takes?|took|taking|lasts?|lasted|about|around|only|just|"
    rf"least|most|another|extra|pause|sleep|hold|rest|than|in))\s+(?!\d{{4}}s)({_NUMBER})s\b(?!')(?=\s*(?:$|[.,;:!?)])|"
    r"\s+(?:before|after|then|until|at|on|for|from|with|while|between|per|is|was|if|when|to|(?:and|or)(?!\s+'?\d+s))\b)"
)
_SECONDS_LAST = re.compile(
    rf"(?<!\w)(?<!')(?!\d{{4}}s)({_NUMBER})s(?=\s+(?:later|ago|timeout|timer|delay|limit|interval)\b)"
)
_FRACTIONS = {"2": "half", "3": "third", "4": "quarter", "5": "fifth", "6": "sixth", "8": "eighth", "10": "tenth"}
_ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
    *("twentieth", "twenty first", "twenty second", "twenty third", "twenty fourth"),
)
# Whose numeral is an ordinal: a name behind a title, and names of rulers.
_RULER = re.compile(
    r"\b(?:(?:Czar|Duchess|Duke|Emperor|Empress|Kaiser|King|Pharaoh|Pope|Prince|Princess|Queen|Sultan|Tsar)\s+\w+|Albert|"
    "Alexander|Alfonso|Amenhotep|Baldwin|Benedict|Boniface|Carl|Carlos|Casimir|Catherine|Charles|Christian|Clement|"
    "Constantine|Darius|Edward|Elizabeth|Emmanuel|Felipe|Ferdinand|Francis|Franz|Frederick|Friedrich|George|Gregory|"
    "Gustav|Gustavus|Haakon|Harald|Henri|Henry|Innocent|Isabella|Ivan|James|John|Joseph|Juan|Julius|Justinian|Leo|"
    "Leopold|Louis|Ludwig|Margaret|Margrethe|Martin|Mary|Maximilian|Mehmed|Michael|Murad|Napoleon|Nicholas|Olav|Otto|"
    "Paul|Pedro|Peter|Philip|Philippe|Pius|Ptolemy|Rama|Ramesses|Ramses|Richard|Robert|Rudolf|Selim|Sigismund|Suleiman|"
    r"Theodosius|Thutmose|Umberto|Urban|Vittorio|Wilhelm|Willem|William|Xerxes)\b",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    "(?:act|amendment|appendix|article|book|bowl|canto|category|ch|chapter|class|division|episode|factor|fig|figure|"
    "grade|lesson|level|mark|part|phase|psalm|round|scene|schedule|season|sec|section|stage|table|tier|title|type|vol|"
    "volume|war)s?",
    re.IGNORECASE,
)
_ROMAN = r"(?=[IVXL]{2})(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?!\w)"
_JOINT = r"(?:,\s|,?\s(?:and|or|to|through)\s|\s?[-–]\s?)"
# A single letter is a number only beside longer ones: "Parts I and II".
_NUMERALS = re.compile(
    rf"\b((?:[A-Z][A-Za-z]*\s){{0,2}})(?!(?:and|or|to|through)\b)([A-Za-z]{{2,}})(\.?\s+)"
    rf"((?:[IVX]{_JOINT})*{_ROMAN}(?:{_JOINT}{_ROMAN})*)"
)
_NAME = re.compile(rf"(?!{STARTER})[A-Z][a-z]")
_NO_SEQUEL = re.compile(
    r"\w*L|XXX?\b|IV\s(?:access|antibiotics?|bags?|drips?|drugs?|fluids?|infusions?|lines?|medications?|therapy)\b"
)
# Those that gruut takes for years are left to it.
_LONG_NUMBER = re.compile(r"(?<![\w.,:/-])(\d{1,3}(?:,\d{3})+|[3-9]\d{3}|[1-9]\d{4,8})(?![\d:/-]|[.,]\d)")
_GROUPS = ("", "thousand", "million", "billion", "trillion", "quadrillion")


def write_out_powers(text: str) -> str:
    """Areas and volumes: "5 km²" -> "5 square kilometers"."""
    units = _UNITS | _LETTER_UNITS
    return re.sub(r"(?<=\d)\s?([kcm]?m)([²³])", lambda match: f" {_POWERS[match[2]]} {units[match[1]]}", text)


def write_out_numbers(text: str) -> str:
    """What stands around digits as words: signs, units and currencies; for numbers themselves see `say_as_written`."""
    text = _LIST.sub(r"\g<0> ", _CONTINENTAL.sub(_english_amount, text))
    text = re.sub(rf"({_SIGN})-(?=[\d.])", r"-\1", _PHONE.sub(_phone, text))
    text = _write_ranges(_write_times(re.sub(rf"({_SIGN})\.(?=\d)", r"\g<1>0.", text)))
    text = _MONEY.sub(lambda match: _money(*match.groups()), text)
    text = _MONEY_SIGN_LAST.sub(lambda match: _money(match[3], match[4], match[1], match[2], match[5]), text)
    # Other letters may stand for a unit: "3m".
    text = re.sub(rf"(?<=\d)\s?(bn|tn)\b{_PER_WHAT}", lambda match: f" {_SCALES[match[1]]}{_per(match[2])}", text)
    # A sign without an amount; in "Ke$ha" it is a letter.
    text = re.sub(r"(?<=[A-Za-z])\$(?=[A-Za-z])", "s", text)
    text = re.sub(rf"{_DOLLAR}({_SIGN})", lambda match: f" {_currency(match[1], match[2])[0]} ", text)
    text = _SECONDS_LAST.sub(r"\1 seconds", _SECONDS.sub(r"\1 \2 seconds", text))
    text = re.sub(r"(?<!\w)(\d\d\.\d|\d+\.\d+|\d{2,3})\ss\b(?!['.]\w)", r"\1 seconds", text)
    text = re.sub(r"\b(\d*?)(\d0)'?s\b", _decade, text)
    text = re.sub(r"(\d)\s?°\s?C\b", r"\1 degrees Celsius", text)
    text = re.sub(r"(\d)\s?°\s?F\b", r"\1 degrees Fahrenheit", text)
    text = text.replace("°", " degrees ")
    # "Ft. Worth" is a fort.
    text = re.sub(rf"(?<=\d)\s?F[tT]\b(?!\.?\s+(?!{STARTER})[A-Z])", " ft", text)
    text = _LETTER_UNIT.sub(_quantity, _UNIT.sub(_quantity, text))
    text = re.sub(r"(?<=[\d%])\s?/\s?(?=[a-z]{2,}\b)", " per ", text)
    text = re.sub(r"(\d)\s?%", r"\1 percent", text).replace("%", " percent ")
    text = re.sub(r"#\s?(?=\d)", "number ", text).replace("#", " ")
    text = re.sub(r"(?<![\w.,/])(\d+)(?:\s+|-)(?=\d/\d(?:rds?|ths?)?\b(?!/))", r"\1 and ", text)
    text = re.sub(r"(\d\.\d+)/(?=\d)", r"\1 slash ", text)
    text = re.sub(r"(?<![\d/.-])(\d+)/(\d+)((?:st|nd|rd|th)s?\b)?(?![\d/-])", _fraction, text)
    return re.sub(r"(?<!\w)-(?=[\d.])", " minus ", text)


def write_out_roman(text: str) -> str:
    """Roman numerals of two letters at least: "Chapter IV" -> "Chapter 4", "Queen Elizabeth II" -> "the second"."""

    def numbers(match: re.Match) -> str:
        names, name, gap, numerals = match.groups()
        is_counted = _COUNTED.fullmatch(name) is not None
        is_name = "." not in gap and not is_counted
        is_ruler = is_name and name[0].isupper() and _RULER.search(names + name) is not None
        # After any other name "XL" and "XXX" are sizes, and "IV fluids" go into a vein.
        is_sequel = is_name and _NAME.match(name) and not _NO_SEQUEL.match(match.string, match.start(4))
        if not (is_counted or is_ruler or is_sequel):
            return match[0]

        def number(numeral: re.Match) -> str:
            value = _roman_value(numeral[0])
            return f"the {_ORDINALS[value - 1]}" if is_ruler and value <= len(_ORDINALS) else str(value)

        return match[0][: -len(numerals)] + re.sub("[IVXL]+", number, re.sub(r"\s?[-–]\s?", " to ", numerals))

    return _NUMERALS.sub(numbers, text)


def _roman_value(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[letter] for letter in numeral]
    # A smaller one before a greater one is taken away.
    return sum(-value if value < max(values[index:]) else value for index, value in enumerate(values))


def say_as_written(text: str) -> str:
    """Numbers in the form that gruut reads as they are meant: decimals and codes digit by digit, no pause inside."""
    # Version and network numbers: more points than a number can have.
    text = re.sub(r"\d+(?:\.\d+){2,}", lambda match: match[0].replace(".", " dot "), text)
    # "3.10" is not 3.1.
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"(\d)\.(\d+)", lambda match: f"{match[1]} point {' '.join(match[2])}", text)
    # A number that starts with zero or is too long to be said as one is read digit by digit.
    text = re.sub(r"(?<![\d.,:/-])(?:0\d+|\d{10,})(?![\d:/-]|[.,]\d)", lambda match: " ".join(match[0]), text)
    return _LONG_NUMBER.sub(_grouped, text)


def _phone(match: re.Match) -> str:
    """Digit by digit with a pause between the groups: "555-0199" -> "5 5 5, 0 1 9 9"."""
    groups = re.findall(r"\d+", match[0])
    if match["local"]:
        first, last = groups
        # "500-1000" and "476-1453" are ranges.
        is_range = last[0] != "0" and (
            (first[-1] == last[-1] == "0") or last.endswith("00") or 1000 <= int(last) <= 2100
        )
        if is_range and first != "555" and not _CALLING.search(match.string[: match.start()]):
            return match[0]
    elif match[0][0] == "+" and not 8 <= sum(map(len, groups)) <= 15:
        return match[0]
    return f"{'+' if match[0][0] == '+' else ''}{', '.join(' '.join(group) for group in groups)}"


def _write_times(text: str) -> str:
    def clock(match: re.Match) -> str:
        hour, minute, second = map(int, match.groups())
        seconds = f" and {second} second{'s' * (second != 1)}" if second else ""
        return (f"{hour}:{match[2]}" if hour < 24 else f"{hour} hours {minute} minutes") + seconds

    def ratio(match: re.Match) -> str:
        hour, minute = match.groups()
        if match[0] == "24:00":
            return "24 hundred"
        is_time = len(minute) == 2 and int(minute) < 60 and len(hour) <= 2 and int(hour) < 24
        if not is_time:
            return f"{hour} to {minute}"
        after = match.string[match.end() :]
        # gruut reads "17:00" as five.
        if int(hour) <= 12 or re.match(r"\s?[ap]\.?m\b", after, re.IGNORECASE):
            return match[0]
        words = "hundred" if minute == "00" else re.sub("^0", "oh ", minute)
        return f"{hour} {words}{' ' * after[:1].isalpha()}"

    text = re.sub(r"(?<=:\d\d)\s?[-–]\s?(?=\d{1,2}:\d\d)", " to ", text)
    text = re.sub(r"(?<![\d.,])(\d{1,2})\.([0-5]\d)(?=\s?[ap](?:m\b|\.m\.))", r"\1:\2", text, flags=re.IGNORECASE)
    return _RATIO.sub(ratio, _CLOCK.sub(clock, text))


def _write_ranges(text: str) -> str:
    """Numbers with a hyphen or a dash between them. Dates and results stay as they are."""

    def span(match: re.Match) -> str:
        first_sign, first, sign_after, second_sign, second = match.groups()
        low, high = float(first.replace(",", "")), float(second.replace(",", ""))
        # "1914-18"
        is_short = re.fullmatch(r"(?:1\d|20)\d\d-[1-9]\d", f"{first}-{second}") and low % 100 < high
        if not (low < high or is_short):
            return match[0]
        # "$20-30" and "$20-$30 million": the currency is said once.
        if first_sign and (not second_sign or _SCALED.match(match.string, match.end())):
            return f"{first} to {first_sign}{second}"
        return f"{first_sign}{first}{sign_after} to {second_sign}{second}"

    text = re.sub(rf"(?<=\d)\s?-\s?(?={_NUMBER} +equals\b)", " minus ", text)
    text = re.sub(rf"(?<=[\d%$€£¥₹])\s?–\s?(?={_SIGN}?\d)", " to ", text)
    return _RANGE.sub(span, text)


def _english_amount(match: re.Match) -> str:
    return f"{match[1].replace('.', '')}.{match[2]}"


def _currency(dollar: str | None, sign: str) -> tuple[str, ...]:
    one, several, *parts = _CURRENCIES[sign]
    before = f"{_DOLLARS[dollar]} " if dollar else ""
    return f"{before}{one}", f"{before}{several}", *parts


def _money(dollar: str | None, sign: str, amount: str, scale: str | None, what: str | None) -> str:
    one, several, one_part, several_parts = _currency(dollar, sign)
    per = _per(what)
    if scale:
        return f"{amount} {_SCALES.get(scale.lower(), scale)} {several}{per}"
    whole, _, decimals = amount.partition(".")
    if len(decimals) > 2 or len(whole) > 15 or (decimals and not several_parts):
        return f"{amount} {several}{per}"
    parts = int(decimals.ljust(2, "0")) if decimals else 0
    value = int(whole.replace(",", ""))
    # With commas it is taken for no year.
    words = [f"{value:,} {one if value == 1 else several}"] if value or not parts else []
    if parts:
        words.append(f"{parts} {one_part if parts == 1 else several_parts}")
    return " ".join(words) + per


def _per(what: str | None) -> str:
    if what is None:
        return ""
    unit = (_UNITS | _LETTER_UNITS).get(what)
    return f" per {_singular(unit) if unit else _PER.get(what, what)}"


def _quantity(match: re.Match) -> str:
    """An amount with the plural of its unit, or the singular: "1 kilometer per hour"."""
    amount, space, form, what = match.groups()
    # "In 2012 MB Holdings"; memory comes in sizes that look like years.
    is_year = space and re.fullmatch(r"1\d{3}|20\d\d", amount) and amount not in ("1024", "2048")
    if is_year and form.isupper():
        return match[0]
    words = _UNITS.get(form) or _LETTER_UNITS[form]
    return f"{amount} {_singular(words) if amount == '1' else words}{_per(what)}"


def _singular(unit: str) -> str:
    return "foot" if unit == "feet" else re.sub(r"s\b", "", unit, count=1)


def _decade(match: re.Match) -> str:
    """The words of a decade: "1990s" -> "19 nineties", "1900s" -> "19 hundreds", "2000s" -> "two thousands"."""
    century, tens = match[1], match[2]
    if tens == "00":
        if century.endswith("0"):
            return f"{century[:-1]} thousands"
        return f"{century} hundreds".strip()
    if len(century) == 1:
        century += " hundred and"
    return f"{century} {_DECADES[int(tens[0]) - 1]}".strip()


def _fraction(match: re.Match) -> str:
    part, whole, ending = match.groups()
    if int(part) >= int(whole) or not (whole in _FRACTIONS or (ending and int(whole) <= len(_ORDINALS))):
        return f"{part} slash {whole}{ending or ''}"
    name = _FRACTIONS.get(whole) or _ORDINALS[int(whole) - 1]
    return f"one {name}" if part == "1" else f"{part} {name}s"


def _grouped(match: re.Match) -> str:
    """ "12,345" -> "12 thousand 345": gruut would put commas, which are pauses, between the groups."""
    digits = match[1].replace(",", "")
    # gruut says round ones without a pause, and a number's value where zeros lead.
    groups = [int(digits[max(0, end - 3) : end]) for end in range(len(digits), 0, -3)]
    if len(groups) > len(_GROUPS) or not any(groups[1:]):
        return match[0]
    words = [f"{value} {name}" for value, name in zip(groups[:0:-1], _GROUPS[len(groups) - 1 : 0 : -1]) if value]
    last = groups[0]
    return " ".join([*words, *([f"{'and ' if last < 100 else ''}{last}"] if last else [])])
