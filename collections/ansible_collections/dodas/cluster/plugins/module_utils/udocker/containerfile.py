# SPDX-License-Identifier: Apache-2.0
"""Reads a Containerfile (Dockerfile): its syntax, and what can be said of it without building.

    parse(text)                 the stages, each with its instructions
    expand(word, variables)     quotes taken away, variables put in

Errors name file and line, and what is expected there.
"""

import json
import re

from .errors import Error

# What `--name=value` each instruction takes; those that may be given more than once are lists.
FLAGS = {
    "FROM": ("platform",),
    "RUN": ("mount", "network", "security"),
    "COPY": ("from", "chown", "chmod", "link", "parents", "exclude"),
    "ADD": ("chown", "chmod", "checksum", "link", "keep-git-dir", "unpack", "exclude"),
    "HEALTHCHECK": ("interval", "timeout", "start-period", "start-interval", "retries"),
}
_REPEATED = ("mount", "exclude")
_SWITCHES = ("link", "parents", "keep-git-dir", "unpack")

INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_PAIRS = ("ENV", "LABEL")
_LISTS = ("ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME")  # may be written as a JSON list
_HEREDOCS = ("ADD", "COPY", "RUN")
_ONE = ("STOPSIGNAL", "USER", "WORKDIR", "MAINTAINER")


class Containerfile:
    """`arguments` are the ARG instructions before the first FROM; `stages` are in order."""

    def __init__(self, path, escape):
        self.path = path
        self.escape = escape
        self.arguments = []
        self.stages = []

    def stage(self, name):
        """The stage of that name or number, or None."""
        for stage in reversed(self.stages):
            if name.lower() == stage.name or name == str(stage.number):
                return stage
        return None


class Stage:
    """From one FROM to the next. `base` and `platform` may hold variables; `name` is lower case, or None."""

    def __init__(self, number, base, name, platform, line):
        self.number = number
        self.base = base
        self.name = name
        self.platform = platform
        self.line = line
        self.instructions = []


class Instruction:
    """One instruction.

    words: what follows the flags, quotes and variables as written. ENV, LABEL, ARG: pairs (name, value or None). A JSON
        list: its items. COPY, ADD, EXPOSE, VOLUME, FROM: split at blanks. All others: one item, the text.
    json: it was written as a JSON list
    flags: {name: text, True, or a list of texts}
    heredocs: [Heredoc]
    source: as it was written, on one line
    """

    def __init__(self, name, line, source):
        self.name = name
        self.line = line
        self.source = source
        self.flags = {}
        self.words = []
        self.json = False
        self.heredocs = []


class Heredoc:
    """A file written into the Containerfile; `expand`: variables are put in, since the name was without quotes."""

    def __init__(self, name, expand, strip):
        self.name = name
        self.expand = expand
        self.strip = strip  # leading tabs are taken away
        self.content = ""


def parse(text, path="Containerfile"):
    """Read a Containerfile; raises Error."""
    lines = [line.rstrip("\r") for line in text.lstrip("\ufeff").split("\n")]
    result = Containerfile(path, _directives(lines, path).get("escape", "\\"))
    for name, line, source, rest, heredocs in _logical_lines(lines, result.escape, path):
        instruction = _instruction(name, line, source, rest, heredocs, result.escape, path)
        if name == "FROM":
            result.stages.append(_stage(instruction, len(result.stages), result, path))
        elif result.stages:
            result.stages[-1].instructions.append(instruction)
        elif name == "ARG":
            result.arguments.append(instruction)
        else:
            raise Error(f"{path}:{line}: {name} before the first FROM: only ARG may be there")
    if not result.stages:
        raise Error(f"{path}: has no FROM: say which image to build on (FROM scratch starts with nothing)")
    return result


def parse_trigger(text, path, escape="\\"):
    """The instruction that an image's ONBUILD left for those who build on it."""
    name, _blank, rest = text.strip().partition(" ")
    return _instruction(name.upper(), 0, text, rest.strip(), [], escape, path)


# Lines

_DIRECTIVE = re.compile(r"#[ \t]*([A-Za-z][\w-]*)[ \t]*=[ \t]*(.+?)[ \t]*$")


