"""Where results lie, and which kernel calls make them.

All results of steps with one home lie end to end in the order of execution.  A group becomes one call if its operands
lie end to end too; otherwise an operator with shared operands (a product) gets its scattered operands copied together,
and any other operator gets one call per contiguous run: for it a copy would cost as much as the work.  Its calls follow
each other, and one start of the kernel serves them all.
"""

from __future__ import annotations

from dynjit import op
from dynjit.arena import (
    GATHER,
    NEEDS_GRADIENT,
    calls_at,
    headers,
    int32s,
    int64s,
    keys_at,
    nodes_at,
    operators_at,
    shapes_at,
    signatures_at,
    steps_at,
)
from dynjit.jit import external, helper, inline

FIXED, MOVING = 1, 2  # how an operand's offset changes along a run


@helper
def take(h, count):  # type: ignore[no-untyped-def]
    """Offset of `count` elements, aligned to 64 bytes."""
    start = (h.value_top + 15) & ~15
    h.value_top = start + count
    return start


@helper
def is_shared(shared, k, arity):  # type: ignore[no-untyped-def]
    return k < 62 and (shared >> k) & 1 == 1


@helper
def has_stacked(shared, arity):  # type: ignore[no-untyped-def]
    """Whether an operator has operands that are not shared (a lookup has none)."""
    count = 0
    for k in range(arity):
        count += not is_shared(shared, k, arity)
    return count > 0


@helper
def operand_place(h, node, k, takes):  # type: ignore[no-untyped-def]
    """Offset of operand k of a node, which may have taken the operand's place."""
    return node.value if k == takes else nodes_at(h.nodes)[int32s(h.args)[node.args + k]].value


# ---- calls -----------------------------------------------------------------------------------------------------------


@helper
def new_call(h, signature, node, arity, y, batch):  # type: ignore[no-untyped-def]
    """Appends a call for nodes that begin with `node`; its operands are filled in by the caller."""
    call = calls_at(h.calls)[h.call_count]
    call.signature = signature
    call.arity = arity
    call.deferred = -1
    call.y = y
    call.args = h.argument_count
    call.batch = batch
    call.scratch = 0
    call.ids = 0
    call.floats = nodes_at(h.nodes)[node].data
    call.active = 0
    call.takes = -1
    call.ahead = 0
    call.behind = 0
    h.argument_count += 2 * arity
    h.call_count += 1
    return call


@helper
def collect_ids(h, call, first, count):  # type: ignore[no-untyped-def]
    """Lays the indices of a call's nodes end to end."""
    nodes, order, data = nodes_at(h.nodes), int32s(h.order), int64s(h.data)
    q = signatures_at(h.signatures)[call.signature]
    floats = operators_at(h.operators)[q.op].floats
    if count == 1:
        call.ids = nodes[order[first]].data + floats
        return
    call.ids = h.data_count
    for i in range(first, first + count):
        source = nodes[order[i]].data + floats
        for b in range(q.ids):
            data[h.data_count] = data[source + b]
            h.data_count += 1


@external("void(int64, int64, int64, int64)")
def finish_call(context, index, first, count):  # type: ignore[no-untyped-def]
    """Tells a call its nodes, and lays their indices end to end."""
    h = headers(context)[0]
    call = calls_at(h.calls)[index]
    q = signatures_at(h.signatures)[call.signature]
    call.first = first
    call.count = count
    if q.ids > 0:
        collect_ids(h, call, first, count)


@helper
def set_steps(h, head, second, takes):  # type: ignore[no-untyped-def]
    """How far apart each operand of successive nodes of a run lies, as the first two tell; says whether they make one.

    Behind the arguments of all calls: where each operand of the first node lies, then the steps.
    """
    q = signatures_at(h.signatures)[head.signature]
    operator = operators_at(h.operators)[q.op]
    mode, arguments = int32s(h.mode), int64s(h.arguments)
    for k in range(head.arity):
        shape = shapes_at(h.shapes)[int64s(h.pool)[q.key + 2 + k]]
        start, step = operand_place(h, head, k, takes), shape.item * shape.batch
        distance = operand_place(h, second, k, takes) - start
        if distance == step and (shape.batch == q.batch or shape.batch > 1):
            mode[k] = MOVING
        elif distance == 0 and shape.batch == 1 and k < 62 and (operator.stepped >> k) & 1 == 1:
            mode[k] = FIXED
        else:
            return False
        arguments[h.argument_count + k] = start
        arguments[h.argument_count + head.arity + k] = distance
    return True


