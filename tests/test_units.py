"""Small functions, by tables."""

import argparse
import base64
import io
import json
import math
import random
import re
from collections import Counter

import pytest
from conftest import read_rows, write_rows
from PIL import Image

import common
import endpoint
import engine
import problems as toy
from output import Output, finished


def test_fill_is_one_pass_and_defuses_tokens():
    assert common.fill("{a} {b} {c}", a="{b}", b="x") == "{b} x {c}"
    assert common.fill('{"k": {a}}', a="1") == '{"k": 1}'
    assert "<image>" not in common.fill("{a}", a="see <image> and <|im_end|>")


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], "Q"),
        (["A", "B", "C"], "Q"),  # the choices are drawn in the picture
        (["3", "4"], "Q\nChoices:\nA. 3\nB. 4"),
        (["(A) 3", "(B) 4"], "Q\nChoices:\n(A) 3\n(B) 4"),
    ],
)
def test_question_text(options, expected):
    assert common.question_text({"question": " Q ", "options": options}) == expected


def test_output_resumes_after_a_torn_line(tmp_path):
    path = tmp_path / "out.jsonl"
    rows = [{"id": name, "images": []} for name in "abc"]
    output = Output(path)
    for row in rows[:2]:
        output.write(row)
    output.state_file.close()  # as when its process is killed
    with (tmp_path / "out.jsonl.part").open("ab") as file:
        file.write(b'{"id": "c", "ima')
    again = Output(path)
    assert again.done == {common.row_key(row) for row in rows[:2]}
    again.write(rows[2])
    again.finish(3)
    assert [row["id"] for row in read_rows(path)] == list("abc") and not (tmp_path / "out.jsonl.part").exists()


def test_unfinished_output_keeps_its_part(tmp_path):
    output = Output(tmp_path / "out.jsonl")
    output.write({"id": "a", "images": []})
    with pytest.raises(SystemExit) as ended:
        output.finish(2)
    assert ended.value.code == 3
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl.part").exists()


def test_an_empty_folder_is_no_output(tmp_path):
    (tmp_path / "model").mkdir()
    assert not finished(tmp_path / "model") and not finished(tmp_path / "none")
    (tmp_path / "model" / "config.json").touch()
    assert finished(tmp_path / "model")


def test_a_second_writer_is_refused(tmp_path, capsys):
    first = Output(tmp_path / "out.jsonl")
    with pytest.raises(SystemExit):
        Output(tmp_path / "out.jsonl")
    assert "is being written by another process" in capsys.readouterr().err
    first.finish(0)


def test_image_paths_survive_a_linked_folder(tmp_path):
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "disk" / "runs")
    Image.new("RGB", (5, 5)).save(tmp_path / "project" / "x.png")
    folder = tmp_path / "project" / "runs"
    row = common.relative_images({"images": [str(tmp_path / "project" / "x.png")]}, folder)
    assert (folder / row["images"][0]).is_file()


def test_seeds_come_from_names():
    assert common.derive_seed(0, "round-1", "p", 3) == common.derive_seed(0, "round-1", "p", 3)
    assert len({common.derive_seed(0, "round-1", "p", k) for k in range(1000)}) == 1000


@pytest.mark.parametrize("mode, size", [("RGB", (3000, 2000)), ("L", (5, 5)), ("RGBA", (40, 30)), ("P", (40, 30)), ("CMYK", (40, 30)), ("1", (1, 1)), ("I;16", (9, 9))])
def test_open_image(tmp_path, mode, size):
    path = tmp_path / ("x.jpg" if mode in ("CMYK",) else "x.png")
    Image.new(mode, size).save(path)
    image = common.open_image(str(path), 100_000)
    assert image.mode == "RGB" and image.width * image.height <= 100_000
    assert abs(image.width / image.height - size[0] / size[1]) < 0.05 * size[0] / size[1]


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert common.open_image(str(tmp_path / "x.png"), 0).getpixel((0, 0)) == (255, 255, 255)


