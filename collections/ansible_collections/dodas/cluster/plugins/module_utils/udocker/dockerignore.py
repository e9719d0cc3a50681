# SPDX-License-Identifier: Apache-2.0
"""Which files of a build's context are left out: .dockerignore, by the rules that Docker has for it."""

import os
import re

from .errors import Error


def read(context, containerfile=None):
    """The rules for folder `context`: of the file beside the Containerfile that has its name, or of the context's."""
    places = [os.path.join(context, name) for name in (".containerignore", ".dockerignore")]
    if containerfile:
        places[:0] = [containerfile + ending for ending in (".containerignore", ".dockerignore")]
    for path in places:
        try:
            with open(path, encoding="utf-8") as source:
                return Ignore(source.read(), path)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return Ignore("")


class Ignore:
    """The rules of one file. The last that fits a path, or a folder above it, decides."""

    def __init__(self, text, path=".dockerignore"):
        self.rules = []  # (regular expression, whether it brings back, the pattern)
        for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
            if line.startswith("#"):
                continue
            pattern = line.strip()
            if not pattern:
                continue
            again = pattern.startswith("!")
            pattern = pattern[again:].strip()
            if not pattern:
                raise Error(f"{path}:{number}: a ! is followed by a pattern")
            pattern = os.path.normpath(pattern).lstrip("/") or "."
            if pattern == ".":
                continue  # the context itself is never left out
            try:
                self.rules.append((re.compile(translate(pattern), re.S), again, pattern))
            except (re.error, ValueError) as exc:
                raise Error(f"{path}:{number}: {line.strip()!r}: {exc}") from None

    def excludes(self, path):
        """Whether `path` (relative to the context, with /) is left out."""
        parts = path.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        excluded = False
        for rule, again, _pattern in self.rules:
            if excluded == again and any(rule.fullmatch(one) for one in above):
                excluded = not again
        return excluded

    def prunes(self, folder):
        """Whether nothing below `folder`, which is left out, can come back."""
        for _rule, again, pattern in self.rules:
            if again:
                # Compared up to the first wildcard: what may come back is looked for, and judged by `excludes`.
                plain = re.split(r"[*?\[\\]", pattern)[0]
                if plain.startswith(folder + "/") or (folder + "/").startswith(plain):
                    return False
        return True


def translate(pattern):
    """A pattern as a regular expression for a whole path: * and ? within a name, ** across folders."""
    result, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if pattern.startswith("**", at - 1):
            at += 1
            if pattern.startswith("/", at):
                at += 1
            result.append(".*" if at == len(pattern) else "(?:.*/)?")
        elif char == "*":
            result.append("[^/]*")
        elif char == "?":
            result.append("[^/]")
        elif char == "[":
            end = at + 1 + (pattern[at : at + 1] == "^")
            while end < len(pattern) and pattern[end] != "]":
                end += 2 if pattern[end] == "\\" else 1
            if end >= len(pattern):
                raise ValueError("a [ is not closed")
            members = pattern[at:end]
            inverted = members.startswith("^")
            members = re.sub(r"(?<!\\)[\[&~|]", r"\\\g<0>", members[inverted:])
            result.append("[" + ("^/" if inverted else "") + members + "]")
            at = end + 1
        elif char == "\\":
            if at == len(pattern):
                raise ValueError("nothing follows the last \\")
            result.append(re.escape(pattern[at]))
            at += 1
        else:
            result.append(re.escape(char))
    return "".join(result)
