"""report.py on a small run folder whose texts are hostile: metrics, table, page (in a browser where there is one), --watch."""

import json
import re
import shutil
import time
from html.parser import HTMLParser

import pytest
from browser import Browser, find_chromium
from conftest import read_rows, write_rows
from PIL import Image

import report
import report_page
import scores

EVIL = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">"><svg onload='window.hacked = 1'>{{ 7 * 7 }}</div></details>"""
CHECKS = {"base": "ccwwu", "round_0": "cwcwc", "round_1": "cwcwc", "final": "cwccc"}  # of five test problems by stage
NAMES = {"c": "correct", "w": "wrong", "u": "undecided"}


def path_row(problem, sample, answer_check, orm_check, **more):
    status = "correct" if (answer_check, orm_check) == ("correct", "correct") else "wrong"
    return problem | {"sample": sample, "response": f"Step 1: {EVIL}", "finish": "stop", "tokens": 10, "prompt_tokens": 50, "model": "student", "seed": 1, "origin": "round-1",
                      "answer_check": answer_check, "extracted": EVIL, "rule": "number", "orm_check": orm_check, "status": status, "error_step": EVIL, "error_line": 1, "error_analysis": EVIL,
                      "judge_reply": EVIL, "judge_tokens": [60, 20], "orm_confidence": 0.75} | more  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "try"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "images" / "x.png")
    Image.merge("RGB", [Image.effect_noise((1200, 900), spread) for spread in (20, 50, 80)]).save(folder / "images" / "photo.jpg")
    settings = {"MODEL": EVIL, "TEACHER": "http://teacher/v1#t", "ORM": "", "DATA": "d.jsonl", "ROUNDS": "1", "SAMPLES": "2", "ACCEPT": "both", "SEED": "0"}
    (folder / "config.json").write_text(json.dumps({"settings": settings, "versions": {"torch": "2"}, "git_commit": "abc"}))
    problems = [{"id": f"p{index}", "question": f"Question {index}? {EVIL}", "images": ["images/x.png"], "answer": EVIL, "subject": f"$x_{index % 2}${EVIL}"} for index in range(4)]
    write_rows(folder / "problems.jsonl", problems)
    inside = [problem | {"images": ["../images/x.png"]} for problem in problems]
    for number, (stage, checks) in enumerate(CHECKS.items()):
        (folder / stage / "eval").mkdir(parents=True)
        rows = [{"id": f"t{index} {EVIL}", "question": f"Test {index}? {EVIL}", "images": ["../../images/gone.png" if index == 1 else "../../images/photo.jpg"], "answer": "1", "options": [EVIL, "2"],
                 "subject": f"s{index % 2}{EVIL}", "benchmark": "set", "sample": 0, "response": f"{stage} says {EVIL}", "finish": "stop", "tokens": 7, "prompt_tokens": 30, "model": "student",
                 "answer_check": NAMES[check], "extracted": EVIL, "rule": "number"} for index, check in enumerate(checks)]  # fmt: skip
        write_rows(folder / stage / "eval" / "predictions.jsonl", rows)
        correct = checks.count("c")
        share = {"n": 5, "correct": correct, "accuracy": correct / 5, "interval": scores.wilson(correct, 5)}
        figures = share | {"unparsed": 0, "truncated": 0, "errors": 0, "official": None, "splits": {"subject": {}}}
        if stage == "final":
            figures["judge"] = {"model": "http://judge/v1#j", "n": 5, "accuracy": 0.8, "interval": [0.376, 0.964], "official": None, "unparsed": 0.0}
        conditions = {"model": EVIL, "temperature": 0.0, "samples": 1, "max_tokens": 64 if stage == "final" else 128, "max_pixels": 9, "prompt": "solve 1", "rule": "r"}
        (folder / stage / "eval" / "metrics.json").write_text(json.dumps({"conditions": conditions, "benchmarks": {"set": figures}}))
        if number:
            (folder / stage / "model").mkdir()
            write_rows(folder / stage / "model" / "train_log.jsonl", [{"step": step, "loss": 2 / (step + 1), "lr": 0, "grad_norm": 1, "tokens": 5, "tokens_per_second": 4321.0, "mfu": None} | ({"validation_loss": 0.789} if step == 3 else {}) for step in range(4)])
            write_rows(folder / stage / "train.jsonl", [{"id": f"p{index}", "sample": 0, "messages": [], "images": [], "origin": "x"} for index in range(number)])
    write_rows(folder / "round_0" / "verified.jsonl", [path_row(inside[0], 0, "correct", None, status="correct", model="http://teacher/v1#t", judge_tokens=None)])
    write_rows(folder / "round_0" / "samples.jsonl", [{"id": "p0", "sample": 0, "tokens": 100, "prompt_tokens": 1000, "model": "http://teacher/v1#t"}])
    pairs = [("correct", "correct"), ("wrong", "wrong"), ("wrong", "correct"), ("correct", "wrong"), ("wrong", "wrong"), ("wrong", "undecided")]
    write_rows(folder / "round_1" / "verified.jsonl", [path_row(inside[1 + index // 2], index % 2, *pair) for index, pair in enumerate(pairs)])
    reflected = path_row(inside[2], 0, "correct", "correct", origin="reflection", draft=f"old {EVIL}", draft_of={"origin": "round-1", "sample": 0})
    write_rows(folder / "final" / "verified.jsonl", [reflected])
    (folder / "orm").mkdir()
    (folder / "round_2").mkdir()  # FORCE=1 ROUNDS=1 has removed what was in it, but not this
    write_rows(folder / "round_2" / "train.jsonl", [{"id": "p0", "sample": 0, "messages": [], "images": []}])
    write_rows(folder / "orm" / "annotated.jsonl", [{"id": "p1", "sample": 0, "judge_tokens": [2000, 300]}, {"id": "p2", "sample": 0, "judge_tokens": None}])
    write_rows(folder / "base" / "eval" / "judged.jsonl", [{"id": "t1", "sample": 0, "judge_model": "http://judge/v1#j", "judge_tokens": [7, 1]}])
    write_rows(folder / "final" / "eval" / "errors.jsonl", [{"id": f"t1 {EVIL}", "sample": 0, "benchmark": "set", "error_type": "vision"}])
    shutil.copytree(folder / "round_0" / "eval", folder / "final" / "blank")
    (folder / "timings.tsv").write_text("base/eval/metrics.json\t61\nround_1/samples.jsonl\t12\nround_1/samples.jsonl\t18\norm/model\t9\n")
    return folder


@pytest.fixture(scope="module")
def reported(run_folder, run):
    done = run("report.py", run_folder, PRICE_IN="2", PRICE_OUT="10")
    assert done.returncode == 0, done.stderr
    return run_folder, done


def test_metrics_of_a_run(reported):
    folder, done = reported
    metrics = json.loads((folder / "metrics.json").read_text())
    by_name = {stage["stage"]: stage for stage in metrics["stages"]}
    assert list(by_name) == list(CHECKS) and [by_name[name]["train_rows"] for name in CHECKS] == [0, 1, 2, 3]
    assert by_name["round_0"]["changes"]["set"]["changes"] == {"correct to correct": 1, "incorrect to incorrect": 1, "correct to incorrect": 1, "incorrect to correct": 2}
    assert metrics["overall"]["set"]["change"] == pytest.approx(0.4) and by_name["final"]["not_comparable"] == ["max_tokens"]
    assert by_name["final"]["blank"]["set"]["before"] == 0.6 and "with blank pictures: 60.0 %" in (folder / "report.html").read_text()
    assert by_name["round_1"]["audit"]["answer/orm"]["wrong/correct"] == 1 and by_name["round_1"]["audit"]["no_verdict"] == 1
    assert [len(by_name["round_1"]["audit"]["examples"][kind]) for kind in ("orm_accepts_wrong", "orm_rejects_right", "no_verdict")] == [1, 1, 1]
    assert metrics["pool"]["first_solved"] == {"round_0": 1, "round_1": 1, "final": 1} and metrics["pool"]["problems"] == 4
    page = (folder / "report.html").read_text()
    assert "<td>round 1</td><td>4</td><td>0.500</td><td>0.789</td>" in page and "<td>4\u202f321</td><td>–</td>" in page  # its fine-tuning
    subjects = by_name["round_1"]["yield"]["by_subject"].values()
    assert sum(counts["sampled"] for counts in subjects) == 6 and sum(counts.get("trained", 0) for counts in subjects) == 2
    assert metrics["seconds"] == 100 and by_name["base"]["steps"] == {"evaluation": 61} and metrics["orm"]["steps"] == {"model": 9}
    assert by_name["round_1"]["steps"] == {"samples": 30}  # of a call that was killed, and of the one that went on
    assert re.search(r"\+ round 1 +2 +6 +1 +30 +60\.0% \[23\.1%, 88\.2%\]", done.stdout) and "not comparable with the first stage: other max_tokens" in done.stdout
    assert f"report: {folder / 'report.html'}" in done.stdout


def test_tokens_and_cost_count_every_endpoint(reported):
    metrics = json.loads((reported[0] / "metrics.json").read_text())
    assert metrics["tokens"]["endpoint"] == {"prompt": 1000 + 2000 + 7, "new": 100 + 300 + 1}  # solutions, annotations, a judge of the evaluation
    assert metrics["tokens"]["local"] == {"prompt": 5 * 5 * 30 + 7 * 60, "new": 5 * 5 * 7 + 7 * 20}  # predictions, and the ORM's replies
    assert metrics["cost"] == pytest.approx((3007 * 2 + 401 * 10) / 1e6, abs=1e-4)


def test_cost_counts_failed_requests_too(monkeypatch, tmp_path):
    monkeypatch.setenv("PRICE_IN", "2")
    monkeypatch.setenv("PRICE_OUT", "10")
    tokens = {"round_0": {"endpoint": [1000, 100], "local": [9, 9]}, "base": {"endpoint": [1000, 100], "local": [0, 0]}}
    assert report.cost_of(tokens, tmp_path) == pytest.approx(0.006)
    (tmp_path / "spent.tsv").write_text("1000\t100\n1000\t100\n1000\t0\n0\t0\n12")  # an answer without text, none at all, a line torn by a kill
    assert report.cost_of(tokens, tmp_path) == pytest.approx(0.008)
    tokens["base"]["endpoint"] = [90_000, 100]  # a judge that was asked by hand
    assert report.cost_of(tokens, tmp_path) == pytest.approx(0.184)


def test_ledger(reported):
    rows = read_rows(reported[0] / "ledger.jsonl")
    tests, pool = [row for row in rows if "checks" in row], [row for row in rows if "first_solved" in row]
    assert tests[1]["checks"] == {"base": "correct", "round_0": "wrong", "round_1": "wrong", "final": "wrong"}
    assert [row["first_solved"] for row in pool] == ["round_0", "round_1", "final", None]


class Elements(HTMLParser):
    """Names and attributes of a page's elements."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_page_holds_no_foreign_markup(reported):
    text = (reported[0] / "report.html").read_text()
    elements = Elements(text).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    for tag, attributes in elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", text) and text.count("{{ 7 * 7 }}") > 10  # data is no template
    assert "answers extracted by a judge" in text and "80.0 <small>[37.6, 96.4]</small>" in text
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text and "default-src &#39;none&#39;" not in text and "default-src 'none'" in text
    pictures = [attributes["src"] for tag, attributes in elements if tag == "img"]
    assert any(src.startswith("data:image/jpeg") for src in pictures) and any(src.startswith("data:image/png") for src in pictures) and "cannot be read" in text