def _directives(lines, path):
    """`# name=value` lines at the very top."""
    found = {}
    for number, line in enumerate(lines, 1):
        match = _DIRECTIVE.match(line.strip())
        if not match:
            break
        name, value = match.group(1).lower(), match.group(2)
        if name not in ("syntax", "escape", "check"):
            break
        if name in found:
            raise Error(f"{path}:{number}: directive {name} is given twice")
        if name == "escape" and value not in ("\\", "`"):
            raise Error(f"{path}:{number}: escape={value}: is either \\ or `")
        found[name] = value
    return found


def _logical_lines(lines, escape, path):
    """Yield (NAME, line, source, rest, heredocs), with continued lines joined and comments gone."""
    quoted = re.escape(escape)
    continued = re.compile(rf"(^|[^{quoted}]){quoted}[ \t]*$")
    at = 0
    while at < len(lines):
        first, text = at + 1, lines[at].strip()
        at += 1
        if not text or text.startswith("#"):
            continue
        text = lines[at - 1].lstrip()
        while True:
            match = continued.search(text)
            if not match:
                break
            text = text[: match.end(1)]
            # Comments and empty lines within an instruction are passed over.
            while at < len(lines) and (not lines[at].strip() or lines[at].lstrip().startswith("#")):
                at += 1
            if at == len(lines):
                break
            text += lines[at]
            at += 1
        source = text.strip()
        name, rest = [*source.split(None, 1), ""][:2]
        name = name.upper()
        if name not in INSTRUCTIONS:
            raise Error(f"{path}:{first}: unknown instruction {name}{_nearest(name, INSTRUCTIONS)}")
        heredocs = _heredocs(rest, escape) if name in _HEREDOCS else []
        for heredoc in heredocs:
            content = []
            while True:
                if at == len(lines):
                    raise Error(f"{path}:{first}: {name} has no line {heredoc.name} to end its text")
                line = lines[at].lstrip("\t") if heredoc.strip else lines[at]
                at += 1
                if line == heredoc.name:
                    break
                content.append(line + "\n")
            heredoc.content = "".join(content)
        yield name, first, source, rest, heredocs


_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]+)")


def heredoc(word, escape="\\"):
    """What `<<NAME` announces; None for any other word."""
    match = _HEREDOC.fullmatch(word)
    if not match:
        return None
    name = expand(match.group(3), None, escape)
    return Heredoc(name, name == match.group(3), bool(match.group(2))) if name else None


def _heredocs(rest, escape):
    if "<<" not in rest:
        return []
    return [found for found in (heredoc(word, escape) for word in _split(rest, escape)) if found]


def _nearest(word, known):
    import difflib

    found = difflib.get_close_matches(word, known, 1)
    return f": did you mean {found[0]}?" if found else f": there are {', '.join(known)}"


# Instructions


def _instruction(name, line, source, rest, heredocs, escape, path):
    where = f"{path}:{line}" if line else f"{path} (ONBUILD of its base)"
    if name not in INSTRUCTIONS:
        raise Error(f"{where}: unknown instruction {name}{_nearest(name, INSTRUCTIONS)}")
    result = Instruction(name, line, source)
    result.heredocs = heredocs
    result.flags, rest = _flags(name, rest, escape, where)
    if name in _LISTS and rest.startswith("["):
        words = json_list(rest)
        if words is not None:
            result.json, result.words = True, words
    if not result.json:
        result.words = _words(name, rest, escape, where)
    _check(result, where)
    return result


def _flags(name, rest, escape, where):
    found = {}
    while rest.startswith("--"):
        word = _split(rest, escape)[0]
        rest = rest[len(word) :].lstrip()
        if word == "--":
            break
        key, equals, value = word[2:].partition("=")
        known = FLAGS.get(name, ())
        if key not in known:
            hint = _nearest(key, known) if known else f": {name} takes none"
            raise Error(f"{where}: {name} has no option --{key}{hint}")
        if key in _SWITCHES:
            if value.lower() not in ("", "true", "false"):
                raise Error(f"{where}: {name} --{key}={value}: is true or false")
            found[key] = value.lower() != "false"
            continue
        if not equals:
            raise Error(f"{where}: {name} --{key} needs a value: --{key}=...")
        if key in _REPEATED:
            found.setdefault(key, []).append(value)
        elif key in found:
            raise Error(f"{where}: {name} --{key} is given twice")
        else:
            found[key] = value
    return found, rest


