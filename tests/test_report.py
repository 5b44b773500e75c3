"""mathse.report on a small run folder whose texts are hostile: metrics, table, page (in a browser too)."""

import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
from browser import Browser, find_chromium
from conftest import ROOT, read_rows, write_rows
from PIL import Image

from mathse.report import gallery, metrics, statistics

EVIL = (
    '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">">'
    "<svg onload='window.hacked = 1'>{{ 7 * 7 }}</div></details>"
)
CHECKS = {"base": "ccwwu", "round_0": "cwcwc", "round_1": "cwcwc", "final": "cwccc"}  # of five test problems
NAMES = {"c": "correct", "w": "wrong", "u": "undecided"}
TEACHER, JUDGE = "http://teacher/v1#t", "http://judge/v1#j"
SETTINGS = {
    "MODEL": EVIL, "TEACHER": TEACHER, "ORM": "", "DATA": "d.jsonl", "ROUNDS": "1", "SAMPLES": "2",
    "ACCEPT": "both", "REFLECT": "final", "SEED": "0",
}  # fmt: skip


def path_row(problem, sample, answer_check, orm_check, **more):
    accepted = (answer_check, orm_check) == ("correct", "correct")
    verdict = {
        "answer_check": answer_check, "extracted": EVIL, "rule": "number", "orm_check": orm_check,
        "status": "correct" if accepted else "wrong", "error_step": EVIL, "error_line": 1,
        "error_analysis": EVIL, "judge_reply": EVIL, "judge_tokens": [60, 20], "orm_confidence": 0.75,
    }  # fmt: skip
    path = {
        "sample": sample,
        "response": f"Step 1: {EVIL}",
        "finish": "stop",
        "tokens": 10,
        "prompt_tokens": 50,
    }
    return problem | path | {"model": "student", "seed": 1, "origin": "round-1"} | verdict | more


