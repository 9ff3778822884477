"""The demonstration: its task, and a small run of it."""

import argparse
import random
import re

import pytest

from dynjit import demo

TINY = ["--examples", "600", "--held-out", "100", "--depth", "2", "--max-arguments", "3", "--hidden", "16", "--quiet"]


def run(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.run(parser.parse_args([*TINY, *map(str, arguments)]))


def parse(tokens):
    """The value of an expression as it is printed, computed a second way."""
    token = tokens.pop(0)
    if not token.startswith("["):
        return int(token)
    operator, values = token[1:], []
    while tokens[0] != "]":
        values.append(parse(tokens))
    tokens.pop(0)
    ordered = sorted(values)
    middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2
    return {"MAX": ordered[-1], "MIN": ordered[0], "MED": middle, "SUM_MOD": sum(values) % 10}[operator]


def test_lists_have_the_value_they_say():
    randomness = random.Random(1)
    symbols = set()
    for _ in range(500):
        example = demo.generate(randomness, depth=4, max_arguments=5)
        symbols.add(example.symbol)
        assert parse(re.sub(r"\]", " ]", str(example)).split()) == example.value
        assert 2 <= len(example.arguments) <= 5
    assert symbols == set(demo.OPERATORS)


def test_held_out_lists_are_new():
    options = argparse.Namespace(seed=1, examples=300, held_out=100, depth=2, max_arguments=3)
    training, held_out = demo.generate_split(options)
    texts = [str(example) for example in training + held_out]
    assert (len(training), len(held_out), len(set(texts))) == (300, 100, 400)


def test_learns_saves_loads_and_plots(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model, plot = tmp_path / "model", tmp_path / "curve.png"
    assert run("--epochs", 6, "--batch", 8, "--learning-rate", 0.02, "--model", model, "--plot", plot) == 0
    output = capsys.readouterr().out
    accuracy, chance, majority = map(
        float, re.search(r"accuracy ([\d.]+)%; .* ([\d.]+)%, .* ([\d.]+)%", output).groups()
    )
    assert accuracy > max(chance, majority) + 10
    assert "100 of 100 predictions agree" in output
    assert model.read_bytes().startswith(b"#Parameter# ")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-arguments", "1"], "--max-arguments needs a number from 2"),
        (["--depth", "1", "--max-arguments", "2"], "needs 700 different lists, found"),
        (["--plot", "/nowhere/x.png"], "there is no folder /nowhere to write /nowhere/x.png"),
        (["--model", "/nowhere/x"], "there is no folder /nowhere to write /nowhere/x"),
    ],
)
def test_problems_are_told_before_training(capsys, arguments, message):
    assert run(*arguments) == 2
    assert f"dynjit demo: {message}" in capsys.readouterr().err


def test_missing_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert run("--plot", tmp_path / "curve.png") == 2
    assert "--plot needs matplotlib: pip install 'dynjit[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_numbers_are_positive(capsys, number):
    with pytest.raises(SystemExit):
        run("--hidden", number)
    assert "--hidden" in capsys.readouterr().err
