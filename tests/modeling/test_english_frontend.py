"""English text to symbols: written forms, abbreviations, what cannot be spoken, and the phoneme vocabulary."""

import base64
import sqlite3
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from e2e_tts.modeling import english_frontend
from e2e_tts.modeling.abbreviations import sentence_goes_on
from e2e_tts.modeling.phoneme_symbols import ENGLISH_PHONEMES
from e2e_tts.modeling.text_frontend import TextFrontend, build_phoneme_tokenizer

SENTENCES = [
    "Dr. Smith paid $3.50 at 7:45 a.m. on March 3rd, 1998; about 35% of 1,200 zyxophones!",
    'Wait - what?! "Never," she said (quietly) ... and left: \'tis over.',
    "NASA, the USA and IBM's TVs: B2B, MP3, CDs, AT&T, R&D, Ph.D., e.g. www.example.com & a@b.org",
    "In the 1990s, the '80s and the 2000s it was -5 °C; 2/3 of 3 1/2 cups, 24/7, €20, £1.5bn, ¥100, #7, x² = 4.",
    "Björn's naïve café: O'Neil's rock 'n' roll, 007, 1234567890123, 5kg, 3D, 10–20 km/h, 21st, Henry VIII.",
    "THIS HEADING SHOUTS\n\nthe next paragraph does not",
    "I read it yesterday; I will read it tomorrow. The wind blows, wind the clock. Xqzt blorfing wug.",
]


@pytest.fixture(scope="module")
def frontend() -> TextFrontend:
    return TextFrontend()


# ---- frontend


def test_symbols_are_words_boundaries_and_punctuation(frontend):
    assert frontend("Hello, world") == "h ɛ l ˈoʊ , | w ˈɚ l d ."
    assert frontend("hello!! world?!") == "h ɛ l ˈoʊ ! | w ˈɚ l d ?"
    assert frontend("“Hello” (world)—yes…") == "h ɛ l ˈoʊ | w ˈɚ l d , | j ˈɛ s ."
    assert frontend("Hello,") == frontend("hello.")


def test_output_stays_within_the_fixed_symbols(frontend):
    known = set(frontend.symbols())
    assert len(known) == len(frontend.symbols()) == 77
    for sentence in SENTENCES:
        symbols = frontend(sentence).split()
        assert set(symbols) <= known
        assert symbols[0] != "|" and symbols[-1] in (".", "?", "!")
        assert not any(first == second == "|" for first, second in pairwise(symbols))


