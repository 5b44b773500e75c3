"""What a run at full size needs, computed from shapes and rooflines: memory, hours, dollars. Prints the tables of docs/FULL_SIZE.md.

Change an assumption below and call it again:

    python docs/full_size.py
"""

from dataclasses import dataclass

# ---------------------------------------------------------------- assumptions

# The machine. An H200 was measured at these rates; the other ones are the same in proportion to what their makers state.
FLOPS, BANDWIDTH = 790e12, 4.3e12  # bf16 operations, and bytes of memory, a second
BANDWIDTH_80 = BANDWIDTH * 3.35 / 4.8  # of an H100 of 80 GB, whose operations are those of an H200
MEMORY, MEMORY_80 = 149e9, 84e9  # bytes that a program can use
BUSY = 0.5  # share of these rates that sampling, judging and training reach: assumed, not measured

# The data: the paper's counts, read as one path a problem.
PROBLEMS = 341_346  # MathVL
EXAMPLES = (100_000, 170_000, 240_000, 280_000)  # that M0, M1, M2 and the last model are trained on
TEACHER_RIGHT = 0.5105  # GPT-4o on MathVL-test, in the paper: so many of its solutions are kept
TEST_PROBLEMS = 8_000  # an evaluation, of which there are five: about what MathVista's, MathVerse's and MathVision's test sets hold together
SAMPLES = 8  # paths a problem and round
ORM_PATHS = 60_000  # half of them wrong and annotated

# A row, in tokens.
PIXELS = 784_000  # of a picture: 1,000 tokens of Qwen2-VL
TEXT, RESPONSE, VERDICT = 200, 500, 64  # prompt with question; solution; judge's JSON
TEACHER_PICTURE, FEEDBACK = 765, 150  # a picture at GPT-4o (four tiles), an annotation
ROWS = 256  # paths decoded together
PER_PROBLEM = 1  # training rows of a problem: its picture and question are read once for all of them
CHUNK = 1 << 27  # logits that 04 makes at a time
ADAMW = 16  # bytes a trained parameter: fp32 weight, gradient and two moments
PRICE_IN, PRICE_OUT = 2.5, 10.0  # dollars a million tokens


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """Shapes from its config.json. A decoder layer has `experts` sets of matrices, of which a token passes through one."""

    name: str
    layers: int
    hidden: int
    inner: int
    kv_heads: int
    vocabulary: int
    vision: tuple[int, int, int, int]  # of its tower: layers, hidden, inner, saved
    patches: int  # of a piece of the picture, which attend to each other
    pieces: int
    picture: int  # tokens of a picture in the language part
    projector: int  # parameters
    saved: int  # bytes that a layer keeps of a token for the backward pass: measured on one layer in bf16
    experts: int = 1

    @property
    def body(self) -> int:
        """Parameters of the layers that a token passes through (heads are 128 wide)."""
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * 128 + 3 * self.hidden * self.inner)

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def tower(self) -> int:
        layers, hidden, inner, _ = self.vision
        return layers * (4 * hidden**2 + 2 * hidden * inner)

    @property
    def parameters(self) -> int:
        return self.experts * self.body + 2 * self.head + self.tower + self.projector

    @property
    def cache(self) -> int:
        """Bytes of keys and values a token."""
        return 2 * self.layers * self.kv_heads * 128 * 2

    @property
    def row(self) -> int:
        """Tokens of a training row."""
        return TEXT + self.picture + RESPONSE

    def see(self) -> float:
        """Operations for one picture."""
        layers, hidden, *_ = self.vision
        return self.pieces * (2 * self.tower * self.patches + 4 * layers * hidden * self.patches**2) + 2 * self.projector * self.picture

    def read(self, tokens: int, before: int = 0) -> float:
        """Operations of the layers for tokens that see themselves and what is before them."""
        return 2 * self.body * tokens + 4 * self.layers * self.hidden * tokens * (before + tokens / 2)

    def write(self, own: float, prefix: float, share: int, bandwidth: float) -> float:
        """Seconds a token and GPU, ROWS of them at once: weights and keys are read once a step, a question's keys once for `share` rows."""
        weights = 2 * (self.body + self.head)
        step = max(weights / bandwidth, weights * ROWS / FLOPS) + ROWS * (own + prefix / share) * self.cache / bandwidth
        return step / ROWS / BUSY

    def sample(self, count: int, bandwidth: float) -> float:
        """GPU seconds for `count` paths of one problem."""
        prompt = TEXT + self.picture
        return (self.see() + self.read(prompt)) / FLOPS / BUSY + count * RESPONSE * self.write(RESPONSE / 2, prompt, count, bandwidth)

    def judge(self, count: int, bandwidth: float) -> float:
        """GPU seconds for the verdicts on `count` paths of one problem: picture and question are read once."""
        prompt = TEXT + self.picture
        reading = self.see() + self.read(prompt) + count * self.read(RESPONSE, prompt)
        return reading / FLOPS / BUSY + count * VERDICT * self.write(RESPONSE + VERDICT / 2, prompt, count, bandwidth)

    def learn(self, own: int, labels: int, recompute: float, frozen: bool) -> float:
        """Operations to train on a row of `own` tokens behind its question: forward once, backward twice; the head at the labels, forward again in chunks."""
        prompt = TEXT + self.picture
        reading = self.read(prompt) / PER_PROBLEM + self.read(own, prompt)
        return (3 + recompute) * reading + 8 * self.head * labels + (1 if frozen else 3 + recompute) * self.see() / PER_PROBLEM


