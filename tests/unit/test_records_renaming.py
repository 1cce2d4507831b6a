"""A ready set for another name: replaced literally, filled, and nothing left to fill in without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.records.conversation import Conversation, Message, PlainText
from studio.records.errors import DataError
from studio.records.formats import ReadOptions, open_records
from studio.records.placeholders import leftover
from studio.records.renaming import Names, Renamed, Unfilled, written
from studio.records.replacement import Replacement


def conversation(*texts: str) -> Conversation:
    """Texts as user and assistant in turn."""
    roles = ("user", "assistant") * len(texts)
    return Conversation(messages=tuple(Message(role=r, content=t) for r, t in zip(roles, texts, strict=False)))


def unfilled(*texts: str) -> Unfilled:
    found = Unfilled()
    for number, text in enumerate(texts, 1):
        found.look(number, conversation("Hi", text))
    return found


def test_the_longest_old_name_wins_everywhere() -> None:
    replacement = Replacement([("书生", "Nova"), ("书生·浦语", "小芽"), ("absent", "z")])
    record = Conversation(
        messages=(
            Message(role="system", content="You are 书生."),
            Message(role="user", content="书生，你是谁？"),
            Message(role="assistant", content="我是书生·浦语，书生。"),
        ),
        rejected=(Message(role="assistant", content="书生"),),
    )
    new = written(record, replacement)
    assert isinstance(new, Conversation)
    assert [m.content for m in new.messages] == ["You are Nova.", "Nova，你是谁？", "我是小芽，Nova。"]
    assert new.rejected[0].content == "Nova"
    assert written(PlainText(text="书生"), replacement) == PlainText(text="Nova")
    assert replacement.used == [5, 1, 0]


def test_names_can_be_swapped_in_one_pass() -> None:
    replacement = Replacement([("Ann", "Bob"), ("Bob", "Ann")])
    assert replacement("Ann met Bob. Bob met Ann.") == "Bob met Ann. Ann met Bob."
    assert replacement.used == [2, 2]


@pytest.mark.parametrize("old", [".*", "$1", "(a|b)", "[NAME]", "\\d", "a{2}", "👩‍👩‍👧"])
@pytest.mark.parametrize("new", ["\\1", "\\g<0>", "$&", "%s", "ſtrange"])
def test_patterns_are_plain_text(old: str, new: str) -> None:
    assert Replacement([(old, new)])(f"x {old} aa 7 {old}") == f"x {new} aa 7 {new}"


def test_case_counts_unless_it_is_told_not_to() -> None:
    assert Replacement([("Nova", "Luma")])("nova NOVA Nova") == "nova NOVA Luma"
    assert Replacement([("Nova", "Luma")], case_sensitive=False)("nova NOVA Nova") == "Luma Luma Luma"


@pytest.mark.parametrize(
    ("pairs", "loose", "words"),
    [
        ([], False, "nothing to replace"),
        ([(" ", "x")], False, "old name is empty"),
        ([("a", "")], False, "New name is empty"),
        ([("a", "b\nc")], False, "New name contains a line break"),
        ([("a", "{{name}}")], False, "unfilled placeholder"),
        ([("a", "b"), ("a", "c")], False, "a is to be replaced by two different names"),
        ([("a", "b"), ("A", "c")], True, "A is to be replaced by two different names"),
        ([(f"{n}", "c") for n in range(51)], False, "At most 50 names"),
    ],
)
def test_pairs_that_cannot_be_used(pairs: list[tuple[str, str]], loose: bool, words: str) -> None:
    with pytest.raises(DataError) as caught:
        Replacement(pairs, case_sensitive=not loose)
    assert words in caught.value.message
    assert caught.value.field == "replace"


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("I am {{name}}.", "{{name}}"),
        ("`{{ AUTHOR }}`", "{{ AUTHOR }}"),
        ("{{ city }}", "{{ city }}"),
        ("I am {name}.", "{name}"),
        ("I am {bot_name} of { Your Company }", "{bot_name}"),
        ("I am <NAME>.", "<NAME>"),
        ("I am <YOUR NAME>.", "<YOUR NAME>"),
        ("by [AUTHOR]", "[AUTHOR]"),
        ("我是【名字】。", "【名字】"),
        ("我是{模型名称}，由<开发者>做的", "{模型名称}"),
        ("由[公司名]开发", "[公司名]"),
        ("【NAME】", "【NAME】"),
    ],
)
def test_markers_are_found(text: str, mark: str) -> None:
    assert leftover(text) == mark
    found = unfilled("fine", text)
    assert f"Row 2 still contains {mark}" in (found.problem or found.doubt or "")


@pytest.mark.parametrize(
    "text",
    [
        "$x^{{2}}$ and \\frac{{a}}{b}", "`{name}`", "```\n{{ url }} {name} [NAME]\n```", 'print(f"Hello {name}")',
        "'Hi {name}'.format(name=x)", "<name>Bob</name>", "Sincerely,\n[Your Name]", "names[NAME]", "[NAME](link)",
        "【注意】今天下雨", "{0} and {} and {x}", "${name}", '{"name": "x"}', "def f(x):\n    return {name}", "",
    ],
)  # fmt: skip
def test_code_letters_and_formulas_are_left_alone(text: str) -> None:
    assert leftover(text) is None


def test_every_row_is_named_up_to_twenty() -> None:
    found = unfilled(*("{{name}}" if number % 2 else "fine" for number in range(100)))
    assert found.problem is not None
    assert found.problem.startswith("Rows 2, 4, 6, ")
    assert "40 and 30 more still contain {{name}}. Type the name" in found.problem
    assert unfilled("fine").problem is None
    assert "Row 1 still contains [NAME]" in (unfilled("[NAME]").doubt or "")


def test_a_ready_set_is_renamed_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = [{"instruction": f"Who are you? {n}", "output": "I am {{name}} by 尖米."} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ReadOptions(allow_placeholders=True)
    names = Names(pairs=(("尖米", "Class 3B"),), name="$1 \\g<0>")
    found = list(Renamed(open_records(path, options), names))
    assert [record.messages[1].content for _, record in found] == ["I am $1 \\g<0> by Class 3B."] * 3  # type: ignore[union-attr]
    with pytest.raises(DataError, match="Rows 1, 2, 3 still contain"):
        list(Renamed(open_records(path, options), Names(pairs=(("尖米", "x"),))))
    assert Names(name="a\nb").problem() is not None
    assert Names(name="Nova").problem() is None