@inline
def goes_on(h, node, i, takes):  # type: ignore[no-untyped-def]
    """Whether the operands of a run's node number i are as many steps behind those of the first."""
    arguments, starts, steps = int64s(h.arguments), h.argument_count, h.argument_count + node.arity
    for k in range(node.arity):
        if operand_place(h, node, k, takes) != arguments[starts + k] + i * arguments[steps + k]:
            return False
    return True


@external("int64(int64, int64, int64, int64, int64)")
def run_length(context, first, stop, takes, is_regular):  # type: ignore[no-untyped-def]
    """How many nodes from order[first] on have operands that lie end to end, or stay where they are.

    is_regular: whether each operand of all of them is as far from the one before as that of the second.
    """
    h = headers(context)[0]
    nodes, order, data = nodes_at(h.nodes), int32s(h.order), int64s(h.data)
    head, count = nodes[order[first]], stop - first
    if count == 1 or not set_steps(h, head, nodes[order[first + 1]], takes):
        return 1
    if not is_regular:
        i = 2
        while i < count and goes_on(h, nodes[order[first + i]], i, takes):
            i += 1
        count = i
    for f in range(operators_at(h.operators)[signatures_at(h.signatures)[head.signature].op].floats):
        i = 1
        while i < count and data[nodes[order[first + i]].data + f] == data[head.data + f]:
            i += 1
        count = i
    return count


@external("int64(int64, int64, int64, int64)")
def call_run(context, first, count, takes):  # type: ignore[no-untyped-def]
    """One call for a run of nodes; returns its number."""
    h = headers(context)[0]
    nodes, order, mode = nodes_at(h.nodes), int32s(h.order), int32s(h.mode)
    shapes, pool, arguments = shapes_at(h.shapes), int64s(h.pool), int64s(h.arguments)
    head = nodes[order[first]]
    q = signatures_at(h.signatures)[head.signature]
    call = new_call(h, head.signature, order[first], head.arity, head.value, q.batch * count)
    call.takes = takes
    for k in range(head.arity):
        batch = shapes[pool[q.key + 2 + k]].batch
        arguments[call.args + k] = operand_place(h, head, k, takes)
        arguments[call.args + head.arity + k] = batch * count if count > 1 and mode[k] == MOVING else batch
    finish_call(context, h.call_count - 1, first, count)
    return h.call_count - 1


