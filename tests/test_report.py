"""mathse.report on a small run folder whose texts are hostile: metrics, table, page (in a browser too)."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LONGEST, ROOT, finish, read_rows, write_rows
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
NAMES = {"c": "correct", "w": "wrong", "u": "undecided"}
SHOWN = [("x.png", EVIL), ("photo.jpg", 3), ("gone.png", EVIL), ("x.png", ["a list"])]  # images, subjects
PROBLEMS = [
    {
        "id": f"p{k}", "question": f"Question {k}? {EVIL}", "images": [f"../images/{image}"],
        "options": [EVIL, "2"], "answer": EVIL, "subject": subject,
    }
    for k, (image, subject) in enumerate(SHOWN)
]  # fmt: skip
SETTINGS = {
    "MODEL": EVIL, "TEACHER": "http://teacher/v1#t", "ORM": "", "ROUNDS": "1", "SAMPLES": "2",
    "ACCEPT": "both", "REFLECT": "final", "SEED": "0",
}  # fmt: skip
TEACHER, STUDENT, ORM = SETTINGS["TEACHER"], "runs/try/round_0/model", "runs/try/orm/model"
RECIPES = {  # of an output, before "recipe.json": stage, model, seconds, tokens read and written
    "round_0/samples.jsonl.": ("01_sample.py", TEACHER, 10, [1000, 100]),
    "round_1/samples.jsonl.": ("01_sample.py", STUDENT, 18, None),
    "round_1/samples.jsonl.part/": ("01_sample.py", STUDENT, 1000, [9, 9]),  # not complete
    "round_1/verified.jsonl.": ("02_verify.py", ORM, 12, [360, 120]),
    "final/verified.jsonl.": ("02_verify.py", ORM, 2, [60, 20]),
    "orm/model/": ("04_finetune.py", "student", 9, None),
    "orm/annotated.jsonl.": ("02_verify.py annotate", TEACHER, 3, [2000, 300]),
}
VERIFIED = {  # problem, answer check, the ORM's
    "round_0": [(PROBLEMS[0], "correct", None)],
    "round_1": [
        (PROBLEMS[1], "correct", "correct"), (PROBLEMS[1], "wrong", "wrong"),
        (PROBLEMS[2], "wrong", "correct"), (PROBLEMS[2], "correct", "wrong"),
        (PROBLEMS[3], "wrong", "wrong"), (PROBLEMS[3], "wrong", "undecided"),
    ],
    "final": [(PROBLEMS[2] | {"draft": f"old {EVIL}"}, "correct", "correct")],
}  # fmt: skip
PRICES = {"PRICE_IN": "2", "PRICE_OUT": "10"}


def write(path, content):
    """Rows, or an object as JSON, into a folder that may have to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, content) if isinstance(content, list) else path.write_text(json.dumps(content))


def write_recipe(output, stage, model, seconds, tokens, **inputs):
    """`output`: what stands before "recipe.json"."""
    script, *flags = stage.split()
    recipe = {
        "stage": script, "flags": dict.fromkeys(flags, True), "seconds": seconds, "tokens": tokens,
        "inputs": {"model": [{"name": model, "content": "x"}]} | inputs,
        "versions": {"torch": "2"}, "git_commit": "abc",
    }  # fmt: skip
    write(Path(f"{output}recipe.json"), recipe)


def verified(problem, answer_check, orm_check):
    """A row of verified.jsonl."""
    accepted = answer_check == "correct" and orm_check in ("correct", None)
    return problem | {
        "response": f"Step 1: {EVIL}", "finish": "stop", "tokens": 10, "extracted": EVIL,
        "answer_check": answer_check, "orm_check": orm_check, "status": "correct" if accepted else "wrong",
        "error_step": EVIL, "error_analysis": EVIL,
    }  # fmt: skip


def write_evaluation(folder, checks, seconds=60.4):
    """eval/ of a stage."""
    name, path = folder.name, folder / "eval/predictions.jsonl"
    rows = [
        {"id": f"t{k} {EVIL}", "benchmark": "set", "sample": 0, "subject": f"s{k % 2}{EVIL}",
         "answer_check": NAMES[check]}
        for k, check in enumerate(checks)
    ]  # fmt: skip
    write(path, rows)
    write_recipe(f"{path}.", "05_evaluate.py", "student", seconds, [150, 35])
    subjects = {f"s0{EVIL}": {"n": 3, "accuracy": 0.5}, "s1": {"n": 2, "accuracy": 0.25}}
    figures = statistics.share_of([[row] for row in rows]) | {"unparsed": 0, "truncated": 0}
    figures["official"] = {"n": 5, "accuracy": 0.8, "interval": [0.376, 0.964]} if name == "round_1" else None
    figures["splits"] = {"subject": {} if name == "base" else subjects}
    limits = {"max_tokens": 64} if name == "final" else {"max_tokens": 128, "rule": "r"}
    conditions = {"model": f"{name} {EVIL}", "seed": name} | limits
    write(folder / "eval/metrics.json", {"conditions": conditions, "benchmarks": {"set": figures}})


