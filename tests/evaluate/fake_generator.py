"""A generator for tests: answers from a function, counts what it is asked, and can fail or stop on purpose."""

from collections.abc import Callable, Iterator, Sequence

from puna.core.generator import Completion, Piece, Prompt, Sampling, Score


class FakeGenerator:
    def __init__(
        self,
        answer: Callable[[Prompt], str] = lambda prompt: "",
        likelihood: Callable[[Prompt, str], float] = lambda prompt, text: -float(len(text)),
        fail_on: Callable[[Prompt], bool] = lambda prompt: False,
        name: str = "fake",
    ) -> None:
        self._answer, self._likelihood, self._fail_on, self._name = answer, likelihood, fail_on, name
        self.asked: list[Prompt] = []
        self.calls = 0
        self.samplings: list[Sampling] = []

    @property
    def name(self) -> str:
        return self._name

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        self._note(prompts)
        self.samplings.append(sampling)
        return [Completion(self._answer(p), (1, 2), (-0.5, -0.5), "stop", 3) for p in prompts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        done = self.complete([prompt], sampling)[0]
        yield Piece(done.text, done)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[Score]:
        self._note(prompts)
        pairs = zip(prompts, continuations, strict=True)
        scores = [self._likelihood(p, c) for p, c in pairs]
        return [Score(s, len(c.encode()), is_greedy=s > -1) for s, c in zip(scores, continuations, strict=True)]

    def _note(self, prompts: Sequence[Prompt]) -> None:
        self.calls += 1
        if any(map(self._fail_on, prompts)):
            raise RuntimeError("the device is on fire")
        self.asked += prompts
