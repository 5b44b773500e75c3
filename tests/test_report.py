"""mathse.report on a small run folder whose texts are hostile: metrics, table, page (in a browser too)."""

import io
import json
import re
import shutil
import sys
import time
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, Browser
from conftest import finish, read_rows, write_rows
from PIL import Image
from test_bad_input import refused

from mathse.recipe import content_of
from mathse.report import gallery, metrics, statistics
from mathse.report.__main__ import main, report

EVIL = (
    '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">">'
    "<svg onload='window.hacked = 1'>{{ 7 * 7 }}</div></details>"
)
CHECKS = {"base": "ccwwu", "round_0": "cwcwc", "round_1": "cwcwc", "final": "cwccc"}  # of five test problems
IMAGES = ("x.png", "photo.jpg", "gone.png", "x.png")  # of the training problems
NAMES = {"c": "correct", "w": "wrong", "u": "undecided"}
TEACHER = "http://teacher/v1#t"
STAGES = {
    "samples.jsonl": "01_sample.py", "verified.jsonl": "02_verify.py", "reflected.jsonl": "03_reflect.py",
    "model": "04_finetune.py", "predictions.jsonl": "05_evaluate.py",
}  # fmt: skip
SETTINGS = {
    "MODEL": EVIL, "TEACHER": TEACHER, "ORM": "", "DATA": "d.jsonl", "ROUNDS": "1", "SAMPLES": "2",
    "ACCEPT": "both", "REFLECT": "final", "ERRORS": "1", "SEED": "0",
}  # fmt: skip


def path_row(problem, sample, answer_check, orm_check, **more):
    accepted = (answer_check, orm_check) == ("correct", "correct")
    return problem | {
        "sample": sample, "response": f"Step 1: {EVIL}", "finish": "stop", "tokens": 10, "prompt_tokens": 50,
        "model": "student", "seed": 1, "origin": "round-1", "answer_check": answer_check, "extracted": EVIL,
        "rule": "number", "orm_check": orm_check, "status": "correct" if accepted else "wrong",
        "error_step": EVIL, "error_analysis": EVIL, "judge_reply": EVIL, "judge_tokens": [60, 20],
    } | more  # fmt: skip


