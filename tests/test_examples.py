"""The examples run as a user starts them, learn something, and come back from their saved models."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(capsys):
    """Runs an example inside this process and returns the lines it prints."""

    def run_example(name, *arguments):
        example(name).main(["--quiet", *map(str, arguments)])
        return capsys.readouterr().out.splitlines()

    return run_example


def example(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def figures(lines, pattern):
    return [float(found[1]) for line in lines if (found := re.search(pattern, line))]


TAGGER = ["--embedding", 16, "--hidden", 16, "--mlp", 16, "--char-embedding", 8, "--learning-rate", 0.01]
TREELSTM = ["--embedding", 16, "--hidden", 16, "--learning-rate", 0.01]
RNNLM = ["--embedding", 16, "--hidden", 16, "--learning-rate", 0.01]


def test_started_from_the_shell():
    command = [sys.executable, FOLDER / "xor.py", "--epochs", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=FOLDER.parent)
    assert "0 xor 1 = 1, the network says" in done.stdout
    assert "300/300" in done.stderr  # the progress bar


def test_xor(run):
    lines = run("xor")
    assert figures(lines, r"accuracy ([\d.]+)%") == [100.0]


def test_xor_saved_and_loaded(run, tmp_path):
    trained = run("xor", "--save", tmp_path / "model")
    again = run("xor", "--load", tmp_path / "model", "--epochs", 0)
    assert trained[1:] == again[1:]  # the first line has the time


@pytest.mark.parametrize("char", [[], ["--char"]])
def test_tagger(run, tmp_path, char):
    lines = run("tagger", *TAGGER, *char, "--train", 300, "--epochs", 2, "--save", tmp_path / "model")
    first, last = figures(lines, r"training: loss ([\d.]+)")
    assert last < 0.7 * first
    accuracies = figures(lines, r"test: accuracy ([\d.]+)%")
    assert accuracies[-1] > 70  # a third of all tokens are names
    # the sizes come from the model
    again = run("tagger", "--load", tmp_path / "model", "--train", 300, "--epochs", 0, "--hidden", 3)
    assert figures(again, r"test: accuracy ([\d.]+)%") == accuracies[-1:]


def test_tagger_reads_files(run, tmp_path):
    # a no-break space is part of a word, and a word may have a bar
    (tmp_path / "tags").write_text(
        "The|DET dog|NOUN barks|VERB\n\nIt|PRON 8\u00a01/2|NUM a|b|X\n" * 20, encoding="utf-8"
    )
    lines = run("tagger", *TAGGER, "--data", tmp_path / "tags", "--train", 30, "--epochs", 8)
    assert lines[0] == "30 sentences to train, 10 to test, 7 known words, 6 tags"
    assert figures(lines, r"test: accuracy ([\d.]+)%")[-1] == 100


def test_tagger_names_the_bad_line(run, tmp_path):
    (tmp_path / "tags").write_text("The|DET dog|NOUN\nbarks\n")
    with pytest.raises(SystemExit, match=r"tags, line 2: needs word\|TAG with blanks between, got 'barks\\n'"):
        run("tagger", "--data", tmp_path / "tags")


def test_treelstm(run, tmp_path):
    lines = run("treelstm", *TREELSTM, "--train", 400, "--epochs", 2, "--save", tmp_path / "model")
    first, last = figures(lines, r"training: loss ([\d.]+)")
    assert last < 0.8 * first
    accuracies = figures(lines, r"test: accuracy ([\d.]+)%")
    assert accuracies[-1] > 40  # of 50 kinds of node
    again = run("treelstm", "--load", tmp_path / "model", "--train", 400, "--epochs", 0, "--hidden", 3)
    assert figures(again, r"test: accuracy ([\d.]+)%") == accuracies[-1:]


def test_treelstm_reads_folders(run, tmp_path):
    good, bad = "(3 (2 It) (4 (2 's) (4 8\u00a01\\/2)))\n", "(1 (2 It) (0 (2 is) (0 bad)))\n\n"
    (tmp_path / "train.txt").write_text((good + bad) * 20, encoding="utf-8")
    (tmp_path / "dev.txt").write_text("(2 (2 not) (2 used))\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text(good + bad, encoding="utf-8")
    lines = run("treelstm", *TREELSTM, "--data", tmp_path, "--epochs", 15, "--batch", 2)
    assert lines[0] == "40 trees to train, 2 to test, 6 known words, 5 labels"
    assert figures(lines, r"test: accuracy ([\d.]+)%")[-1] == 100


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("(3 (2 It) (4 works)", "needs one tree, all its brackets closed"),
        ("(3 It))", "needs (LABEL WORD) or (LABEL TREE TREE)"),
        ("(3 (2 It) works)", "needs either one word or trees in a bracket"),
        ("(3)", "needs (LABEL WORD) or (LABEL TREE TREE)"),
        ("((2 It) (4 works))", "needs (LABEL WORD) or (LABEL TREE TREE)"),
        ("It works", "needs one tree, all its brackets closed"),
        ("(1 " * 5000, "needs a depth of at most 300"),
    ],
)
def test_treelstm_names_the_bad_line(run, tmp_path, tree, message):
    (tmp_path / "trees").write_text(f"(3 (2 It) (4 works))\n{tree}\n")
    with pytest.raises(SystemExit, match=re.escape(f"trees, line 2: {message}, got '{tree[:20]}")):
        run("treelstm", "--data", tmp_path / "trees")


def test_rnnlm(run, tmp_path):
    options = [*RNNLM, "--train", 400, "--epochs", 2, "--batch", 8]
    lines = run("rnnlm", *options, "--sample", 2, "--save", tmp_path / "model")
    first, last = figures(lines, r"training: perplexity ([\d.]+)")
    assert last < 0.7 * first
    perplexities = figures(lines, r"test: perplexity ([\d.]+)")
    assert perplexities[-1] < 200  # of some 600 words
    again = run("rnnlm", "--load", tmp_path / "model", "--train", 400, "--epochs", 0, "--hidden", 3, "--batch", 8)
    assert figures(again, r"test: perplexity ([\d.]+)") == perplexities[-1:]


def test_rnnlm_reads_files(run, tmp_path):
    (tmp_path / "text").write_text("A rose is a rose.\n\nIs a rose a rose?\n" * 30)
    lines = run("rnnlm", *RNNLM, "--data", tmp_path / "text", "--epochs", 20, "--batch", 1, "--layers", 2)
    assert lines[0] == "54 sentences to train, 6 to test, 7 known words"
    assert figures(lines, r"test: perplexity ([\d.]+)")[-1] < 1.3


@pytest.mark.parametrize("name", ["xor", "tagger", "treelstm", "rnnlm"])
def test_options_are_explained(capsys, name):
    with pytest.raises(SystemExit, match="0"):
        example(name).main(["--help"])
    text = capsys.readouterr().out
    for option in ["--epochs", "--batch", "--seed", "--load", "--save", "--dynet"]:
        assert option in text


@pytest.mark.parametrize("name", ["tagger", "treelstm", "rnnlm"])
def test_nothing_to_test_on(run, tmp_path, name):
    (tmp_path / "data").write_text("(1 one|X)\n" if name == "treelstm" else "one|X\n")
    with pytest.raises(SystemExit, match=r"needs (sentences|trees) to train and to test"):
        run(name, "--data", tmp_path / "data")
