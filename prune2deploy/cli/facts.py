"""Commands that tell about prune2deploy itself: methods, doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prune2deploy import progress
from prune2deploy.cli.output import show, table
from prune2deploy.cli.session import USER_ERROR, session

if TYPE_CHECKING:
    from rich.table import Table

    from prune2deploy.doctor import Ability, Diagnosis, Package
    from prune2deploy.methods import Method


def methods(
    name: Annotated[str | None, typer.Argument(help="Tell all about this one.")] = None,
) -> None:
    """List the pruning methods, or tell all about one."""
    with session():
        from prune2deploy.errors import RecipeError, nearest_name_hint

        with progress.task("Loading PyTorch"):
            from prune2deploy.methods import METHODS

        if name is None:
            show(_methods_table(METHODS), "prune2deploy methods NAME: its options and its paper")
        elif name in METHODS:
            show(*_method_details(METHODS[name]))
        else:
            raise RecipeError(
                f"No pruning method is named '{name}'. {nearest_name_hint(name, METHODS)}"
            )


def doctor() -> None:
    """Show versions, what the processor is good at, what is usable, and how to get the rest."""
    with session():
        from prune2deploy.doctor import examine

        diagnosis = examine()
        show(*_diagnosis(diagnosis))
    if not diagnosis.healthy:
        raise typer.Exit(USER_ERROR)


def _methods_table(known: dict[str, type[Method[Any]]]) -> Table:
    return table(
        ("method", "keeps", "scored by", "takes", "needs"),
        [
            (method.name, f"{method.granularity}s", method.summary, method.cost, _needs(method))
            for method in known.values()
        ],
    )


def _needs(method: type[Method[Any]]) -> str:
    needs = []
    if method.needs_training:
        needs.append("prune.train")
    if method.may_train:
        needs.append("prune.train only if it shall learn")
    if method.needs_data:
        needs.append("training images")
    if method.needs_losses:
        needs.append("gradients of the loss")
    if method.needs_judge:
        needs.append("validation images")
    return ", ".join(needs) or "the weights only"


def _method_details(method: type[Method[Any]]) -> list[Any]:
    texts = [
        f"{method.name}: {method.summary}",
        f"keeps {method.granularity}s; takes {method.cost}; needs {_needs(method)}; "
        f"budgets: {', '.join(method.budgets)}",
        f"paper: {method.source}",
    ]
    fields = method.options.model_fields
    if not fields:
        return [*texts, "options: none"]
    schemas = method.options.model_json_schema()["properties"]
    rows = []
    for name, field in fields.items():
        choices = " | ".join(map(str, schemas[name].get("enum", ())))
        meaning = f"{field.description or ''} {f'({choices})' if choices else ''}".strip()
        rows.append((name, _yaml(field.default), meaning))
    return [*texts, table(("option of 'prune'", "default", "meaning"), rows)]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _diagnosis(found: Diagnosis) -> list[Any]:
    results: list[Any] = [
        f"prune2deploy {found.version}, Python {found.python}",
        table(("machine", ""), _machine_rows(found)),
        table(("package", "version", "wanted", ""), map(_package_row, found.packages)),
        _abilities("runtime", found.runtimes),
        _abilities("target", found.targets),
    ]
    if found.remedies:
        results += ["To get what is missing:"]
        results += [f"  {what}\n    {command}" for what, command in found.remedies]
    results.append("All that is needed works." if found.healthy else "Something needed is missing.")
    return results


def _package_row(package: Package) -> tuple[str, ...]:
    state = "ok" if package.usable else package.problem or "not installed"
    needed = "" if package.extra is None else f" (optional: {package.extra})"
    return package.name, package.version or "-", package.wanted, state + needed


def _machine_rows(found: Diagnosis) -> list[tuple[str, str]]:
    from prune2deploy.doctor import FEATURES

    machine = found.machine
    quota = "" if machine.core_quota is None else f", limited to {machine.core_quota:g} by a cgroup"
    limit = machine.memory_limit_bytes
    rows = [
        ("processor", machine.cpu or "unknown"),
        ("board", machine.board or ""),
        ("system", f"{machine.architecture}, kernel {machine.kernel}"),
        ("cores", f"{machine.cores or 'unknown'}{quota}"),
        (
            "memory",
            _gigabytes(machine.memory_bytes)
            + (f", limited to {_gigabytes(limit)} by a cgroup" if limit else ""),
        ),
        ("free disk here", _gigabytes(machine.disk_free_bytes)),
        ("GPU", ", ".join(machine.gpus) or "none found"),
    ]
    purposes = {feature.name: feature.purpose for feature in FEATURES}
    rows += [
        (name, f"{'yes' if present else 'no '}  {purposes[name]}")
        for name, present in machine.features.items()
    ]
    return [(name, text) for name, text in rows if text]


def _abilities(heading: str, abilities: tuple[Ability, ...]) -> Table:
    return table(
        (heading, "usable", ""),
        [(one.name, "yes" if one.usable else "no", one.detail) for one in abilities],
    )


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"