GOOD = '{"status": "WRONG", "error_step": "Step 2: 3 + 4 = 8", "error_analysis": "3 + 4 is not 8."}'


@pytest.mark.parametrize(
    "reply, verdict, step",
    [
        (GOOD, "wrong", "Step 2: 3 + 4 = 8"),
        (f"Here it is:\n```json\n{GOOD}\n```", "wrong", "Step 2: 3 + 4 = 8"),
        ('{"status": "CORRECT", "error_step": null, "error_analysis": null}', "correct", None),
        ("{'status': 'WRONG', 'error_step': 'Step 1', 'error_analysis': 'no',}", "wrong", "Step 1"),
        ('{"status": "WRONG", "error_step": "Step \\"1\\"', "wrong", 'Step "1"'),
        ('{"status": "WRONG", "error_step": 2}', "wrong", "2"),
        ('{"status": "CORRECT"} or {"status": "WRONG"}', "undecided", None),
        ("The solution is correct.", "undecided", None),
        ('{"status": "CORRECT" or "WRONG"', "undecided", None),  # the form, repeated
        ('{"status": "MAYBE"}', "undecided", None),
        ("", "undecided", None),
    ],
)
def test_parse_verdict(stage, reply, verdict, step):
    parsed = stage("02_verify").parse_verdict(reply)
    assert (parsed["verdict"], parsed["error_step"]) == (verdict, step)


SOLUTION = "Step 1: The picture shows sides 3 and 4.\nStep 2: 3 + 4 = 8.\nStep 3: 8 * 2 = 16.\nThe answer to this problem is 16."


@pytest.mark.parametrize(
    "error_step, line",
    [
        ("Step 2", 2),
        ("2", 2),
        ("step 2: addition of the sides", 2),
        ("Step 2: 3 + 4 = 8.", 2),
        ("'3 + 4 = 8.'", 2),
        ("The picture shows sides 3 and 4", 1),
        ("The picture shows  side 3 and 4.", 1),  # misquoted
        ("The answer to this problem is 16.", 4),
        ("Step 12", None),
        ("8 + 1 = 9", None),  # a sum, not a step's number
        ("all of it", None),
        ("", None),
        (None, None),
    ],
)
def test_match_step(stage, error_step, line):
    assert stage("02_verify").match_step(error_step, SOLUTION) == line


def test_match_step_without_numbers(stage):
    match_step = stage("02_verify").match_step
    assert match_step("第二步", "第1步 先看图\n3 + 4 = 8") is None
    assert match_step("3 + 4 = 8", "first look\n3 + 4 = 8, so 8") == 2
    assert match_step("x" * 10**6, "\n".join(["y" * 10**5] * 200)) is None  # and soon


def spoken(text, *logprobs, sample=0):
    """A local model's reply, a token each word."""
    words = [word + " " for word in text.split()]
    return engine.Reply({}, sample, text, pieces=list(zip(words, logprobs or [-0.1] * len(words))))


def test_status_probability(stage):
    probability = stage("02_verify").status_probability
    assert probability(spoken('{"status": "WRONG", "error_step": "Step', -3, math.log(0.8), -2, -2)) == 0.8
    assert probability(spoken('{"status": WRONG "error_step": ...', -3, math.log(0.6), -1, -1)) == 0.6
    assert probability(spoken("nothing")) is None and probability(engine.Reply({}, 0, GOOD)) is None


