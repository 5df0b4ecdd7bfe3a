"""What an ablation trains: rows, each a system that differs from the full one, resolved to runs that rows share."""

import hashlib
import json
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from e2e_tts.modeling.modeling_flow_decoder import SOLVER_STEPS

from .recipe import RECIPE_FOLDER, Recipe, load_recipe

PLAN_FOLDER = RECIPE_FOLDER / "ablations"
LEARNING_MODULES = ("encoder", "reward", "lm", "decoder")
SEED_STEP = 1000  # seed k of a row adds k times this to the seed of every recipe


class PlanError(ValueError):
    """A plan that cannot be run; the message says which entry and what to do."""


@dataclass
class StagePlan:
    """A stage of the full system: a recipe by name or file, with entries replaced."""

    recipe: str
    set: dict[str, Any] = field(default_factory=dict)


@dataclass
class StageChange:
    """What a row changes in a stage.

    set: recipe entries. steps: number of steps, as numbers and names of stages, whose steps are added up. rebuild:
    settings of a module's configuration, with which it is built anew before the stage; weights that no longer fit are
    drawn, all others kept.
    """

    set: dict[str, Any] = field(default_factory=dict)
    steps: list[int | str] = field(default_factory=list)
    rebuild: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class RowPlan:
    """A row of the table. stages: those that run, in the plan's order; empty for all."""

    label: str
    stages: list[str] = field(default_factory=list)
    changes: dict[str, StageChange] = field(default_factory=dict)


@dataclass
class MeasurePlan:
    """What is measured: rows of a split (by default of the data that the first stage learns from).

    takes: how often every sentence is spoken, each time with other seeds of the sampling, so that luck of the draw
    tells less. More takes are added to finished cells.
    """

    data: list[str] = field(default_factory=list)
    split: str = "dev"
    sources: list[str] = field(default_factory=list)
    limit: int | None = None
    takes: int = 1
    steps: int = SOLVER_STEPS
    guidance: float = 0.7
    temperature: float = 1.0
    top_k: int = 25
    top_p: float = 0.8

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, int | float) and not isinstance(value, int | float):
                raise PlanError(f"measure.{item.name} must be a number, got {value!r}.")
        if self.limit is not None and not (isinstance(self.limit, int) and self.limit > 0):
            raise PlanError(f"measure.limit must be a number of rows, at least 1, got {self.limit!r}.")
        if not (isinstance(self.takes, int) and self.takes > 0):
            raise PlanError(f"measure.takes must be a whole number, at least 1, got {self.takes!r}.")

    def settings(self) -> dict[str, Any]:
        """What decides a figure, as opposed to how many there are of it."""
        return {name: value for name, value in asdict(self).items() if name != "takes"}


@dataclass(frozen=True)
class Run:
    """One training of one stage with one seed. Rows in which it is the same share it.

    recipe: its entries, without the folders of earlier runs. base: the run whose checkpoint it starts from, None for a
    first stage. starts: the runs that modules come from which the stage uses and which are newer than the base's.
    rebuild: as in `StageChange`.
    """

    stage: str
    seed: int
    recipe: dict[str, Any]
    base: "Run | None"
    starts: dict[str, "Run"]
    rebuild: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.stage}-seed{self.seed}-{self.key[:10]}"

    @property
    def key(self) -> str:
        """A digest of everything that decides the result; another one is another run."""
        parts = [self.recipe, self.base and self.base.key, {name: run.key for name, run in self.starts.items()}]
        return digest([*parts, self.rebuild])

    @property
    def steps(self) -> int:
        return self.recipe["arguments"]["max_steps"]


@dataclass(frozen=True)
class Cell:
    """A row trained with one seed: its runs in order; the newest one of each module makes up the model."""

    row: str
    seed: int
    runs: tuple[Run, ...]

    @property
    def modules(self) -> dict[str, Run]:
        """The run that trained each module last, where that is not the first one."""
        newest = _newest(self.runs)
        return {name: run for name, run in newest.items() if run is not self.runs[0]}

    def updates(self) -> dict[str, int]:
        """Optimizer steps that each module has learnt for."""
        return {name: sum(run.steps for run in self.runs if name in run.recipe["train"]) for name in LEARNING_MODULES}