def test_inventory_covers_lexicon_and_guesser():
    gruut_lang_en = pytest.importorskip("gruut_lang_en")
    pycrfsuite = pytest.importorskip("pycrfsuite")
    folder = Path(gruut_lang_en.get_lang_dir())
    connection = sqlite3.connect(folder / "lexicon.db")
    found = {
        phoneme for (line,) in connection.execute("SELECT phonemes FROM word_phonemes") for phoneme in line.split()
    }
    connection.close()
    assert found == set(ENGLISH_PHONEMES)
    tagger = pycrfsuite.Tagger()
    tagger.open(str(folder / "g2p" / "model.crf"))
    guessed = {part for label in tagger.labels() for part in base64.b64decode(label).decode().split("|")}
    assert guessed - {"_"} <= set(ENGLISH_PHONEMES)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("$5.30", "five dollars thirty cents"),
        ("$5 million", "five million dollars"),
        ("50%", "fifty percent"),
        ("Mr. Smith vs. St. Peter", "mister smith versus saint peter"),
        ("NASA and I", "nasa and I"),
        ("COVID came.", "covid came."),
        ("An NAACP or USDA form", "An N.A.A.C.P. or U.S.D.A. form"),
        ("the mp3 and two pdfs", "the M P three and two PDF's"),
        ("a jpg's size on the cpu", "a JPG's size on the CPU"),
        ("1990s", "nineteen nineties"),
        ("2/3", "two thirds"),
        ("5kg", "five kilograms"),
        ("20°C", "twenty degrees Celsius"),
        ("He did NOT", "he did not"),
        ("e.g. this", "for example this"),
        ("007", "zero zero seven"),
        ("café", "cafe"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("hel\u00adlo\u200b world", "hello world"),
        ("it’s", "it's"),
        ("one\n\nTwo", "one. Two"),
        ("example.com", "example dot com"),
        ("v1.2.3", "v one dot two dot three"),
        ("10th-century", "tenth century"),
        # Lists.
        ("Seats 12,13 and 14", "Seats twelve, thirteen and fourteen"),
        ("in 2019,2020 and 2021", "in twenty nineteen, twenty twenty and twenty twenty one"),
        ("Chapters 4,5", "Chapters four, five"),
        ("1,2,3", "one, two, three"),
        ("pages 1-3,5-7", "pages one to three, five to seven"),
        ("Time:5 pm", "Time: 5 pm"),
        ("Price:$5", "Price: five dollars"),
        ("apples,5 pears;6 plums", "apples, five pears; six plums"),
        ("5%,6%", "five percent, six percent"),
        ("In 2019,the year", "In twenty nineteen, the year"),
        ("the 1st/2nd prize and the 3rd/4th", "the first second prize and the third fourth"),
        ("1st,2nd and 3rd", "first, second and third"),
        (
            "1,50,000 and 1,234.56",
            "one hundred and fifty thousand and one thousand two hundred and thirty four point five six",
        ),
        ("$1,50 at 12:30", "one dollar fifty cents at twelve thirty"),
        ("ann.lee@example.com", "ann dot lee at example dot com"),
        # Telephone numbers.
        ("call 555-0199", "call five five five, zero one nine nine"),
        ("(555) 123-4567", "five five five, one two three, four five six seven"),
        ("212.555.0199: call", "two one two, five five five, zero one nine nine: call"),
        ("+1 555 123 4567", "plus one, five five five, one two three, four five six seven"),
        ("tel:1-800-555-0199", "tel: one, eight zero zero, five five five, zero one nine nine"),
        ("+44 20 7946 0958", "plus four four, two zero, seven nine four six, zero nine five eight"),
        ("020 7946 0958", "zero two zero, seven nine four six, zero nine five eight"),
        ("07700 900123", "zero seven seven zero zero, nine zero zero one two three"),
        ("01 23 45 67 89", "zero one, two three, four five, six seven, eight nine"),
        ("Call me at 234-1500", "Call me at two three four, one five zero zero"),
        ("100-200 and 500-1000", "one hundred to two hundred and five hundred to one thousand"),
        (
            "1990-2000 and 476-1453",
            "nineteen ninety to two thousand and four hundred and seventy six to fourteen fifty three",
        ),
        ("$500-1000", "five hundred to one thousand dollars"),
        ("2024-05-01, 100-98", "May first, twenty twenty four, one hundred ninety eight"),
        # Units beside names and acronyms.
        ("In 2019 Ms. Jones", "In twenty nineteen Ms. Jones"),
        ("In 2008 SEC rules", "In 2008 S E C rules"),
        ("In 2020 HR departments", "In 2020 H R departments"),
        ("In 2012 MB Holdings", "In 2012 M B Holdings"),
        ("In 2020 Min Kim", "In twenty twenty Min Kim"),
        ("Windows 11 MS Office", "Windows eleven M S Office"),
        ("Chapter 5 L. Smith", "Chapter five L. Smith"),
        (
            "512 MB, 1024 MB and 3 GHz",
            "five hundred and twelve megabytes, ten twenty four megabytes and three gigahertz",
        ),
        ("5 oz. of flour", "five ounces of flour"),
        ("10 min. later", "ten minutes later"),
        ("6 ft. 2 in", "six feet two in"),
        ("It took 5 min. Then we left", "it took five minutes. Then we left"),
        ("Wait 30s.", "wait thirty seconds."),
        ("Wait 30s and go", "wait thirty seconds and go"),
        ("a 90s timer", "a ninety seconds timer"),
        ("the 30s", "the thirties"),
        ("in her 30s", "in her thirties"),
        ("for 80s music", "for eighties music"),
        ("it took 1.5s", "it took one point five seconds"),
        # Money.
        ("20 $ or 5 € or 10£", "twenty dollars or five euros or ten pounds"),
        ("-$5", "minus five dollars"),
        ("$-5", "minus five dollars"),
        ("US$50 and HK$5", "fifty U S dollars and five Hong Kong dollars"),
        ("$2.50/month", "two dollars fifty cents per month"),
        ("$1/kg", "one dollar per kilogram"),
        ("$0.05", "five cents"),
        ("€1.234,56", "one thousand two hundred and thirty four euros fifty six cents"),
        ("5,50 €", "five euros fifty cents"),
        ("$20-$30, $20-30", "twenty dollars to thirty dollars, twenty to thirty dollars"),
        ("£1.5bn/year", "one point five billion pounds per year"),
        ("the $ and the €", "the dollar and the euro"),
        ("20 US$ and $.50", "twenty US dollars and fifty cents"),
        ("$5-$10 million", "five to ten million dollars"),
        (
            "$1,234.56 and $2005",
            "one thousand two hundred and thirty four dollars fifty six cents and two thousand and five dollars",
        ),
        # Times, ratios, ranges.
        ("14:05:09", "14:05 and nine seconds"),
        ("16:9 at 7:45", "sixteen to nine at seven forty five"),
        ("10-20 km", "ten to twenty kilometers"),
        ("5-10%", "five to ten percent"),
        ("1914-18", "nineteen fourteen to eighteen"),
        ("9:30-11:00", "9:30 to 11:00"),
        ("at 17:00.", "at seventeen hundred."),
        ("13:05-17:30h", "thirteen oh five to seventeen thirty h"),
        ("12:00 and 5:00 pm", "twelve and five P M"),
        ("2020-05-03", "May third, twenty twenty"),
        ("555-1234, 3-2", "five five five, one two three four, three two"),
        # Numbers.
        ("1,234", "one thousand two hundred and thirty four"),
        ("12345 and 1,005", "twelve thousand three hundred and forty five and one thousand and five"),
        ("the 1,234th", "the one thousand two hundred and thirty fourth"),
        ("1998 and 1,000,000", "nineteen ninety eight and one million"),
        ("Python 3.10", "Python three point one zero"),
        ("Version 2.0", "Version two point zero"),
        ("2/3rds, 3/4ths", "two thirds, three quarters"),
        ("2 2/3rds cups, 1/16th", "two and two thirds cups, one sixteenth"),
        ("2.5bn people, 3m and 5bn/year", "two point five billion people, three meters and five billion per year"),
        ("3.14 and .5", "three point one four and zero point five"),
        # Roman numerals.
        ("Queen Elizabeth II died", "Queen Elizabeth the second died"),
        ("King Charles III", "King Charles the third"),
        ("Louis XIV's", "Louis the fourteenth's"),
        ("Pope John XXIII of Rome", "Pope John the twenty third of Rome"),
        ("Pope John Paul II", "Pope John Paul the second"),
        ("KING BHUMIBOL IX RULED", "King Bhumibol the ninth ruled"),
        ("Henry VI, Part II, begins", "Henry the sixth, Part two, begins"),
        ("Super Bowl LVIII was", "Super Bowl fifty eight was"),
        ("World War II ended", "World War two ended"),
        ("Chapter IV, Vol. IX", "Chapter four, Volume nine"),
        ("World Wars I and II were", "World Wars one and two were"),
        ("Chapters II, III and IV are", "Chapters two, three and four are"),
        ("Acts I-III of it", "Acts one to three of it"),
        ("Rocky II and type II diabetes", "Rocky two and type two diabetes"),
        ("Malcolm X and I", "Malcolm ex and I"),
        ("Take XL, Give IV fluids", "Take X L, Give I V fluids"),
        # Hyphens.
        ("Wi-Fi and WI-FI's", "wifi and wifi's"),
        ("X-ray, Spider-Man", "X ray, Spider Man"),
        # Signs.
        ("C# or F#", "C sharp or F sharp"),
        ("3*4 = 12", "three times four equals twelve"),
        ("2^8", "two to the power of eight"),
        ("5 > 3 and <5%", "five greater than three and less than five percent"),
        ("3 - 2 = 1", "three minus two equals one"),
        ("5 >= 3, ≤5", "five greater than or equal to three, at most five"),
        ("2-1/2 cups, 3.5/5 stars", "two and one half cups, three point five slash five stars"),
        ("~5 *really* #new", "about five really hashtag new"),
        ("§ 5 -> <b>", "section five, b"),
        ("https://www.example.com", "W W W dot example dot com"),
        (
            "See http://example.com/my-page/?a=1.",
            "see example dot com slash my dash page slash question mark a equals one.",
        ),
        # Abbreviations.
        ("on Main St. He went", "on Main Street. He went"),
        ("We love St. Peter", "We love Saint Peter"),
        ("Visit St. Petersburg", "Visit Saint Petersburg"),
        ("12 Main St. and", "twelve Main Street and"),
        ("12 Elm Dr. is", "twelve Elm Drive is"),
        ("12 N. Elm Dr., Springfield", "twelve N Elm Drive, Springfield"),
        ("Room 5 Good Dr. Evans", "Room five Good doctor Evans"),
        ("In 2020 Dr. Smith", "In twenty twenty doctor Smith"),
        ("Sept 11, Dec 25", "September eleven, December twenty five"),
        ("Jan 5 or Mar 5th", "January five or March fifth"),
        ("Jun. 5, Mar. 5, Jan 2020", "June five, March five, January twenty twenty"),
        ("Mar 32 and Jan said", "Mar thirty two and Jan said"),
        ("Mon. morning, Wed. 5", "Monday morning, Wednesday five"),
        ("Mon. Jan. 5", "Monday January five"),
        ("They wed. He left", "they wed. He left"),
        ("Lt. Col. Smith, Rep. Jones", "lieutenant colonel Smith, representative Jones"),
        ("Ft. Worth, 6 Ft. tall", "Fort Worth, six feet tall"),
        ("In 2012 Ft. Worth", "In twenty twelve Fort Worth"),
        ("Acme Inc. She left", "Acme Incorporated. She left"),
        ("Acme Inc. of Boston", "Acme Incorporated of Boston"),
        ("lamps, etc. They", "lamps, et cetera. They"),
        ("Plan B. Then", "Plan bee. Then"),
        ("the U.S. The", "the U S. The"),
        ("J. Smith", "J Smith"),
        ("10 oz. 5 min. 2 sec", "10 ounces 5 minutes 2 seconds"),
    ],
)
def test_written_forms(frontend, written, spoken):
    assert frontend(written) == frontend(spoken)