def write_errors(folder):
    """errors.jsonl of an evaluation: its predictions, as the teacher annotates them."""
    path = folder / "predictions.jsonl"
    rows = zip(read_rows(path), [None, "vision", None, EVIL, None])  # a type that a fork has
    write(folder / "errors.jsonl", [row | {"error_type": kind} for row, kind in rows])
    asked = [{"name": str(path), "content": content_of(path)}]
    write_recipe(folder / "errors.jsonl.", "02_verify.py annotate", TEACHER, 1, [7, 1], input=asked)


def write_training(folder, rows):
    """model/ and train.jsonl of a stage."""
    logged = {"lr": 0, "grad_norm": 1, "tokens_per_second": 4321.0}
    write(folder / "model/train_log.jsonl", [{"step": k, "loss": 2 / (k + 1)} | logged for k in range(4)])
    write(folder / "train.jsonl", PROBLEMS[:rows])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "try"
    write(folder / "config.json", {"settings": SETTINGS})
    write(folder / "problems.jsonl", [{name: row[name] for name in ("id", "subject")} for row in PROBLEMS])
    (folder / "images").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "images/x.png")
    noise = [Image.effect_noise((1200, 900), spread) for spread in (20, 50, 80)]
    Image.merge("RGB", noise).save(folder / "images/photo.jpg")
    for number, (stage, checks) in enumerate(CHECKS.items()):
        write_evaluation(folder / stage, checks)
        if number:
            write_training(folder / stage, number)
            write(folder / stage / "verified.jsonl", [verified(*row) for row in VERIFIED[stage]])
    write_errors(folder / "round_1/eval")
    # of another call: REFLECT=final does not ask for it
    write(folder / "round_1/reflected_verified.jsonl", [verified(PROBLEMS[3], "correct", "correct")])
    for output, made in RECIPES.items():
        write_recipe(f"{folder}/{output}", *made)
    shutil.copytree(folder / "round_1", folder / "round_2")  # of another call: ROUNDS=1 does not ask for it
    return folder


@pytest.fixture(scope="module")
def reported(run_folder):
    """The run folder, what its report printed, the page, the metrics, and of these the stages by name."""
    done = finish("-m", "mathse.report", run_folder, **PRICES)
    assert done.returncode == 0, done.stderr
    found = json.loads((run_folder / "metrics.json").read_text())
    stages = {stage["stage"]: stage for stage in found["stages"]}
    page = (run_folder / "report.html").read_text()
    return SimpleNamespace(folder=run_folder, said=done.stdout, page=page, metrics=found, stages=stages)


def test_metrics_of_a_run(reported):
    found, stages = reported.metrics, reported.stages
    assert [(name, stage["train_rows"]) for name, stage in stages.items()] == [*zip(CHECKS, range(4))]
    assert stages["round_0"]["changes"]["set"]["changes"] == dict(zip(statistics.CHANGES, (1, 1, 1, 2)))
    assert (found["overall"]["set"]["change"], found["overall"]["set"]["p"]) == (0.4, 0.625)
    assert stages["final"]["not_comparable"] == ["max_tokens", "rule"]
    pairs = {"correct/correct": 1, "wrong/wrong": 2, "wrong/correct": 1, "correct/wrong": 1}
    assert stages["round_1"]["audit"] == {
        "responses": 6, "judged": 6, "tokens": 10, "status": {"wrong": 5, "correct": 1},
        "finish": {"stop": 6}, "answer/orm": pairs | {"wrong/undecided": 1},
    }  # fmt: skip
    assert stages["round_0"]["audit"]["answer/orm"] == {"correct/None": 1}
    assert found["pool"] == {"problems": 4, "first_solved": {"round_0": 1, "round_1": 1, "final": 1}}
    assert found["versions"] == {"torch": "2"} and found["git_commit"] == "abc"


def test_reflections_of_every_round_count_where_they_are_asked_for(run_folder, tmp_path):
    settings, run = SETTINGS | {"REFLECT": "every"}, shutil.copytree(run_folder, tmp_path / "try")
    found = metrics.collect(run, metrics.folders_of(run, settings), settings)
    (round_1,) = (stage for stage in found["stages"] if stage["stage"] == "round_1")
    assert round_1["audit"]["responses"] == 7 and round_1["audit"]["status"]["correct"] == 2
    assert found["pool"]["first_solved"] == {"round_0": 1, "round_1": 2}


