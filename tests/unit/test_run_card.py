"""The run card: complete, alone, and nobody's text becomes markup in it."""

import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from studio import labels
from studio.card_plot import MOST_POINTS, Series, chart, smoothed, thinned, ticks
from studio.cli.train import load_config
from studio.config import MergeConfig, RunConfig
from studio.events import (
    CountsEvent,
    EvalEvent,
    Launch,
    LogEvent,
    RunError,
    RunState,
    SampleEvent,
    StartedEvent,
    Status,
    VerdictEvent,
)
from studio.reproduce import same_run
from studio.run_card import Words, fence, markdown_text, render, sample_grid, size
from studio.schema import build, load_yaml, parse_overrides

HOSTILE = (
    '<script>alert(1)</script><img src=x onerror="alert(2)"> [a](javascript:alert(3)) ![p](http://evil.example/p.png) '
    "{{ 7919*7919 }} {% raw %} `code` | cell\n# heading\n<!-- ${x} --> & ~~~ ''' \" 丹炉"
)


@pytest.fixture
def run(workspace):
    return full_run(workspace)


def full_run(workspace, text=HOSTILE):
    """A finished run whose every text is hostile."""
    config = {
        "name": text[:120],
        "model": {"model_name_or_path": "crucible/ember"},
        "data": {"dataset": text[:200], "system": text},
        "train": {"learning_rate": 0.00077},
        "samples": {"evaluation_inputs": [text]},
    }
    run = workspace.create_run(build(RunConfig, config))
    run.write_launch(
        Launch(argv=[], pid=1, create_time=0, host="h", versions={"torch": "2.13.0"}, git_commit="abc123def456")
    )
    labels.tag(run, ["<b>tag</b>"])
    run.append_event(StartedEvent(max_steps=60))
    counts = {"rows_read": 384, "rows_skipped": 1, "conversations": 383, "tokens": 15280, "trained_tokens": 6110}
    run.append_event(CountsEvent(**counts, packs=383, updates=60, skipped=[text]))
    for step in range(1, 61):
        run.append_event(LogEvent(step=step, loss=3 / step, learning_rate=1e-4, grad_norm=1.0, tokens_per_second=1800))
    run.append_event(EvalEvent(step=30, eval_loss=0.75))
    run.append_event(VerdictEvent(step=30, learned=0.5, leaked=0.0, retained=1.0))
    talk = [{"role": "user", "content": "first turn"}, {"role": "user", "content": text}]
    run.append_event(SampleEvent(step=60, index=1, prompt=talk, answer="talked", reason="end"))
    for step, reason in ((0, "start"), (60, "end")):
        run.append_event(SampleEvent(step=step, index=0, prompt=text, answer=f"{step} {text}", reason=reason))
    run.write_status(Status(state=RunState.FINISHED, step=60, max_steps=60, exit_code=0))
    run.data_file.write_text(json.dumps([[text[:200], "f" * 64]]), encoding="utf-8")
    failing = [{"prompt": text, "answer": text, "expected": text}]
    verdict = {
        "passed": False,
        "perplexity": {"rows": 40, "before": 12.5, "after": 3.25, "ok": True},
        "learned": {"ok": False, "share": 0.625, "right": 20, "total": 32, "failing": failing},
        "leaked": {"ok": True, "share": 0.0, "hits": 0, "total": 60, "failing": []},
        "forgot": {"ok": True, "retained": 0.9875, "kept": 79, "total": 80, "failing": []},
    }
    report = {
        "verdict": verdict,
        "diagnosis": {"kind": "parrot", "message": text, "hint": text, "changes": {"train.num_train_epochs": 2}},
        "before_after": [{"prompt": text, "before": text, "after": text, "ok": False}],
        "seconds": {"load": 2.0, "train": 3700.0},
        "train_loss": 0.05,
        "tokens_per_second": 1834.0,
        "peak_memory_bytes": 620_000_000,
    }
    run.report_file.write_text(json.dumps(report), encoding="utf-8")
    return run