@external("void(int64, int64, int64)")
def defer(context, index, home):  # type: ignore[no-untyped-def]
    """Enters a call's product into the list of those that wait for the end of the backward pass.

    A record grows as long as results and stacked operands of one home follow each other, so that all columns of a
    weight become one product; home: -1 of a call that none joins.
    """
    h = headers(context)[0]
    nodes, args, order, arguments = nodes_at(h.nodes), int32s(h.args), int32s(h.order), int64s(h.arguments)
    signatures, operators = signatures_at(h.signatures), operators_at(h.operators)
    shapes, pool, call, keys = shapes_at(h.shapes), int64s(h.pool), calls_at(h.calls)[index], keys_at(h.keys)
    q = signatures[call.signature]
    shared = operators[q.op].shared
    head = nodes[order[call.first]]
    wanted = False
    for k in range(call.arity):
        source = nodes[args[head.args + k]]
        is_leaf = operators[signatures[source.signature].op].flags & op.LEAF
        if is_shared(shared, k, call.arity) and is_leaf and source.flags & NEEDS_GRADIENT:
            wanted = True
    if not wanted:
        return
    deferred = calls_at(h.deferred)
    if home >= 0 and keys[home].deferred >= 0 and has_stacked(shared, call.arity):
        last_index = keys[home].deferred
        last = deferred[last_index]
        ids = last.ids + last.batch * (q.ids // q.batch)
        follows = last.y + last.batch * q.item == call.y and (q.ids == 0 or ids == call.ids)
        for k in range(call.arity):
            if not is_shared(shared, k, call.arity):
                item = shapes[pool[q.key + 2 + k]].item
                batch = arguments[last.args + call.arity + k]
                follows = follows and arguments[last.args + k] + batch * item == arguments[call.args + k]
        if follows:
            last.batch += call.batch
            for k in range(call.arity):
                if not is_shared(shared, k, call.arity):
                    arguments[last.args + call.arity + k] += arguments[call.args + call.arity + k]
            call.deferred = last_index
            return
    record = deferred[h.deferred_count]
    record.signature = call.signature
    record.arity = call.arity
    record.y = call.y
    record.batch = call.batch
    record.scratch = call.scratch
    record.ids = call.ids
    record.floats = call.floats
    record.first = call.first
    record.active = 0
    record.takes = -1
    record.args = h.argument_count
    h.argument_count += 2 * call.arity
    for k in range(2 * call.arity):
        arguments[record.args + k] = arguments[call.args + k]
    call.deferred = h.deferred_count
    if home >= 0:
        keys[home].deferred = h.deferred_count
    h.deferred_count += 1


@external("void(int64, int64, int64, int64, int64, int64)")
def gather(context, first, count, k, size, target):  # type: ignore[no-untyped-def]
    """A call that copies operand k of a group's nodes to `target`, end to end."""
    h = headers(context)[0]
    nodes, args, order, arguments = nodes_at(h.nodes), int32s(h.args), int32s(h.order), int64s(h.arguments)
    call = new_call(h, GATHER, order[first], 0, target, size)
    for i in range(count):
        arguments[call.args + i] = nodes[args[nodes[order[first + i]].args + k]].value
    h.argument_count += count
    call.first = first
    call.count = count
    call.j = k


@helper
def is_contiguous(h, first, count, k, size):  # type: ignore[no-untyped-def]
    """Whether operand k, of `size` elements, lies end to end for the nodes order[first : first + count]."""
    nodes, args, order = nodes_at(h.nodes), int32s(h.args), int32s(h.order)
    start = nodes[args[nodes[order[first]].args + k]].value
    i = 1
    while i < count and nodes[args[nodes[order[first + i]].args + k]].value == start + i * size:
        i += 1
    return i == count


@external("void(int64, int64, int64, int64, int64, int64)")
def call_shared(context, first, count, key, position, scratch):  # type: ignore[no-untyped-def]
    """One call for a group of nodes with shared operands; scattered stacked operands are copied together first."""
    h = headers(context)[0]
    nodes, args, order, arguments = nodes_at(h.nodes), int32s(h.args), int32s(h.order), int64s(h.arguments)
    shapes, pool, keys = shapes_at(h.shapes), int64s(h.pool), keys_at(h.keys)
    head = nodes[order[first]]
    q = signatures_at(h.signatures)[head.signature]
    shared = operators_at(h.operators)[q.op].shared
    stacked = 0
    if position == 0:
        keys[key].x = -1
    starts = h.argument_count
    h.argument_count += head.arity
    for k in range(head.arity):
        start = nodes[args[head.args + k]].value
        size = shapes[pool[q.key + 2 + k]].item * shapes[pool[q.key + 2 + k]].batch
        if count > 1 and not is_shared(shared, k, head.arity):
            if not is_contiguous(h, first, count, k, size):
                if k == keys[key].takes:  # copied to where the result will be
                    start = np_int(head.value)
                else:
                    if keys[key].x < 0:  # room for all stacked operands of all nodes of the key
                        total = 0
                        for other in range(head.arity):
                            if not is_shared(shared, other, head.arity):
                                total += shapes[pool[q.key + 2 + other]].item * shapes[pool[q.key + 2 + other]].batch
                        keys[key].x = take(h, total * keys[key].count)
                    start = keys[key].x + stacked * keys[key].count + position * size
                gather(context, first, count, k, size, start)
            stacked += size
        arguments[starts + k] = start
    call = new_call(h, head.signature, order[first], head.arity, head.value, q.batch * count)
    for k in range(head.arity):
        batch = shapes[pool[q.key + 2 + k]].batch
        arguments[call.args + k] = arguments[starts + k]
        arguments[call.args + head.arity + k] = batch if is_shared(shared, k, head.arity) else batch * count
    call.scratch = scratch
    call.takes = keys[key].takes
    finish_call(context, h.call_count - 1, first, count)
    defer(context, h.call_count - 1, np_int(steps_at(h.steps)[key].home))


# ---- placing results -------------------------------------------------------------------------------------------------


@external("void(int64, int64)")
def place_alone(context, number):  # type: ignore[no-untyped-def]
    """Gives a node its memory and its call."""
    h = headers(context)[0]
    nodes, args, order = nodes_at(h.nodes), int32s(h.args), int32s(h.order)
    node = nodes[number]
    q = signatures_at(h.signatures)[node.signature]
    operator = operators_at(h.operators)[q.op]
    if operator.flags & op.VIEW:
        node.value = nodes[args[node.args]].value
        return
    first = h.order_count
    order[first] = number
    h.order_count += 1
    node.value = take(h, q.size)
    scratch = take(h, q.scratch) if q.scratch > 0 else 0
    index = call_run(context, first, 1, -1)
    calls_at(h.calls)[index].scratch = scratch
    if operator.shared:
        defer(context, index, -1)


@external("void(int64, int64, int64, int64)")
def place_group(context, key, first, count):  # type: ignore[no-untyped-def]
    """Gives the nodes order[first : first + count], which have a step, their memory and their calls.

    key: the number of the step.  Results of a step lie end to end, but for views, and those in the place of an operand,
    of something from another bundle: with these, operands from the same bundle are strewn, too.
    """
    h = headers(context)[0]
    nodes, args, order, keys = nodes_at(h.nodes), int32s(h.args), int32s(h.order), keys_at(h.keys)
    q = signatures_at(h.signatures)[nodes[order[first]].signature]
    operator = operators_at(h.operators)[q.op]
    step = steps_at(h.steps)[key]
    if operator.flags & op.VIEW:
        h.strewn |= step.outers > 0
        for i in range(first, first + count):
            nodes[order[i]].value = nodes[args[nodes[order[i]].args]].value
        return
    position, takes = np_int(keys[key].done), np_int(keys[key].takes)
    if position == 0:
        keys[key].scratch = take(h, q.scratch * keys[key].count) if q.scratch > 0 else 0
    if takes < 0:
        home = keys[step.home]
        if home.filled == 0:
            home.y = take(h, q.size * home.total)
        for i in range(count):
            nodes[order[first + i]].value = home.y + (home.filled + i) * q.size
        home.filled += count
    elif operator.shared and not is_contiguous(h, first, count, takes, q.size):
        start = take(h, q.size * count)
        for i in range(count):
            nodes[order[first + i]].value = start + i * q.size
    else:
        h.strewn |= int32s(h.patterns)[step.pattern + takes] < 0
        for i in range(count):
            node = nodes[order[first + i]]
            node.value = nodes[args[node.args + takes]].value
            if not operator.shared:
                nodes[args[node.args + takes]].value = -1
    if operator.shared:
        call_shared(context, first, count, key, position, keys[key].scratch + position * q.scratch)
    else:
        i, first_call, is_regular = first, h.call_count + 0, step.outers == 0 and h.strewn == 0
        while i < first + count:
            length = run_length(context, i, first + count, takes, is_regular) if count > 1 else 1
            index = call_run(context, i, length, takes)
            calls_at(h.calls)[index].scratch = keys[key].scratch + (position + i - first) * q.scratch
            i += length
        for index in range(first_call, h.call_count if h.call_count > first_call + 1 else first_call):
            calls_at(h.calls)[index].ahead = h.call_count - 1 - index
            calls_at(h.calls)[index].behind = index - first_call
    if takes >= 0:
        h.overwritten += count
        if operator.shared:  # until here, its operands may have been read
            for i in range(first, first + count):
                nodes[args[nodes[order[i]].args + takes]].value = -1


@helper
def np_int(x):  # type: ignore[no-untyped-def]
    """An int64 of an int32."""
    return x + 0