def write_recipe(path, model, seconds, tokens=None):
    """The recipe beside an output, or in a folder."""
    recipe = {
        "stage": "0",
        "flags": {},
        "inputs": {"model": [{"name": model, "content": "x"}]},
        "seconds": seconds,
    }
    recipe |= {"versions": {"torch": "2"}, "git_commit": "abc"} | ({"tokens": tokens} if tokens else {})
    path = path / "recipe.json" if path.is_dir() else path.with_name(path.name + ".recipe.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))


def write_evaluation(folder, checks):
    """eval/ of a stage."""
    (folder / "eval").mkdir(parents=True)
    rows = []
    for index, check in enumerate(checks):
        image = "../../images/gone.png" if index == 1 else "../../images/photo.jpg"
        rows.append({
            "id": f"t{index} {EVIL}", "question": f"Test {index}? {EVIL}", "images": [image], "answer": "1",
            "options": [EVIL, "2"], "subject": f"s{index % 2}{EVIL}", "benchmark": "set", "sample": 0,
            "response": f"{folder.name} says {EVIL}", "finish": "stop", "tokens": 7, "prompt_tokens": 30,
            "model": "student", "answer_check": NAMES[check], "extracted": EVIL, "rule": "number",
        })  # fmt: skip
    write_rows(folder / "eval" / "predictions.jsonl", rows)
    write_recipe(folder / "eval" / "predictions.jsonl", "student", 60.4, [150, 35])
    correct, final = checks.count("c"), folder.name == "final"
    figures = {"n": 5, "correct": correct, "accuracy": correct / 5, "interval": statistics.wilson(correct, 5)}
    figures |= {"unparsed": 0, "truncated": 0, "errors": 0, "official": None, "splits": {"subject": {}}}
    if final:
        figures["judge"] = {
            "model": JUDGE,
            "n": 5,
            "accuracy": 0.8,
            "interval": [0.376, 0.964],
            "unparsed": 0.0,
        }
    conditions = {
        "model": EVIL, "temperature": 0.0, "samples": 1, "max_tokens": 64 if final else 128, "max_pixels": 9,
        "prompt": "solve 1", "rule": "r",
    }  # fmt: skip
    evaluation = {"conditions": conditions, "benchmarks": {"set": figures}}
    (folder / "eval" / "metrics.json").write_text(json.dumps(evaluation))


def write_training(folder, rows):
    """model/ and train.jsonl of a stage."""
    (folder / "model").mkdir()
    steps = [
        {
            "step": step,
            "loss": 2 / (step + 1),
            "lr": 0,
            "grad_norm": 1,
            "tokens_per_second": 4321.0,
            "mfu": None,
        }
        for step in range(4)
    ]
    steps[3]["validation_loss"] = 0.789
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
    problem = {"images": ["images/x.png"], "answer": EVIL}
    problems = [
        problem
        | {"id": f"p{index}", "question": f"Question {index}? {EVIL}", "subject": f"$x_{index % 2}${EVIL}"}
        for index in range(4)
    ]
    write_rows(folder / "problems.jsonl", problems)
    inside = [problem | {"images": ["../images/x.png"]} for problem in problems]
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
    draft = {"draft": f"old {EVIL}", "draft_of": {"origin": "round-1", "sample": 0}}
    reflected = path_row(inside[2], 0, "correct", "correct", origin="reflection", **draft)
    write_rows(folder / "final" / "verified.jsonl", [reflected])
    write_recipe(folder / "final" / "verified.jsonl", "runs/try/orm/model", 2, [60, 20])
    error = {"id": f"t1 {EVIL}", "sample": 0, "benchmark": "set", "error_type": "vision"}
    write_rows(folder / "final" / "eval" / "errors.jsonl", [error])
    write_recipe(folder / "base" / "eval" / "judged.jsonl", JUDGE, 1, [7, 1])
    shutil.copytree(folder / "round_0" / "eval", folder / "final" / "blank")
    (folder / "orm" / "model").mkdir(parents=True)
    write_recipe(folder / "orm" / "model", "student", 9)
    write_recipe(folder / "orm" / "annotated.jsonl", TEACHER, 3, [2000, 300])
    # Left of another call, which ROUNDS=1 does not ask for, and of a step that is not complete.
    shutil.copytree(folder / "round_1", folder / "round_2")
    (folder / "round_1" / "samples.jsonl.part").mkdir()
    write_recipe(folder / "round_1" / "samples.jsonl.part", "student", 1000, [9, 9])
    return folder


@pytest.fixture(scope="module")
def report():
    """python -m mathse.report, as a user calls it; returns the finished process."""

    def call(folder, **environment):
        command = [sys.executable, "-m", "mathse.report", str(folder)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)

    return call


PRICES = {"PRICE_IN": "2", "PRICE_OUT": "10"}


@pytest.fixture(scope="module")
def reported(run_folder, report):
    done = report(run_folder, **PRICES)
    assert done.returncode == 0, done.stderr
    return run_folder, done


def test_metrics_of_a_run(reported):
    folder, done = reported
    found = json.loads((folder / "metrics.json").read_text())
    by_name = {stage["stage"]: stage for stage in found["stages"]}
    assert list(by_name) == list(CHECKS)
    assert [by_name[name]["train_rows"] for name in CHECKS] == [0, 1, 2, 3]
    changes = by_name["round_0"]["changes"]["set"]["changes"]
    assert changes == dict(zip(statistics.CHANGES, (1, 1, 1, 2)))
    assert found["overall"]["set"]["change"] == pytest.approx(0.4)
    assert by_name["final"]["not_comparable"] == ["max_tokens"]
    assert by_name["final"]["blank"]["set"]["before"] == 0.6
    audit = by_name["round_1"]["audit"]
    assert audit["answer/orm"]["wrong/correct"] == 1 and audit["no_verdict"] == 1
    kinds = ("orm_accepts_wrong", "orm_rejects_right", "no_verdict")
    assert [len(audit["examples"][kind]) for kind in kinds] == [1, 1, 1]
    assert found["pool"]["first_solved"] == {"round_0": 1, "round_1": 1, "final": 1}
    assert found["pool"]["problems"] == 4
    subjects = by_name["round_1"]["yield"]["by_subject"].values()
    assert sum(counts["sampled"] for counts in subjects) == 6
    assert sum(counts.get("trained", 0) for counts in subjects) == 2


def test_seconds_are_those_of_the_recipes(reported):
    found = json.loads((reported[0] / "metrics.json").read_text())
    by_name = {stage["stage"]: stage for stage in found["stages"]}
    assert by_name["base"]["steps"] == {"evaluation": 61.4}
    assert by_name["round_1"]["steps"] == {"samples": 18, "verified": 12, "evaluation": 60.4}
    assert found["orm"]["steps"] == {"model": 9, "annotated": 3}
    blank = by_name["final"]["steps"]["blank"]  # final/blank was copied with its recipe
    assert blank == 60.4
    assert found["seconds"] == pytest.approx(4 * 60.4 + 1 + 10 + 30 + 2 + blank + 12)


def test_table(reported):
    folder, done = reported
    assert re.search(r"\+ round 1 +2 +6 +1 +90 +60\.0% \[23\.1%, 88\.2%\]", done.stdout)
    assert "round 2" not in done.stdout
    assert "not comparable with the first stage: other max_tokens" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"


def test_tokens_and_cost_count_every_endpoint(reported):
    found = json.loads((reported[0] / "metrics.json").read_text())
    # solutions, annotations, a judge of the evaluation
    assert found["tokens"]["endpoint"] == {"prompt": 1000 + 2000 + 7, "new": 100 + 300 + 1}
    # predictions, also those of the blank images, and the ORM's replies
    assert found["tokens"]["local"] == {"prompt": 5 * 150 + 7 * 60, "new": 5 * 35 + 7 * 20}
    assert found["cost"] == pytest.approx((3007 * 2 + 401 * 10) / 1e6, abs=1e-4)


def test_cost_counts_failed_requests_too(monkeypatch, tmp_path):
    for name, value in PRICES.items():
        monkeypatch.setenv(name, value)
    tokens = {
        "round_0": {"endpoint": [1000, 100], "local": [9, 9]},
        "base": {"endpoint": [1000, 100], "local": [0, 0]},
    }
    assert metrics.cost_of(tokens, tmp_path) == pytest.approx(0.006)
    # an answer without text, none at all, a line torn by a kill
    (tmp_path / "spent.tsv").write_text("1000\t100\n1000\t100\n1000\t0\n0\t0\n12")
    assert metrics.cost_of(tokens, tmp_path) == pytest.approx(0.008)
    tokens["base"]["endpoint"] = [90_000, 100]  # a judge that was asked by hand
    assert metrics.cost_of(tokens, tmp_path) == pytest.approx(0.184)


def test_ledger(reported):
    rows = read_rows(reported[0] / "ledger.jsonl")
    tests = [row for row in rows if "checks" in row]
    pool = [row for row in rows if "first_solved" in row]
    expected = {"base": "correct", "round_0": "wrong", "round_1": "wrong", "final": "wrong"}
    assert tests[1]["checks"] == expected
    assert [row["first_solved"] for row in pool] == ["round_0", "round_1", "final", None]


# ---------------------------------------------------------------- which stages, and when it is made anew


def test_stages_are_those_that_the_settings_ask_for(run_folder, tmp_path):
    def names(**changed):
        return [path.name for path in metrics.stage_folders(run_folder, SETTINGS | changed)]

    assert names() == list(CHECKS)
    assert names(ROUNDS="2") == ["base", "round_0", "round_1", "round_2", "final"]
    assert names(ROUNDS="3", REFLECT="every") == ["base", "round_0", "round_1", "round_2"]
    assert names(REFLECT="none") == ["base", "round_0", "round_1"]
    found = [path.name for path in metrics.stage_folders(run_folder, {})]
    assert found == ["base", "round_0", "round_1", "round_2", "final"]
    (tmp_path / "round_1").mkdir()
    assert metrics.stage_folders(tmp_path, SETTINGS) == []


def test_a_stage_that_is_not_evaluated_yet_is_left_out(run_folder, report, tmp_path):
    folder = tmp_path / "under way"
    shutil.copytree(run_folder, folder)
    shutil.rmtree(folder / "final" / "eval")
    done = report(folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "metrics.json").read_text())
    assert [stage["stage"] for stage in found["stages"]] == ["base", "round_0", "round_1"]
    assert found["pool"]["first_solved"]["final"] == 1  # but its paths are