@pytest.mark.parametrize(
    "replies, threshold, verdict, step",
    [
        ([GOOD], 0, "wrong", "Step 2: 3 + 4 = 8"),
        ([GOOD, '{"status": "CORRECT"}', GOOD], 0, "wrong", "Step 2: 3 + 4 = 8"),
        (['{"status": "CORRECT"}', GOOD], 0, "undecided", None),
        (["?", GOOD, "?"], 0, "wrong", "Step 2: 3 + 4 = 8"),
        (["?", "?"], 0, "undecided", None),
        ([], 0, "undecided", None),
        ([GOOD], 0.95, "undecided", "Step 2: 3 + 4 = 8"),  # e ** -0.1 is 0.905
        ([GOOD], 0.9, "wrong", "Step 2: 3 + 4 = 8"),
    ],
)
def test_judged(stage, replies, threshold, verdict, step):
    row = {"answer_check": "wrong", "response": SOLUTION}
    judged = stage("02_verify").judged(row, [spoken(text) for text in replies], "orm", threshold)
    assert (judged["orm_check"], judged["status"], judged["error_step"]) == (verdict, verdict, step)
    assert judged["error_line"] == (2 if step else None)


def test_undecided_replies_are_asked_for_again(stage):
    """Other seeds and a temperature; a path that was cut off is not asked about."""
    verify, calls = stage("02_verify"), []
    args = argparse.Namespace(model="m", accept="orm", workers=1, show_answer=False, orm_samples=1, orm_threshold=0.0, retry_undecided=2, temperature=0.0, seed=0)
    rows = [{"id": name, "question": "?", "images": [], "sample": 0, "response": "The answer is 5.", "answer": "5", "finish": finish} for name, finish in (("a", "stop"), ("b", "stop"), ("c", "length"))]

    def generate(requests, temperature):
        for request in requests:
            calls.append((request.row["id"], temperature, *request.seeds.values()))
            yield engine.Reply(request.row, 0, "no idea" if request.row["id"] == "b" and len(calls) < 4 else '{"status": "CORRECT"}', tokens=3, prompt_tokens=20)

    verified = {row["id"]: row for row in verify.verify(args, iter(rows), generate)}
    assert {name: row["orm_check"] for name, row in verified.items()} == {"a": "correct", "b": "correct", "c": "undecided"}
    assert {name: row["judge_tokens"] for name, row in verified.items()} == {"a": [20, 3], "b": [60, 9], "c": [0, 0]}  # of all three attempts
    assert [call[:2] for call in calls] == [("a", 0.0), ("b", 0.0), ("b", 0.7), ("b", 0.7)] and len({call[2] for call in calls}) == 4


@pytest.mark.parametrize(
    "policy, answer, orm, status",
    [
        ("answer", "correct", None, "correct"),
        ("answer", None, None, "undecided"),
        ("orm", "wrong", "correct", "correct"),
        ("both", "correct", "correct", "correct"),
        ("both", "correct", "wrong", "wrong"),
        ("both", "wrong", "correct", "wrong"),
        ("both", "correct", "undecided", "undecided"),
        ("both", None, "correct", "correct"),  # no reference answer
        ("orm", "correct", "undecided", "undecided"),
    ],
)
def test_decide(stage, policy, answer, orm, status):
    assert stage("02_verify").decide(policy, answer, orm) == status


@pytest.mark.parametrize("check_correct, statuses", [(False, ["correct", "correct", "wrong", "undecided"]), (True, ["correct", "undecided", "wrong", "undecided"])])
def test_annotations_that_contradict_the_answer_check_are_dropped(stage, check_correct, statuses):
    """A right path, one right by luck, a wrong one with its mistake, a wrong one that the teacher calls right."""
    args = argparse.Namespace(workers=1, check_correct=check_correct, seed=0)
    says = {"luck": "WRONG", "wrong": "WRONG"}
    rows = [{"id": name, "question": "?", "images": [], "sample": 0, "response": f"The answer is {number}.", "answer": "5", "finish": "stop"}
            for name, number in (("right", 5), ("luck", 5), ("wrong", 6), ("praised", 7))]  # fmt: skip
    asked = []

    def generate(requests):
        for request in requests:
            asked.append(request.row["id"])
            yield engine.Reply(request.row, 0, json.dumps({"status": says.get(asked[-1], "CORRECT"), "error_step": "1", "error_analysis": "No."}))

    found = {row["id"]: row for row in stage("02_verify").annotate(args, iter(rows), generate)}
    assert [found[row["id"]]["status"] for row in rows] == statuses
    assert set(asked) == ({"wrong", "praised"} | ({"right", "luck"} if check_correct else set()))
    assert "contradicts the answer check" in found["praised"]["reason"] and found["wrong"]["error_analysis"] == "No."


