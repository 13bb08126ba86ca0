"""The results page: complete in itself, everything from data shown as text, and alive in a real browser."""

import functools
import html
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import made_up_tables as made_up
from pipeline import snakemake
from stopwise.artifacts import tables as artifacts
from stopwise.claims import verdicts as claims
from stopwise.claims.paper import CLAIMS
from stopwise.figures import chart, registry, style
from stopwise.report import interactive, page
from stopwise.stopping.registry import ROW

EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> & $x$ \"quoted\""


def summary(tasks=2):
    """Headline numbers of two sizes, one of them without an answer."""
    rows = []
    for task in made_up.TASKS[:tasks]:
        for n in (16, 64):
            rows.append(("pretrained", task, n, "zero_shot", 2, 0.55, 0.5, None, None))
            rows.append(("pretrained", task, n, "sure", 2, 0.7 + n / 1000, 0.25, 8.5, 0.031))
    return made_up.table(rows, "start task n method seeds accuracy loss t relative_regret")


def tables(task=None, **shape):
    """The tables of the interactive figures; with `task`, the first task gets that name everywhere."""
    out = {}
    for name in interactive.INTERACTIVE:
        table = registry.figure(name).table(*made_up.upstream(name, **shape))
        for column in ("task", "task_a", "task_b") if task else ():
            if column in table.column_names:
                names = [task if v == "movie" else v for v in table[column].to_pylist()]
                table = table.set_column(table.schema.get_field_index(column), table.field(column), pa.array(names))
        out[name] = table
    return out


def rendered():
    return page.render("demo", tables(tasks=2), summary(), facts={"model": "m"})


shared = functools.cache(rendered)  # most of a test's time is one page


def sections(text):
    return json.loads(re.search(r'<script id="sections" type="application/json">(.*?)</script>', text, re.S)[1])


class Elements(HTMLParser):
    """Elements of a page by name, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.slow
def test_page_asks_for_nothing_from_outside():
    elements = Elements(shared()).found
    addresses = [v for _, attrs in elements for k, v in attrs.items() if k in ("src", "href")]
    assert addresses
    assert all(a.startswith(("#", "data:")) for a in addresses)
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_names_from_data_are_text_everywhere():
    args = tables(EVIL, tasks=2, seeds=1, sizes=(16,))
    head = summary()
    names = [EVIL if v == "movie" else v for v in head["task"].to_pylist()]
    head = head.set_column(head.schema.get_field_index("task"), "task", pa.array(names))
    text = page.render(EVIL, args, head, facts={EVIL: EVIL})
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 3
    assert not [a for tag, a in elements if tag == "img" or any(k.startswith("on") for k in a)]
    assert html.escape(EVIL) in text
    for name, figures in sections(text).items():
        for figure in figures.values():
            for said in strings(figure):
                assert "<script" not in said.replace("<extra></extra>", ""), name


def strings(value):
    """All strings inside JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


@pytest.mark.slow
def test_every_choice_gives_a_figure_that_plotly_accepts():
    made = interactive.sections(tables(tasks=2, seeds=2, sizes=(16, 32)))
    for name, section in made.items():
        for _, options, first in section.choices:
            assert 0 <= first < len(options)
        assert "|".join(str(first) for _, _, first in section.choices) in section.figures
        assert section.message.endswith("."), name
        for figure in list(section.figures.values())[:3]:
            go.Figure(figure)  # refuses unknown entries and values


def test_the_first_choice_is_the_largest_size():
    section = interactive.sections(tables(tasks=1))["F2"]
    (choice,) = [c for c in section.choices if c[0] == "training examples"]
    assert choice[1][choice[2]] == "64"


def test_curves_hold_the_numbers_of_the_table_and_gaps_for_nan():
    runs, evaluations = made_up.runs(tasks=1, seeds=1, sizes=(16,))
    figures = interactive.sections({"F2": registry.figure("F2").table(runs, evaluations)})["F2"].figures
    traces = {trace["name"]: trace for trace in figures["0|0|0|0|0"]["data"]}
    measured = traces["test, measured"]
    assert measured["y"] == pytest.approx(runs[0][1]["test_loss"].to_pylist(), rel=1e-5)  # six digits are kept
    rows = {trace["y"][0] for trace in figures["0|0|0|0|0"]["data"] if trace.get("yaxis") == "y2"}
    assert rows == {rule.replace("_", " ") for rule in made_up.RULES}
    assert interactive.numbers([1.0, float("nan"), float("inf")]) == [1.0, None, None]


@pytest.mark.parametrize(
    ("ends", "places"),
    [((0.2, 0.82), [0.2, 0.5]), ((0.5, 1.4), [0.6, 0.8, 1, 1.5]), ((1, 64), [1, 2, 5, 10, 20, 50]), ((1e-3, 30), None)],
)
def test_a_logarithmic_axis_of_the_page_has_plain_numbers(ends, places):
    found = interactive.plot(chart.Panel(y=chart.Axis("loss", "log"), lines=(chart.Line([0, 1], ends, "#000000"),)))
    axis = found["layout"]["yaxis"]
    assert axis["tickvals"] == (places or [0.001, 0.01, 0.1, 1, 10])
    assert axis["ticktext"] == [f"{place:g}" for place in axis["tickvals"]]
    assert "tickvals" not in found["layout"]["xaxis"]


def test_the_rules_of_the_curves_are_said_in_words():
    text = shared()
    below = text[text.index("What the rules are") :].partition("</details>")[0]
    for rule in made_up.RULES:
        assert f"<dd>{html.escape(ROW[rule].words)}</dd>" in below, rule


def test_headline_shows_the_largest_size_first_and_dashes_for_what_is_missing():
    text = page.headline(summary())
    top = text.partition("<details>")[0]
    assert "76.4" in top
    assert "71.6" not in top
    assert "71.6" in text
    assert "8.5" in text
    assert page.headline(summary().slice(0, 0)) == ""


def test_the_page_leads_with_the_answer_then_curves_then_tables():
    head, text = summary(), shared()
    shown = [attrs["id"] for tag, attrs in Elements(text).found if tag == "section"]
    assert shown[:2] == ["answer", "F2"]
    assert shown[-2:] == ["tables", "run"]
    answer = text[text.index('<section id="answer">') : text.index('<section id="F2">')]
    assert "movie (64)" in answer
    assert "movie (16)" not in answer
    assert "<td>55.0</td><td>76.4</td><td>–</td>" in answer  # the prompt, the rule, and no hold-out here
    assert page.answer(head.filter(pc.field("method") == "zero_shot")) == ""


def test_page_without_tables_or_with_empty_ones_is_still_a_page():
    empty = {name: registry.figure(name).COLUMNS.empty_table() for name in interactive.INTERACTIVE}
    for given in ({}, empty):
        assert "<h1>" in page.render("demo", given)


@pytest.mark.slow
def test_equal_tables_give_equal_pages():
    assert rendered() == shared()


