"""YAML to plain values and back, with the line of every key.

Scalars follow YAML 1.2: PyYAML's own rules read `1e-4` as text and the key `on` as true.
Nothing but plain values is ever built, and hostile files stop at a bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Key = tuple[str | int, ...]

MAX_CHARS = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000  # aliases can make a short file expand without end

_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
# Tried in this order, so whole numbers are integers before they are floats.
_SCALARS = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        "float",
        re.compile(rf"^(?:{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        list("-+0123456789."),
    ),
)
_ADVICE = (
    ("mapping values", ". Check the indentation, and put text that holds ': ' in quotes"),
    ("found character '\\t'", ". Indent with spaces, not tabs"),
)
_OTHER_LINE_ENDS = frozenset("\x85\u2028\u2029\ufeff")


class YamlError(ValueError):
    """The text is not YAML that settings may be in; `line` counts from 1, if it is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class YamlText:
    """Plain values, where they stood, and what was wrong on the way."""

    value: Any
    lines: dict[Key, int]
    problems: list[tuple[int, Key, str]] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2 and a bound on nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise YamlError(f"is nested more than {MAX_DEPTH} deep", self.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, quoting what the loader above would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Only in double quotes are these escaped; in any other style they read back as '\n'.
    style = None if _OTHER_LINE_ENDS.isdisjoint(text) else '"'
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Loader.yaml_implicit_resolvers = {}
_Dumper.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


def read_yaml(text: str) -> YamlText:
    """Read one YAML document.

    Returns:
        Its value, made of dict (keys are text, as written), list, str, int, float, bool
        and None. Duplicate keys and refused tags are among `problems`.

    Raises:
        YamlError: it is not YAML, or larger or deeper than a file of settings may be.
    """
    if len(text) > MAX_CHARS:
        raise YamlError(f"is larger than {MAX_CHARS // 1024} KiB, the most such a file may be")
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        parts = [part for part in (err.context, err.problem) if part]
        advice = next((text for start, text in _ADVICE if parts[-1].startswith(start)), "")
        raise YamlError(
            f"is not valid YAML: {', '.join(parts)}{advice}", mark.line + 1 if mark else None
        ) from err
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, int(err.position)) + 1
        raise YamlError(f"is not valid YAML: {err.reason}", line) from err
    result = YamlText(None, {})
    if node is not None:
        result.value = _Builder(result).build(node, (), 0)
    return result


def write_yaml(value: Any) -> str:
    """Return YAML that `read_yaml` reads as the same value; short lists stay on one line."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None
    )


class _Builder:
    """Turns nodes into values and notes their lines and problems."""

    def __init__(self, result: YamlText) -> None:
        self.result = result
        self.values = 0

    def build(self, node: yaml.Node, key: Key, depth: int) -> Any:
        self.values += 1
        line = node.start_mark.line + 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise YamlError("is too large or too deep once its aliases are expanded", line)
        self.result.lines.setdefault(key, line)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*key, i), depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        return self._problem(node, key, f"the YAML tag {_shown(node.tag)} is not allowed")

    def _mapping(self, node: yaml.MappingNode, key: Key, depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, key, "a key should be plain text, found a list or mapping")
                continue
            name = key_node.value
            if name in value:
                self._problem(
                    key_node,
                    (*key, name),
                    f"is written twice, first on line {first_line[name]}; remove one",
                )
                continue
            if name == "<<":
                self._problem(
                    key_node, (*key, name), "merging with '<<' is not supported; write the keys out"
                )
                continue
            first_line[name] = line
            self.result.lines[(*key, name)] = line
            value[name] = self.build(value_node, (*key, name), depth + 1)
        return value

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind not in {name for name, _, _ in _SCALARS}:
            return self._problem(node, key, f"the YAML tag {_shown(node.tag)} is not allowed")
        try:
            return _parse_scalar(kind, text)
        except ValueError:
            return self._problem(node, key, f"'{text[:40]}' is not {_shown(node.tag)}")

    def _problem(self, node: yaml.Node, key: Key, message: str) -> None:
        self.result.problems.append((node.start_mark.line + 1, key, message))


def _parse_scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _shown(tag: str) -> str:
    return f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag
