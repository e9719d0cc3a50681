# SPDX-License-Identifier: Apache-2.0
"""A YAML file that knows on which line each of its values stands."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.dodas.cluster.plugins.module_utils.tosca.deps import SafeLoader, yaml
from ansible_collections.dodas.cluster.plugins.module_utils.tosca.errors import TemplateError

LIMIT = 100_000  # nodes after aliases are expanded: a small file can describe a gigantic one


class _Loader(SafeLoader):
    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as exc:  # a date or a number that looks right and is not
            raise yaml.constructor.ConstructorError(None, None, str(exc), node.start_mark) from exc


class Source:
    """The document in the file `path`: `data` is its plain value; `line` and `error` point into it.

    Raises TemplateError for a file that cannot be read, is empty, is not YAML, or says a key twice.
    """

    def __init__(self, path):
        self.file = str(path)
        loader = None
        try:
            loader = _Loader(self._read(Path(path)))
            self._root = loader.get_single_node()
            if self._root is None:
                raise TemplateError("the file is empty", self.file)
            self._inspect(self._root, {})
            self.data = loader.construct_document(self._root)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            raise TemplateError(self._explain(exc), self.file, mark.line + 1 if mark else None) from exc
        except yaml.YAMLError as exc:  # only a character that YAML forbids gives no mark
            raise TemplateError("not valid YAML: it contains a control character", self.file) from exc
        except RecursionError as exc:
            raise TemplateError("nested too deeply", self.file) from exc
        finally:
            if loader is not None:
                loader.dispose()

    def line(self, path=()):
        """The line of the value at `path` (keys and indices), or of the nearest existing thing around it."""
        node, line = self._root, self._root.start_mark.line
        for step in path:
            if isinstance(node, yaml.MappingNode):  # from the end: merged keys come first
                found = next(((k, v) for k, v in reversed(node.value) if k.value == str(step)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = (node.value[step], node.value[step])
            else:
                found = None
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        return line + 1

    def error(self, message, path=()):
        """A TemplateError at the line of `path`."""
        return TemplateError(message, self.file, self.line(path))

    def _read(self, path):
        try:
            data = path.read_bytes()
        except FileNotFoundError as exc:
            raise TemplateError("no such file", self.file) from exc
        except IsADirectoryError as exc:
            raise TemplateError("is a directory, not a file", self.file) from exc
        except OSError as exc:
            raise TemplateError(f"cannot be read: {exc.strerror}", self.file) from exc
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise TemplateError("not UTF-8 text", self.file, data.count(b"\n", 0, exc.start) + 1) from exc

    def _inspect(self, node, sizes):
        """Count the nodes below `node`, each alias anew; refuse keys said twice and aliases in a circle."""
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise TemplateError("an alias contains itself", self.file, node.start_mark.line + 1)
            return sizes[id(node)]
        sizes[id(node)] = None
        children = []
        if isinstance(node, yaml.MappingNode):
            seen = {}
            for key, value in node.value:
                children += [key, value]
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise TemplateError(
                        f'key "{key.value}" appears twice (first on line {seen[key.value]})',
                        self.file,
                        key.start_mark.line + 1,
                    )
                seen[key.value] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        size = 1 + sum(self._inspect(child, sizes) for child in children)
        if size > LIMIT:
            raise TemplateError(f"more than {LIMIT} values", self.file, node.start_mark.line + 1)
        sizes[id(node)] = size
        return size

    @staticmethod
    def _explain(exc):
        problem = exc.problem or exc.context or "unknown problem"
        if "\\t" in problem:
            return "not valid YAML: a tab; indent with spaces"
        layout = isinstance(exc, (yaml.parser.ParserError, yaml.scanner.ScannerError))
        return f"not valid YAML: {problem}{'; check the indentation' if layout else ''}"