def test_seconds_tokens_and_cost_are_those_of_the_recipes(reported):
    found, stages = reported.metrics, reported.stages
    assert stages["base"]["steps"] == {"evaluating": 60.4}
    round_1 = {"sampling": 18, "verifying": 12, "annotating": 1, "evaluating": 60.4}
    assert stages["round_1"]["steps"] == round_1
    assert found["orm"]["steps"] == {"fine-tuning": 9, "annotating": 3}
    assert found["seconds"] == pytest.approx(4 * 60.4 + 1 + 10 + 30 + 2 + 12)
    # solutions, annotations, error types
    assert found["tokens"]["endpoint"] == {"prompt": 1000 + 2000 + 7, "new": 100 + 300 + 1}
    # predictions and the ORM's replies
    assert found["tokens"]["local"] == {"prompt": 4 * 150 + 7 * 60, "new": 4 * 35 + 7 * 20}
    assert found["cost"] == pytest.approx((3007 * 2 + 401 * 10) / 1e6, abs=1e-4)


def test_table(reported):
    *lines, last = reported.said.splitlines()
    assert re.search(r"\+ round 1 +2 +6 +1 +91 +60\.0% \[23\.1%, 88\.2%\]", reported.said)
    assert "round 2" not in reported.said
    assert "set: share of its test problems that are answered right" in reported.said
    assert "not comparable with the first stage: other max_tokens, rule" in reported.said
    assert last == f"report: {reported.folder / 'report.html'}" and max(map(len, lines)) <= 110


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


def test_error_types_are_those_of_the_predictions_that_stand(reported, tmp_path):
    found = [stage["benchmarks"]["set"].get("error_types") for stage in reported.stages.values()]
    none = dict.fromkeys((*metrics.ERROR_TYPES, "unclassified"), 0)
    types = none | {"vision": 1, EVIL: 1}
    assert found == [None, None, types, None]
    folder = shutil.copytree(reported.folder / "round_1/eval", tmp_path / "eval")
    assert metrics.error_types(folder) == {"set": {"error_types": types}}  # wherever it lies
    rows = [row | {"answer_check": "undecided"} for row in read_rows(folder / "errors.jsonl")]
    write(folder / "errors.jsonl", rows)  # none is wrong
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