def write_recipe(path, model, seconds, tokens=None, flags=(), **inputs):
    """The recipe beside an output, or in a folder."""
    inputs = {name: [{"name": str(source), "content": content_of(source)}] for name, source in inputs.items()}
    recipe = {"stage": STAGES.get(path.name, "02_verify.py"), "flags": dict.fromkeys(flags, True)}
    recipe |= {"inputs": inputs | {"model": [{"name": model, "content": "x"}]}, "seconds": seconds}
    recipe |= {"versions": {"torch": "2"}, "git_commit": "abc"} | ({"tokens": tokens} if tokens else {})
    path = path / "recipe.json" if path.is_dir() else path.with_name(path.name + ".recipe.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))


def write_evaluation(folder, checks):
    """eval/ of a stage."""
    (folder / "eval").mkdir(parents=True)
    rows = [
        {
            "id": f"t{index} {EVIL}", "question": f"Test {index}? {EVIL}", "images": [], "answer": "1",
            "subject": f"s{index % 2}{EVIL}", "benchmark": "set", "sample": 0, "finish": "stop", "tokens": 7,
            "response": f"{folder.name} says {EVIL}", "prompt_tokens": 30, "model": "student",
            "answer_check": NAMES[check], "extracted": EVIL, "rule": "number",
        }
        for index, check in enumerate(checks)
    ]  # fmt: skip
    write_rows(folder / "eval" / "predictions.jsonl", rows)
    write_recipe(folder / "eval" / "predictions.jsonl", "student", 60.4, [150, 35])
    correct = checks.count("c")
    figures = {"n": 5, "correct": correct, "accuracy": correct / 5, "interval": statistics.wilson(correct, 5)}
    figures |= {"unparsed": 0, "truncated": 0, "errors": 0, "official": None}
    parts = {f"s0{EVIL}": {"n": 3, "accuracy": 0.5}, "s1": {"n": 2, "accuracy": 0.25}}
    figures["splits"] = {"subject": {}} if folder.name == "base" else {"subject": parts}
    conditions = {
        "model": f"{folder.name} {EVIL}", "seed": folder.name, "temperature": 0.0, "samples": 1,
        "max_tokens": 64 if folder.name == "final" else 128, "max_pixels": 9, "prompt": "solve 1",
    } | ({"rule": "r"} if folder.name != "final" else {})  # fmt: skip
    if folder.name == "round_1":
        figures["official"] = {"n": 5, "accuracy": 0.8, "interval": [0.376, 0.964]}
    evaluation = {"conditions": conditions, "benchmarks": {"set": figures}}
    (folder / "eval" / "metrics.json").write_text(json.dumps(evaluation))


def write_errors(folder):
    """errors.jsonl of an evaluation: its predictions, as the teacher annotates them."""
    rows = read_rows(folder / "eval" / "predictions.jsonl")
    for row, kind in zip(rows, [None, "vision", None, EVIL, None]):
        row |= {"status": row["answer_check"], "teacher_check": "wrong", "error_type": kind}
    write_rows(folder / "eval" / "errors.jsonl", rows)
    predictions = folder / "eval" / "predictions.jsonl"
    write_recipe(folder / "eval" / "errors.jsonl", TEACHER, 1, [7, 1], ["annotate"], input=predictions)


def write_training(folder, rows):
    """model/ and train.jsonl of a stage."""
    (folder / "model").mkdir()
    logged = {"lr": 0, "grad_norm": 1, "tokens_per_second": 4321.0}
    steps = [{"step": step, "loss": 2 / (step + 1)} | logged for step in range(4)]
    write_rows(folder / "model" / "train_log.jsonl", steps)
    trained = [{"id": f"p{index}", "sample": 0, "messages": [], "images": []} for index in range(rows)]
    write_rows(folder / "train.jsonl", trained)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "try"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "images" / "x.png")
    noise = [Image.effect_noise((1200, 900), spread) for spread in (20, 50, 80)]
    Image.merge("RGB", noise).save(folder / "images" / "photo.jpg")
    (folder / "config.json").write_text(json.dumps({"settings": SETTINGS}))
    problems = [
        {
            "id": f"p{index}", "question": f"Question {index}? {EVIL}", "images": [f"images/{name}"],
            "options": [EVIL, "2"], "answer": EVIL, "subject": subject,
        }
        for index, (name, subject) in enumerate(zip(IMAGES, [EVIL, 3, EVIL, ["a list"]]))
    ]  # fmt: skip
    write_rows(folder / "problems.jsonl", problems)
    inside = [problem | {"images": [f"../{problem['images'][0]}"]} for problem in problems]
    for number, (stage, checks) in enumerate(CHECKS.items()):
        write_evaluation(folder / stage, checks)
        if number:
            write_training(folder / stage, number)
    first = path_row(inside[0], 0, "correct", None, status="correct", model=TEACHER)
    write_rows(folder / "round_0" / "verified.jsonl", [first])
    write_recipe(folder / "round_0" / "samples.jsonl", TEACHER, 10, [1000, 100])
    pairs = [("correct", "correct"), ("wrong", "wrong"), ("wrong", "correct"), ("correct", "wrong")]
    pairs += [("wrong", "wrong"), ("wrong", "undecided")]
    paths = [path_row(inside[1 + index // 2], index % 2, *pair) for index, pair in enumerate(pairs)]
    write_rows(folder / "round_1" / "verified.jsonl", paths)
    write_recipe(folder / "round_1" / "samples.jsonl", "runs/try/round_0/model", 18)
    write_recipe(folder / "round_1" / "verified.jsonl", "runs/try/orm/model", 12, [360, 120])
    draft = {"draft": f"old {EVIL}", "draft_of": {"verified_in": "../round_1/verified.jsonl", "sample": 0}}
    reflected = path_row(inside[2], 0, "correct", "correct", origin="reflection", **draft)
    write_rows(folder / "final" / "verified.jsonl", [reflected])
    write_recipe(folder / "final" / "verified.jsonl", "runs/try/orm/model", 2, [60, 20])
    write_errors(folder / "round_1")
    shutil.copytree(folder / "round_0" / "eval", folder / "final" / "blank")
    (folder / "orm" / "model").mkdir(parents=True)
    write_recipe(folder / "orm" / "model", "student", 9)
    write_recipe(folder / "orm" / "annotated.jsonl", TEACHER, 3, [2000, 300], ["annotate"])
    # Left of another call, which ROUNDS=1 does not ask for, and of a step that is not complete.
    shutil.copytree(folder / "round_1", folder / "round_2")
    (folder / "round_1" / "samples.jsonl.part").mkdir()
    write_recipe(folder / "round_1" / "samples.jsonl.part", "student", 1000, [9, 9])
    return folder


PRICES = {"PRICE_IN": "2", "PRICE_OUT": "10"}


@pytest.fixture(scope="module")
def reported(run_folder):
    done = finish("-m", "mathse.report", run_folder, **PRICES)
    assert done.returncode == 0, done.stderr
    return run_folder, done


@pytest.fixture(scope="module")
def found(reported):
    return json.loads((reported[0] / "metrics.json").read_text())


@pytest.fixture(scope="module")
def by_name(found):
    return {stage["stage"]: stage for stage in found["stages"]}


def test_metrics_of_a_run(found, by_name):
    assert list(by_name) == list(CHECKS)
    assert [by_name[name]["train_rows"] for name in CHECKS] == [0, 1, 2, 3]
    changes = by_name["round_0"]["changes"]["set"]["changes"]
    assert changes == dict(zip(statistics.CHANGES, (1, 1, 1, 2)))
    assert (found["overall"]["set"]["change"], found["overall"]["set"]["p"]) == (0.4, 0.625)
    assert by_name["final"]["not_comparable"] == ["max_tokens", "rule"]
    assert by_name["final"]["blank"]["set"]["before"] == 0.6
    audit = by_name["round_1"]["audit"]
    assert audit["status"] == {"wrong": 5, "correct": 1} and audit["finish"] == {"stop": 6}
    pairs = {"correct/correct": 1, "wrong/wrong": 2, "wrong/correct": 1, "correct/wrong": 1}
    pairs["wrong/undecided"] = 1
    assert audit["answer/orm"] == pairs and audit["responses"] == audit["judged"] == 6
    assert by_name["round_0"]["audit"]["answer/orm"] == {"correct/None": 1}
    assert found["pool"]["first_solved"] == {"round_0": 1, "round_1": 1, "final": 1}
    assert found["pool"]["problems"] == 4
    subjects = {EVIL: {"problems": 2, "round_0": 1, "final": 1}, "3": {"problems": 1, "round_1": 1}}
    assert found["pool"]["by_subject"] == subjects | {"['a list']": {"problems": 1}}
    assert found["versions"] == {"torch": "2"} and found["git_commit"] == "abc"


def test_seconds_tokens_and_cost_are_those_of_the_recipes(found, by_name):
    assert by_name["base"]["steps"] == {"evaluating": 60.4}
    round_1 = {"sampling": 18, "verifying": 12, "annotating": 1, "evaluating": 60.4}
    assert by_name["round_1"]["steps"] == round_1
    assert found["orm"]["steps"] == {"fine-tuning": 9, "annotating": 3}
    # final/blank was copied with its recipe
    assert by_name["final"]["steps"] == {"verifying": 2, "evaluating": 2 * 60.4}
    assert found["seconds"] == pytest.approx(5 * 60.4 + 1 + 10 + 30 + 2 + 12)
    # solutions, annotations, error types
    assert found["tokens"]["endpoint"] == {"prompt": 1000 + 2000 + 7, "new": 100 + 300 + 1}
    # predictions, also those of the blank images, and the ORM's replies
    assert found["tokens"]["local"] == {"prompt": 5 * 150 + 7 * 60, "new": 5 * 35 + 7 * 20}
    assert found["cost"] == pytest.approx((3007 * 2 + 401 * 10) / 1e6, abs=1e-4)


def test_table(reported):
    folder, done = reported
    assert re.search(r"\+ round 1 +2 +6 +1 +91 +60\.0% \[23\.1%, 88\.2%\]", done.stdout)
    assert "round 2" not in done.stdout
    assert "set: share of its test problems that are answered right" in done.stdout
    assert "not comparable with the first stage: other max_tokens, rule" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert all(len(line) <= 110 for line in done.stdout.splitlines()[:-1])


def test_cost_counts_failed_requests_too(monkeypatch, tmp_path):
    for name, value in PRICES.items():
        monkeypatch.setenv(name, value)
    tokens = {"prompt": 2000, "new": 200}
    assert metrics.cost_of(tokens, tmp_path) == pytest.approx(0.006)
    # an answer without text, none at all, a line torn by a kill
    (tmp_path / "spent.tsv").write_text("1000\t100\n1000\t100\n1000\t0\n0\t0\n12")
    assert metrics.cost_of(tokens, tmp_path) == pytest.approx(0.008)
    tokens["prompt"] = 91_000  # a model that was asked by hand
    assert metrics.cost_of(tokens, tmp_path) == pytest.approx(0.184)


def test_ledger(reported):
    rows = read_rows(reported[0] / "ledger.jsonl")
    tests = [row for row in rows if "checks" in row]
    pool = [row for row in rows if "first_solved" in row]
    expected = {"base": "correct", "round_0": "wrong", "round_1": "wrong", "final": "wrong"}
    assert tests[1]["checks"] == expected
    assert [row["first_solved"] for row in pool] == ["round_0", "round_1", "final", None]
    assert [row["subject"] for row in pool] == [EVIL, 3, EVIL, ["a list"]]


def test_error_types_are_those_of_the_predictions_that_stand(by_name, run_folder, tmp_path):
    found = {name: stage["benchmarks"]["set"].get("error_types") for name, stage in by_name.items()}
    none = dict.fromkeys((*metrics.ERROR_TYPES, "unclassified"), 0)
    types = none | {"vision": 1, EVIL: 1}  # one that a fork has
    assert found == dict.fromkeys(CHECKS) | {"round_1": types}
    folder = shutil.copytree(run_folder / "round_1" / "eval", tmp_path / "eval")
    assert metrics.error_types(folder) == {"set": {"error_types": types}}  # wherever it lies
    rows = [row | {"answer_check": "undecided"} for row in read_rows(folder / "errors.jsonl")]
    write_rows(folder / "errors.jsonl", rows)  # none is wrong
    assert metrics.error_types(folder) == {"set": {"error_types": none}}
    with (folder / "predictions.jsonl").open("a") as file:
        file.write("{}\n")
    assert metrics.error_types(folder) == {}


COLUMNS = [  # a file and its rows, None if it is refused
    ('{"id": "a", "tokens": 1}\n{"id": "b"}', 2),
    ('{"id": "a", "tokens": NaN, "more": [1, {"x": "y"}]}\r\n{"more": "text", "id": null}\n', 2),
    ('{"id": "a", "more": ' + "[" * 9999 + "]" * 9999 + "}\n", 1),
    ('{"more": "' + "x" * (15 << 20) + '", "id": "a"}\n' + '{"id": "a\\u0000\\n"}\n' * 3, 4),
    ("", 0),
    ("torn", None),
    ('{"id": "a"}\n{"id": \n{"id": "b"}\n', None),
    ('{"id": ["a"]}\n', None),
    ("[1]\n", None),
]


@pytest.mark.parametrize("text, rows", COLUMNS)
def test_columns_of_a_file(text, rows, tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    assert len(metrics.read_columns(path, "id", "tokens")) == 0
    path.write_text(text, newline="")
    if rows is None:
        return refused(capsys, lambda: metrics.read_columns(path, "id", "tokens"), f"error: {path}: not rows")
    frame = metrics.read_columns(path, "id", "tokens")
    assert len(frame) == rows and list(frame) == ["id", "tokens"]


# ---------------------------------------------------------------- which stages, and when it is made anew


def test_stages_are_those_that_the_settings_ask_for(run_folder, tmp_path):
    def names(**changed):
        return [path.name for path in metrics.folders_of(run_folder, SETTINGS | changed)]

    early = ["base", "round_0", "round_1"]
    assert names() == [*CHECKS, "orm"] == [*early, "final", "orm"]
    assert names(ROUNDS="2") == [*early, "round_2", "final", "orm"]
    assert names(ROUNDS="3", REFLECT="every") == [*early, "round_2", "orm"]
    assert names(REFLECT="none", ORM="some/model") == early
    found = [path.name for path in metrics.folders_of(run_folder, {})]
    assert found == [*early, "round_2", "final", "orm"]
    assert metrics.folders_of(tmp_path, SETTINGS) == []
    (tmp_path / "orm_1").mkdir()
    assert metrics.folders_of(tmp_path, SETTINGS | {"ORM_UPDATE": "once"}) == []
    assert metrics.folders_of(tmp_path, SETTINGS | {"ORM_UPDATE": "every"}) == [tmp_path / "orm_1"]


def test_a_stage_that_is_not_evaluated_yet_is_left_out(run_folder, tmp_path):
    folder = tmp_path / "under way"
    shutil.copytree(run_folder, folder)
    shutil.rmtree(folder / "final" / "eval")
    found = report(folder)
    assert [stage["stage"] for stage in found["stages"]] == ["base", "round_0", "round_1"]
    assert found["pool"]["first_solved"]["final"] == 1  # but its responses are


def test_a_moved_run_reports_the_same(reported, tmp_path):
    folder = shutil.copytree(reported[0], tmp_path / "else" / "try")
    before = {name: (folder / name).read_bytes() for name in ("report.html", "metrics.json", "ledger.jsonl")}
    again = finish("-m", "mathse.report", folder, **PRICES)
    assert again.stdout == reported[1].stdout.replace(str(reported[0]), str(folder))
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_run_in_which_all_is_zero(tmp_path):
    write_evaluation(tmp_path / "round_0", "uuuuu")
    write_recipe(tmp_path / "round_0" / "eval" / "predictions.jsonl", "student", 0)
    rows = [path_row({"id": name, "question": "q"}, 0, "undecided", "undecided") for name in "ab"]
    write_rows(tmp_path / "round_0" / "verified.jsonl", [row | {"status": "undecided"} for row in rows])
    (stage,) = report(tmp_path)["stages"]
    assert stage["audit"]["answer/orm"] == {"undecided/undecided": 2} and stage["seconds"] == 0
    page = (tmp_path / "report.html").read_text()
    assert ["+ distilled", "undecided", "0", "0", "2", ""] in table_rows(page)


@pytest.mark.parametrize("name, message", [("none", "no such folder"), ("", "no stage has been evaluated")])
def test_a_folder_that_is_no_run(name, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / name)])
    refused(capsys, main, message)


# ---------------------------------------------------------------- the page


class Elements(HTMLParser):
    """Collects the names and attributes of a page's elements."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def table_rows(page):
    """The texts of the cells of each row of the page's tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", cell)).strip() for cell in row] for row in cells]


def test_page_tells_the_figures(reported):
    page = (reported[0] / "report.html").read_text()
    assert "with blank images: 60.0 % of 5 problems" in " ".join(page.split())
    rows = table_rows(page)
    assert ["round 1", "4", "0.500", "0.0e+00", "1.00", "4 321"] in rows and "4\u202f321" in page
    assert ["+ round 1", "correct", "1", "1", "0", "50.0 [9.4, 90.5]"] in rows
    assert ["", "wrong", "1", "2", "1", "50.0 [15.0, 85.0]"] in rows
    assert rows[3][:2] == ["+ round 1", "60.0 [23.1, 88.2] by its own rule 80.0 [37.6, 96.4]"]
    assert ["3", "1", "1", "100.0"] in rows  # a subject, its problems, those that are solved


def test_page_holds_no_foreign_markup(reported):
    text = (reported[0] / "report.html").read_text()
    parser = Elements()
    parser.feed(text)
    elements = parser.found
    assert [tag for tag, _ in elements].count("script") == 1
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    for tag, attributes in elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", text)
    assert text.count("{{ 7 * 7 }}") > 10  # data is no template
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text
    assert "default-src &#39;none&#39;" not in text and "default-src 'none'" in text
    images = {attributes["src"] for tag, attributes in elements if tag == "img"}
    assert len(images) == 2 and "cannot be read" in text  # a drawing, a photograph, one that is gone
    assert len(text) < 2_000_000


def test_gallery_shows_each_kind_the_same_at_every_call(run_folder):
    folders = metrics.folders_of(run_folder, SETTINGS)
    cards = gallery.draw_cards(folders)
    assert cards == gallery.draw_cards(folders)
    kinds = [(card["kind"], card["stage"], card["row"]["id"]) for card in cards]
    assert {*kinds[:2]} == {("correct", "+ distilled", "p0"), ("correct", "+ round 1", "p1")}
    assert kinds[-1] == ("reflected", "+ reflection", "p2")
    assert ("wrong/correct", "+ round 1", "p2") in kinds and ("correct/wrong", "+ round 1", "p2") in kinds
    assert kinds.count(("wrong", "+ round 1", "p3")) == 1  # of a problem's responses of a kind one is shown


def test_gallery_is_short(tmp_path):
    rows = [path_row({"id": str(number)}, 0, "correct", "correct", question="q") for number in range(50)]
    write_rows(tmp_path / "verified.jsonl", rows)
    cards = gallery.draw_cards([tmp_path])
    assert len({card["row"]["id"] for card in cards}) == len(cards) == gallery.CARDS


SHOWN = (
    "[...document.querySelectorAll('.card')].filter((card) => card.offsetParent !== null)"
    ".map((card) => card.dataset.kind)"
)
SUM_OF_CHANNELS = (
    "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3)"
    ".reduce((sum, part) => sum + Number(part), 0)"
)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_page_in_a_browser(reported, tmp_path):
    folder, _ = reported
    page = shutil.copy(folder / "report.html", tmp_path / "report.html")  # alone: it needs no file beside it
    with Browser(width=390) as browser:
        browser.open(page)
        evaluate = browser.evaluate
        assert evaluate("document.querySelectorAll('.card').length") > 5
        assert evaluate("document.querySelectorAll('figure svg').length") == 8
        assert evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert evaluate("window.hacked") is None and evaluate("document.scripts.length") == 1
        assert set(evaluate(SHOWN)) == {*gallery.KINDS}
        for kind in gallery.KINDS:
            evaluate(f"document.querySelector('button[data-kind=\"{kind}\"]').click()")
            assert set(evaluate(SHOWN)) == {kind}
        evaluate("document.querySelector('button[data-kind=\"\"]').click()")
        evaluate("search.value = 'before reflection'; search.dispatchEvent(new Event('input'))")
        assert evaluate(SHOWN) == ["reflected"]
        assert "1 of" in evaluate("document.getElementById('shown').textContent")
        evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        check_refusals(browser)

        # No wider than the phone; text and paper of the dark theme apart.
        assert evaluate("document.documentElement.scrollWidth") <= 390
        ink, paper = (evaluate(SUM_OF_CHANNELS.format(name)) for name in ("color", "backgroundColor"))
        assert ink - paper > 450
        with Image.open(io.BytesIO(browser.screenshot())) as image:
            assert image.width == 390 and len(image.convert("RGB").getcolors(1 << 20)) > 50


def check_refusals(browser):
    """What is not ours does not run, even where it gets into the page: the content security policy."""
    image = '<img src=x onerror="window.hacked = 2">'
    browser.evaluate(f"document.querySelector('.cards').insertAdjacentHTML('beforeend', '{image}')")
    script = "{textContent: 'window.hacked = 3'}"
    browser.evaluate(f"document.body.append(Object.assign(document.createElement('script'), {script}))")
    for _ in range(100):  # until both refusals are told
        time.sleep(0.1)
        assert browser.evaluate("window.hacked") is None
        events = [event for event in browser.events if event.get("method") == "Log.entryAdded"]
        texts = [event["params"]["entry"]["text"] for event in events]
        if len([text for text in texts if "script" in text and "Content Security Policy" in text]) >= 2:
            return
    raise AssertionError(texts)
