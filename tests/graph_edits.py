"""Faults for a compiled graph: the same graph with other operators."""

from __future__ import annotations

import dataclasses


def edited(graph, edit):
    """The graph with other operators: `edit(node, primitive)` gives both, or None where nothing changes."""
    primitives = dict(graph.primitives)

    def operator(node):
        found = edit(node, graph.primitives[node.target]) if node.target in graph.primitives else None
        if found is None:
            return node
        key = f"changed {len(primitives)}"
        primitives[key] = found[1]
        return dataclasses.replace(found[0], target=key)

    def function(body):
        return dataclasses.replace(body, nodes=tuple(map(operator, body.nodes)))

    functions = {name: function(body) for name, body in graph.functions.items()}
    return dataclasses.replace(graph, main=functions[graph.main.name], functions=functions, primitives=primitives)


def named(primitive, name):
    return dataclasses.replace(primitive, name=name)


def with_attributes(primitive, **attributes):
    return dataclasses.replace(primitive, attributes={**primitive.attributes, **attributes})


def is_gradient_sum(node):
    return "Mirror" in node.scope


def nodes_of(graph, name):
    """Nodes of one kind of operator, in order."""
    return [
        node
        for body in graph.functions.values()
        for node in body.nodes
        if node.target in graph.primitives and graph.primitives[node.target].name == name
    ]


def without(graph, name, which):
    """Operators replaced by their first operand."""

    def edit(node, primitive):
        if primitive.name == name and which(node):
            return dataclasses.replace(node, inputs=node.inputs[:1]), named(primitive, "Identity")
        return None

    return edited(graph, edit)