def test_initials_are_spelled(frontend):
    assert frontend("USA") == frontend("U.S.A.") == "j ˈu | ˈɛ s | ˈeɪ ."
    assert frontend("AT&T").startswith("ˈeɪ | t ˈi | ˈæ n d | t ˈi")


def test_possessives_of_names(frontend):
    assert frontend("O'Neil's").endswith("n ˈi l z .")
    assert frontend("wugix's").endswith("ɪ z .") or frontend("wugix's").endswith("s .")


def test_deterministic_and_uncached_equal(frontend):
    first = [frontend(sentence) for sentence in SENTENCES]
    english_frontend.english_words.cache_clear()
    assert [frontend(sentence) for sentence in reversed(SENTENCES)] == first[::-1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("We left at 5 p.m.", "Then it rained"),
        ("We left at 7:45 p.m.", "The others stayed"),
        ("This is plan B.", "It is good"),
        ("She lives in the U.S.", "He does not"),
        ("She lives on Main St.", "He does not"),
        ("She lives at 12 Elm Dr.", "He does not"),
        ("She left on Wed.", "He did not"),
        ("She works for Acme Inc.", "Bob does not"),
    ],
)
def test_abbreviations_end_sentences(frontend, first, second):
    assert frontend(f"{first} {second}.") == f"{frontend(first)} | {frontend(second)}"