def test_nothing_is_drawn_anew_unless_something_changed(reported, report, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(reported[0], folder)
    before = (folder / "report.html").read_bytes()
    first = report(folder, **PRICES)
    start = time.monotonic()
    again = report(folder, **PRICES)
    seconds = time.monotonic() - start
    for done in (first, again):  # the copy's content is that of the reported folder
        assert done.stdout.startswith(f"skip {folder / 'report.html'}\n")
        assert done.stdout.split("\n", 1)[1] == reported[1].stdout.replace(str(reported[0]), str(folder))
    assert (folder / "report.html").read_bytes() == before and seconds < 5
    assert not report(folder, PRICE_IN="3").stdout.startswith("skip")
    settings = json.loads((folder / "config.json").read_text())
    settings["settings"]["SEED"] = "12345"
    (folder / "config.json").write_text(json.dumps(settings))
    assert not report(folder, PRICE_IN="3").stdout.startswith("skip")
    assert "12345" in (folder / "report.html").read_text()
    (folder / "ledger.jsonl").unlink()
    assert not report(folder, PRICE_IN="3").stdout.startswith("skip") and (folder / "ledger.jsonl").is_file()
    write_rows(folder / "final" / "train.jsonl", [{"id": "p0", "sample": 0}])
    assert not report(folder, PRICE_IN="3").stdout.startswith("skip")
    assert report(folder, PRICE_IN="3").stdout.startswith("skip")


def test_skipping_imports_neither_matplotlib_nor_torch(reported):
    code = (
        "import sys; from pathlib import Path; from mathse.report.__main__ import report;"
        "report(Path(sys.argv[1]));"
        "print(sorted({'matplotlib', 'torch', 'jinja2', 'numpy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(reported[0])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=PRICES, timeout=60)
    assert done.stdout.splitlines() == [f"skip {reported[0] / 'report.html'}", "[]"], done.stderr


def test_a_folder_that_is_no_run(report, tmp_path):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "no stage has been evaluated")):
        done = report(folder)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- the page


