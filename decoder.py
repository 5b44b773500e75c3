"""The loop that decodes many samples at once from one model and keeps the rows full.

`Decoder` holds for every model of transformers whose layers attend through transformers' table of attentions and keep
every token (slots.py); whether a model is one of them is not looked up but tried, on a picture and a question (`check`).

A step (`one_token`) runs on the device from end to end: the tokens that it chooses are the input of the next one, and
the host only reads them. On CUDA a step of one shape is captured as a graph and replayed; shapes are rounded up there, so
that a few graphs serve all steps, and rows that have left stay where they are until others come. Elsewhere the same
function runs as it is, with exact shapes. The graphs were written without a GPU at hand: the tests record and replay
steps on the CPU, and `check` compares a graph with the step it was made from when a model is loaded on a GPU.
"""

import inspect
from collections import Counter, deque
from dataclasses import replace
from typing import Callable, Iterator

import torch
from transformers import DynamicCache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from common import processes
from features import Features, free_memory, image_token
from prompts import ERRORS, REFILL, Batch, Sample, halves, one_line
from slots import Shape, Slots, use_shared_prefix

TAIL = 1024  # tokens of a prompt that are its own, as expected when rows are counted
CAPTURE_AT = 3  # a step's shape is captured when it is met for this time: until then it costs more than it saves
GRAPHS = 64  # kept, at most
FEATURES = 16  # features of pictures may take up this part of the machine's free memory


