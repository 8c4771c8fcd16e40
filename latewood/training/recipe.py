"""Recipes: what to train and how, as TOML that is checked whole before anything starts."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from latewood.errors import RequestError, invalid, nearest
from latewood.recipes import FOLDER, recipe_path
from latewood.training import components
from latewood.training.components import Kind, importable
from latewood.training.setting_paths import apply_setting
from latewood.training.toml import to_toml

__all__ = [
    "Recipe",
    "Section",
    "check_sections",
    "environment",
    "load_recipe",
    "parse_recipe",
    "read_recipe",
    "resumption",
]

ENVIRONMENT = "environment"
"""The table that records where a run was made; it is written, and ignored on reading."""

Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]


def _section(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Section = Annotated[
    dict[str, Any], BeforeValidator(_section), Field(description="a name, or a table with one")
]
"""A component: its name alone, or a table of its name and arguments."""

Count = Annotated[int, Field(gt=0, lt=2**63)]


def _batch_size(value: Any) -> Any:
    """Refuses a batch size in one message, where pydantic would write one for each alternative."""

    def count(number: Any) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**63

    pairs = value if isinstance(value, list) and value else [None]
    if not count(value) and not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(count, pair)) for pair in pairs
    ):
        raise invalid(
            "batch_size", value, "an integer greater than 0, or a list of such [epochs, samples]"
        )
    return value


BatchSize = Annotated[int | list[list[int]], BeforeValidator(_batch_size)]
"""Samples a step: one number, or for stretches of epochs [how many epochs, samples]."""


class Recipe(BaseModel):
    """Everything that decides a run.

    Attributes:
        task: what is learned, from which data.
        model: what learns it; the task's own choice if left out.
        optimizer: a name and its arguments.
        schedule: factor on every learning rate by progress; besides its own arguments it takes
            ``per`` ("step" or "epoch"), ``warmup`` (fraction of the run) and ``warmup_start``.
        methods: what changes the training, in the order in which they are built and finalized.
        probes: what looks at it.
        epochs: passes over the training data; exactly one of epochs and steps is given.
        steps: optimizer steps.
        batch_size: samples per step over all processes together; or, where it changes on the way,
            a list of [epochs, samples] that adds up to ``epochs``.
        drop_last: leave out a last batch of an epoch that is not full.
        seed: decides initial weights, data order, augmentation and all other randomness.
        order_seed: decides the data order instead, and nothing else.
        precision: "no" for full, "bf16" or "fp16" for mixed.
        decay_all: weight decay acts on norms and biases too, not only on weights.
        clip_norm: largest norm of the gradient of the model's own parameters.
        log_every: steps between two rows of training metrics.
        evaluate_every: steps between two validations; every epoch if left out.
        score_training: score the training samples too at each validation, without
            augmentation.
        checkpoint_every: steps between two checkpoints; if left out, at ends of epochs, when the
            last one is older than half a minute.
        keep_checkpoints: how many of the last checkpoints stay on disk.
        keep_at: steps after which a checkpoint is written and stays on disk; 0 is the start.
        split_points: the same for the ten steps from which runs are branched, see
            ``latewood.training.checkpoints.split_points``.
        recalibration_batches: training batches that renew batch-norm statistics after finalizing.
        trackers: accelerate's trackers to log to besides the run folder.
        channels_last: keep images in channels-last order.
        compile: compile the model with torch.compile.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: Section
    model: Section | None = None
    optimizer: Section = {"name": "adamw"}
    schedule: Section = {"name": "constant"}
    methods: list[Section] = []
    probes: list[Section] = []
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: BatchSize = 128
    drop_last: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    order_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    decay_all: bool = False
    clip_norm: PositiveFloat | None = None
    log_every: Count = 10
    evaluate_every: Count | None = None
    score_training: bool = False
    checkpoint_every: Count | None = None
    keep_checkpoints: Count = 2
    keep_at: list[Annotated[int, Field(ge=0, lt=2**63)]] = []
    split_points: bool = False
    recalibration_batches: Count = 50
    trackers: list[Tracker] = []
    channels_last: bool = False
    compile: bool = False
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"

    _folders: tuple[Path, ...] = PrivateAttr(default=())
    _trusted: bool = PrivateAttr(default=True)

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        for path, section in _sections(self):
            if not isinstance(section.get("name"), str):
                raise RequestError(f"{path}.name: missing; expected the name of a component")
        if (self.epochs is None) == (self.steps is None):
            given = "neither" if self.epochs is None else "both"
            raise RequestError(f"epochs, steps: got {given}; expected exactly one of them")
        if self.precision == "fp16" and self.device in ("cpu", "mps"):
            raise RequestError(
                f"precision: got 'fp16' with device {self.device!r}; expected 'no' or 'bf16' there"
            )
        self.check_batch_sizes()
        for name in ("methods", "probes"):
            self._no_duplicates(name)
        if len(set(self.trackers)) != len(self.trackers):
            raise RequestError(f"trackers: got {self.trackers}; expected each tracker once")
        return self

    @property
    def batch_size_stretches(self) -> list[list[int]]:
        """The batch sizes, each with the epochs that have it; one for all if it never changes."""
        if isinstance(self.batch_size, int):
            return [[self.epochs or 1, self.batch_size]]
        return self.batch_size

    @property
    def last_batch_size(self) -> int:
        """The batch size at the end, which scoring has too."""
        return self.batch_size_stretches[-1][1]

    def batch_size_of(self, epoch: int) -> int:
        """The batch size of an epoch, from 0."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        for epochs, size in self.batch_size:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.last_batch_size

    def _no_duplicates(self, field: str) -> None:
        sections: list[dict[str, Any]] = getattr(self, field)
        for index, section in enumerate(sections):
            if section in sections[:index]:
                raise RequestError(
                    f"{field}[{index}]: got {section['name']!r} twice with the same arguments; "
                    "expected each once"
                )

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where modules of the user's own are looked for: the recipe's folder, then the current."""
        return (*self._folders, Path.cwd())

    def check_batch_sizes(self) -> None:
        """Checks that batch sizes that change are known for every epoch.

        Raises:
            RequestError: they are not.
        """
        if isinstance(self.batch_size, int):
            return
        listed = sum(epochs for epochs, _ in self.batch_size)
        if listed != self.epochs:
            given = "steps" if self.epochs is None else f"{self.epochs} epochs"
            raise RequestError(
                f"batch_size: got sizes of {listed} epochs for a run of {given}; expected "
                "[epochs, samples] stretches that add up to 'epochs'"
            )

    @property
    def trusted(self) -> bool:
        """Whether modules that the recipe names may be imported: not if a run has recorded it."""
        return self._trusted

    @property
    def names_modules(self) -> bool:
        """Whether it names something that does not ship with the package."""
        return any(
            not components.is_registered(_kind(path), section["name"])
            for path, section in _sections(self)
        )

    @property
    def import_folders(self) -> tuple[Path, ...]:
        """The folders that modules may be imported from: none if no module is named or trusted."""
        return self.folders if self._trusted and self.names_modules else ()

    def to_toml(self, **environment: Any) -> str:
        """The resolved recipe as TOML.

        Args:
            environment: what to record about where and with what the run was made; it goes to a
                table that ``load_recipe`` ignores.
        """
        document = self.model_dump()
        return to_toml(document | {ENVIRONMENT: environment} if environment else document)


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), *, trust: bool = False
) -> Recipe:
    """Reads and checks a recipe.

    A recipe that a run has recorded may be anybody's: unless it is trusted, it may name only what
    ships with the package, and models and optimizers of installed packages by their class.

    Args:
        recipe: a TOML file, or the name of a recipe that ships with the package.
        overrides: "key.path=value" each; list items by number, as in ``methods.0.name`` or
            ``methods[0].name``. The value is read as TOML, and as a string if it is none.
        trust: import and call whatever a run's recipe names, from the folders that it names: only
            for runs whose maker is trusted. Any other recipe is the user's own.

    Raises:
        RequestError: no such file or name, broken TOML, unknown keys, wrong types, impossible
            combinations, modules without trust; it says the key's path, what was given and what is
            allowed.
    """
    loaded = read_recipe(recipe, overrides, trust=trust)
    check_sections(loaded)
    return loaded