@pytest.mark.parametrize(
    "analysis, response, leaks",
    [
        ("The area is 35.", "It is 34.", True),
        ("7 * 5 is not 34.", "It is 34.", False),
        ("The side is 3.5 long.", "It is 34.", False),
        ("It is 350.", "It is 34.", False),
        ("35 was right there.", "I get 35, no, 34.", False),
    ],
)
def test_gives_away(stage, analysis, response, leaks):
    row = {"answer": "35", "response": response, "question": "What?"}
    assert stage("02_verify").gives_away(row, {"error_step": None, "error_analysis": analysis}) == leaks


@pytest.mark.parametrize(
    "answer, analysis, response, leaks",
    [
        ("B", "The area is 35.", "It is 34. The answer is C.", True),  # the text behind the letter
        ("35", "It must be option B.", "It is 34. The answer is C.", True),  # the letter of the text
        ("B", "The right choice is (B).", "The answer is C.", True),
        ("B", "应选B。", "答案是C。", True),
        ("B", "7 * 5 is not 34.", "It is 34. The answer is C.", False),
        ("B", "This does not follow from 7 * 5 = 35.", "7 * 5 = 35. The answer is C.", False),  # the response itself says it
        ("B", "The line from B to C is misread.", "AC is 34. The answer is C.", False),  # a point
        ("A", "A square has four sides. The answer C is not one of them.", "The answer is C.", False),  # the article
        ("C", "C is not what the steps lead to.", "It is 35. The answer is B.", False),
        ("AB", "It is 33.", "The answer is C.", True),
    ],
)
def test_gives_away_a_choice(stage, answer, analysis, response, leaks):
    row = {"answer": answer, "options": ["(A) 33", "(B) 35", "(C) 34"], "response": response, "question": "Which?"}
    assert stage("02_verify").gives_away(row, {"error_step": None, "error_analysis": analysis}) == leaks


def test_gives_away_where_several_answers_are_right(stage):
    row = {"answer": ["35", "35 cm"], "response": "It is 34.", "question": "What?"}
    assert stage("02_verify").gives_away(row, {"error_step": "It is 35.", "error_analysis": None})


def test_what_is_chosen_does_not_hang_on_the_order_of_the_rows(stage, tmp_path):
    """Replies arrive in another order each time, and after a kill in yet another one."""
    rows = [
        {"id": f"p{k // 4}", "sample": k % 4, "question": "Q", "images": [], "answer": "1", "response": f"r{k % 3} {k}" if k % 5 else "same", "finish": "stop",
         "status": ("correct", "wrong")[k % 2], "answer_check": ("correct", "wrong")[k % 2], "error_step": None, "error_analysis": "a" if k % 3 else None}
        for k in range(48)
    ]  # fmt: skip
    chosen = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path = write_rows(tmp_path / "v.jsonl", rows)
        orm, student = (stage("04_finetune").choose_rows(argparse.Namespace(input=[path], orm=orm, per_problem=1, seed=0)) for orm in (True, False))
        unsolved = write_rows(tmp_path / "w.jsonl", [row for row in rows if row["status"] == "wrong"])
        drafts = stage("03_reflect").choose_drafts(argparse.Namespace(input=[unsolved], drafts=1, limit=0))
        chosen.append((orm, student, drafts, stage("02_verify").balanced_keys(rows, 0, Counter())))
    assert chosen[0] == chosen[1] == chosen[2] and all(chosen[0])


