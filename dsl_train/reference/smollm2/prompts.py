"""What the target is asked while answers are gathered: conversations that it begins by itself, and kinds of work that
people give an assistant, filled with passages that it wrote. No prompt of a benchmark is among them.
"""

import gettext
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

#: Share of waves of each kind.
KINDS = {"chat": 9, "summary": 2, "reading": 1, "question": 2, "translation": 2, "arithmetic": 3, "code": 2}

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


class PromptMaker:
    """Prompts of one kind, drawn with `random`; `passages` are texts of the target, `code` excerpts of programs."""

    def __init__(self, passages: Sequence[str], code: Sequence[str], seed: int) -> None:
        self.passages, self.code, self.random = list(passages), list(code), random.Random(seed)
        self.german = german_sentences()

    def make(self, kind: str) -> str:
        """A prompt of any kind but `chat`, which the target writes by itself."""
        pick, number = self.random.choice, self.random.randint
        if kind == "summary":
            return f"Summarize: {self._passage()}"
        if kind == "reading":
            question = pick((*_READING, *_QUESTIONS)).format(pick(_TOPICS))
            return f"{self._passage()}\n{question}"
        if kind == "question":
            return pick(_QUESTIONS).format(pick(_TOPICS))
        if kind == "translation":
            return f"Translate German to English: {pick(self.german)}"
        if kind == "arithmetic":
            numbers = {"x": number(2, 40), "y": number(2, 12), "z": number(50, 500), "k": number(2, 9)}
            first, second = self.random.sample(_NAMES, 2)
            return pick(_STORIES).format(a=first, b=second, thing=pick(_THINGS), **numbers)
        assert kind == "code", f"no kind {kind}"
        if self.random.random() < 0.5:
            return pick(_CODE).format(pick(self.code))
        return pick(_TASKS).format(pick(_DEEDS))

    def _passage(self) -> str:
        return self.random.choice(self.passages)


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
