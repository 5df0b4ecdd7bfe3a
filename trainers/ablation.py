"""Trains and measures the rows of an ablation at equal data, steps and seeds, and writes the table.

python -m e2e_tts.trainers.ablation --plan small --output runs/ablation --dry-run
python -m e2e_tts.trainers.ablation --plan small --output runs/ablation --judge whisper-base-offline \\
    --speaker_judge resemblyzer --set measure:takes=3

A row is a system that differs from the full one in one thing; a cell is a row trained with one seed. Cells share what
they have in common: stage 1 of the same recipe and seed is trained once. Give the same command again and it goes on:
training from its last checkpoint, finished runs and cells are passed over. A changed recipe entry makes another run,
so that nothing old is taken for new; the files of the old one stay. One ablation at a time may work in a folder.

--set replaces recipe entries of all stages (data.folders=[...]), of one (joint:arguments.max_steps=500), or says what
is measured (measure:limit=40); measure:takes=3 speaks every sentence with three sampling seeds. --rows and --seeds do a
part in this sitting; the table always has all that is finished. More takes and other judges are added to finished
cells.

Output: runs/ (one folder a training), cells/ (figures of every sentence), table.md and table.json.
"""

import argparse
import importlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from transformers import AutoModel, set_seed

import e2e_tts.modeling  # noqa: F401 - makes the models known to AutoModel

from .ablation_plan import AblationPlan, Cell, PlanError, Run, digest, load_plan
from .command_line import CommandParser
from .recipe_parts import RecipeError

Command = Callable[[str, list[str]], None]
"""Runs a module's command line with arguments; raises CommandError if it fails."""

EVALUATION = "e2e_tts.pipelines.evaluation"
NO_JUDGE = "none"
SPEECH, RECONSTRUCTION = "speech", "reconstruction"
SCORING, SIMILARITY = "scoring", "held_out_similarity"
MEASURES = {SCORING: "{}", SIMILARITY: "{}_similarity"}
"""The columns of the table by the command that fills them, of each condition."""
TAKE_SEED_STEP = 1_000_000  # more than there are sentences, whose numbers are added to the seed


class CommandError(RuntimeError):
    """A training or a measurement that failed."""


def launch(launcher: Sequence[str]) -> Command:
    """Commands as processes of their own, begun with `launcher`, such as ["accelerate", "launch", "-m"]."""

    def command(module: str, arguments: list[str]) -> None:
        code = subprocess.run([*launcher, module, *arguments], check=False).returncode
        if code:
            raise CommandError(f"{module} ended with exit code {code}; its own message stands above")

    return command


def call(module: str, arguments: list[str]) -> None:
    """Commands inside this process, which spares them the imports; a crash of one ends all."""
    try:
        importlib.import_module(module).main(arguments)
    except SystemExit as error:
        if error.code:
            raise CommandError(f"{module}: {error.code}") from error


@dataclass(frozen=True)
class Rendering:
    """A cell's sentences as the judges hear them, a folder of wavs. take: which draw of the sampling."""

    condition: str
    take: int
    wavs: Path


