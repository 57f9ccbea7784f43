"""What the target is asked while answers are gathered: turns that it writes by itself, from the beginnings that people
give them, and kinds of work with passages that it wrote. No prompt of a benchmark is among them.
"""

import gettext
import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dsl_train.reference.smollm2.teacher import Teacher, answer

#: One wave after the other.
KINDS = (
    *("chat", "reading", "arithmetic", "summary", "question", "turns", "writing", "reading"),
    *("arithmetic", "translation", "chat", "summary", "question", "code", "turns", "writing"),
)
#: How people begin.
_OPENINGS = {
    "chat": ("",),
    "turns": ("", "", "Write", "Imagine", "Explain", "Given", "Suppose", "Describe", "Which", "Provide", "Extract"),
    "writing": (
        *("Write a", "Compose", "Draft", "Describe", "Imagine you are", "Pretend", "Create", "Develop", "Edit"),
        *(
            "Could",
            "Please",
            "You are",
            "Discuss",
            "Compare",
            "Explain",
            "Rewrite",
            "Analyze",
            "Provide",
            "Embrace",
            "Evaluate",
        ),
    ),
    "question": (
        *("Who", "Who", "What", "What is the", "When", "When did", "Where", "Which", "How many", "How", "Why"),
        *("Who plays", "Who sang", "Who wrote", "In what year", "What does", "How long", "What was", "Where does"),
    ),
    "code": ("Write a Python", "Write a function", "Implement", "Write a program", "Given an array", "Fix"),
}
_ARTICLES = (
    "Write a news article about {}.",
    "Write an encyclopedia article about {}.",
    "Write a news report about an accident near {}.",
    "Report on a court case that has to do with {}.",
    "Write a newspaper story about a family and {}.",
    "Write three paragraphs about {}.",
    "Write a sports report that mentions {}.",
)
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jamal", "Kira", "Liam", "Mona")
_THINGS = (
    "apples",
    "books",
    "pencils",
    "tickets",
    "cookies",
    "marbles",
    "stamps",
    "eggs",
    "bottles",
    "cards",
    "shirts",
)
_STORIES = (
    "{a} has {x} {thing}. {b} has {y} times as many {thing} as {a}. How many {thing} do they have together?",
    "A shop sells {thing} for ${x} each. {a} buys {y} of them and pays with a ${z} bill. How much change does {a} get?",
    "{a} reads {x} pages every day for {y} days and then {z} pages on the weekend. How many pages has {a} read?",
    "{a} had {z} {thing}. {a} gave {x} to {b} and shared the rest equally among {y} friends. How many did each get?",
    "A train travels {x} miles an hour for {y} hours, and then {z} miles more. How far did it travel in total?",
    "{a} earns ${x} an hour and works {y} hours a day, 5 days a week. How much does {a} earn in {k} weeks?",
    "A box holds {x} {thing}. {a} fills {y} boxes and has {k} {thing} left. How many {thing} were there?",
    "{a} is {x} years old. {b} is {k} years older than {a}. What will be the sum of their ages in {y} years?",
    "A recipe needs {x} grams of flour for {k} people. How much flour is needed for {y} people?",
    "{a} buys {x} {thing} at ${k} each with a discount of {y}%. How much does {a} pay in total?",
)
_TOPICS = (
    "the river Nile,the moon landing,the French Revolution,photosynthesis,the human heart,black holes,jazz,the "
    "printing press,volcanoes,the Great Wall of China,penicillin,the stock market,electric cars,coral reefs,"
    "chess,vaccines,earthquakes,the Olympic Games,honey bees,the piano,glaciers,DNA,the internet,democracy,coffee,"
    "Leonardo da Vinci,the periodic table,whales,the Silk Road,tides,Mount Everest,the steam engine,insulin,the Sahara,"
    "basketball,the violin,solar energy,the Renaissance,climate change,football,cinema,bread,gravity,the speed of light"
).split(",")
_QUESTIONS = (
    "Who invented {}?",
    "When was {} first described?",
    "What is {} known for?",
    "Where does the name of {} come from?",
    "Why is {} important?",
    "How does {} work?",
    "What are three facts about {}?",
    "Who is most closely associated with {}?",
    "Explain {} to a ten-year-old.",
    "Write a short story about {}.",
    "What are the advantages and disadvantages of {}?",
    "Describe the history of {} in one paragraph.",
)
_READING = (
    "What is the main idea of the text?",
    "What does the text say about {}?",
    "List the key points of the text.",
)
_CODE = (
    "Complete this Python code:\n{}",
    "Explain what this Python code does:\n{}",
    "{}",
    "Write a docstring for this function:\n{}",
)
_TASKS = (
    "Write a Python function that {}.",
    "Implement in Python: {}.",
    "Write a program that {} and explain it.",
)
_DEEDS = (
    "reverses a string,checks whether a number is prime,merges two sorted lists,counts the words of a file,computes "
    "the factorial of n,finds duplicates in a list,sorts a dictionary by value,parses a date,drops all vowels,"
    "computes the greatest common divisor,flattens a nested list,finds the longest word,reads a CSV file,validates an "
    "email address,rotates a matrix,implements a stack,finds the median,converts Celsius to Fahrenheit"
).split(",")
_GERMAN = Path("/usr/share/locale")
_TURN_ENDS = "<|im_end|>\n<|im_start|>assistant\n"


