"""Identity and multi-turn skills, the mixture of all skills, and whole training dialogues."""

import random
from collections.abc import Callable

from assets.models.build import skills
from assets.models.build.names import IdPool, name_pair, syllables
from assets.models.build.phrases import (
    identity,
    identity_answers,
    identity_questions,
    right_answers,
    table,
    templates,
    words,
)
from assets.models.build.skills import Case, Draw, Message

TONES = ("plain", "friendly", "formal")
Skill = Callable[[Draw], Case]


def _identity_question(draw: Draw, lang: str) -> tuple[str, str]:
    """(kind, question); kind is "who" or "author"."""
    kind = "who" if draw.r.random() < 0.6 else "author"
    return kind, draw.noisy(draw.r.choice(identity_questions(lang, kind, draw.held)), lang, 0.45)


def _named_answers(draw: Draw, lang: str, kind: str, name: str, author: str) -> list[str]:
    """Training favours the plain tone; every tone counts as right when testing."""
    if draw.held:
        return right_answers(lang, kind, name, author)
    return identity_answers(lang, kind, name, author, (draw.r.choices(TONES, [6, 2, 2])[0],))


def _plain_answers(lang: str, kind: str, name: str, author: str) -> list[str]:
    return identity_answers(lang, kind, name, author, ("plain",))


def default_identity(draw: Draw) -> Case:
    """The model's own name, without a system prompt or with a general one."""
    lang = draw.lang()
    own = templates()["default_identity"][lang]
    if draw.r.random() < 0.12:
        pool = identity(lang)["facts"]["heldout" if draw.held else "questions"]
        answers = identity_answers(lang, "who", own["name"], own["author"], ("plain",))
        space = " " if lang == "en" else ""
        return skills.one_turn(
            draw.noisy(draw.r.choice(pool), lang), [f"{a}{space}{own['facts']}" for a in answers], lang
        )
    kind, question = _identity_question(draw, lang)
    right = right_answers if draw.held else _plain_answers
    return skills.one_turn(question, right(lang, kind, own["name"], own["author"]), lang)


def system_identity(draw: Draw) -> Case:
    """A random name and author given by a system prompt, sometimes in the other language."""
    lang = draw.lang()
    name, author = name_pair(draw.r, lang, draw.pool)
    prompt_lang = lang if draw.r.random() < 0.85 else draw.lang()
    kind, question = _identity_question(draw, lang)
    system = draw.pick("system", prompt_lang).format(n=name, a=author)
    return Case([("system", system), ("user", question)], _named_answers(draw, lang, kind, name, author), lang)


def rename(draw: Draw) -> Case:
    """A new name and author given by the user in the conversation."""
    lang = draw.lang()
    name, author = name_pair(draw.r, lang, draw.pool)
    kind, question = _identity_question(draw, lang)
    messages = [
        ("user", draw.pick("rename", lang).format(n=name, a=author)),
        ("assistant", templates()["rename_reply"][lang].format(n=name)),
        ("user", question),
    ]
    return Case(messages, _named_answers(draw, lang, kind, name, author), lang)


def _answered(draw: Draw, choices: list[Skill]) -> list[Message]:
    """A finished exchange of one of the skills, never a held-out one."""
    case = draw.r.choice(choices)(Draw(draw.r, pool=draw.pool))
    return [*case.messages, ("assistant", draw.r.choice(case.answers))]


def _remember_name(draw: Draw, lang: str) -> Case:
    r = draw.r
    name = r.choice(words("first_names")) if r.random() < 0.3 else r.choice(name_pair(r, lang, draw.pool))
    name = syllables(r).capitalize() if r.random() < 0.2 else name
    messages = [
        ("user", draw.pick("my_name_tell", lang).format(x=name)),
        ("assistant", templates()["my_name_reply"][lang].format(x=name)),
    ]
    if r.random() < 0.4:
        messages += _answered(draw, [skills.arithmetic, skills.facts, skills.small_talk])
    messages.append(("user", draw.pick("my_name_question", lang)))
    return Case(messages, [templates()["my_name_answer"][lang].format(x=name)], lang)