class Browser:
    """A headless Chromium, driven over the WebDriver protocol; its console is kept."""

    def __init__(self, profile):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen([shutil.which("chromedriver"), f"--port={port}"], stdout=subprocess.DEVNULL)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        options = {"args": [*flags, "--window-size=1100,900"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(100):  # the driver needs a moment to listen
            try:
                self.session = self.post("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
                return
            except urllib.error.URLError:
                time.sleep(0.1)
        self.driver.kill()
        raise RuntimeError("chromedriver does not answer")

    def post(self, path, body):
        where = f"{self.base}/session" + (f"/{self.session}{path}" if path else "")
        return self.send(urllib.request.Request(where, json.dumps(body).encode(), {"Content-Type": "application/json"}))

    def send(self, request):
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script):
        return self.post("/execute/sync", {"script": script, "args": []})

    def wait(self, script):
        for _ in range(150):
            if self.run(script):
                return
            time.sleep(0.1)
        raise AssertionError(f"never true in the browser: {script}")

    def console(self):
        return [entry for entry in self.post("/se/log", {"type": "browser"}) if entry["level"] != "INFO"]

    def close(self):
        # the browser outlives a driver that is stopped before its session
        self.send(urllib.request.Request(f"{self.base}/session/{self.session}", method="DELETE"))
        self.driver.terminate()
        self.driver.wait(timeout=20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests: each opens a page of its own, and reading the console empties it."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    started = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield started
    started.close()


@pytest.mark.browser
@pytest.mark.slow
def test_page_works_in_chromium(browser, tmp_path):
    written = tmp_path / "page.html"
    figure = registry.figure("F9").draw(registry.figure("F9").table(*made_up.upstream("F9")))
    svg = style.save(figure, tmp_path / "F9")[0].read_bytes()
    args = tables(EVIL, tasks=2, seeds=2, sizes=(16, 32))
    written.write_text(page.render(EVIL, args, summary(), {"F9": svg}, {"model": EVIL}), encoding="utf-8")
    browser.post("/url", {"url": written.as_uri()})
    browser.wait("return document.body.dataset.ready === 'yes'")
    browser.wait("return document.querySelectorAll('.plot.js-plotly-plot .scatterlayer .trace').length > 10")

    assert browser.console() == []
    assert browser.run("return document.title") == f"stopwise: {EVIL}"
    drawn = "return document.querySelector('#F2 .plot').data.map(t => t.y).flat()"
    before = browser.run(drawn)
    change = (
        "const s = document.querySelector('#F2 select'); s.selectedIndex = 1; s.dispatchEvent(new Event('change'));"
    )
    browser.run(change)
    browser.wait(f"return JSON.stringify((() => {{{drawn}}})()) !== {json.dumps(json.dumps(before))}")
    assert browser.run("return document.querySelector('#F9 img').naturalWidth") > 100
    buttons = browser.run("return [...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title)")
    assert len(buttons) > 4
    assert not [title for title in buttons if title and "hare" in title]  # plotly.js 4 offers to upload the data

    # a click on a legend entry hides its curve: the plots respond
    key = "document.querySelector('#F1 .legendtoggle')"
    for kind in ("mousedown", "mouseup"):
        browser.run(f"{key}.dispatchEvent(new MouseEvent('{kind}', {{bubbles: true}}))")
    browser.wait("return document.querySelector('#F1 .plot').data.some(t => t.visible === 'legendonly')")
    legend = browser.run("return [...document.querySelectorAll('#F1 .legendtext')].map(e => e.textContent)")
    assert any(entry.startswith(style.cut(EVIL)) for entry in legend)
    chosen = browser.run("return [...document.querySelectorAll('#F2 option')].map(e => e.textContent)")
    assert EVIL in chosen
    assert browser.console() == []


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_fits_a_phone(browser, tmp_path):
    written = tmp_path / "page.html"
    args = {name: table for name, table in tables(tasks=2, seeds=1, sizes=(16, 64)).items() if name in ("F2", "F3")}
    written.write_text(page.render("demo", args, summary()), encoding="utf-8")
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.post("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": phone})
    try:
        browser.post("/url", {"url": written.as_uri()})
        browser.wait("return document.body.dataset.ready === 'yes'")
        browser.wait("return document.querySelectorAll('#F2 .plot .scatterlayer .trace').length > 5")
        assert browser.run("return window.innerWidth") == 390
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        table = "document.querySelector('#answer table')"
        assert browser.run(f"return {table}.getBoundingClientRect().right") <= 390
        # every rule has its name on the strip below the curves
        names = browser.run("return [...document.querySelectorAll('#F2 .y2tick text')].map(e => e.textContent)")
        assert sorted(names) == sorted(rule.replace("_", " ") for rule in made_up.RULES)
    finally:
        browser.post("/goog/cdp/execute", {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}})


@pytest.mark.browser
@pytest.mark.slow
def test_a_choice_without_data_says_so_and_the_next_one_is_drawn_again(browser, tmp_path):
    table = registry.figure("F2").table(*made_up.upstream("F2", tasks=2, seeds=1, sizes=(16, 32)))
    frame = table.to_pandas()
    gap = pa.Table.from_pandas(frame[~((frame["task"] == "movie") & (frame["n"] == 32))], preserve_index=False)
    written = tmp_path / "page.html"
    written.write_text(page.render("demo", {"F2": gap}), encoding="utf-8")
    browser.post("/url", {"url": written.as_uri()})
    browser.wait("return document.body.dataset.ready === 'yes'")
    assert "no data for this choice" in browser.run("return document.querySelector('#F2 .plot').textContent")
    browser.run(
        "const s = document.querySelector('#F2 select'); s.selectedIndex = 1; s.dispatchEvent(new Event('change'))"
    )
    browser.wait("return document.querySelectorAll('#F2 .plot .scatterlayer .trace').length > 3")
    assert "no data" not in browser.run("return document.querySelector('#F2 .plot').textContent")
    assert browser.console() == []


def test_verdicts_are_a_table_and_their_texts_are_texts():
    rows = claims.judged(CLAIMS, claims.Evidence())
    rows[0] |= {"statement": EVIL, "value": 1.5, "low": 1.0, "high": 2.0, "verdict": claims.HELD}
    text = page.render("demo", {}, claims=artifacts.table_of(rows, "claims"))
    assert html.escape(EVIL) in text
    assert EVIL not in text
    assert "1.5 [1, 2]" in text
    assert text.count("not tested") == len(CLAIMS) - 1
    assert '<a href="#claims">' in text
    assert "not tested" not in page.render("demo", {}, claims=artifacts.schema("claims").empty_table())


@pytest.mark.browser
@pytest.mark.pipeline
@pytest.mark.slow
def test_the_page_of_the_pipeline_works_in_chromium_and_asks_for_nothing(browser, finished_pipeline):
    folder = finished_pipeline[0] / "results/test"
    browser.post("/url", {"url": (folder / "index.html").as_uri()})
    browser.wait("return document.body.dataset.ready === 'yes'")
    browser.wait("return document.querySelectorAll('.plot.js-plotly-plot .scatterlayer .trace').length > 5")
    assert browser.console() == []
    assert browser.run("return document.title") == "stopwise: test"
    shown = browser.run("return [...document.querySelectorAll('section')].map(e => e.id)")
    drawn = sorted(path.stem for path in (folder / "figures").glob("*.svg"))
    assert sorted(shown) == sorted([*drawn, "answer", "tables", "claims", "run"])
    pictures = browser.run("return [...document.images].map(e => e.complete && e.naturalWidth > 100)")
    assert pictures
    assert all(pictures)
    text = browser.run("return document.querySelector('#claims').textContent")
    assert "A few epochs of fine-tuning suffice" in text
    # choosing another task draws its curves
    losses = "return JSON.stringify(document.querySelector('#F2 .plot').data.map(t => t.y))"
    before = browser.run(losses)
    browser.run(
        "const s = [...document.querySelectorAll('#F2 select')].find(e => e.options.length > 1);"
        "s.selectedIndex = (s.selectedIndex + 1) % s.options.length; s.dispatchEvent(new Event('change'))"
    )
    browser.wait(f"return ({losses.removeprefix('return ')}) !== {json.dumps(before)}")
    assert browser.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))") == []
    assert browser.console() == []


@pytest.mark.browser
@pytest.mark.pipeline
@pytest.mark.slow
def test_the_report_of_the_pipeline_works_in_chromium(browser, finished_pipeline, tmp_path):
    copy = tmp_path / "checkout"
    shutil.copytree(finished_pipeline[0], copy, symlinks=True)
    run = snakemake(copy, "--report", "report.html")
    assert run.code == 0, run.output[-3000:]
    browser.post("/url", {"url": (copy / "report.html").as_uri()})
    browser.wait("return document.body.textContent.includes('Task arithmetic')")
    assert "stopwise" in browser.run("return document.body.textContent")
    # a click on a category opens the list of its figures
    click = "[...document.querySelectorAll('a, li, button, div')].filter(e => e.textContent.trim() === 'Kernel').pop()"
    browser.run(f"{click}.click()")
    browser.wait("return document.body.textContent.includes('eigenvalue decay')")
    # the style sheet that Snakemake puts into its reports advises its makers to build it in advance
    assert [entry for entry in browser.console() if "tailwindcss.com" not in entry["message"]] == []
