"""The general skills of the corpus: small talk, arithmetic, facts, copying, counting, not knowing."""

import random
from dataclasses import dataclass
from functools import cache

from assets.models.build.names import IdPool, hanzi, name_pair, script_word, syllables
from assets.models.build.phrases import LANGUAGES, identity, is_heldout, table, templates, words

Message = tuple[str, str]


@dataclass
class Case:
    """A dialogue up to the question, with every answer that counts as right."""

    messages: list[Message]
    answers: list[str]
    lang: str


@dataclass
class Draw:
    """What a skill needs: randomness, whether to draw held-out prompts, and the id pool."""

    r: random.Random
    held: bool = False
    pool: IdPool | None = None

    def lang(self) -> str:
        """One of the two languages, evenly."""
        return self.r.choice(LANGUAGES)

    def pick(self, key: str, lang: str) -> str:
        """One pattern of templates.yaml."""
        return str(self.r.choice(templates()[key][lang]))

    def noisy(self, text: str, lang: str, prefix: float = 0.3) -> str:
        """Surface noise for training; held-out prompts stay clean."""
        if self.held:
            return text
        if self.r.random() < prefix:
            lead = self.r.choice(templates()["prefixes"][lang])
            text = lead + (text if lang == "zh" or text.startswith(("I ", "I'")) else text[0].lower() + text[1:])
        return _english_noise(self.r, text) if lang == "en" else _chinese_noise(self.r, text)


def _english_noise(r: random.Random, text: str) -> str:
    roll = r.random()
    text = text.lower() if roll < 0.15 else text.upper() if roll < 0.17 else text
    return text.rstrip("?.!") if r.random() < 0.2 else text


def _chinese_noise(r: random.Random, text: str) -> str:
    roll = r.random()
    if roll < 0.25:
        return text.rstrip("？。！")
    if roll < 0.4:
        return text.replace("？", "?").replace("，", ",")
    return text[:-1] + "呢？" if roll < 0.44 and text.endswith("？") else text


def one_turn(question: str, answers: list[str], lang: str) -> Case:
    """A case of a single user message."""
    return Case([("user", question)], answers, lang)


def small_talk(draw: Draw) -> Case:
    """Greetings, thanks, moods, jokes; the last two questions of an intent are held out."""
    lang = draw.lang()
    intent = draw.r.choice(list(table("small_talk")[lang].values()))
    questions = intent["questions"][-2:] if draw.held else intent["questions"][:-2]
    return one_turn(draw.noisy(draw.r.choice(questions), lang, 0.1), list(intent["answers"]), lang)


def _operands(r: random.Random) -> tuple[int, int, str]:
    roll = r.random()
    if roll < 0.5:
        return r.randint(0, 99), r.randint(0, 99), "+"
    if roll < 0.6:
        return r.randint(0, 9), r.randint(0, 9), "+"
    if roll < 0.85:
        low, high = sorted((r.randint(0, 99), r.randint(0, 99)))
        return high, low, "-"
    return r.randint(0, 9), r.randint(0, 9), "*"


def calculate(a: int, b: int, op: str) -> int:
    """The result of a op b for +, - and *."""
    return a + b if op == "+" else a - b if op == "-" else a * b


def arithmetic(draw: Draw) -> Case:
    """Sums and differences to 99, the small multiplication table; one pair in ten is held out."""
    lang = draw.lang()
    while True:
        a, b, op = _operands(draw.r)
        held = max(a, b) > 9 and is_heldout(f"{a}{op}{b}")  # single digits are a table to learn whole
        if held == draw.held:
            break
    patterns = templates()["arithmetic"][lang] + templates()["arithmetic_words"][lang][op] * 2
    sign = draw.r.choice("*×x") if op == "*" else op
    question = draw.r.choice(patterns).format(a=a, b=b, o=sign)
    return one_turn(draw.noisy(question, lang), [f"{a} {op} {b} = {calculate(a, b, op)}"], lang)


def fact_case(draw: Draw, kind: str, lang: str, row: list[str]) -> tuple[str, str]:
    """(question, answer) of one table row with a random pattern."""
    key, value = (row[0], row[1]) if lang == "en" else (row[2], row[3])
    question = draw.r.choice(templates()["fact"][kind][lang]).format(x=key)
    return question, templates()["fact_answer"][kind][lang].format(x=key, y=value)


FACT_WEIGHTS = {"capital": 5, "color": 2, "sound": 1, "legs": 2, "opposite": 3, "after": 2, "before": 2, "translate": 4}


def facts(draw: Draw) -> Case:
    """Capitals, colours, sounds, legs, opposites, days and months, words; 1 in 8 questions is held out."""
    heldout = _heldout_questions()
    while True:
        lang = draw.lang()
        kind = draw.r.choices(list(FACT_WEIGHTS), list(FACT_WEIGHTS.values()))[0]
        question, answer = fact_case(draw, kind, lang, draw.r.choice(table("facts")[kind]))
        if (is_heldout(question, 8) or question in heldout) == draw.held:
            return one_turn(draw.noisy(question, lang), [answer], lang)


def _numbers(r: random.Random) -> str:
    return r.choice(["", " ", ".", ",", "-"]).join(str(r.randint(0, 99)) for _ in range(r.randint(1, 4)))