def test_columns_of_a_file(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    assert len(metrics.read_columns(path, "id", "tokens")) == 0
    for text, rows in COLUMNS:
        path.write_text(text, newline="")
        if rows is None:
            refused(capsys, lambda: metrics.read_columns(path, "id"), f"error: {path}: not rows")
        else:
            frame = metrics.read_columns(path, "id", "tokens")
            assert len(frame) == rows and list(frame) == ["id", "tokens"], text[:80]


# ---------------------------------------------------------------- which stages, and when it is made anew


def test_stages_are_those_that_the_settings_ask_for(run_folder, tmp_path):
    def names(**changed):
        return [path.name for path in metrics.folders_of(run_folder, SETTINGS | changed)]

    early = ["base", "round_0", "round_1"]
    assert names() == [*early, "final", "orm"]
    assert names(ROUNDS="2") == [*early, "round_2", "final", "orm"]
    assert names(ROUNDS="3", REFLECT="every") == [*early, "round_2", "orm"]
    assert names(REFLECT="none", ORM="some/model") == early
    found = [path.name for path in metrics.folders_of(run_folder, {})]
    assert found == [*early, "round_2", "final", "orm"]
    (tmp_path / "orm_1").mkdir()
    assert metrics.folders_of(tmp_path, SETTINGS | {"ORM_UPDATE": "once"}) == []
    assert metrics.folders_of(tmp_path, SETTINGS | {"ORM_UPDATE": "every"}) == [tmp_path / "orm_1"]


def test_a_stage_that_is_not_evaluated_yet_is_left_out(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "under way")
    shutil.rmtree(folder / "final/eval")
    found = report(folder)
    assert [stage["stage"] for stage in found["stages"]] == ["base", "round_0", "round_1"]
    assert found["pool"]["first_solved"]["final"] == 1  # but its responses are


def test_a_moved_run_reports_the_same(reported, tmp_path, monkeypatch, call, capsys):
    folder = shutil.copytree(reported.folder, tmp_path / "else/try")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name, value in PRICES.items():
        monkeypatch.setenv(name, value)
    call(main, folder)
    assert capsys.readouterr().out == reported.said.replace(str(reported.folder), str(folder))
    assert {path: path.read_bytes() for path in before} == before and folder / "report.html" in before


def test_a_run_in_which_all_is_zero(tmp_path):
    write_evaluation(tmp_path / "round_0", "uuuuu", seconds=0)
    undecided = {"status": "undecided"}
    undecided["tokens"] = None  # as of a script's own rows
    rows = [verified(row, "undecided", "undecided") | undecided for row in PROBLEMS[:2]]
    write(tmp_path / "round_0/verified.jsonl", rows)
    (stage,) = report(tmp_path)["stages"]
    assert stage["audit"]["answer/orm"] == {"undecided/undecided": 2} and stage["seconds"] == 0
    assert stage["audit"]["tokens"] is None and "NaN" not in (tmp_path / "metrics.json").read_text()
    rows = table_rows((tmp_path / "report.html").read_text())
    assert ["+ distilled", "undecided", "0", "0", "2", ""] in rows


@pytest.mark.parametrize("name, message", [("none", "no such folder"), ("", "no stage has been evaluated")])
def test_a_folder_that_is_no_run(name, message, tmp_path, call, capsys):
    refused(capsys, lambda: call(main, tmp_path / name), message)


# ---------------------------------------------------------------- the page


def table_rows(page):
    """The texts of the cells of each row of the page's tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_page_tells_the_figures(reported):
    rows = table_rows(reported.page)
    assert ["round 1", "4", "0.500", "0.0e+00", "1.00", "4 321"] in rows and "4\u202f321" in reported.page
    assert ["+ round 1", "correct", "1", "1", "0", "50.0 [9.4, 90.5]"] in rows
    assert ["", "wrong", "1", "2", "1", "50.0 [15.0, 85.0]"] in rows
    assert rows[3][:2] == ["+ round 1", "60.0 [23.1, 88.2] by its own rule 80.0 [37.6, 96.4]"]


def test_page_holds_no_foreign_markup(reported):
    text, elements, parser = reported.page, [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: elements.append((tag, dict(attributes)))
    parser.feed(text)
    assert [tag for tag, _ in elements].count("script") == 1
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    for tag, attributes in elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,")), (tag, name)
    assert not re.search(r"url\((?!#)|@import", text)
    assert text.count("{{ 7 * 7 }}") > 10  # data is no template
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text and "default-src 'none'" in text
    images = {attributes["src"] for tag, attributes in elements if tag == "img"}
    assert len(images) == 2 and "cannot be read" in text  # a drawing, a photograph, one that is gone
    assert len(text) < 2_000_000


def test_gallery_shows_each_kind(run_folder):
    folders = metrics.folders_of(run_folder, SETTINGS)
    cards = gallery.draw_cards(metrics.verified_files(folders, SETTINGS))
    kinds = [(card["kind"], card["stage"], card["row"]["id"]) for card in cards]
    assert {*kinds[:2]} == {("correct", "+ distilled", "p0"), ("correct", "+ round 1", "p1")}
    assert kinds[-1] == ("reflected", "+ reflection", "p2")
    assert ("wrong/correct", "+ round 1", "p2") in kinds and ("correct/wrong", "+ round 1", "p2") in kinds
    assert kinds.count(("wrong", "+ round 1", "p3")) == 1  # of a problem's responses of a kind one is shown


def test_gallery_is_short_and_the_same_at_every_call(tmp_path):
    rows = [verified({"id": str(number)}, "correct", "correct") for number in range(50)]
    write(tmp_path / "verified.jsonl", rows)
    cards = gallery.draw_cards([tmp_path / "verified.jsonl"])
    assert cards == gallery.draw_cards([tmp_path / "verified.jsonl"])
    assert len({card["row"]["id"] for card in cards}) == len(cards) == gallery.CARDS


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--force-dark-mode",
    "--window-size=390,900", "--virtual-time-budget=20000", "--dump-dom",
)  # fmt: skip


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_page_in_a_browser(reported, tmp_path):
    """On a phone in the dark theme; alone: the page needs no file beside it."""
    for path in (reported.folder / "report.html", ROOT / "tests/browser.html"):
        shutil.copy(path, tmp_path)
    places = f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"
    command = [CHROMIUM, *FLAGS, *places, (tmp_path / "browser.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    told = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert len(told["cards"]) > 5 and {*told["cards"]} == {*gallery.KINDS}
    assert told["figures"] == 8 and told["brokenImages"] == 0
    assert {kind: {*shown} for kind, shown in told["filtered"].items()} == {
        "": {*gallery.KINDS}, **{kind: {kind} for kind in gallery.KINDS}
    }  # fmt: skip
    assert told["found"] == [["reflected"], "1 of 7 shown"]
    assert told["hacked"] is None and {"script-src-attr", "script-src-elem"} <= {*told["refused"]}
    assert told["width"] <= 390
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in told["colours"])
    assert ink - paper > 450
    with Image.open(tmp_path / "page.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