@dataclass
class AblationPlan:
    """stages and rows by name; common: recipe entries of every stage; reference: the row that others are compared to.

    overrides: further recipe entries from the command line, "key=value" for all stages or "stage:key=value" for one.
    """

    stages: dict[str, StagePlan]
    rows: dict[str, RowPlan]
    reference: str
    seeds: list[int] = field(default_factory=lambda: [0])
    common: dict[str, Any] = field(default_factory=dict)
    measure: MeasurePlan = field(default_factory=MeasurePlan)
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.stages or not self.rows:
            raise PlanError("A plan needs stages and rows.")
        if self.reference not in self.rows:
            raise PlanError(f"reference names no row: {self.reference!r}; there are {', '.join(self.rows)}.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise PlanError(f"seeds must be different numbers, got {self.seeds}.")
        for name, row in self.rows.items():
            running = row.stages or list(self.stages)
            named = [*row.stages, *row.changes]
            named += [step for change in row.changes.values() for step in change.steps if isinstance(step, str)]
            if unknown := sorted(set(named) - set(self.stages)):
                raise PlanError(f"Row {name} names unknown stages {unknown}; there are {', '.join(self.stages)}.")
            if idle := sorted(set(row.changes) - set(running)):
                raise PlanError(f"Row {name} changes the stages {idle}, which it does not run.")

    # ---------------------------------------------------------------- resolving

    def _recipe(self, stage: str, changed: dict[str, Any]) -> Recipe:
        plan = self.stages[stage]
        shared = [entry for entry in self.overrides if ":" not in entry.split("=")[0]]
        own = [entry.removeprefix(f"{stage}:") for entry in self.overrides if entry.startswith(f"{stage}:")]
        entries = [*_entries(self.common), *_entries(plan.set), *shared, *own, *_entries(changed)]
        recipe = load_recipe(plan.recipe, entries)
        if not isinstance(recipe, Recipe):
            raise PlanError(f"Stage {stage}: {plan.recipe} trains a vocoder; an ablation compares stages 1 to 3.")
        if recipe.arguments.get("max_steps", -1) <= 0:
            raise PlanError(f"Stage {stage}: set arguments.max_steps in {plan.recipe} or in the plan.")
        return recipe

    def cell(self, row: str, seed: int) -> Cell:
        """The runs of a row with a seed."""
        plan, runs = self.rows[row], []
        for stage in self.stages:
            if stage not in (plan.stages or self.stages):
                continue
            change = plan.changes.get(stage, StageChange())
            recipe = self._recipe(stage, change.set)
            if change.steps:
                recipe.arguments["max_steps"] = sum(
                    step if isinstance(step, int) else self._recipe(step, {}).arguments["max_steps"]
                    for step in change.steps
                )
            recipe.arguments["seed"] = recipe.arguments.get("seed", 0) + SEED_STEP * seed
            runs.append(_follow(stage, seed, recipe, runs, change.rebuild))
        return Cell(row, seed, tuple(runs))

    def cells(self, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Cell]:
        """The cells of some rows and seeds (by default all), a whole table for one seed after the other.

        Raises PlanError for rows and seeds that the plan does not have.
        """
        for given, known, kind in ((rows, self.rows, "rows"), (seeds, self.seeds, "seeds")):
            if unknown := [item for item in given if item not in known]:
                raise PlanError(f"The plan has no {kind} {unknown}; it has {list(known)}.")
        return [self.cell(row, seed) for seed in seeds or self.seeds for row in rows or self.rows]

    def measured_data(self) -> list[str]:
        """The folders of annotated speech that are measured on."""
        return self.measure.data or self._recipe(next(iter(self.stages)), {}).data.folders


def _follow(stage: str, seed: int, recipe: Recipe, before: Sequence[Run], rebuild: dict[str, dict[str, Any]]) -> Run:
    """A run that starts from those before it."""
    values = stated(recipe)
    if not before:
        if rebuild:
            raise PlanError(f"Stage {stage}: a first stage sets its model in the recipe, there is nothing to rebuild.")
        return Run(stage, seed, values, None, {}, {})
    base = before[0]
    newest = {name: run for name, run in _newest(before).items() if name in used_modules(recipe)}
    if foreign := sorted(set(rebuild) - set(newest)):
        raise PlanError(f"Stage {stage} rebuilds {foreign}, which it does not use.")
    # What is trained here comes from the runs before; a finished vocoder or speaker encoder from where the recipe says.
    kept = {name: path for name, path in recipe.init_modules.items() if name not in LEARNING_MODULES}
    values = {name: value for name, value in values.items() if name not in ("init", "model")}
    values["init_modules"] = kept
    starts = {name: run for name, run in newest.items() if run is not base or name in rebuild}
    return Run(stage, seed, values, base, starts, rebuild)


def _newest(runs: Sequence[Run]) -> dict[str, Run]:
    newest = dict.fromkeys(LEARNING_MODULES, runs[0])
    for run in runs:
        newest |= {name: run for name in run.recipe["train"] if name in LEARNING_MODULES}
    return newest


def used_modules(recipe: Recipe) -> set[str]:
    """The modules whose weights have a part in a stage's losses."""
    true, predicted = asdict(recipe.losses), asdict(recipe.predicted_losses)
    used = {"encoder", *recipe.train}
    if true["lm"] or recipe.kl or any(predicted.values()) or recipe.predict_from == "hidden":
        used.add("lm")
    if recipe.judged_by():
        used.add("reward")
    if any(true[name] or predicted[name] for name in ("flow", "prior")):
        used.add("decoder")
    return used


def stated(recipe: Any) -> dict[str, Any]:
    """The entries of a recipe that differ from the defaults, so that a new kind of entry makes no new run."""
    values = {}
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        if value != (entry.default if entry.default is not MISSING else entry.default_factory()):
            values[entry.name] = stated(value) if is_dataclass(value) else value
    return values


def digest(value: Any) -> str:
    """A digest of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- reading -----------------------------------------------------------------------------------------------------


def _entries(values: dict[str, Any]) -> list[str]:
    # JSON is YAML, in which overrides are written.
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _checked(cls: type, values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise PlanError(f"{where} must be a mapping, got {values!r}.")
    known, types = [item.name for item in fields(cls)], typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(known)):
        raise PlanError(f"Unknown entries {unknown} in {where}; the known ones are {', '.join(known)}.")
    required = [item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING]
    if missing := sorted(set(required) - set(values)):
        raise PlanError(f"{where} lacks {missing}.")
    for name, value in values.items():
        expected = typing.get_origin(types[name])
        if expected in (dict, list) and not isinstance(value, expected):
            kind = "mapping" if expected is dict else "list"
            raise PlanError(f"{name} in {where} must be a {kind}, got {value!r}.")
    return values


def _row(values: Any, where: str) -> RowPlan:
    row = RowPlan(**_checked(RowPlan, values, where))
    changes = {
        stage: StageChange(**_checked(StageChange, change, f"{where}.changes.{stage}"))
        for stage, change in row.changes.items()
    }
    return replace(row, changes=changes)


def parse_plan(values: dict, overrides: Sequence[str] = ()) -> AblationPlan:
    """Builds a plan from a mapping. overrides: "key=value", "stage:key=value" or "measure:key=value".

    Raises PlanError for unknown and missing entries.
    """
    values = dict(_checked(AblationPlan, values, "the plan"))
    measure = dict(values.get("measure") or {})
    values["stages"] = {
        name: StagePlan(**_checked(StagePlan, stage, f"stages.{name}")) for name, stage in values["stages"].items()
    }
    values["rows"] = {name: _row(row, f"rows.{name}") for name, row in values["rows"].items()}
    values["overrides"] = list(values.get("overrides", []))
    for override in overrides:
        key, separator, value = override.partition("=")
        place, colon, entry = key.rpartition(":")
        if not separator or (colon and place not in (*values["stages"], "measure")):
            places = ", ".join(f"{name}:key=value" for name in (*values["stages"], "measure"))
            raise PlanError(f"Overrides look like key=value or {places}; got {override!r}.")
        if place == "measure":
            try:
                measure[entry] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise PlanError(f"{override!r} has no YAML value: quote an entry with spaces in it.") from error
        else:
            values["overrides"].append(override)
    values["measure"] = MeasurePlan(**_checked(MeasurePlan, measure, "measure"))
    return AblationPlan(**values)


def load_plan(name: str, overrides: Sequence[str] = ()) -> AblationPlan:
    """Reads a plan: a YAML file, or the name of a shipped one. Raises PlanError, and RecipeError for its recipes.

    A plan that `extends` another one by name takes its entries and replaces or adds some, at any depth. `rows` given
    as a list chooses among the other's rows.
    """
    return parse_plan(_read_plan(name), overrides)


def _read_plan(name: str, extended: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entries of a plan, those of the plans that it extends among them."""
    if name in extended:
        raise PlanError(f"The plan {name} extends itself.")
    path = next((path for path in (Path(name), PLAN_FOLDER / f"{name}.yaml") if path.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(path.stem for path in PLAN_FOLDER.glob("*.yaml")))
        raise PlanError(f"No plan {name!r}; give a YAML file or one of: {shipped}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PlanError(f"{path} is not YAML: {error}") from error
    values = values if isinstance(values, dict) else {}
    if "extends" not in values:
        return values
    base = _read_plan(str(values.pop("extends")), (*extended, name))
    rows = values.get("rows")
    if isinstance(rows, list):
        if unknown := [row for row in rows if row not in base.get("rows", {})]:
            raise PlanError(f"{path} chooses rows that there are not: {unknown}; there are {list(base['rows'])}.")
        values["rows"] = {}
        base["rows"] = {row: base["rows"][row] for row in rows}
    return _merged(base, values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge; anything else replaces what was there."""
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
