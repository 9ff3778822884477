"""Records the steps of recurrent networks in compiled code: a step is taken once in Python, and repeated from then on.

What a step does depends on the network's settings alone, not on values or shapes.  So the nodes of the first one, with
where each operand came from, are a program for all others: also in later graphs, and for other mini-batch sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynjit import graph, op
from dynjit.arena import headers, int64s
from dynjit.expressions import NativeParameter
from dynjit.jit import entry, external, helper
from dynjit.recording import (
    HANDLE,
    OPERANDS,
    add_programmed,
    allocate,
    bound,
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
    new_tuple,
    operand,
    programmed,
    set_item,
    set_tuple_item,
    state_address,
    take,
    tuple_item,
    vectorcall,
    words,
)

# A program, as int64 numbers: how many nodes, vectors of a state, and objects there are; then the nodes (see
# recording.py); then the places of the new vectors, and of the output.
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
        arity = numbers[at + 1]
        for i in range(arity):
            place = numbers[at + 4 + i]
            if scratch[PLACES + place] == UNKNOWN:
                node = operand(s, context, list_item(objects, place - vectors - 1))
                if node < 0:
                    return 0
                scratch[PLACES + place] = node
            scratch[OPERANDS + i] = scratch[PLACES + place]
        node, at = add_programmed(context, program, at, arity)
        if node < 0:
            return 0
        scratch[made + k] = node
    for i in range(vectors + 1):  # first put aside: they may trade places
        scratch[made + count + i] = scratch[PLACES + numbers[at + i]]
    for i in range(vectors + 1):
        scratch[PLACES + i] = scratch[made + count + i]
    return 1


# ---- methods of builders and states ----------------------------------------------------------------------------------

# Where compiled code finds what these objects hold: the interpreter lays slots one behind the other, sorted by name.
BUILDER_SLOTS = ("_runs",)
RUN_SLOTS = ("_zero", "builder", "era", "initial", "masks", "norms", "objects", "parameters", "programs", "version")
STATE_SLOTS = ("_output", "_prev", "_run", "_vectors")
(RUNS,) = (HANDLE + 8 * i for i in range(len(BUILDER_SLOTS)))
_, _, ERA, INITIAL, _, _, OBJECTS, _, PROGRAMS, _ = (HANDLE + 8 * i for i in range(len(RUN_SLOTS)))
OUTPUT, PREV, RUN, VECTORS = (HANDLE + 8 * i for i in range(len(STATE_SLOTS)))
NEXT, STATES, OUTPUTS = 0, 1, 2  # what is asked for: the next state, the state after each input, its output alone


@helper
def new_state(s, prev, run, size):  # type: ignore[no-untyped-def]
    """An RNNState whose vectors and output are not there yet."""
    made = allocate(s.rnn_state, 0)
    take(prev)
    words(made + PREV)[0] = prev
    take(run)
    words(made + RUN)[0] = run
    words(made + VECTORS)[0] = new_tuple(size)
    return made


@helper
def new_result(s, self, run, size, steps, kind):  # type: ignore[no-untyped-def]
    """What a method returns, still without expressions.

    It is made before any node: the interpreter may collect garbage now, which may call any code.
    """
    if kind == NEXT:
        return new_state(s, self, run, size)
    result = new_list(steps)
    if kind == STATES:
        for t in range(steps):
            self = new_state(s, self, run, size)
            set_item(result, t, self)
    return result


@helper
def fill(s, h, made, size):  # type: ignore[no-untyped-def]
    """Gives a state its vectors and its output, which is one of them as a rule."""
    scratch, vectors = int64s(h.scratch), load(made + VECTORS)
    for i in range(size):
        set_tuple_item(vectors, i, expression_of(s, h, scratch[PLACES + i]))
    if scratch[PLACES + size] == scratch[PLACES + size - 1]:
        words(made + OUTPUT)[0] = tuple_item(vectors, size - 1)
        take(load(made + OUTPUT))
    else:
        words(made + OUTPUT)[0] = expression_of(s, h, scratch[PLACES + size])


@helper
def record(s, context, self, given, result, size, steps, kind):  # type: ignore[no-untyped-def]
    """Records the steps, and completes the result; False: not the plain case."""
    h = headers(context)[0]
    run, vectors, scratch = load(self + RUN), load(self + VECTORS), int64s(h.scratch)
    programs, objects, is_first = load(run + PROGRAMS), load(run + OBJECTS), count_of(s, vectors) == 0
    for i in range(0 if is_first else size):
        node = operand(s, context, entry_of(s, vectors, i))
        if node < 0:
            return False
        scratch[PLACES + i] = node
    for i in range(list_size(objects)):
        scratch[PLACES + size + 1 + i] = UNKNOWN
    program = program_of(s, programs, 0 if is_first else 1)
    for t in range(steps):
        if t == 1 and is_first:
            program = program_of(s, programs, 1)
        node = operand(s, context, given if kind == NEXT else entry_of(s, given, t))
        if node < 0 or program == 0:
            return False
        scratch[PLACES + size] = node
        if step(context, program, objects) == 0:
            return False
        if kind == OUTPUTS:
            set_item(result, t, expression_of(s, h, scratch[PLACES + size]))
        else:
            fill(s, h, result if kind == NEXT else list_item(result, t), size)
    return True


@external("int64(int64, int64, int64, int64, int64)")
def follow(self, args, nargs, names, kind):  # type: ignore[no-untyped-def]
    """The result of a method of an RNNState, `self`, that takes an input or a list of them; 0: not the plain case."""
    s = front_ends(state_address())[0]
    context = header_of(s)
    h, run, vectors = headers(context)[0], load(self + RUN), load(self + VECTORS)
    if nargs != 1 or names != 0 or run == 0 or vectors == 0 or load(run + 8) != s.rnn_run:
        return 0
    if kind != NEXT and load(self + 8) != s.rnn_state:  # a subclass, perhaps with another add_input
        return 0
    given, count = load(args), count_of(s, vectors)
    steps = 1 if kind == NEXT else count_of(s, given)
    program = program_of(s, load(run + PROGRAMS), 0 if count == 0 else 1)
    if program == 0 or steps < 1 or load(load(run + OBJECTS) + 8) != s.list:
        return 0
    size = words(program)[1]
    if count != size and (count != 0 or load(run + ERA) != h.era):
        return 0
    result = new_result(s, self, run, size, steps, kind)
    nodes, used, data, stream = h.node_count, h.arg_count, h.data_count, words(h.seed)[1]
    if record(s, context, self, given, result, size, steps, kind):
        return result
    h.node_count = nodes
    h.arg_count = used
    h.data_count = data
    words(h.seed)[1] = stream
    drop(result)
    return 0


@helper
def slow_method(function, self, args, nargs, names):  # type: ignore[no-untyped-def]
    """Calls a method's twin."""
    method = bound(function, self)
    result = vectorcall(method, args, nargs, names)
    drop(method)
    return result


