"""What the workloads are run on: real files if a folder is given, otherwise synthetic data of the same shape.

A folder holds `trees/train.txt` (one bracketed tree a line, `(3 (2 It) (4 (2 works) (2 .)))`) and
`tags/wikiner.txt` (one sentence a line, tokens `word|TAG`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

TREES = 1500
SENTENCES = 1300
FREQUENT = 5  # a word that is seen more often than this has an embedding in the tagger with characters
LABELS = 5
TAGS = 9
VOCABULARY = 10_000


@dataclass(slots=True)
class Tree:
    """A binary tree: a leaf has a word and no children, an inner node two children; both have a label."""

    label: int
    word: int = -1
    children: tuple[Tree, ...] = ()


@dataclass(slots=True)
class Sentence:
    """Word numbers, the tag of each word, and of each rare word its characters (None if the word is frequent)."""

    words: list[int]
    tags: list[int]
    characters: list[list[int] | None]


@dataclass(frozen=True)
class Corpus:
    """Trees and tagged sentences with the sizes of their vocabularies."""

    source: str
    trees: list[Tree]
    tree_words: int
    sentences: list[Sentence]
    words: int
    tags: int
    characters: int

    @cached_property
    def by_length(self) -> list[list[int]]:
        """The sentences' words, longest first, so that a minibatch has sentences of almost equal length."""
        return sorted((sentence.words for sentence in self.sentences), key=len, reverse=True)


class Numbering(dict):
    """Gives each new word the next number."""

    def __missing__(self, key: str) -> int:
        self[key] = len(self)
        return self[key]


def parse_tree(line: str, numbers: Numbering) -> Tree:
    """Tree of a bracketed line."""
    stack: list[tuple[int, list[Tree]]] = []
    for label, word, close in re.findall(r"\(\s*(\S+)\s|([^()\s]+)|(\))", line):
        if label:
            stack.append((int(label), []))
        elif word:
            stack[-1][1].append(Tree(-1, numbers[word]))
        elif close:
            number, below = stack.pop()
            is_leaf = len(below) == 1 and not below[0].children
            tree = Tree(number, below[0].word) if is_leaf else Tree(number, -1, tuple(below))
            if not stack:
                return tree
            stack[-1][1].append(tree)
    raise ValueError(f"not a bracketed tree: {line!r}")


def read_sentences(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tags of each line."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            pairs = [token.rpartition("|") for token in line.split()]
            if pairs:
                yield [pair[0] for pair in pairs], [pair[2] for pair in pairs]


def corpus_from(folder: Path) -> Corpus:
    """Corpus of the files in a folder; the first 1500 trees and 1300 sentences of it."""
    tree_words = Numbering()
    with (folder / "trees" / "train.txt").open(encoding="utf-8") as lines:
        trees = [parse_tree(line, tree_words) for line, _ in zip(lines, range(TREES))]
    tagged = [pair for pair, _ in zip(read_sentences(folder / "tags" / "wikiner.txt"), range(SENTENCES))]
    counts = Counter(word for words, _ in tagged for word in words)
    words, tags, characters = Numbering(), Numbering(), Numbering()
    sentences = [
        Sentence(
            [words[word] for word in line],
            [tags[tag] for tag in line_tags],
            [None if counts[word] > FREQUENT else spelled(word, characters) for word in line],
        )
        for line, line_tags in tagged
    ]
    source = f"{len(trees)} trees and {len(tagged)} sentences from files"
    return Corpus(source, trees, len(tree_words), sentences, len(words), len(tags), len(characters))


def spelled(word: str, characters: Numbering) -> list[int]:
    """Characters of a word with a mark at both ends."""
    return [characters["<>"], *(characters[letter] for letter in word), characters["<>"]]


def synthetic_corpus(seed: int = 1) -> Corpus:
    """Corpus of random trees and sentences: about 20 words each, word frequencies as Zipf found them."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, VOCABULARY + 1)
    frequency /= frequency.sum()

    def words() -> list[int]:
        length = int(np.clip(random.gamma(4.0, 5.0), 3, 60))
        return random.choice(VOCABULARY, size=length, p=frequency).tolist()

    trees = [random_tree(words(), random) for _ in range(TREES)]
    lines = [words() for _ in range(SENTENCES)]
    counts = Counter(word for line in lines for word in line)
    spelling = {
        word: None if count > FREQUENT else [0, *random.integers(1, 80, 2 + random.poisson(5)).tolist(), 0]
        for word, count in counts.items()
    }
    sentences = [
        Sentence(line, random.integers(0, TAGS, len(line)).tolist(), [spelling[word] for word in line])
        for line in lines
    ]
    return Corpus(f"synthetic, seed {seed}", trees, VOCABULARY, sentences, VOCABULARY, TAGS, 80)


def random_tree(words: list[int], random: np.random.Generator) -> Tree:
    """Binary tree over the words; splits near the left end are likelier, as in English."""
    label = int(random.integers(0, LABELS))
    if len(words) == 1:
        return Tree(label, words[0])
    split = 1 + int((len(words) - 1) * random.beta(0.6, 1.2))
    split = min(split, len(words) - 1)
    return Tree(label, -1, (random_tree(words[:split], random), random_tree(words[split:], random)))


def load_corpus(folder: str | None) -> Corpus:
    """Corpus of a folder, or a synthetic one if there is none."""
    return corpus_from(Path(folder)) if folder else synthetic_corpus()