def json_list(text):
    """The list of strings that `text` is in JSON, or None."""
    try:
        words = json.loads(text)
    except ValueError:
        return None  # a shell command may begin with [ as well
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _words(name, rest, escape, where):
    if name in _PAIRS:
        return _pairs(name, rest, escape, where)
    if name == "ARG":
        parts = [word.partition("=") for word in _split(rest, escape)]
        return [(key, value if equals else None) for key, equals, value in parts]
    if name in ("RUN", "CMD", "ENTRYPOINT", "ONBUILD", "SHELL", "HEALTHCHECK", *_ONE):
        return [rest] if rest else []
    return rest.split()


def _pairs(name, rest, escape, where):
    words = _split(rest, escape)
    if words and "=" not in words[0]:
        # The old form: one name, and all that follows is its value.
        parts = rest.split(None, 1)
        if len(parts) < 2:
            raise Error(f"{where}: {name} {rest} has no value: {name} {rest}=...")
        return [tuple(parts)]
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise Error(f"{where}: {name}: {word!r} is not name=value; a value with blanks needs quotes")
        pairs.append((key, value))
    return pairs


def _check(instruction, where):
    """What an instruction must have, beyond the words' own form."""
    name, words = instruction.name, instruction.words
    if not words and name not in ("CMD", "ENTRYPOINT"):
        raise Error(f"{where}: {name} needs at least one argument")
    if name == "SHELL" and not (instruction.json and words):
        raise Error(f'{where}: SHELL is written as a JSON list: SHELL ["/bin/bash", "-c"]')
    if name in ("COPY", "ADD") and len(words) < 2:
        raise Error(f"{where}: {name} needs at least one source and a destination")
    if name == "ARG" and not all(re.fullmatch(r"[A-Za-z_]\w*", key) for key, _value in words):
        raise Error(f"{where}: ARG {instruction.source.partition(' ')[2]}: a name has letters, digits and _")
    if name == "ONBUILD":
        inner = words[0].split(None, 1)[0].upper()
        if inner in ("ONBUILD", "FROM", "MAINTAINER"):
            raise Error(f"{where}: ONBUILD {inner} is not allowed")
        if inner not in INSTRUCTIONS:
            raise Error(f"{where}: unknown instruction {inner}{_nearest(inner, INSTRUCTIONS)}")
    if name == "HEALTHCHECK":
        kind = words[0].split(None, 1)
        if kind[0].upper() not in ("NONE", "CMD") or (kind[0].upper() == "CMD") != (len(kind) == 2):
            raise Error(f"{where}: HEALTHCHECK is followed by NONE, or by CMD and a command")


def _stage(instruction, number, containerfile, path):
    words, where = instruction.words, f"{path}:{instruction.line}"
    if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
        raise Error(f"{where}: FROM is written FROM IMAGE or FROM IMAGE AS NAME")
    name = words[2].lower() if len(words) == 3 else None
    if name is not None:
        if not re.fullmatch(r"[a-z][a-z0-9._-]*", name):
            raise Error(f"{where}: stage {words[2]!r}: a name begins with a letter; letters, digits, . _ - follow")
        if any(stage.name == name for stage in containerfile.stages):
            raise Error(f"{where}: there is a stage {name} already")
    return Stage(number, words[0], name, instruction.flags.get("platform"), instruction.line)


# Words and variables


def _split(text, escape):
    """Split at blanks that are neither quoted nor escaped; quotes and escapes stay."""
    words, word, quote, at = [], "", "", 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == escape and quote != "'" and at < len(text):
            word += char + text[at]
            at += 1
        elif char.isspace() and not quote:
            if word:
                words.append(word)
            word = ""
        else:
            if quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            word += char
    return [*words, word] if word else words


def expand(word, variables, escape="\\"):
    """`word` with variables put in and quotes taken away, by the rules of Containerfiles.

    `variables` maps names to values; None leaves `$` alone. Raises ValueError, saying what is wrong.
    """
    return _Expansion(word, variables, escape).until("")