@pytest.mark.parametrize(
    "text", ["written by J. Smith", "George W. Bush", "at 5 p.m. sharp", "the U.S. army", "Jr. of it"]
)
def test_abbreviations_within_sentences(frontend, text):
    assert frontend(text).count(".") == 1


@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [
        ("He met Dr", "Smith was", True),
        ("She lives at 12 Elm Dr", "He does", False),
        ("We saw Col", "Smith there", True),
        ("We drove to Ft", "Worth and", True),
        ("He is 6 Ft", "The others", False),
        ("We left on Wed", "Then it", False),
        ("It was on Mon", "morning", True),
        ("It was on Jun", "5 or", True),
    ],
)
def test_where_full_stops_stand_within_sentences(before, after, goes_on):
    assert sentence_goes_on(before, after) == goes_on


def test_no_pause_inside_numbers(frontend):
    assert "," not in frontend("1,234 of 12345 and $9,876.54 and 3,456,789")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text(frontend, text):
    with pytest.raises(ValueError, match="empty"):
        frontend(text)
    with pytest.raises(ValueError, match="empty"):
        TextFrontend("none")(text)


@pytest.mark.parametrize("text", ["!!!", "- ' -", "Привет", "東京", "😀", "\u0301"])
def test_nothing_to_speak(frontend, text):
    with pytest.raises(ValueError, match="can be spoken"):
        frontend(text)


