"""Records the steps of recurrent networks in compiled code: a step is taken once in Python, and repeated from then on.

What a step does depends on the network's settings alone, not on values or shapes.  So the nodes of the first one, with
where each operand came from, are a program for all others: also in later graphs, and for other mini-batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dynjit import frontend, graph, op
from dynjit.arena import headers, int64s
from dynjit.jit import entry, external, helper
from dynjit.recording import (
    BYTES,
    DATA,
    KEY,
    OPERANDS,
    add_node,
    bytes_start,
    count_of,
    drop,
    entry_of,
    expression_of,
    front_ends,
    header_of,
    list_item,
    list_size,
    load,
    new_list,
    operand,
    set_item,
    state,
    state_address,
    vectorcall,
    words,
)

# A program, as int64 numbers: how many nodes, vectors of a state, and objects there are; then per node its operator,
# how many operands, integers and floats it has, and these; then the places of the new vectors, and of the output.
# Operands come from places: the vectors', the input's, the objects' (parameters, masks), those of the nodes so far.
PLACES = 6 << 20  # where the places are in the header's scratch numbers
UNKNOWN = -1  # the node of an object that was not needed yet


@helper
def program_of(s, programs, index):  # type: ignore[no-untyped-def]
    """Address of the program of a first step (index 0), or of a later one; 0: there is none yet."""
    program = list_item(programs, index)
    return bytes_start(program) if load(program + 8) == s.bytes else 0


@external("int64(int64, int64, int64)")
def step(context, program, objects):  # type: ignore[no-untyped-def]
    """Takes a step: the vectors' and the input's places get the new vectors and the output.  0: not the plain case."""
    s = front_ends(state_address())[0]
    h = headers(context)[0]
    scratch, numbers = int64s(h.scratch), int64s(program)
    count, vectors = numbers[0], numbers[1]
    made, at = PLACES + vectors + 1 + numbers[2], 3
    for k in range(count):
        arity, ints, floats = numbers[at + 1], numbers[at + 2], numbers[at + 3]
        scratch[KEY] = numbers[at]
        scratch[KEY + 1] = arity
        at += 4
        for i in range(arity):
            place = numbers[at + i]
            if scratch[PLACES + place] == UNKNOWN:
                node = operand(s, context, list_item(objects, place - vectors - 1))
                if node < 0:
                    return 0
                scratch[PLACES + place] = node
            scratch[OPERANDS + i] = scratch[PLACES + place]
        at += arity
        for i in range(ints):
            scratch[KEY + 2 + arity + i] = numbers[at + i]
        at += ints
        for i in range(floats):
            scratch[DATA + i] = numbers[at + i]
        at += floats
        node = add_node(context, 2 + arity + ints, arity, floats)
        if node < 0:
            return 0
        scratch[made + k] = node
    for i in range(vectors + 1):  # first put aside: they may trade places
        scratch[made + count + i] = scratch[PLACES + numbers[at + i]]
    for i in range(vectors + 1):
        scratch[PLACES + i] = scratch[made + count + i]
    return 1


@helper
def record_all(s, context, args, is_whole):  # type: ignore[no-untyped-def]
    """The list that the builtin returns; 0, or -1 - an unfinished list: not the plain case."""
    h = headers(context)[0]
    programs, objects, vectors, given = load(args), load(args + 8), load(args + 16), load(args + 24)
    steps = 1 if is_whole else count_of(s, given)
    if load(objects + 8) != s.list or steps < 0:
        return 0
    is_first = count_of(s, vectors) == 0
    program = program_of(s, programs, 0 if is_first else 1)
    if program == 0:
        return 0
    size, scratch = words(program)[1], int64s(h.scratch)
    for i in range(0 if is_first else size):
        node = operand(s, context, entry_of(s, vectors, i))
        if node < 0:
            return 0
        scratch[PLACES + i] = node
    for i in range(list_size(objects)):
        scratch[PLACES + size + 1 + i] = UNKNOWN
    result = new_list(size + 1 if is_whole else steps)
    for t in range(steps):
        if t == 1 and is_first:
            program = program_of(s, programs, 1)
        node = operand(s, context, given if is_whole else entry_of(s, given, t))
        if node < 0 or program == 0:
            return -1 - result
        scratch[PLACES + size] = node
        if step(context, program, objects) == 0:
            return -1 - result
        if not is_whole:
            set_item(result, t, expression_of(s, h, scratch[PLACES + size]))
    if is_whole:
        for i in range(size + 1):
            set_item(result, i, expression_of(s, h, scratch[PLACES + i]))
    return result


@entry("intp(intp, intp, intp, intp)")
def native_steps(self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Serves `record_step` (`self` 1) and `record_steps` (`self` 0)."""
    s = front_ends(state_address())[0]
    context = header_of(s)
    h = headers(context)[0]
    is_whole = load(self + BYTES) == 1
    nodes, used, data, stream = h.node_count, h.arg_count, h.data_count, words(h.seed)[1]
    result = record_all(s, context, args, is_whole)
    if result > 0:
        return result
    h.node_count = nodes
    h.arg_count = used
    h.data_count = data
    words(h.seed)[1] = stream
    if result < 0:
        drop(-1 - result)
    return vectorcall(s.slow_step if is_whole else s.slow_steps, args, nargs, 0)