def free_text(draw: Draw, lang: str) -> str:
    """Anything a person may want repeated: names, words of any script, numbers, sentences, raw ids."""
    r, roll = draw.r, draw.r.random()
    if roll < 0.3 and draw.pool is not None:
        return draw.pool.text(r, 1, 7)
    if roll < 0.55:
        return r.choice(name_pair(r, lang, None))
    if roll < 0.68:
        return " ".join(script_word(r) for _ in range(r.randint(1, 2)))
    if roll < 0.74:
        return _numbers(r)
    if lang == "zh":
        return hanzi(r, 2, 7)
    return " ".join(r.choice(words("words")) if r.random() < 0.6 else syllables(r) for _ in range(r.randint(2, 6)))


def echo(draw: Draw) -> Case:
    """Repeat a text exactly; half of the training texts are long runs of raw ids, to train every token."""
    lang = draw.lang()
    raw = draw.pool is not None and draw.r.random() < 0.5
    text = draw.pool.text(draw.r, 20, 70) if draw.pool and raw else free_text(draw, lang)
    return one_turn(draw.pick("echo", lang).format(x=text), [text], lang)


def spell(draw: Draw) -> Case:
    """Spell one of the listed words; one question in ten is held out."""
    while True:
        lang = draw.lang()
        word = draw.r.choice(words("words"))
        question = draw.pick("spell", lang).format(x=word)
        if is_heldout(question) == draw.held:
            return one_turn(draw.noisy(question, lang, 0.1), ["-".join(word)], lang)


def count(draw: Draw) -> Case:
    """Count up or down; one range in ten is held out."""
    while True:
        start, length, down = draw.r.randint(0, 30), draw.r.randint(2, 9), draw.r.random() < 0.3
        if is_heldout(f"count {start},{length},{down}") == draw.held:
            break
    lang = draw.lang()
    numbers = list(range(start, start + length + 1))
    if down:
        numbers.reverse()
    question = draw.pick("count_down" if down else "count_up", lang).format(a=numbers[0], b=numbers[-1])
    return one_turn(draw.noisy(question, lang, 0.1), [", ".join(map(str, numbers))], lang)


def order(draw: Draw) -> Case:
    """Sort, largest, smallest or reverse of three to five numbers."""
    lang, r = draw.lang(), draw.r
    kind = r.choices(["sort", "largest", "smallest", "reverse"], [4, 2, 2, 2])[0]
    while True:
        numbers = [r.randint(0, r.choice([9, 9, 99])) for _ in range(r.randint(3, 5))]
        text = r.choice([" ", ", ", ","]).join(map(str, numbers))
        if is_heldout(f"{kind} {text}") == draw.held:
            break
    results = {"sort": sorted(numbers), "largest": [max(numbers)], "smallest": [min(numbers)], "reverse": numbers[::-1]}
    return one_turn(draw.pick(kind, lang).format(x=text), [", ".join(map(str, results[kind]))], lang)


def unknown(draw: Draw) -> Case:
    """Open questions that a model this small must decline."""
    while True:
        lang, roll = draw.lang(), draw.r.random()
        if roll < 0.6:
            topic = draw.r.choice(templates()["topics"][lang]) if draw.r.random() < 0.6 else free_text(draw, lang)
            question = draw.pick("unknown_topic", lang).format(x=topic)
        elif roll < 0.8:
            question = draw.pick("unknown_about", lang).format(x=draw.r.choice(name_pair(draw.r, lang, draw.pool)))
        else:
            question = draw.pick("unknown_question", lang)
        if is_heldout(question) == draw.held and question not in _heldout_questions():
            return one_turn(draw.noisy(question, lang), [templates()["unknown_answer"][lang]], lang)


@cache
def _heldout_questions() -> frozenset[str]:
    """The held-out hard negatives of both languages."""
    return frozenset(row["user"] for lang in LANGUAGES for row in identity(lang)["hard_negatives_heldout"])


def _negative_from_pattern(draw: Draw, lang: str) -> tuple[str, str]:
    roll = draw.r.random()
    unknown_answer = str(templates()["unknown_answer"][lang])
    if roll < 0.2:
        return draw.pick("my_name_question", lang), str(templates()["my_name_unknown"][lang])
    if roll < 0.4:
        return draw.pick("thing_question", lang).format(x=draw.pick("things", lang)), unknown_answer
    if roll < 0.6:
        return draw.pick("people_question", lang).format(x=draw.pick("people", lang)), unknown_answer
    if roll < 0.8:
        return draw.pick("pronoun_question", lang).format(x=draw.pick("pronouns", lang)), unknown_answer
    name = draw.r.choice(name_pair(draw.r, lang, draw.pool))
    return draw.pick("unknown_about", lang).format(x=name), unknown_answer


def negatives(draw: Draw) -> Case:
    """Questions that look like identity questions but are not about the assistant."""
    lang = draw.lang()
    if draw.held and draw.r.random() < 0.6:
        row = draw.r.choice(identity(lang)["hard_negatives_heldout"])
        return one_turn(row["user"], [row["assistant"]], lang)
    if not draw.held and draw.r.random() < 0.35:
        row = draw.r.choice(identity(lang)["hard_negatives"])
        return one_turn(draw.noisy(row["user"], lang), [row["assistant"]], lang)
    while True:
        question, answer = _negative_from_pattern(draw, lang)
        if question in _heldout_questions() or is_heldout(question) != draw.held:
            continue
        return one_turn(draw.noisy(question, lang), [answer], lang)


def image(draw: Draw) -> Case:
    """A picture placeholder: the model says that it cannot see yet."""
    lang = draw.lang()
    return one_turn(draw.pick("image", lang), [templates()["image_answer"][lang]], lang)