TOWER = (32, 1280, 5120, 58_952)
QWEN = Model("Qwen2-VL-7B", 28, 3584, 18944, 4, 152_064, TOWER, PIXELS // 14**2, 1, PIXELS // 28**2, 5120**2 + 5120 * 3584, 225_400)
INTERNVL = Model("InternVL2.5-8B", 32, 4096, 14336, 8, 92_553, (24, 1024, 4096, 36_936), 1025, 5, 5 * 256, 2 * 4096**2, 200_840)
COGVLM = Model("CogVLM2-19B", 32, 4096, 14336, 8, 128_256, (63, 1792, 15360, 0), 9217, 1, 2306, 4 * 1792**2 + 1792 * 4096 + 3 * 4096 * 14336, 200_840, 2)
QVQ = Model("QVQ-72B", 80, 8192, 29568, 8, 152_064, TOWER, PIXELS // 14**2, 1, PIXELS // 28**2, 5120**2 + 5120 * 8192, 0)

# GPUs, bytes and bytes a second of each; and how a model is fine-tuned there: rows a forward pass, share of the layers recomputed, vision frozen.
MACHINES = {"1 H200": (1, MEMORY, BANDWIDTH), "8 H200": (8, MEMORY, BANDWIDTH), "8 x 80 GB": (8, MEMORY_80, BANDWIDTH_80)}
TRAINING = {
    (QWEN, "1 H200"): (2, 1.0, True), (QWEN, "8 H200"): (4, 0.5, False), (QWEN, "8 x 80 GB"): (4, 1.0, False),
    (INTERNVL, "1 H200"): (2, 1.0, True), (INTERNVL, "8 H200"): (4, 0.5, False), (INTERNVL, "8 x 80 GB"): (4, 1.0, False),
    (COGVLM, "8 H200"): (4, 0.5, True), (COGVLM, "8 x 80 GB"): (2, 1.0, True),
}  # fmt: skip


# ---------------------------------------------------------------- tables


def training_memory(model: Model, gpus: int, rows: int, recompute: float, frozen: bool) -> dict[str, float]:
    """Bytes on each GPU while it fine-tunes.

    states       ADAMW a trained parameter, 4 a frozen one, divided among the GPUs
    bf16         weights as they are computed with: of two layers and the output layer; on one GPU autocast's copies of the layers that are not recomputed too;
                 with FSDP2 one layer's gradients in fp32
    activations  every layer's input (on one GPU in fp32, as autocast leaves it), all that is saved in the layers which are not recomputed, and in one that is; the same of a trained tower;
                 CHUNK logits in bf16 and fp32, and the gradient of each
    """

    def kept(count: int, layers: int, hidden: int, saved: int) -> float:
        return count * ((4 if gpus == 1 else 2) * layers * hidden + (layers * (1 - recompute) + (recompute > 0)) * saved)

    still = frozen * (model.tower + model.projector)
    layer = model.experts * model.body / model.layers
    copies = 2 * (2 * layer + model.head) + (2 * (1 - recompute) * layer * model.layers if gpus == 1 else 4 * layer)
    tower_layers, width, _, saved = model.vision
    activations = kept(rows * model.row, model.layers, model.hidden, model.saved) + 12 * CHUNK
    if not frozen:
        activations += kept(rows * model.pieces * model.patches, tower_layers, width, saved)
    return {"states": (ADAMW * (model.parameters - still) + 4 * still) / gpus, "bf16": copies, "activations": activations}


def network(model: Model, rows: int) -> tuple[float, float]:
    """(bytes that a GPU receives in a forward and backward pass: all weights in bf16 twice, all gradients in fp32; seconds that it computes meanwhile)"""
    return (2 + 2 + 4) * model.parameters, rows * model.learn(RESPONSE, RESPONSE, 1.0, False) / FLOPS / BUSY


def hours(model: Model, machine: str) -> list[tuple[str, float]]:
    """(stage, hours) of a run with two rounds, by GPU seconds."""
    gpus, _, bandwidth = MACHINES[machine]
    _, recompute, frozen = TRAINING[model, machine]

    def train(rows: int, own: int = RESPONSE, labels: int = RESPONSE) -> float:
        return rows * model.learn(own, labels, recompute, frozen) / FLOPS / BUSY

    left = [PROBLEMS - examples for examples in EXAMPLES]
    evaluation = TEST_PROBLEMS * model.sample(1, bandwidth)
    stages = [
        ("evaluate five models", 5 * evaluation),
        (f"M0: train on {EXAMPLES[0]:,}", train(EXAMPLES[0])),
        (f"ORM: {ORM_PATHS:,} paths of M0", ORM_PATHS / 4 * model.sample(4, bandwidth)),
        (f"ORM: train on {ORM_PATHS:,}", train(ORM_PATHS, RESPONSE + VERDICT, VERDICT)),
    ]
    for index in (1, 2):
        stages += [
            (f"round {index}: {left[index - 1]:,} problems x {SAMPLES} paths", left[index - 1] * model.sample(SAMPLES, bandwidth)),
            (f"round {index}: verdicts on them", left[index - 1] * model.judge(SAMPLES, bandwidth)),
            (f"round {index}: train on {EXAMPLES[index]:,}", train(EXAMPLES[index])),
        ]
    stages += [(f"reflection: verdicts on {left[2]:,}", left[2] * model.judge(1, bandwidth)), (f"reflection: train on {EXAMPLES[3]:,}", train(EXAMPLES[3]))]
    return [(name, seconds / gpus / 3600) for name, seconds in stages]


def teacher_calls() -> list[tuple[str, int, int, int]]:
    """(what, requests, tokens in and out of each)"""
    prompt = TEXT + TEACHER_PICTURE
    return [
        ("solve D0", round(EXAMPLES[0] / TEACHER_RIGHT), prompt, RESPONSE),
        ("annotate the ORM's wrong paths", ORM_PATHS // 2, prompt + RESPONSE, FEEDBACK),
        ("reflect on what is left", PROBLEMS - EXAMPLES[2], prompt + RESPONSE + FEEDBACK, RESPONSE),
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> list[str]:
    """The tables of the page, in its order."""
    shapes, memory, traffic, calls = [], [], [], []
    for m in (QWEN, INTERNVL, COGVLM, QVQ):
        numbers = [f"{m.parameters / 1e9:.2f}", f"{m.tower / 1e9:.2f}", f"{2 * m.parameters / 1e9:.1f}", f"{m.picture:,}"]
        shapes.append([m.name, *numbers, f"{m.see() / 1e12:.1f}", f"{m.read(TEXT + m.picture) / 1e12:.1f}", f"{m.cache:,}"])
    for (model, machine), (rows, recompute, frozen) in TRAINING.items():
        gpus, most, _ = MACHINES[machine]
        parts = training_memory(model, gpus, rows, recompute, frozen)
        flags = f"`--micro-batch {rows} --recompute {recompute:g}{' --freeze vision' if frozen else ''}`"
        memory.append([model.name, machine, flags, *(f"{part / 1e9:.1f}" for part in parts.values()), f"{sum(parts.values()) / 1e9:.0f} of {most / 1e9:.0f}"])
    for model in (QWEN, INTERNVL):
        for rows in (4, 8):
            received, seconds = network(model, rows)
            traffic.append([model.name, str(rows), f"{received / 1e9:.0f}", f"{seconds:.1f}", f"{received / seconds / 1e9:.0f}"])
    columns = {f"{model.name}, {machine}": dict(hours(model, machine)) for model, machine in TRAINING}
    spent = [[stage, *(f"{column[stage]:.1f}" for column in columns.values())] for stage in next(iter(columns.values()))]
    spent.append(["**all**", *(f"**{sum(column.values()):.0f}**" for column in columns.values())])
    sums = [0.0] * 4
    for what, requests, prompt, new in teacher_calls():
        figures = [requests, requests * prompt / 1e6, requests * new / 1e6, requests * (prompt * PRICE_IN + new * PRICE_OUT) / 1e6]
        sums = [before + figure for before, figure in zip(sums, figures)]
        calls.append([what, *(f"{figure:,.0f}" for figure in figures)])
    calls.append(["**all**", *(f"**{figure:,.0f}**" for figure in sums)])
    return [
        table(["model", "B parameters", "of its tower", "GB in bf16", "tokens a picture", "TFLOP to see it", "to read a prompt", "cache, bytes a token"], shapes),
        table(["model", "machine", "flags of 04", "states", "bf16 weights", "activations", "GB a GPU"], memory),
        table(["hours", *columns], spent),
        table(["teacher", "requests", "M tokens in", "M tokens out", "dollars"], calls),
        table(["model", "rows a pass", "GB received a pass", "seconds computed", "GB/s that hide it"], traffic),
    ]


if __name__ == "__main__":
    print("\n\n".join(tables()))
