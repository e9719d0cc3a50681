# SPDX-License-Identifier: Apache-2.0
"""The part of Go's templates that --format of docker is used with.

Fields ({{.State.Pid}}), index, json, join, upper, lower, title, len, println, print, printf, slice, truncate, pad, eq,
ne, lt, le, gt, ge, and, or, not; pipes, parentheses, variables, if, else, range, with, end, comments, {{- -}}.
"""

from ..errors import Error


def render(text, value):
    """The text that a template makes of a value; "json" stands for all of it. Raises Error."""
    if text == "json":
        from ..records import dumps

        return dumps(value)
    nodes, _end = _parse(_tokens(text), ())
    out = []
    _evaluate(nodes, value, {"$": value}, out)
    return "".join(out)


def rows(text, values, headings=None):
    """Lines for a list; after "table", columns aligned below `headings` (field -> heading)."""
    if not text.startswith("table"):
        return [render(text, value) for value in values]
    text = text[len("table") :].lstrip()
    text = text.replace("\\t", "\t")
    head = render(text, _Headings(headings or {}))
    from .output import columns

    return columns([line.split("\t") for line in [head] + [render(text, value) for value in values]])


class _Headings(dict):
    """Answers every field with its heading."""

    def get(self, name, default=None):
        return dict.get(self, name) or name.upper()

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return self.get(name)


def _tokens(text):
    """[("text", ...) or ("code", ...)]."""
    found, trim = [], False
    while text:
        before, opening, rest = text.partition("{{")
        if trim:
            before = before.lstrip()
        trim = False
        if opening and rest[:2] in ("- ", "-\t", "-\n", "-}"):
            before, rest = before.rstrip(), rest[1:]
        if before:
            found.append(("text", before))
        if not opening:
            break
        end = _closing(rest)
        code = rest[:end].strip()
        text = rest[end + 2 :]
        if code.endswith(" -") or code == "-":
            code, trim = code[:-1].strip(), True
        if not code.startswith("/*"):
            found.append(("code", code))
    return found


def _closing(text):
    quote, position = "", 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\" and quote == '"':
                position += 1
            elif char == quote:
                quote = ""
        elif char in '"`':
            quote = char
        elif text.startswith("}}", position):
            return position
        position += 1
    raise Error("the template's {{ is not closed by }}")


def _parse(tokens, until):
    """Nodes up to one of the words `until`, and that one."""
    nodes = []
    while tokens:
        kind, text = tokens.pop(0)
        if kind == "text":
            nodes.append(("text", text))
            continue
        word = text.split(None, 1)[0] if text else ""
        rest = text[len(word) :].strip()
        if word in until:
            return nodes, text
        if word in ("if", "with", "range"):
            nodes.append(_block(word, rest, tokens))
        elif word in ("end", "else"):
            raise Error("the template's {{" + word + "}} ends nothing")
        elif not text:
            raise Error("the template holds an empty {{}}")
        else:
            nodes.append(("print", text))
    if until:
        raise Error("the template lacks an {{end}}")
    return nodes, None


def _block(word, condition, tokens):
    body, end = _parse(tokens, ("else", "end"))
    other = []
    if end.split()[0] == "else":
        rest = end[4:].strip()
        if rest.startswith("if "):
            other = [_block("if", rest[3:], tokens)]
        else:
            other, _end = _parse(tokens, ("end",))
    return (word, condition, body, other)


def _evaluate(nodes, dot, names, out):
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "print":
            name, value = _assigned(node[1], dot, names)
            if name:
                names[name] = value
            else:
                out.append(_text(value))
        elif node[0] == "range":
            _loop(node, dot, names, out)
        else:
            inner = dict(names)
            name, value = _assigned(node[1], dot, inner)
            if name:
                inner[name] = value
            if _true(value):
                _evaluate(node[2], value if node[0] == "with" else dot, inner, out)
            else:
                _evaluate(node[3], dot, inner, out)


def _loop(node, dot, names, out):
    _word, condition, body, other = node
    variables = []
    if ":=" in condition:
        left, _assign, condition = condition.partition(":=")
        variables = [name.strip() for name in left.split(",")]
    value = _expression(condition, dot, names)
    pairs = sorted(value.items()) if isinstance(value, dict) else list(enumerate(value or []))
    for key, one in pairs:
        inner = dict(names)
        for name, bound in zip(variables, (key, one) if len(variables) > 1 else (one,)):
            inner[name] = bound
        _evaluate(body, one, inner, out)
    if not pairs:
        _evaluate(other, dot, names, out)


def _assigned(text, dot, names):
    """("$name" or None, value) of "$name := pipeline" or "pipeline"."""
    if text.startswith("$") and "=" in text:
        left, equals, right = text.partition("=")
        name = left.rstrip(":").strip()
        if equals and " " not in name and not right.startswith("="):
            return name, _expression(right, dot, names)
    return None, _expression(text, dot, names)


def _expression(text, dot, names):
    words = _words(text)
    value = _pipeline(words, dot, names)
    if words:
        raise Error("the template's {{" + text + "}} cannot be read from " + repr(words[0][1]))
    return value