def expand_words(text, variables, escape="\\"):
    """Like `expand`, and split at blanks that were neither quoted nor escaped before; empty words go."""
    return [word for word in (expand(one, variables, escape) for one in _split(text, escape)) if word]


def expand_document(text, variables, escape="\\"):
    """`text` of a here-document with variables put in; quotes stay. Raises ValueError."""
    return _Expansion(text, variables, escape).document()


class _Expansion:
    def __init__(self, text, variables, escape):
        self.text = text
        self.at = 0
        self.variables = variables
        self.escape = escape

    def until(self, stop):
        """Expand up to the character `stop`, which is taken; to the end when it is empty."""
        result = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if stop and char == stop:
                return "".join(result)
            if char == "'":
                end = self.text.find("'", self.at)
                if end < 0:
                    raise ValueError("a ' is not closed")
                result.append(self.text[self.at : end])
                self.at = end + 1
            elif char == '"':
                result.append(self.quoted())
            elif char == self.escape:
                result.append(self.text[self.at : self.at + 1])
                self.at += 1
            elif char == "$" and self.variables is not None:
                result.append(self.variable())
            else:
                result.append(char)
        if stop:
            raise ValueError(f"a {stop} is missing")
        return "".join(result)

    def document(self):
        result = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == self.escape and self.text[self.at : self.at + 1] in ("$", self.escape):
                result.append(self.text[self.at])
                self.at += 1
            else:
                result.append(self.variable() if char == "$" else char)
        return "".join(result)

    def quoted(self):
        result = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == '"':
                return "".join(result)
            if char == self.escape and self.text[self.at : self.at + 1] in ('"', "$", self.escape):
                result.append(self.text[self.at])
                self.at += 1
            elif char == "$" and self.variables is not None:
                result.append(self.variable())
            else:
                result.append(char)
        raise ValueError('a " is not closed')

    def variable(self):
        braces = self.text[self.at : self.at + 1] == "{"
        match = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]" if not braces else r"\{([A-Za-z_]\w*|[0-9@*#?$!-])").match(
            self.text, self.at
        )
        if not match:
            if braces:
                raise ValueError(f"{self.text[self.at - 1 :]!r} is no variable: a name follows {{")
            return "$"
        self.at = match.end()
        name = match.group(1) if braces else match.group()
        value = self.variables.get(name)
        return self.modified(name, value) if braces else value or ""

    def modified(self, name, value):
        """What follows the name in ${...}."""
        operator = re.compile(r"\}|:?[-+?]|##?|%%?|//?").match(self.text, self.at)
        if not operator:
            raise ValueError(f"${{{name}{self.text[self.at :]}: a }} or one of :- :+ :? # % / is expected after {name}")
        self.at = operator.end()
        operator = operator.group()
        if operator == "}":
            return value or ""
        if operator[0] == "/":
            pattern, replacement = _glob(self.until("/")), self.until("}")
            return re.sub(pattern, lambda _match: replacement, value or "", count=len(operator) == 1)
        word = self.until("}")
        given = value is not None and (value != "" or operator[0] != ":")
        if operator[-1] == "-":
            return value if given else word
        if operator[-1] == "+":
            return word if given else ""
        if operator[-1] == "?":
            if not given:
                raise ValueError(f"{name}: {word or 'is not set'}")
            return value
        return _without(value or "", _glob(word), operator)


def _glob(pattern):
    """A shell pattern as a regular expression."""
    special = {"*": ".*", "?": "."}
    parts = re.findall(r"\\?.", pattern, re.S)
    return "".join(special.get(part) or re.escape(part[-1]) for part in parts)


def _without(value, pattern, operator):
    """`value` less the shortest (# %) or longest (## %%) match at its beginning (#) or end (%)."""
    lengths = range(len(value) + 1)
    for length in lengths if len(operator) == 1 else reversed(lengths):
        taken = value[:length] if operator[0] == "#" else value[len(value) - length :]
        if re.fullmatch(pattern, taken, re.S):
            return value[length:] if operator[0] == "#" else value[: len(value) - length]
    return value