@dataclass
class Ablation:
    """The work of a plan in a folder.

    train, measure: how commands are run. judge: a recogniser by name, or "none"; speaker_judge: likewise.
    """

    plan: AblationPlan
    folder: Path
    train: Command
    measure: Command
    judge: str = NO_JUDGE
    speaker_judge: str = NO_JUDGE
    keep_checkpoints: bool = False

    # ---------------------------------------------------------------- where things are

    def run_folder(self, run: Run) -> Path:
        return self.folder / "runs" / run.name

    def is_trained(self, run: Run) -> bool:
        return (self.run_folder(run) / "done.json").is_file()

    def cell_folder(self, cell: Cell) -> Path:
        """Named after the weights and what is measured of them: other weights or sentences are another cell."""
        parts = [cell.runs[0].key, {name: run.key for name, run in cell.modules.items()}, self.plan.measure.settings()]
        key = digest([*parts, self.plan.measured_data()])
        return self.folder / "cells" / f"{cell.row}-seed{cell.seed}-{key[:10]}"

    def renderings(self, cell: Cell) -> list[Rendering]:
        """What the judges hear of a cell."""
        folder = self.cell_folder(cell)
        # Nothing is sampled of a reconstruction but the decoder's noise: one take says all.
        first = [Rendering(condition, 0, folder / condition) for condition in (SPEECH, RECONSTRUCTION)]
        takes = range(1, self.plan.measure.takes)
        return [*first, *(Rendering(SPEECH, take, folder / f"take-{take}" / SPEECH) for take in takes)]

    def judged_files(self, wavs: Path) -> dict[str, Path]:
        """The files of what the judges say of a folder of wavs, by the command that asks them."""
        names = {SCORING: self.judge, SIMILARITY: f"similarity_{self.speaker_judge}"}
        asked = [*([SCORING] * (self.judge != NO_JUDGE)), *([SIMILARITY] * (self.speaker_judge != NO_JUDGE))]
        return {command: wavs.parent / f"{wavs.name}_{names[command].replace('/', '_')}.json" for command in asked}

    def is_measured(self, cell: Cell) -> bool:
        judged = [file for rendering in self.renderings(cell) for file in self.judged_files(rendering.wavs).values()]
        return all(_is_json(file) for file in [self.cell_folder(cell) / "reward_table.json", *judged])

    # ---------------------------------------------------------------- training

    def train_run(self, run: Run) -> None:
        """Trains a run, from its last checkpoint if there is one. Those it starts from must be trained."""
        folder = self.run_folder(run)
        if self.is_trained(run):
            return
        folder.mkdir(parents=True, exist_ok=True)
        recipe = dict(run.recipe)
        if run.base is not None:
            modules = {name: self._start(run, name, start) for name, start in run.starts.items()}
            recipe |= {"init": self._final(run.base), "init_modules": recipe["init_modules"] | modules}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        started = time.time()
        self.train("e2e_tts.trainers.train", ["--recipe", f"{folder}/recipe.yaml", "--output_dir", str(folder)])
        if not self.keep_checkpoints:
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        done = {"steps": run.steps, "seconds_of_last_sitting": round(time.time() - started)}
        (folder / "done.json").write_text(json.dumps(done) + "\n", encoding="utf-8")

    def _final(self, run: Run) -> str:
        return str(self.run_folder(run) / "final")

    def _start(self, run: Run, module: str, start: Run) -> str:
        source = f"{self._final(start)}/{module}"
        if module not in run.rebuild:
            return source
        target = str(self.run_folder(run) / "start" / module)
        set_seed(run.recipe["arguments"]["seed"])
        rebuilt = AutoModel.from_pretrained(source, ignore_mismatched_sizes=True, **run.rebuild[module])
        rebuilt.save_pretrained(target)
        return target

    # ---------------------------------------------------------------- measuring

    def measure_cell(self, cell: Cell) -> None:
        """Measures what is missing of a cell whose runs are trained."""
        folder, plan = self.cell_folder(cell), self.plan.measure
        rows = ["--data", *self.plan.measured_data(), "--split", plan.split]
        rows += ["--sources", *plan.sources] if plan.sources else []
        rows += ["--limit", str(plan.limit)] if plan.limit is not None else []
        model = ["--model", self._final(cell.runs[0]), "--steps", str(plan.steps), "--guidance", str(plan.guidance)]
        for name, run in cell.modules.items():
            model += ["--module", f"{name}={self._final(run)}/{name}"]
        if not _is_json(folder / "reward_table.json"):
            self.measure(f"{EVALUATION}.reward_table", [*model, *rows, "--output", str(folder)])
        missing = {
            rendering: {name: file for name, file in self.judged_files(rendering.wavs).items() if not _is_json(file)}
            for rendering in self.renderings(cell)
        }
        sampling = [f"--{name}={getattr(plan, name)}" for name in ("temperature", "top_k", "top_p")]
        for take in range(plan.takes):
            waiting = [rendering for rendering, files in missing.items() if rendering.take == take and files]
            if waiting:
                place = ["--seed", str(take * TAKE_SEED_STEP), "--output", str(waiting[0].wavs.parent)]
                conditions = ["--conditions", *(rendering.condition for rendering in waiting)]
                self.measure(f"{EVALUATION}.held_out_speech", [*model, *rows, *sampling, *place, *conditions])
        for rendering, files in missing.items():
            question = {
                SCORING: ["--texts", str(rendering.wavs.parent / "texts.tsv"), "--judge", self.judge],
                SIMILARITY: [*rows, "--judge", self.speaker_judge, "--references", str(self.folder / "references")],
            }
            for command, file in files.items():
                audio = ["--audio", str(rendering.wavs), "--output", str(file)]
                self.measure(f"{EVALUATION}.{command}", [*audio, *question[command]])

    def write_table(self) -> bool:
        """Writes table.json and table.md of all finished cells of the plan; False if there is none."""
        cells = [cell for cell in self.plan.cells() if self.is_measured(cell)]
        if not cells:
            return False
        listed = [
            {
                "row": cell.row,
                "seed": cell.seed,
                "updates": cell.updates(),
                "reward_table": str(self.cell_folder(cell) / "reward_table.json"),
                "judged": [
                    {"measure": MEASURES[command].format(rendering.condition), "file": str(file)}
                    for rendering in self.renderings(cell)
                    for command, file in self.judged_files(rendering.wavs).items()
                ],
            }
            for cell in cells
        ]
        rows = {name: row.label for name, row in self.plan.rows.items()}
        values = {"reference": self.plan.reference, "seeds": self.plan.seeds, "rows": rows, "cells": listed}
        file = self.folder / "cells.json"
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        self.measure(f"{EVALUATION}.ablation_table", ["--cells", str(file), "--output", str(self.folder)])
        return True

    # ---------------------------------------------------------------- all of it

    def work(self, cells: Sequence[Cell]) -> list[str]:
        """Trains and measures cells, then writes the table. Returns what failed; it does not keep other cells back."""
        failed: dict[str, str] = {}
        for number, cell in enumerate(cells, 1):
            title = f"cell {number} of {len(cells)}: {cell.row}, seed {cell.seed}"
            if self.is_measured(cell):
                print(f"{title}: done before", flush=True)
                continue
            print(title, flush=True)
            try:
                for run in cell.runs:
                    if run.name in failed:
                        raise CommandError(f"{run.name} failed before")
                    if not self.is_trained(run):
                        print(f"  training {run.name}: {run.steps} steps", flush=True)
                    try:
                        self.train_run(run)
                    except CommandError as error:
                        failed[run.name] = str(error)
                        raise
                print("  measuring", flush=True)
                self.measure_cell(cell)
            except CommandError as error:
                failed[f"{cell.row}, seed {cell.seed}"] = str(error)
                print(f"  FAILED: {error}", flush=True)
        self.write_table()
        return [f"{name}: {reason}" for name, reason in failed.items()]

    def describe(self, cells: Sequence[Cell]) -> str:
        """What there is to do, for --dry-run."""
        lines, shown, waiting = [], set(), 0
        for cell in cells:
            state = "done" if self.is_measured(cell) else "to do"
            updates = ", ".join(f"{name} {steps}" for name, steps in cell.updates().items())
            lines.append(f"{cell.row}, seed {cell.seed}: {state}; steps learnt: {updates}")
            for run in cell.runs:
                steps = [int(path.name.rpartition("-")[2]) for path in self.run_folder(run).glob("checkpoint-*")]
                if run.name in shown:
                    state = "shared"
                elif self.is_trained(run):
                    state = "done"
                else:
                    reached = max(steps, default=0)
                    waiting += run.steps - reached
                    state = f"to do, at step {reached}" if reached else "to do"
                shown.add(run.name)
                lines.append(f"    {run.name}: {run.steps} steps, {state}")
        lines.append(f"{len(shown)} runs, {waiting} steps to train; judges: {self.judge}, {self.speaker_judge}")
        return "\n".join(lines)