def read_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), *, trust: bool = False
) -> Recipe:
    """Reads a recipe as ``load_recipe``, but imports nothing: no section's arguments are checked.

    Args:
        recipe: as for ``load_recipe``.
        overrides: as for ``load_recipe``.
        trust: as for ``load_recipe``.

    Raises:
        RequestError: as ``load_recipe``, but for what a component would refuse.
    """
    path = recipe_path(recipe)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise RequestError(f"{path}: is nested too deep; expected a recipe") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise RequestError(f"{path}: is not valid TOML: {error}") from error
    recorded = document.pop(ENVIRONMENT, None)
    for override in overrides:
        apply_setting(document, override)
    # Beside the shipped recipes lie no modules of a user's own.
    folders = [] if path.parent == FOLDER else [path.resolve().parent]
    if isinstance(recorded, Mapping) and isinstance(recorded.get("folder"), str):
        folders.insert(0, Path(recorded["folder"]))
    read = _validated(document, folders)
    read._trusted = trust or recorded is None
    return read


def parse_recipe(document: Mapping[str, Any], folders: Sequence[Path] = ()) -> Recipe:
    """A recipe from a document already read.

    Args:
        document: what the TOML file holds.
        folders: where modules of the user's own are looked for, before the current folder.

    Raises:
        RequestError: as ``load_recipe``.
    """
    recipe = _validated(document, folders)
    check_sections(recipe)
    return recipe