def test_training_rows_name_where_they_come_from(stage, tmp_path):
    """A teacher's, a round's and a reflection's row -> model, seed and the file that holds the verdict; the reflection also its draft's."""
    (tmp_path / "elsewhere").mkdir()

    def verified(name: str, **changes) -> dict:
        return {"id": name, "question": "What?", "images": [], "sample": 1, "response": f"by {name}", "finish": "stop", "status": "correct"} | changes

    files = {
        "round_0": [verified("a", origin="teacher", model="http://host/v1#teacher", seed=11)],
        "round_2": [verified("b", origin="round-2", model="runs/x/round_1/model", seed=12), verified("c", origin="round-2", status="wrong", response="draft")],
        "final": [verified("c", sample=0, origin="reflection", model="http://host/v1#teacher", seed=13, draft="draft",
                           draft_of={"verified_in": "../round_2/verified.jsonl", "origin": "round-2", "sample": 1})],
    }  # fmt: skip
    for folder, rows in files.items():
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "verified.jsonl", rows)
    inputs = [str(tmp_path / folder / "verified.jsonl") for folder in files]
    args = argparse.Namespace(input=inputs, orm=False, per_problem=4, limit=0, seed=0)
    stage("04_finetune").write_training_file(args, tmp_path / "elsewhere" / "train.jsonl")
    for row, (folder, rows) in zip(read_rows(tmp_path / "elsewhere" / "train.jsonl"), files.items(), strict=True):
        (found,) = [other for other in read_rows(tmp_path / "elsewhere" / row["verified_in"]) if (other["id"], other["sample"]) == (row["id"], row["sample"])]
        assert found == rows[0] and row["verified_in"] == f"../{folder}/verified.jsonl" and (row["model"], row["seed"]) == (found["model"], found["seed"])
        assert row["messages"][-1]["content"] == found["response"]
    draft = row["draft_of"]
    wrong = [other for other in read_rows(tmp_path / "elsewhere" / draft["verified_in"]) if (other["id"], other["sample"]) == (row["id"], draft["sample"])]
    assert [other["response"] for other in wrong] == ["draft"]


def test_balance_of_an_orms_training_data():
    """As many correct as wrong ones; no subject tells the verdict: at most two of one kind for each of the other."""
    keys = {("correct", "easy"): [f"ec{k}" for k in range(50)], ("wrong", "easy"): [f"ew{k}" for k in range(20)],
            ("correct", "hard"): ["hc0", "hc1"], ("wrong", "hard"): [f"hw{k}" for k in range(90)], ("wrong", "unsolved"): [f"uw{k}" for k in range(9)]}  # fmt: skip
    chosen = common.balanced(keys, 0)
    kinds = Counter(key[:2] for key in chosen)
    assert len(set(chosen)) == len(chosen) and kinds["ec"] + kinds["hc"] == kinds["ew"] + kinds["hw"] + kinds["uw"] == 26
    assert kinds["ew"] <= 20 and kinds["hw"] <= 4 and kinds["uw"] <= 2
    assert common.balanced(keys, 0) == chosen != common.balanced(keys, 1)
    assert common.balanced({("correct", "a"): ["x"]}, 0) == []


def test_pick_diverse(stage):
    rows = [("a", "x is 1 + 2"), ("b", "x  is 1 + 2"), ("c", "x is 1 + 3"), ("d", "quite another way")]
    assert stage("04_finetune").pick_diverse(rows, 2) == ["a", "d"]
    assert stage("04_finetune").pick_diverse(rows, 9) == ["a", "d", "c"]