class Elements(HTMLParser):
    """Names and attributes of a page's elements."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

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
    training = ["round 1", "4", "0.500", "0.789", "0.0e+00", "1.00", "4 321", "–"]
    assert training in rows and "4\u202f321" in page
    assert ["+ reflection", "80.0 [37.5, 96.4]", "–", "80.0 [37.6, 96.4]"] in rows
    assert "answers extracted by a judge" in page


def test_page_holds_no_foreign_markup(reported):
    text = (reported[0] / "report.html").read_text()
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    for tag, attributes in elements:
        for name in ("src", "href"):
            allowed = ("#", "data:image/png;base64,", "data:image/jpeg;base64,")
            assert attributes.get(name, "#").startswith(allowed), (tag, name)
    assert not re.search(r"url\((?!#)|@import", text)
    assert text.count("{{ 7 * 7 }}") > 10  # data is no template
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text
    assert "default-src &#39;none&#39;" not in text and "default-src 'none'" in text
    images = [attributes["src"] for tag, attributes in elements if tag == "img"]
    assert any(src.startswith("data:image/jpeg") for src in images)
    assert any(src.startswith("data:image/png") for src in images) and "cannot be read" in text


SHOWN = (
    "[...document.querySelectorAll('.card')].filter((card) => card.offsetParent !== null)"
    ".map((card) => card.dataset.kind)"
)
SUM_OF_CHANNELS = (
    "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3)"
    ".reduce((sum, part) => sum + Number(part), 0)"
)


@pytest.mark.skipif(not find_chromium(), reason="no Chromium is installed")
def test_page_in_a_browser(reported, tmp_path):
    folder, _ = reported
    page = shutil.copy(folder / "report.html", tmp_path / "report.html")  # alone: it needs no file beside it
    with Browser(width=390, dark=True) as browser:
        browser.open(page)
        evaluate = browser.evaluate
        assert evaluate("document.querySelectorAll('.card').length") > 5
        assert evaluate("document.querySelectorAll('figure svg').length") >= 5
        assert evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert evaluate("window.hacked") is None and evaluate("document.scripts.length") == 1
        check_filters(evaluate)
        check_refusals(browser)

        # No wider than the phone; text and paper of the dark theme apart.
        assert evaluate("document.documentElement.scrollWidth") <= 390
        ink, paper = (evaluate(SUM_OF_CHANNELS.format(name)) for name in ("color", "backgroundColor"))
        assert ink - paper > 450
        browser.screenshot(tmp_path / "page.png", whole=False)
        with Image.open(tmp_path / "page.png") as image:
            assert image.width == 390 and len(image.convert("RGB").getcolors(1 << 20)) > 50


def check_filters(evaluate):
    everything = evaluate(SHOWN)
    for kind in gallery.KINDS:
        if kind in everything:
            evaluate(f"document.querySelector('button[data-kind={kind}]').click()")
            assert set(evaluate(SHOWN)) == {kind}
    assert {"gained", "lost", "orm_accepts_wrong", "orm_rejects_right", "reflected"} <= set(everything)
    evaluate("document.querySelector('button[data-kind=\"\"]').click()")
    evaluate("search.value = 'before reflection'; search.dispatchEvent(new Event('input'))")
    assert evaluate(SHOWN) == ["reflected"]
    assert "1 of" in evaluate("document.getElementById('shown').textContent")
    evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")


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


def test_a_reflection_is_shown_with_its_own_draft(tmp_path):
    """Reflections of two rounds are sample 0 of a problem, both: the second reflects on the first."""
    problem = {"id": "p", "question": "q", "images": []}
    path = {
        "finish": "stop", "answer_check": "wrong", "orm_check": "wrong", "status": "wrong", "extracted": "1",
        "error_analysis": "no", "sample": 0, "origin": "reflection",
        "draft_of": {"origin": "reflection", "sample": 0},
    }  # fmt: skip
    for number in (1, 2):
        (tmp_path / f"round_{number}").mkdir()
        texts = {"response": f"text {number}", "draft": f"text {number - 1}"}
        write_rows(tmp_path / f"round_{number}" / "reflected_verified.jsonl", [problem | path | texts])
    (card,) = gallery.training_cards([tmp_path / "round_1", tmp_path / "round_2"])
    found = [(answer["response"], answer["answer_check"]) for answer in card["answers"]]
    assert found == [("text 1", "wrong"), ("text 2", "wrong")]