def _validated(document: Mapping[str, Any], folders: Sequence[Path]) -> Recipe:
    try:
        recipe = Recipe.model_validate(dict(document))
    except ValidationError as error:
        raise RequestError("\n".join(_explain(item) for item in error.errors())) from error
    recipe._folders = tuple(folders)
    return recipe


def check_sections(recipe: Recipe) -> None:
    """Checks every component's arguments against its signature.

    Raises:
        RequestError: the first that does not fit, with its key path, or that names a module
            without trust.
    """
    if not recipe.trusted:
        for path, section in _sections(recipe):
            components.require_known(_kind(path), section["name"], path)
    with importable(*recipe.import_folders):
        for path, section in _sections(recipe):
            kind = _kind(path)
            arguments = section
            if kind == "schedule":
                arguments, options = split_schedule(section)
                _check_schedule_options(options, path)
            components.check(kind, arguments, path, offered=None if kind == "model" else ())


def split_schedule(section: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schedule's own arguments, and those that every schedule takes."""
    common = ("per", "warmup", "warmup_start")
    options = {key: section[key] for key in common if key in section}
    return {key: value for key, value in section.items() if key not in common}, options


def resumption(recipe: Recipe, folder: Path) -> str:
    """The options of ``latewood train`` that go on with a recipe's run in a folder."""
    return f"--resume {folder}" + (" --trust" if recipe.names_modules else "")


def environment(recipe: Recipe, **more: Any) -> dict[str, Any]:
    """What to record beside a recipe: versions, seed, platform and where the recipe lay.

    Args:
        more: further entries (device, processes, threads).
    """
    names = ("latewood", "torch", "accelerate", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "platform": platform.platform(),
        "seed": recipe.seed,
        **({"folder": str(recipe.folders[0])} if len(recipe.folders) > 1 else {}),
        **more,
    }


def _check_schedule_options(options: dict[str, Any], path: str) -> None:
    per = options.get("per", "step")
    if per not in ("step", "epoch"):
        raise RequestError(f"{path}.per: got {per!r}; expected 'step' or 'epoch'")
    for key in ("warmup", "warmup_start"):
        value = options.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise RequestError(f"{path}.{key}: got {value!r}; expected a fraction in [0, 1)")


def _sections(recipe: Recipe) -> list[tuple[str, dict[str, Any]]]:
    single = [(key, getattr(recipe, key)) for key in ("task", "model", "optimizer", "schedule")]
    methods = [(f"methods[{i}]", section) for i, section in enumerate(recipe.methods)]
    probes = [(f"probes[{i}]", section) for i, section in enumerate(recipe.probes)]
    return [(path, section) for path, section in single if section is not None] + methods + probes


def _kind(path: str) -> Kind:
    return cast(Kind, path.split("[")[0].removesuffix("s"))


def _explain(error: Any) -> str:
    """One of pydantic's errors in the form that all of Latewood's have."""
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in Recipe.model_fields or path:
            path += f".{part}" if path else str(part)
        else:
            path = str(part)
    allowed = list(Recipe.model_fields)
    if error["type"] == "extra_forbidden":
        keys = ", ".join(allowed)
        return f"{path}: got {error['input']!r}; expected one of: {keys}{nearest(path, allowed)}"
    if error["type"] == "missing":
        return f"{path}: missing; expected {_expected(path)}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "string_pattern_mismatch":
        return f"{path}: got {error['input']!r}; expected 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"
    message = error["msg"].removeprefix("Input should be ").replace("a valid integer", "an integer")
    message = message.replace("a valid ", "a ").replace("boolean", "true or false")
    message = message.replace("a true", "true").replace("greater than", "a number greater than")
    message = "a name, or a table with a name" if "dictionary" in message else message
    return f"{path}: got {error['input']!r}; expected {message}"


def _expected(path: str) -> str:
    return f"the {path} to train" if path == "model" else "a name, or a table with a name"