@helper
def follow_or_call(function, self, args, nargs, names, kind):  # type: ignore[no-untyped-def]
    """What `follow` returns, or the method's twin where the case is not plain."""
    result = follow(self, args, nargs, names, kind)
    return result if result != 0 else slow_method(function, self, args, nargs, names)


METHOD = "intp(intp, intp, intp, intp)"


@entry(METHOD)
def native_add_input(self, args, nargs, names):  # type: ignore[no-untyped-def]
    return follow_or_call(front_ends(state_address())[0].slow_add_input, self, args, nargs, names, NEXT)


@entry(METHOD)
def native_add_inputs(self, args, nargs, names):  # type: ignore[no-untyped-def]
    return follow_or_call(front_ends(state_address())[0].slow_add_inputs, self, args, nargs, names, STATES)


@entry(METHOD)
def native_transduce(self, args, nargs, names):  # type: ignore[no-untyped-def]
    return follow_or_call(front_ends(state_address())[0].slow_transduce, self, args, nargs, names, OUTPUTS)


@entry("intp(intp, intp)")
def native_output(self, nothing):  # type: ignore[no-untyped-def]
    s, output = front_ends(state_address())[0], load(self + OUTPUT)
    if output == 0 or output == s.none:
        return slow_method(s.slow_output, self, 0, 0, 0)
    take(output)
    return output


@entry(METHOD)
def native_initial_state(self, args, nargs, names):  # type: ignore[no-untyped-def]
    s, runs = front_ends(state_address())[0], load(self + RUNS)
    if nargs == 0 and names == 0 and runs != 0:
        run = list_item(runs, 1)
        if load(run + 8) == s.rnn_run and load(run + ERA) == headers(header_of(s))[0].era:
            result = load(run + INITIAL)
            take(result)
            return result
    return slow_method(s.slow_initial_state, self, args, nargs, names)


# ---- making programs -------------------------------------------------------------------------------------------------


def number_in_graph(source: Any) -> int:
    """The node of an expression, or of a parameter that has joined the current graph; else -1."""
    if isinstance(source, NativeParameter) and not source.has_joined():
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
    for number in range(first, int(graph.here().header.node_count)):
        if number in places:
            continue  # a parameter that joined the graph, or zeros
        node = nodes[number]
        arity, at, data = int(node["arity"]), int(node["args"]), int(node["data"])
        operands = storage.args[at : at + arity].tolist()
        signature = op.SIGNATURES[node["signature"]]
        operator = op.operators[int(signature["op"])]
        floats = storage.data[data : data + operator.params.count("f")].tolist()
        if (signature["ids"] and "r" not in operator.params) or any(operand not in places for operand in operands):
            return None
        start = int(signature["key"])
        ints = op.POOL[start + 2 + arity : start + int(signature["length"])].tolist()
        numbers += programmed(operator.code, [places[operand] for operand in operands], ints, floats)
        places[number] = size + 1 + len(objects) + made
        made += 1
    numbers += [places[result._node()] for result in results]
    return np.array([made, size, len(objects), *numbers], np.int64).tobytes()