def test_learning_rate(stage):
    rate = stage("04_finetune").learning_rate
    values = [rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert values[9] == 1.0 and values[0] == 0.1 and values == sorted(values[:10]) + sorted(values[10:], reverse=True) and values[-1] < 0.01


@pytest.mark.parametrize("world", [1, 2, 3])
def test_plan_covers_every_row_once_an_epoch(stage, tmp_path, world):
    module = stage("04_finetune")
    write_rows(tmp_path / "t.jsonl", [{"id": str(index), "sample": 0, "text": "x" * (index % 7)} for index in range(37)])
    rows = module.TrainingRows(tmp_path / "t.jsonl")

    class args:
        epochs, seed, batch_size, micro_batch = 2.0, 0, 8, 3

    steps = module.plan_steps(rows, args, world)
    assert all(len(step) == world and len({len(micro) for micro in step}) == 1 for step in steps)
    numbers = [number for step in steps for rank in step for micro in rank for number in micro]
    assert sorted(numbers) == sorted(list(range(37)) * 2)
    args.epochs = 0.001
    assert len(module.plan_steps(rows, args, world)) == 1


def test_plan_keeps_questions_whole(stage, tmp_path):
    """A problem's rows are in one micro-batch where they fit, and one with other pictures or earlier text is another question."""
    module = stage("04_finetune")
    rows = [{"id": str(index), "sample": k, "images": [f"{index}.png"], "messages": [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "x" * k}]} for index in range(9) for k in range(3)]
    rows += [{"id": "0", "sample": 9, "images": ["1.png"], "messages": rows[0]["messages"]}, {"id": "0", "sample": 10, "images": ["0.png"], "messages": [{"role": "user", "content": "Look: <image>Q"}, rows[0]["messages"][1]]}]
    write_rows(tmp_path / "t.jsonl", rows)
    training = module.TrainingRows(tmp_path / "t.jsonl")
    assert len({*training.questions}) == 11
    args = argparse.Namespace(epochs=1.0, seed=0, batch_size=100, micro_batch=4)
    ((micro,),) = module.plan_steps(training, args, 1)
    assert sorted(number for numbers in micro for number in numbers) == list(range(29)) and max(map(len, micro)) <= 4
    assert all(len({index for index, numbers in enumerate(micro) for number in numbers if training.questions[number] == question}) == 1 for question in range(11))
    ((padded,),) = module.plan_steps(training, args, 1, packed=False)  # rows of like length together, whichever question is theirs
    sizes = [training.sizes[number] for numbers in padded for number in numbers]
    assert sizes == sorted(sizes) and [len(numbers) for numbers in padded] == [4] * 7 + [1]


def test_the_first_mistake_of_a_toy_solution():
    right = "Step 1: The picture shows a rectangle with sides 7 and 5.\nStep 2: The area is 7 * 5 = 35.\nThe answer to this problem is B."
    assert toy.first_mistake(right, right) is toy.first_mistake(right, right.replace("is B.", "is 35.")) is None
    assert toy.first_mistake(right, right.replace("is B.", "is A."))[0] == "The answer to this problem is A."
    assert toy.first_mistake(right, right.replace("= 35", "= 36")) == ("Step 2: The area is 7 * 5 = 36.", "7 * 5 is not 36.")
    assert toy.first_mistake(right, right.replace("is B.", "is 36."))[0].endswith("is 36.")


@pytest.mark.parametrize("name", list(toy.FAMILIES))
def test_toy_families(name):
    rng = random.Random(name)
    for _ in range(200):
        record, numbers, canvas = toy.make_problem(name, rng)
        options = record.get("options", [])
        assert toy.parse_numbers(record) == {key: value for key, value in numbers.items() if "{" + key + "}" in toy.FAMILIES[name].facts + toy.FAMILIES[name].question}
        assert not options or (record["answer"] in options and len(set(options)) == 4)
        wrong, line = toy.wrong_solution(toy.FAMILIES[name], numbers, options, "The picture shows", rng)
        right_lines, wrong_lines = record["solution"].split("\n"), wrong.split("\n")
        assert wrong_lines[:line] == right_lines[:line] and wrong_lines[line] != right_lines[line] and wrong_lines[-1] != right_lines[-1]
        assert canvas.image.size == (112, 112)