def test_left_out_words_are_reported_every_time(frontend):
    for _ in range(2):
        with pytest.warns(UserWarning, match="東京, 😀"):
            assert frontend("東京 tower 😀") == frontend("tower")


@pytest.mark.parametrize(
    ("text", "sign"),
    [("Menu > File", ">"), ("a ^ b", r"\^"), (r"C:\\Users", r"\\"), ("press # now", "#"), ("press * now", r"\*")],
)
def test_signs_without_a_reading_are_reported(frontend, text, sign):
    with pytest.warns(UserWarning, match=f"leaves out: {sign}"):
        frontend(text)


def test_what_cannot_be_spoken_is_read_as_nothing(frontend):
    symbols, warning = frontend.read("東京")
    assert symbols == "" and "東京" in warning
    assert frontend.read("Hello, world") == (frontend("Hello, world"), "")
    assert TextFrontend("none").read(" Hello,  world") == ("Hello, world", "")


def test_ordinary_text_does_not_warn(frontend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sentence in SENTENCES:
            frontend(sentence)


def test_wrong_arguments(frontend):
    with pytest.raises(TypeError, match="str"):
        frontend(3)
    with pytest.raises(ValueError, match="phonemes"):
        TextFrontend("letters")
    with pytest.raises(ValueError, match="'de'"):
        TextFrontend(language="de")


def test_missing_gruut_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gruut_lang_en", None)
    english_frontend._english.cache_clear()
    with pytest.raises(ImportError, match="pip install"):
        TextFrontend()("an unseen sentence about missing packages")
    english_frontend._english.cache_clear()


def test_recognition_symbols(frontend):
    assert frontend.recognition_symbols(frontend("Hello, my world!")) == "h ɛ l oʊ | m aɪ | w ɚ l d"
    known = set(frontend.symbols())
    for sentence in SENTENCES:
        reduced = frontend.recognition_symbols(frontend(sentence)).split()
        assert set(reduced) <= known and not set(reduced) & set(",.?!;:ˈˌ")
        assert reduced[0] != "|" and reduced[-1] != "|"
    assert TextFrontend("none").recognition_symbols("Well, don't!  Ça va — 東京。") == "well don't ça va 東京"


# ---- vocabulary


def test_tokenizer_ids(frontend, tmp_path):
    tokenizer = build_phoneme_tokenizer()
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and len(tokenizer) == 79
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "<unk>", "|"]
    assert tokenizer.convert_ids_to_tokens(list(range(2, 79))) == frontend.symbols()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for sentence in SENTENCES:
        symbols = frontend(sentence)
        ids = tokenizer(symbols)["input_ids"]
        assert tokenizer.unk_token_id not in ids and len(ids) == len(symbols.split())
        assert tokenizer.decode(ids) == symbols
        assert again(symbols)["input_ids"] == ids