class PromptMaker:
    """Prompts of one kind, drawn with `choice`, written by the target where that is possible."""

    def __init__(self, teacher: Teacher, tokenizer: PreTrainedTokenizerBase, code: Path, choice: random.Random) -> None:
        self.teacher, self.tokenizer, self.code, self.random = teacher, tokenizer, code, choice

    def make(self, kind: str, count: int) -> list[list[int]]:
        """Token ids of `count` prompts through the chat template, each ready for the answer."""
        if kind == "turns":
            return self._second_turns(self._own_turns(kind, count))
        if kind in ("summary", "reading"):
            texts = self._about_passages(kind, count)
        else:
            own = {"code": 0.5, "arithmetic": 0.25, "question": 0.75, "translation": 0.0}.get(kind, 1.0)
            written = int(own * count)
            texts = self._own_turns(kind, written) + [self._from_template(kind) for _ in range(count - written)]
        return [chat_ids(self.tokenizer, text) for text in texts]

    def _say(self, prompts: Sequence[Sequence[int]], tokens: int, temperature: float = 0.85) -> list[list[int]]:
        end = self.tokenizer.eos_token_id
        return answer(self.teacher, prompts, tokens, temperature, end, self.random.randrange(1 << 30))

    def _own_turns(self, kind: str, count: int) -> list[str]:
        """User's turns, sampled after how they begin."""
        if not count:
            return []
        before = chat_ids(self.tokenizer, "")
        before = before[: len(before) - len(self.tokenizer.encode(_TURN_ENDS))]
        openings = [self._opening(kind) for _ in range(count)]
        said = self._say([before + self.tokenizer.encode(opening) for opening in openings], 56)
        texts = [
            opening + str(self.tokenizer.decode(ids, skip_special_tokens=True))
            for opening, ids in zip(openings, said, strict=True)
        ]
        return [text.strip() or "Hello!" for text in texts]

    def _opening(self, kind: str) -> str:
        if kind == "arithmetic":
            return f"{self.random.choice(_NAMES)} {self.random.choice(('has', 'buys', 'sold', 'wants', 'runs', 'had'))}"
        return self.random.choice(_OPENINGS[kind])

    def _second_turns(self, first: Sequence[str]) -> list[list[int]]:
        """The first turn, its greedy answer, and another turn of the user, which the target writes too."""
        asked = [chat_ids(self.tokenizer, text) for text in first]
        ends, again = self.tokenizer.encode(_TURN_ENDS), self.tokenizer.encode("<|im_end|>\n<|im_start|>user\n")
        said = [_closed(text, ids, again) for text, ids in zip(asked, self._say(asked, 128, 0.0), strict=True)]
        return [_closed(text, ids, ends) for text, ids in zip(said, self._say(said, 48), strict=True)]

    def _about_passages(self, kind: str, count: int) -> list[str]:
        """A passage to summarise, or some to read and a question."""
        parts = 1 if kind == "summary" else 2
        topics = [self.random.choice(_TOPICS) for _ in range(parts * count)]
        asked = [chat_ids(self.tokenizer, self.random.choice(_ARTICLES).format(topic)) for topic in topics]
        written = self._say(asked, 256)
        passages = [str(self.tokenizer.decode(ids, skip_special_tokens=True)).replace("\n\n", " ") for ids in written]
        if kind == "summary":
            return [f"Summarize: {passage}" for passage in passages]
        joined = ["\n".join(passages[i : i + parts]) for i in range(0, len(passages), parts)]
        questions = (self.random.choice((*_READING, *_QUESTIONS)).format(topic) for topic in topics[::parts])
        return [f"{passage}\n{question}" for passage, question in zip(joined, questions, strict=True)]

    def _from_template(self, kind: str) -> str:
        pick, number = self.random.choice, self.random.randint
        if kind == "question":
            return pick(_QUESTIONS).format(pick(_TOPICS))
        if kind == "translation":
            return f"Translate German to English: {pick(german_sentences())}"
        if kind == "arithmetic":
            numbers = {"x": number(2, 40), "y": number(2, 12), "z": number(50, 500), "k": number(2, 9)}
            first, second = self.random.sample(_NAMES, 2)
            return pick(_STORIES).format(a=first, b=second, thing=pick(_THINGS), **numbers)
        assert kind == "code", f"no template for {kind}"
        if self.random.random() < 0.5:
            return pick(_CODE).format(pick(code_excerpts(self.code)))
        return pick(_TASKS).format(pick(_DEEDS))


def _closed(text: Sequence[int], turn: Sequence[int], closing: Sequence[int]) -> list[int]:
    """A text, one more turn, and what follows a turn; its first token may have been said already."""
    return [*text, *(turn[:-1] if turn[-1] == closing[0] else turn), *closing]


@lru_cache
def code_excerpts(path: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in path.read_text("utf-8").splitlines() if line.strip()]


@lru_cache
def german_sentences() -> list[str]:
    """Messages of programs on this machine in German; a few fixed ones where there are none."""
    found = set()
    for path in sorted(_GERMAN.glob("de/LC_MESSAGES/*.mo")):
        try:
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        except UnicodeDecodeError:  # an older encoding
            continue
        found |= {text for text in catalog.values() if isinstance(text, str) and 40 < len(text) < 200}
    sentences = [text for text in sorted(found) if "%" not in text and "\n" not in text and "<" not in text]
    return sentences or ["Die Stadt liegt am Ufer eines breiten Flusses, der im Winter oft zufriert."]


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt through the chat template, ready for the answer."""
    message = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))  # type: ignore[arg-type]