def _words(text):
    """[(kind, text)]: punctuation, string, number, name."""
    found, position = [], 0
    while position < len(text):
        char = text[position]
        start = position
        if char.isspace():
            position += 1
            continue
        if char in "()|,":
            position += 1
            kind, word = "sign", char
        elif char in '"`':
            position += 1
            while position < len(text) and text[position] != char:
                position += 2 if text[position] == "\\" and char == '"' else 1
            word = text[start + 1 : position]
            kind, word, position = "string", _unquoted(word) if char == '"' else word, position + 1
        else:
            while position < len(text) and not text[position].isspace() and text[position] not in "()|,\"`":
                position += 1
            word = text[start:position]
            kind = "number" if word.lstrip("-").isdigit() else "name"
        # A field of what parentheses give: (index .List 0).Name
        joined = kind == "name" and word[0] == "." and start and text[start - 1] == ")"
        found.append(("field" if joined else kind, word))
    return found


def _unquoted(text):
    if "\\" not in text:
        return text
    for short, char in (("\\n", "\n"), ("\\t", "\t"), ('\\"', '"'), ("\\\\", "\\")):
        text = text.replace(short, char)
    return text


def _pipeline(words, dot, names):
    value = _call(words, dot, names)
    while words and words[0] == ("sign", "|"):
        words.pop(0)
        value = _call(words, dot, names, value)
    return value


_NOTHING = object()


def _call(words, dot, names, piped=_NOTHING):
    """A function and its arguments, or one value."""
    if not words:
        raise Error("the template lacks a value")
    kind, word = words[0]
    if kind == "name" and word[0] not in ".$" and word not in ("true", "false", "nil"):
        words.pop(0)
        arguments = []
        while words and words[0] not in (("sign", "|"), ("sign", ")")):
            arguments.append(_value(words, dot, names))
        if piped is not _NOTHING:
            arguments.append(piped)
        return _apply(word, arguments)
    return _value(words, dot, names)


def _value(words, dot, names):
    kind, word = words.pop(0)
    if kind == "sign" and word == "(":
        value = _pipeline(words, dot, names)
        if not words or words.pop(0) != ("sign", ")"):
            raise Error("the template's ( is not closed")
        if words and words[0][0] == "field":
            return _field(value, words.pop(0)[1])
        return value
    if kind == "string":
        return word
    if kind == "number":
        return int(word)
    if word in ("true", "false", "nil"):
        return {"true": True, "false": False}.get(word)
    if word[0] == "$":
        name, point, path = word.partition(".")
        if name not in names:
            raise Error("the template knows no variable " + name)
        return _field(names[name], point + path)
    if word[0] == ".":
        return _field(dot, word)
    if kind == "name":
        return _apply(word, [])
    raise Error(f"the template cannot have {word!r} there")


def _field(value, path):
    """`.A.B` of nested mappings; raises Error, naming the field, where a mapping lacks it."""
    for name in path.split("."):
        if not name:
            continue
        if not isinstance(value, dict):
            if value is None:
                return None
            raise Error(f"the template asks for .{name} of what has no fields")
        if name not in value:
            raise Error("the template asks for .{}, and there is: {}".format(name, " ".join(sorted(map(str, value)))))
        value = value[name]
    return value


def _apply(name, arguments):
    try:
        function = _FUNCTIONS[name]
    except KeyError:
        raise Error(f"the template's function {name} is not known here") from None
    try:
        return function(*arguments)
    except Error:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as exc:
        raise Error(f"the template's function {name}: {exc}") from None


def _index(value, *keys):
    for key in keys:
        if value is None:
            return None
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value


def _json(value):
    from ..records import dumps

    return dumps(value)


def _printf(pattern, *values):
    pattern = pattern.replace("%v", "%s").replace("%q", '"%s"')
    needs_text = tuple(value if isinstance(value, (int, float)) and not isinstance(value, bool) else _text(value)
                       for value in values)  # fmt: skip
    return pattern % needs_text


def _and(*values):
    found = None
    for found in values:
        if not _true(found):
            break
    return found


def _or(*values):
    found = None
    for found in values:
        if _true(found):
            break
    return found


_FUNCTIONS = {
    "json": _json,
    "index": _index,
    "join": lambda values, separator: separator.join(map(_text, values or ())),
    "split": lambda text, separator: text.split(separator),
    "upper": lambda text: _text(text).upper(),
    "lower": lambda text: _text(text).lower(),
    "title": lambda text: _text(text).title(),
    "len": lambda value: len(value or ()),
    "print": lambda *values: "".join(map(_text, values)),
    "println": lambda *values: " ".join(map(_text, values)) + "\n",
    "printf": _printf,
    "slice": lambda value, *ends: value[slice(*(ends if len(ends) > 1 else (ends[0], None) if ends else (None,)))],
    "truncate": lambda text, count: text[:count],
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
    "not": lambda value: not _true(value),
    "and": _and,
    "or": _or,
}


def _true(value):
    return value is not None and value is not False and value != 0 and value != "" and value != [] and value != {}


def _text(value):
    """As Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_text(one)}" for key, one in sorted(value.items())) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(_text, value)) + "]"
    return str(value)