@pytest.mark.skipif(not find_chromium(), reason="no Chromium is installed")
def test_page_in_a_browser(reported, tmp_path):
    folder, _ = reported
    page = shutil.copy(folder / "report.html", tmp_path / "report.html")  # alone: it needs no file beside it
    with Browser(width=390, dark=True) as browser:
        browser.open(page)
        assert browser.evaluate("document.querySelectorAll('.card').length") > 5 and browser.evaluate("document.querySelectorAll('figure svg').length") >= 5
        assert browser.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert browser.evaluate("window.hacked") is None and browser.evaluate("document.scripts.length") == 1

        # The filters.
        shown = "[...document.querySelectorAll('.card')].filter((card) => card.offsetParent !== null).map((card) => card.dataset.kinds)"
        everything = browser.evaluate(shown)
        for kind in ("gained", "lost", "never", "orm_accepts_wrong", "orm_rejects_right", "reflected"):
            if kind in everything:
                browser.evaluate(f"document.querySelector('button[data-kind={kind}]').click()")
                assert set(browser.evaluate(shown)) == {kind}
        assert {"gained", "lost", "orm_accepts_wrong", "orm_rejects_right", "reflected"} <= set(everything)
        browser.evaluate("document.querySelector('button[data-kind=\"\"]').click()")
        browser.evaluate("search.value = 'before reflection'; search.dispatchEvent(new Event('input'))")
        assert browser.evaluate(shown) == ["reflected"] and "1 of" in browser.evaluate("document.getElementById('shown').textContent")
        browser.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")

        # What is not ours does not run, even where it gets into the page: the content security policy is the second wall.
        browser.evaluate("document.querySelector('.cards').insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 2\">')")
        browser.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 3'}))")
        refused = []
        for _ in range(100):  # until both refusals are told
            time.sleep(0.1)
            assert browser.evaluate("window.hacked") is None
            refused = [event["params"]["entry"]["text"] for event in browser.events if event.get("method") == "Log.entryAdded"]
            if len([text for text in refused if "script" in text and "Content Security Policy" in text]) >= 2:
                break
        else:
            raise AssertionError(refused)

        # No wider than the phone; text and paper of the dark theme apart.
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        ink, paper = (browser.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)") for name in ("color", "backgroundColor"))
        assert ink - paper > 450
        browser.screenshot(tmp_path / "page.png", whole=False)
        with Image.open(tmp_path / "page.png") as image:
            assert image.width == 390 and len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_a_folder_that_is_no_run(run, tmp_path):
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "no stage has been evaluated")):
        done = run("report.py", folder)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert run("report.py", "--watch", tmp_path).returncode == 0