def test_hub_rows_write_pictures_once(tmp_path, run):
    datasets = pytest.importorskip("datasets")
    picture = Image.new("RGB", (20, 10), "red")
    table = {"problem": ["one <image>", "two"], "answer": ["1", "2"], "image": [picture, picture]}
    features = datasets.Features({"problem": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()})
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    done = run("benchmarks.py", "--input", f"hf:{tmp_path / 'set'}:train", "--columns", "question=problem images=image", "--output", tmp_path / "out" / "problems.jsonl")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out" / "problems.jsonl")
    assert [row["question"] for row in rows] == ["one", "two"] and rows[0]["images"] == rows[1]["images"] and len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_data_url_keeps_small_files(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (900, 900)).save(tmp_path / "b.bmp")
    assert endpoint.data_url(str(tmp_path / "a.png"), 1000).startswith("data:image/png;base64,")
    assert endpoint.data_url(str(tmp_path / "b.bmp"), 1000).startswith("data:image/png;base64,")


def test_a_server_sees_what_a_local_model_does(tmp_path):
    """Pixels that nobody would see are not sent: another decoder would show them as black."""
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("CMYK", (9, 9), (0, 255, 0, 0)).save(tmp_path / "printed.jpg")
    for name in ("clear.png", "printed.jpg"):
        sent = base64.b64decode(endpoint.data_url(str(tmp_path / name), 1000).partition(",")[2])
        with Image.open(io.BytesIO(sent)) as image:
            assert image.mode == "RGB" and image.tobytes() == common.open_image(str(tmp_path / name), 1000).tobytes()


def test_teacher_answers_the_four_prompts(toy_world, stage):
    import teacher

    rows = read_rows(toy_world / "train.jsonl")
    server = teacher.Teacher([toy_world / "train.jsonl"], wrong=0.0, seed=0)
    row = rows[0]
    picture = [(toy_world / row["images"][0]).read_bytes()]
    question = common.question_text(row)
    assert server.answer(common.fill(common.SOLVE_PROMPT, question=question), picture, 0) == row["solution"]
    wrong, line = toy.wrong_solution(toy.FAMILIES[row["subject"]], toy.parse_numbers(row), row.get("options", []), "The picture shows", random.Random(1))
    prompt = common.fill(stage("02_verify").FEEDBACK_PROMPT, question=question, answer=row["answer"], response=wrong)
    verdict = json.loads(server.answer(prompt, picture, 0))
    assert verdict["status"] == "WRONG" and verdict["error_step"] == wrong.split("\n")[line]
    prompt = common.fill(stage("03_reflect").REFLECT_PROMPT, question=question, response=wrong, error_step="x", error_analysis="y")
    assert server.answer(prompt, picture, 0) == row["solution"]
    assert server.answer("What is this?", picture, 0) is None
    number = re.compile(r"\d+")  # a picture's number, a sum's result and the operation changed: each is another type of error
    lines = row["solution"].split("\n")
    changed = {"vision": (0, number.sub("99", lines[0].removeprefix("Step 1:"), count=1)), "calculation": (1, re.sub(r"= \d+", "= 9999", lines[1])), "reasoning": (1, "Step 2: It is 1 + 1 = 2.")}
    for kind, (place, line) in changed.items():
        response = "\n".join([*lines[:place], line, *lines[place + 1 :]])
        prompt = common.fill(stage("05_evaluate").CLASSIFY_PROMPT, question=question, answer=row["answer"], response=response)
        assert json.loads(server.answer(prompt, picture, 0)) == {"error_type": kind}
    prompt = common.fill(stage("05_evaluate").CLASSIFY_PROMPT, question=question, answer=row["answer"], response="I see nothing.")
    assert json.loads(server.answer(prompt, picture, 0)) == {"error_type": None}
    always_wrong = teacher.Teacher([toy_world / "train.jsonl"], wrong=1.0, seed=0)
    assert always_wrong.answer(common.fill(common.SOLVE_PROMPT, question=question), picture, 0) != row["solution"]