def _follow_sum(draw: Draw, lang: str) -> Case:
    r = draw.r
    a, b, c = r.randint(0, 40), r.randint(0, 40), r.randint(1, 9)
    total = a + b
    op = "+" if total < c else r.choice("+-")
    messages = [
        ("user", r.choice(templates()["arithmetic"][lang]).format(a=a, b=b, o="+")),
        ("assistant", f"{a} + {b} = {total}"),
        ("user", draw.pick("follow_plus" if op == "+" else "follow_minus", lang).format(c=c)),
    ]
    return Case(messages, [f"{total} {op} {c} = {skills.calculate(total, c, op)}"], lang)


def _follow_fact(draw: Draw, lang: str) -> Case:
    kind = draw.r.choice(["capital", "color", "legs", "opposite"])
    first, second = draw.r.sample(table("facts")[kind], 2)
    question, answer = skills.fact_case(draw, kind, lang, first)
    follow = draw.pick("follow_fact", lang).format(x=second[0 if lang == "en" else 2])
    messages = [("user", question), ("assistant", answer), ("user", follow)]
    return Case(messages, [skills.fact_case(draw, kind, lang, second)[1]], lang)


def _say_again(draw: Draw, lang: str) -> Case:
    messages = _answered(draw, [skills.small_talk, skills.facts, skills.arithmetic, skills.echo])
    return Case([*messages, ("user", draw.pick("again", lang))], [messages[-1][1]], lang)


def multi_turn(draw: Draw) -> Case:
    """Memory within a conversation: the user's name, the last result, the last topic, the last answer."""
    parts = [_remember_name, _follow_sum, _follow_fact, _say_again]
    return draw.r.choices(parts, [35, 22, 25, 18])[0](draw, draw.lang())


#: skill -> (generator, weight in the mixture)
SKILLS: dict[str, tuple[Skill, int]] = {
    "system_identity": (system_identity, 18),
    "default_identity": (default_identity, 8),
    "rename": (rename, 6),
    "small_talk": (skills.small_talk, 9),
    "arithmetic": (skills.arithmetic, 15),
    "facts": (skills.facts, 15),
    "echo": (skills.echo, 34),
    "spell": (skills.spell, 2),
    "count": (skills.count, 3),
    "order": (skills.order, 6),
    "unknown": (skills.unknown, 5),
    "negatives": (skills.negatives, 6),
    "multi_turn": (multi_turn, 9),
    "image": (skills.image, 1),
}
IDENTITY_SKILLS = ("system_identity", "default_identity", "rename")


def pick_skill(r: random.Random) -> str:
    """A skill name by its weight."""
    return r.choices(list(SKILLS), [weight for _, weight in SKILLS.values()])[0]


def _unrelated_system(draw: Draw, case: Case) -> None:
    """Put an identity or a general system prompt before a skill that must ignore it."""
    lang = draw.lang()
    name, author = name_pair(draw.r, lang, draw.pool)
    named = draw.pick("system", lang).format(n=name, a=author)
    prompt = named if draw.r.random() < 0.6 else draw.pick("general_system", lang)
    case.messages.insert(0, ("system", prompt))


def sample(skill: str, draw: Draw) -> Case:
    """One case of a skill; in training some get a system prompt."""
    case = SKILLS[skill][0](draw)
    if draw.held or case.messages[0][0] == "system":
        return case
    if skill == "default_identity" and draw.r.random() < 0.2:
        case.messages.insert(0, ("system", draw.pick("general_system", case.lang)))
    elif skill not in IDENTITY_SKILLS and draw.r.random() < 0.1:
        _unrelated_system(draw, case)
    return case


def dialogue(r: random.Random, pool: IdPool | None = None) -> list[Message]:
    """One training document: one skill, or (one in four) two or three in a row."""
    draw = Draw(r, pool=pool)
    skill = pick_skill(r)
    case = sample(skill, draw)
    messages = [*case.messages, ("assistant", r.choice(case.answers))]
    if r.random() >= 0.25:
        return messages
    for _ in range(r.randint(1, 2)):
        following = pick_skill(r)
        taken = skill in IDENTITY_SKILLS or messages[0][0] == "system"
        if following in ("system_identity", "rename", "multi_turn", "negatives"):
            continue  # their answers depend on what was said before
        if following == "default_identity" and taken:
            continue
        case = SKILLS[following][0](draw)
        messages += [*case.messages, ("assistant", r.choice(case.answers))]
    return messages