# ---- the twins in Python ---------------------------------------------------------------------------------------------


def record_step(programs: list[Any], objects: Any, vectors: Sequence[Any], x: Any, run: Any) -> list[Any]:
    """Records one step of a network: the new vectors, and behind them the output.

    programs: of the first step and of later ones, None where there is none yet;  objects: what steps take besides
    vectors and input (None: not known yet);  vectors: those of the state, and behind them the output; empty at first.
    run: takes a step in Python, and makes the program.
    """
    return run.step(vectors, x)  # type: ignore[no-any-return]


def record_steps(programs: list[Any], objects: Any, vectors: Sequence[Any], xs: Sequence[Any], run: Any) -> list[Any]:
    """Records a step for each input; returns their outputs.  The arguments are those of `record_step`."""
    outputs = []
    for x in xs:
        vectors = record_step(run.programs, run.objects, vectors, x, run)
        outputs.append(vectors[-1])
    return outputs


def number_in_graph(source: Any) -> int:
    """The node of an expression, or of a parameter that has joined the current graph; else -1."""
    if isinstance(source, graph.NativeParameter) and not source.has_joined():
        return -1
    return source.handle & 0xFFFFFFFF  # type: ignore[no-any-return]


def program_from(
    first: int, size: int, vectors: Sequence[Any], x: Any, objects: Sequence[Any], results: Sequence[Any]
) -> bytes | None:
    """The program of the step whose nodes are those from number `first` on; None for a step that cannot be repeated.

    size: vectors of a state;  vectors, x, objects: what it was made from, each another node;  results: new vectors,
    output.
    """
    places = {number_in_graph(source): size + 1 + i for i, source in enumerate(objects)}
    places[x._node()] = size
    places |= {source._node(): i for i, source in enumerate(vectors)}
    numbers, made = [], 0
    storage, nodes = graph.here().storage, graph.here().nodes
    for number in range(first, int(graph.here().header["node_count"])):
        if number in places:
            continue  # a parameter that joined the graph, or zeros
        node = nodes[number]
        arity, at, data = int(node["arity"]), int(node["args"]), int(node["data"])
        operands = storage.args[at : at + arity].tolist()
        signature = op.SIGNATURES[node["signature"]]
        operator = op.operators[int(signature["op"])]
        floats = operator.params.count("f")
        if (signature["ids"] and "r" not in operator.params) or any(operand not in places for operand in operands):
            return None
        start = int(signature["key"])
        ints = op.POOL[start + 2 + arity : start + int(signature["length"])].tolist()
        numbers += [operator.code, arity, len(ints), floats, *(places[operand] for operand in operands), *ints,
                    *storage.data[data : data + floats].tolist()]  # fmt: skip
        places[number] = size + 1 + len(objects) + made
        made += 1
    numbers += [places[result._node()] for result in results]
    return np.array([made, size, len(objects), *numbers], np.int64).tobytes()


def compiled(twin: Callable, is_whole: bool) -> Callable:
    """The compiled form of a twin; the twin itself where there is none."""
    if not frontend.is_native:
        return twin
    state[0]["slow_step" if is_whole else "slow_steps"] = id(twin)
    return frontend.c_function(twin.__name__, frontend.text_of(twin), native_steps, int(is_whole), twin)


record_step = compiled(record_step, True)
record_steps = compiled(record_steps, False)