def _is_json(path: Path) -> bool:
    """Whether a file is there and whole: one that was being written at a kill is not."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.trainers.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--plan", required=True, help="a YAML file, or the name of a shipped plan: small")
    parser.add_argument("--output", type=Path, required=True, help="folder of the ablation")
    parser.add_argument("--rows", nargs="+", default=[], help="by default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="by default all")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="[STAGE:]KEY=VALUE", help="see above")
    parser.add_argument(
        "--judge", default=NO_JUDGE, help="recogniser for error rates, such as whisper-base-offline; by default none"
    )
    parser.add_argument(
        "--speaker_judge", default=NO_JUDGE, help="for speaker similarity, such as resemblyzer; by default none"
    )
    parser.add_argument(
        "--launcher",
        default=f"{shlex.quote(sys.executable)} -m",
        help='what trainings are started with, e.g. "accelerate launch -m"; "none" keeps everything in this process, '
        "which saves the start-up of many short runs",
    )
    parser.add_argument("--keep_checkpoints", action="store_true", help="also of finished runs")
    parser.add_argument("--dry-run", action="store_true", help="list cells, steps and what is done, and stop")
    options = parser.parse_args(arguments)
    try:
        plan = load_plan(options.plan, options.set)
        cells = plan.cells(options.rows, options.seeds)
        in_process = options.launcher == "none"
        train = call if in_process else launch(shlex.split(options.launcher))
        measure = call if in_process else launch([sys.executable, "-m"])
        judges = {"judge": options.judge, "speaker_judge": options.speaker_judge}
        ablation = Ablation(plan, options.output, train, measure, **judges, keep_checkpoints=options.keep_checkpoints)
        if options.dry_run:
            print(ablation.describe(cells))
            return
    except (PlanError, RecipeError) as error:
        sys.exit(f"{options.plan}: {error}")
    try:
        failed = ablation.work(cells)
    except CommandError as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit("\n".join(["Failed:", *failed, "Give the same command again to retry."]))


if __name__ == "__main__":
    main()