def test_watch(run_folder, run, tmp_path):
    folder = tmp_path / "under-way"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("report.html", "final"))
    rows = [path_row({"id": f"p{index}", "question": "q"}, 0, *pair) for index, pair in enumerate([("correct", "correct"), ("wrong", "wrong"), ("wrong", "wrong")])]
    shutil.move(folder / "round_1" / "verified.jsonl", folder / "round_1" / "samples.jsonl")
    write_rows(folder / "round_1" / "verified.jsonl.part", rows)
    with (folder / "round_1" / "verified.jsonl.part").open("a") as file:
        file.write('{"id": "torn')
    done = run("report.py", "--watch", folder, PRICE_IN="1000")
    assert done.returncode == 0, done.stderr
    assert "now: round_1/verified.jsonl.part: 3 of 6 (50%)" in done.stdout and "min left" in done.stdout and "so far 1 of 3 correct: 33.3%" in done.stdout
    assert "+ distilled" in done.stdout and "3,007 in" in done.stdout and "cost $3.01" in done.stdout and len(done.stdout.splitlines()) < 24
    (folder / "round_1" / "verified.jsonl.part").unlink()
    (folder / "round_1" / "model").rename(folder / "round_1" / "model.part")
    (folder / "round_1" / "model.part" / "training.json").write_text(json.dumps({"settings": {"epochs": 8.0, "batch_size": 2}}))
    assert "now: round_1/model.part: 4 of 8 (50%)" in run("report.py", "--watch", folder).stdout
    assert "complete: " in run("report.py", "--watch", run_folder).stdout


def test_a_reflection_is_shown_with_its_own_draft(tmp_path):
    """Reflections of two rounds are sample 0 of a problem, both: the second reflects on the first."""
    problem = {"id": "p", "question": "q", "images": []}
    path = {"finish": "stop", "answer_check": "wrong", "orm_check": "wrong", "status": "wrong", "extracted": "1", "error_analysis": "no"}
    rounds = [
        [problem | path | {"sample": 0, "origin": "reflection", "response": f"text {number}", "draft": f"text {number - 1}", "draft_of": {"origin": "reflection", "sample": 0}}] for number in (1, 2)
    ]
    for number, rows in enumerate(rounds, 1):
        (tmp_path / f"round_{number}").mkdir()
        write_rows(tmp_path / f"round_{number}" / "reflected_verified.jsonl", rows)
    (card,) = report_page.training_cards([tmp_path / "round_1", tmp_path / "round_2"])
    assert [(answer["response"], answer["answer_check"]) for answer in card["answers"]] == [("text 1", "wrong"), ("text 2", "wrong")]