class Decoder:
    """Decodes samples together, live[i] in row i of the slots (None: it has finished); `work` counts what was computed."""

    def __init__(self, model, probe: Batch, rows: int, max_tokens: int, ends: set[int], pieces: bool):
        """Raises ValueError, or what the model raises, if it does not decode `probe` with shared prompts as it does by itself."""
        self.model, self.max_tokens, self.ends, self.work = model, max_tokens, ends, Counter()
        self.cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before transformers 5.24
        self.capture, self.graphs, self.met = graph_capture(model.device), {}, Counter()
        self.sampling, self.warpers, self.pieces = (), [], True
        self.features = Features(free_memory(torch.device("cpu")) // FEATURES // processes()[1])
        use_shared_prefix(model)
        cache = self.check(probe)
        token = sum(part.shape[1] * part.shape[3] * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
        free = free_memory(model.device)
        self.rows = max(1, min(rows, free // 2 // (token * (max_tokens + TAIL))))  # the other half: questions, and what a step needs
        if self.rows < rows:
            print(f"engine: memory for {self.rows} rows, not for {rows}: {free >> 20} MiB free, {token * max_tokens >> 20} MiB a reply", flush=True)
        self.slots, self.pieces = Slots(cache, self.rows, max_tokens, self.capture is not None), pieces
        self.forget_graphs()

    @torch.inference_mode()
    def check(self, probe: Batch) -> DynamicCache:
        (question,), prompt, count = probe.questions, probe.samples[0].prompt, len(probe.samples)
        cache, positions, whole = self.read(probe.inputs, 2, [("probe",)])
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise ValueError("not all its layers keep the keys and values of every token")
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, : question.shared], layer.values[:, :, : question.shared]
        self.slots = Slots(cache, count, self.max_tokens, self.capture is not None)
        self.slots.add_questions(cache, [question.shared], positions[..., question.shared - 1] + 1)
        self.slots.add_rows(0, [0] * count)
        logits = [self.forward(0, [prompt[question.shared : -1]] * count)]
        self.slots.arrange([*range(count)], [prompt[-1]] * count, [0] * count)
        shape = self.slots.next_shape()
        logits.append(self.next_logits(shape)[:count])
        off = ((torch.stack(logits, 1) - whole).norm() / whole.expand(count, -1, -1).norm()).item()
        if not off < self.tolerance():
            raise ValueError(f"with shared prompts its logits are off by {off:.1e}")
        if self.capture:
            self.check_capture(shape)
        if self.features.kept:
            self.check_features(probe, whole)
        self.work.clear()
        return cache

    def check_capture(self, shape: Shape) -> None:
        """Does the captured step, twice, write what the step itself writes?"""
        watched = [self.slots.state, self.slots.chances, *self.slots.own[-1]]
        before = [part.clone() for part in watched]
        self.one_token(shape)
        self.one_token(shape)
        expected = [part.clone() for part in watched]
        for part, value in zip(watched, before):
            part.copy_(value)
        if graph := self.captured(shape):
            graph()
            graph()
            off = max(((part - value).float().norm() / value.float().norm()).item() for part, value in zip(watched, expected))
            if not off < self.tolerance():
                self.without_graphs(f"they are off by {off:.1e}")

    def check_features(self, probe: Batch, whole: torch.Tensor) -> None:
        """Are the logits those of the first time when the vision tower is passed by?"""
        try:
            off = ((self.read(probe.inputs, 2, [("probe",)])[2] - whole).norm() / whole.norm()).item()
        except ERRORS:
            off = 1.0
        if not off < self.tolerance():
            self.features.room = 0

    def tolerance(self) -> float:
        return 1e-3 if self.model.dtype == torch.float32 else 5e-2

    # ------------------------------------------------------------ the loop

    @torch.inference_mode()
    def serve(self, batches: Iterator[Batch], encode: Callable, temperature: float, top_k: int, top_p: float) -> Iterator[Sample]:
        """Samples as they finish. A batch that fails is halved by `encode`; one that lacks memory waits for the others to end.

        New samples take free rows once these are a share of all: reading prompts holds the others up, and reads better many at a time.
        """
        self.slots.questions, self.live, self.waiting, self.questions = 0, [], deque(), []
        if self.sampling != (temperature, top_k, top_p):
            self.forget_graphs()
        self.sampling = temperature, top_k, top_p
        self.warpers = [TemperatureLogitsWarper(temperature)] if temperature else []
        self.warpers += [TopKLogitsWarper(top_k)] if temperature and top_k else []
        self.warpers += [TopPLogitsWarper(top_p)] if temperature and top_p < 1 else []
        again: deque[Batch] = deque()
        while True:
            busy, started = sum(sample is not None for sample in self.live), len(self.live)
            if self.rows - busy >= max(1, self.rows // REFILL) or not busy:
                while busy + len(self.waiting) < self.rows and (batch := again.popleft() if again else next(batches, None)):
                    error = self.admit(batch)
                    if error and len(batch.questions) > 1:
                        again.extendleft(reversed([part for half in halves(batch.questions) for part in encode(half)]))
                    elif error and lacks_memory(error) and (busy or self.waiting):
                        again.appendleft(batch)
                        break
                    elif error:
                        yield from (replace(sample, error=one_line(error)) for sample in batch.samples)
                    else:
                        yield from (sample for sample in batch.samples if sample.error)
                if self.waiting:
                    self.compact()
                    started = busy
                    self.live += [self.waiting.popleft() for _ in range(min(self.rows - busy, len(self.waiting)))]
            if not self.live:
                return
            try:
                finished = self.start(started) if started < len(self.live) else self.step()
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                finished = self.retreat(started, error)
            yield from finished

    def admit(self, batch: Batch) -> Exception | None:
        """Read the shared beginnings of a batch's prompts; its samples then wait for rows."""
        if not batch.questions:
            return None
        try:
            cache, positions, _ = self.read(batch.inputs, 1, [question.pictures for question in batch.questions])
            slots = self.slots.add_questions(cache, [question.shared for question in batch.questions], positions[..., -1] + 1)
        except ERRORS as error:
            return error.with_traceback(None)  # which would keep the failed batch in memory
        for question, slot in zip(batch.questions, slots):
            question.slot, question.unfinished = slot, 0
        self.questions += batch.questions
        for sample in batch.samples:
            sample.question.unfinished += 1
        self.waiting.extend(batch.samples)
        seen = batch.inputs["attention_mask"]
        self.work.update(prompts=len(seen), prompt_tokens=int(seen.sum()), prompt_padding=int((1 - seen).sum()))
        return None

    def start(self, first: int) -> list[Sample]:
        """Read the rest of the prompts of the samples from row `first` on, a request's once for all its samples, and take their first tokens."""
        fresh = self.live[first:]
        leaders = list({id(sample.request): sample for sample in fresh}.values())
        place = {id(sample.request): index for index, sample in enumerate(leaders)}
        fresh = leaders + [sample for sample in fresh if sample is not leaders[place[id(sample.request)]]]
        self.live[first:] = fresh
        self.changed = True
        self.slots.add_rows(first, [sample.question.slot for sample in fresh])
        tails = [sample.tail for sample in leaders]
        logits = self.forward(first, tails)
        self.work.update(tails=len(tails), tail_tokens=sum(map(len, tails)), tail_padding=sum(max(map(len, tails)) - len(tail) for tail in tails))
        sources = [place[id(sample.request)] for sample in fresh]
        self.slots.copy_rows([first + source for source in sources[len(leaders) :]], list(range(first + len(leaders), len(self.live))))
        uniform = self.slots.uniform[first : len(self.live)]
        if self.warpers:  # drawn on the CPU: the same numbers on every device
            uniform.copy_(torch.stack([torch.rand(self.max_tokens, generator=torch.Generator().manual_seed(sample.request.seeds[sample.number])) for sample in fresh]))
        tokens, chances = self.choose(logits[torch.tensor(sources, device=logits.device)], uniform[:, :1])
        return self.collect(first, tokens.tolist(), chances.tolist())

    def step(self) -> list[Sample]:
        """One more token in every row."""
        if self.changed:
            used = [row for row, sample in enumerate(self.live) if sample]
            self.slots.arrange(used, [self.live[row].tokens[-1] for row in used], [len(self.live[row].tokens) for row in used])
            self.changed = False
        shape, count = self.slots.next_shape(), len(self.slots.used)
        self.work.update(steps=1, decode_rows=count, idle_rows=shape.rows - count)
        graph = self.graph_of(shape)
        if graph:
            graph()
        else:
            self.one_token(shape)
        self.slots.end_step()
        return self.collect(0, self.slots.state[0, : len(self.live)].tolist(), self.slots.chances[: len(self.live)].tolist() if self.pieces else [0.0] * len(self.live))

    def one_token(self, shape: Shape) -> None:
        """A step, on the device from end to end: what can be captured."""
        tokens, lengths, _, _, drawn = self.slots.state[:, : shape.rows]
        logits = self.next_logits(shape)
        chosen, chances = self.choose(logits, self.slots.uniform[: shape.rows].gather(1, drawn[:, None]))
        tokens.copy_(chosen)
        self.slots.chances[: shape.rows].copy_(chances)
        lengths.add_(1)
        drawn.add_(1)

    def choose(self, logits: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next tokens (R) by logits (R, V) and each row's number in [0, 1) (R, 1), and their log-probabilities (R), if asked for."""
        if self.warpers:  # the inverse of the cumulative distribution, at the sample's own number
            scores = logits
            for warper in self.warpers:
                scores = warper(None, scores)
            total = scores.softmax(-1).cumsum(-1)
            tokens = torch.searchsorted(total, points * total[:, -1:], right=True).clamp_max(total.shape[1] - 1)
        else:
            tokens = logits.argmax(-1, keepdim=True)
        chances = logits.log_softmax(-1).gather(1, tokens) if self.pieces else torch.zeros_like(points)
        return tokens[:, 0], chances[:, 0]

    def collect(self, first: int, tokens: list[int], chances: list[float]) -> list[Sample]:
        """Add the new tokens of the rows from `first` on to their samples; those that have finished leave."""
        done = []
        for row, (token, chance) in enumerate(zip(tokens, chances), first):
            if sample := self.live[row]:
                sample.tokens.append(token)
                sample.chances.append(chance)
                if token in self.ends or len(sample.tokens) == sample.limit:
                    done.append(row)
        finished = [self.live[row] for row in done]
        if done:
            self.leave(done)
        return finished

    def leave(self, rows: list[int]) -> None:
        """Free rows, and questions whose samples are all done."""
        self.changed, empty = True, {}
        for row in rows:
            question, self.live[row] = self.live[row].question, None
            question.unfinished -= 1
            if question.unfinished == 0:
                empty[id(question)] = question
        for question in empty.values():
            self.slots.drop_question(question.slot)
            last = self.questions.pop()
            if last is not question:
                self.questions[question.slot], last.slot = last, question.slot
        if self.slots.rounded(sum(sample is not None for sample in self.live)) < self.slots.rounded(len(self.live)):
            self.compact()

    def compact(self) -> None:
        """The rows in use become the first ones: the last of them take the places of those that have left."""
        stay = sum(sample is not None for sample in self.live)
        targets = [row for row in range(stay) if self.live[row] is None]
        sources = [row for row in range(stay, len(self.live)) if self.live[row] is not None]
        self.slots.copy_rows(sources, targets)
        for target, source in zip(targets, sources):
            self.live[target] = self.live[source]
        del self.live[stay:]
        self.changed = True

    def retreat(self, started: int, error: RuntimeError) -> list[Sample]:
        """The memory did not do for a step: half of the rows that were to start, or else of all, wait, and fewer are used from now on."""
        starting = started < len(self.live)
        if not starting:
            self.compact()
        keep = started if starting else started // 2
        back = self.live[keep:]
        if keep == 0 and len(back) == 1:
            back[0].error = one_line(error)
            self.leave([0])
            return back
        self.rows = max(1, keep + len(back) // 2 if starting else keep)
        print(f"engine: {one_line(error)}; going on with {self.rows} rows", flush=True)
        del self.live[keep:]
        for sample in reversed(back):
            sample.tokens.clear()
            sample.chances.clear()
            self.waiting.appendleft(sample)
        self.changed = True
        return []

    # ------------------------------------------------------------ captured steps

    def graph_of(self, shape: Shape) -> Callable | None:
        """The captured step of this shape, if it is there or due."""
        if self.slots.moved != self.captured_at:  # a graph looks where the memory was
            self.forget_graphs()
        graph = self.graphs.pop(shape, None)
        if graph is None and self.capture:
            self.met[shape] += 1
            graph = self.captured(shape) if self.met[shape] >= CAPTURE_AT else None
        if graph:
            self.graphs[shape] = graph  # behind those that were used less recently
            self.work.update(replays=1)
        return graph

    def captured(self, shape: Shape) -> Callable | None:
        if len(self.graphs) >= GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        try:
            graph = self.capture(lambda: self.one_token(shape))
        except ERRORS as error:
            return self.without_graphs(one_line(error))
        self.work.update(graphs=1)
        return graph

    def without_graphs(self, reason: str) -> None:
        print(f"engine: steps are not captured ({reason})", flush=True)
        self.capture = None
        self.forget_graphs()

    def forget_graphs(self) -> None:
        self.graphs.clear()
        self.met.clear()
        self.captured_at = self.slots.moved

    # ------------------------------------------------------------ the model

    def read(self, inputs: dict, keep: int, pictures: list[tuple]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """One pass over left-padded prompts, prepared by generate() itself: cache, position ids (B, K, P), last logits (B, keep, V).

        `pictures`: the key of each prompt's; the vision tower does not see again what it has seen of late.
        """

        def once(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
            prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state) | {"logits_to_keep": keep}
            positions = prepared["position_ids"]
            seen = (state.get("mm_encoder_outputs") or {}).get("image")
            if seen is not None and features is None:
                self.features.keep(pictures, (input_ids == image_token(model)).sum(1).tolist(), seen)
            out = model(**prepared, return_dict=True)
            positions = positions.transpose(0, 1) if positions.ndim == 3 else positions[:, None]
            return out.get("cache", out.get("past_key_values")), positions.expand(len(input_ids), -1, -1).cpu(), out.logits.float()

        features = self.features.find(pictures, self.model.device)
        if features is not None:
            inputs = {name: value for name, value in inputs.items() if name != "pixel_values"} | {"mm_encoder_outputs": {"image": features}}
        self.work["pixel_rows"] += len(inputs.get("pixel_values", ()))
        inputs = {name: value.to(self.model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        return self.model.generate(**inputs, max_new_tokens=1, do_sample=False, custom_generate=once)

    def forward(self, first: int, tokens: list[list[int]]) -> torch.Tensor:
        """Logits (count, V) behind the first own tokens of the rows from `first` on."""
        lengths = torch.tensor([len(row) for row in tokens])
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).to(self.model.device)
        columns, index = (lengths - 1).unique(return_inverse=True)  # logits of columns that are some row's last: a mask would need transformers 5.23
        mask, positions = self.slots.begin_rows(first, len(tokens), width)
        logits = self.call(ids, mask, positions, columns.to(ids.device))
        self.slots.end_rows(lengths)
        return logits[torch.arange(len(tokens)), index].float()

    def next_logits(self, shape: Shape) -> torch.Tensor:
        """Logits (R, V) behind the last token of each row."""
        mask, positions = self.slots.begin_step(shape)
        return self.call(self.slots.state[0, : shape.rows, None], mask, positions, 1)[:, -1].float()

    def call(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=keep, return_dict=True, **{self.cache_name: self.slots}).logits


def graph_capture(device: torch.device) -> Callable | None:
    """On CUDA a function that captures a step and returns what repeats it; elsewhere None. Written for CUDA, not run there."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()  # one for all: they run one after the other and leave nothing in it

    def capture(step: Callable) -> Callable:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # the thread that encodes may go on
            step()
        return graph.replay

    return capture


def lacks_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or isinstance(error, RuntimeError) and "memory" in str(error)