class Seen(HTMLParser):
    """What a browser would find in a page."""

    ALLOWED = {
        *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "footer", "h1", "h2", "h3"),
        *("p", "br", "hr", "b", "strong", "em", "span", "div", "code", "pre", "details", "summary", "ul", "li"),
        *("table", "thead", "tbody", "tr", "th", "td", "blockquote"),
        *("svg", "line", "text", "polyline", "circle", "rect"),
    }

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text = set(), [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_the_page_asks_for_nothing_and_runs_nothing(run):
    page = render(run, "html")
    seen = Seen(page)
    assert seen.tags <= Seen.ALLOWED
    assert (seen.addresses, seen.handlers) == ([], [])
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_every_text_is_in_the_page_as_it_was_written(run):
    seen = Seen(render(run, "html"))
    assert seen.text.count(HOSTILE) >= 9  # system, samples, pairs, failing, diagnosis, reasons, prompt …
    assert "<b>tag</b>" in seen.text
    assert f"user: first turn\nuser: {HOSTILE}" in seen.text
    assert str(7919 * 7919) not in seen.text  # what a template engine would have made of it


def test_the_markdown_has_no_markup_of_others(run):
    text = render(run, "md")
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    seen = Seen(page)
    assert seen.tags <= Seen.ALLOWED
    assert seen.handlers == []
    assert seen.addresses == []
    assert "svg" in seen.tags
    flat = " ".join(HOSTILE.split())
    assert " ".join(seen.text.split()).count(flat.split("# heading")[0].strip()) >= 5


@pytest.mark.parametrize("kind", ["html", "md"])
def test_the_card_has_all_it_promises(run, kind):
    text = render(run, kind)
    text = text if kind == "html" else text.replace("\\", "")
    for wanted in ("62.5 %", "20 of 32", "98.8 %", "f" * 64, "15,280", "2.13.0", "abc123def456", "0.00077", "1:01:40"):
        assert wanted in text, wanted
    assert "12.5 before, 3.25 after" in text
    assert "591 MB" in text
    assert "train.num_train_epochs" in text
    assert run.id in (text if kind == "html" else text)


def test_curves_are_drawn(run):
    page = render(run, "html")
    assert page.count("<svg") == 5
    assert page.count("<polyline") >= 5


def test_the_command_and_the_yaml_start_exactly_this_again(run):
    text = render(run, "md")
    block = re.search(r"(`{3,})yaml\n(.*?)\n\1", text, re.DOTALL)
    assert block
    assert same_run(load_yaml(block.group(2), RunConfig), run.config())
    command = re.search(r"(`{3,})sh\n(.*?)\n\1", text, re.DOTALL)
    program, verb, *rest = shlex.split(command.group(2))
    assert (program, verb) == ("studio", "train")
    assert same_run(load_config(None, parse_overrides(rest[1::2])), run.config())


@pytest.mark.parametrize("kind", ["html", "md"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_card_of_every_state_can_be_made(workspace, kind, language):
    queued = workspace.create_run(build(RunConfig, {"model": {"model_name_or_path": "m"}, "data": {"dataset": "d"}}))
    merge = workspace.create_run(build(MergeConfig, {"base": "b", "adapter": "a", "out": str(workspace.exports / "m")}))
    broken = workspace.create_run(queued.config())
    broken.config_file.write_text("nonsense: [", encoding="utf-8")
    failed = workspace.create_run(queued.config())
    failed.write_launch(Launch(argv=[], pid=1, create_time=0, host="h"))
    error = RunError(kind="data", message="no <rows>")
    failed.write_status(Status(state=RunState.FAILED, error=error))
    failed.report_file.write_text('{"verdict": {"passed": "yes", "learned": []}, "seconds": 5}', encoding="utf-8")
    for run in (queued, merge, broken, failed):
        assert run.id in render(run, kind, Words(language)).replace("\\", "")
    assert "no &lt;rows&gt;" in render(failed, kind, Words(language))


def test_chinese_words_and_translated_sentences(run):
    page = render(run, "html", Words("zh", lambda text: f"译:{text}"))
    assert "运行卡片" in page
    assert "学习率" in page
    assert "译:&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a|b", "<p>a|b</p>"),
        ("# no heading", "<p># no heading</p>"),
        ("1. no list", "<p>1. no list</p>"),
        ("- no list", "<p>- no list</p>"),
        ("<b>", "<p>&lt;b&gt;</p>"),
        ("&lt;", "<p>&amp;lt;</p>"),
        ("a_b_c *d* `e` [f](g) ![h](i) \\n", "<p>a_b_c *d* `e` [f](g) ![h](i) \\n</p>"),
        ("one\ntwo", "<p>one<br>two</p>"),
        ("===", "<p>===</p>"),
        ("---", "<p>---</p>"),
        ("5) no list", "<p>5) no list</p>"),
    ],
)
def test_text_in_markdown_stays_text(text, html):
    assert MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown_text(text)).strip() == html


def test_a_fence_is_longer_than_any_inside():
    assert fence("a ``` b ```` c") == "`````"


def test_of_many_steps_some_are_shown_with_the_first_and_the_last():
    samples = [
        SampleEvent(step=step, index=0, prompt="p", answer=str(step), reason="freq") for step in range(0, 1000, 10)
    ]
    grid = sample_grid(samples)
    assert len(grid["steps"]) == 5
    assert (grid["steps"][0], grid["steps"][-1]) == (0, 990)
    assert grid["rows"][0]["answers"][-1] == "990"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "–"), (999, "999 B"), (1536, "2 KB"), (5 * 2**30, "5.0 GB")]
)
def test_sizes_are_written_with_a_unit(value, text):
    assert size(value) == text


# ---- pictures


def test_a_picture_escapes_its_texts():
    svg = chart("<a>", [Series('"><script>', [(1, 1.0), (2, 2.0)])])
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_gaps_and_single_points_are_drawn_as_such():
    svg = chart("t", [Series("s", [(1, 1.0), (2, 2.0), (3, None), (4, 1.0)])])
    assert (svg.count("<polyline"), svg.count("<circle")) == (1, 1)
    assert chart("t", [Series("s", [(1, None)])]) == ""
    assert chart("t", []) == ""


def test_many_points_are_thinned_and_no_spike_is_lost():
    points = [(step, 1.0) for step in range(50_000)]
    points[31_234] = (31_234, 99.0)
    points[77] = (77, None)
    found = thinned(points)
    assert len(found) <= MOST_POINTS + 2
    assert (31_234, 99.0) in found
    assert len(chart("t", [Series("s", points)])) < 20_000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1e-9, 3e-9), (-5, 5), (7, 7), (0, 12345678)])
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high)
    assert len(found) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 or low == high for tick in found)


def test_smoothing_starts_at_the_first_value_and_keeps_gaps():
    assert smoothed([(1, 2.0), (2, None), (3, 2.0)], 0.9) == [(1, 2.0), (2, None), (3, pytest.approx(2.0))]


@pytest.mark.parametrize("value", ["0.00077", "-0.5", "2.13.0", "a-b", "1 + 1 = 2"])
def test_numbers_stay_readable_in_the_file_itself(value):
    assert markdown_text(value) == value
