"""What the training stages share: optimizer fields, building an engine, running the loop, writing the model.

Every rank runs this; rank 0 writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tasks.context import Context, Execution
from tasks.methods import of
from tasks.stage import Facts, ModelStage
from tasks.train.objective import Objective
from tasks.train.regime import Regime, Setting

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tasks.formats.mask import Masks
    from tasks.models.accounting import Shape
    from tasks.models.facts import Parties
    from tasks.models.files.trained import Origin
    from tasks.train.birth import Weights
    from tasks.train.cost import Machine, Running
    from tasks.train.engine import Engine
    from tasks.train.hook import Hook
    from tasks.train.loop import Totals
    from tasks.train.watch import Watch


class TrainStage(ModelStage):
    """Fields of a training run. ``batch`` is the global batch in sequences of ``length`` tokens, whatever the ranks."""

    distributed: ClassVar[bool] = True

    method: Regime
    objective: Annotated[Objective | None, of("objectives", optional=True)] = None
    """What is minimised; what the regime minimises unless given."""
    tokens: int = Field(gt=0)
    """Training budget in tokens of the dense model; a sparse regime may turn what it saves into more tokens."""
    length: int = Field(256, ge=2)
    """Tokens per training sequence."""
    batch: int = Field(32, gt=0)
    """Sequences per optimizer step, over all ranks."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    warmup: float = Field(0.02, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly to its peak; a cosine follows."""
    final_learning_rate: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    gradient_clipping: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient; a longer one is scaled down to it."""

    def check_written(self) -> None:
        self.method.check_written()
        said = [name for name in self.method.objective_fields if name in self.method.model_fields_set]
        if self.objective and said:
            raise ValueError(
                f"objective {self.objective.name} and {self.method.name}.{said[0]} both say what is minimised; "
                "leave one of them out"
            )

    @property
    def minimised(self) -> Objective:
        return self.objective or self.method.objective()

    def needs_teacher(self) -> bool:
        return self.minimised.needs_teacher()

    @property
    def dense_steps(self) -> int:
        return max(1, self.tokens // (self.batch * self.length))

    @property
    def steps(self) -> int:
        return self.method.total_steps(self.dense_steps)

    @property
    def keeps_masks(self) -> bool:
        return self.method.keeps_masks

    def reads(self) -> dict[str, int]:
        return {"train": self.length}

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.method.needs_sequence and facts.tasks < 2:
            raise ValueError(
                f"{self.method.name} learns a sequence of corpora, and corpus is one; write corpus: "
                "{sequence: {NAME: CORPUS, ...}}"
            )
        pattern: str | None = None
        for stage in reversed(facts.upstream):
            pattern = stage.leaves(pattern)
        if pattern:
            self.method.check_masks(pattern)

    def leaves(self, pattern: str | None) -> str | None:
        masks = self.method.masks
        return pattern if masks == "held" else None if masks in ("dropped", "open") else self.method.promise()

    def doubts(self, facts: Facts) -> list[str]:
        told = f"tokens {self.tokens:,} are less than one step of {self.batch} sequences of {self.length}, which it takes"
        return [told] if self.tokens < self.batch * self.length else []

    def check_width(self, width: int) -> None:
        self.method.check_width(width)

    def check_parties(self, parties: Parties) -> None:
        super().check_parties(parties)
        if self.needs_teacher() and parties.model and parties.teacher:
            self.minimised.check_models(parties.model, parties.teacher)
        if parties.model:
            self.method.check_linears(parties.model.linears.values(), parties.model.density)
        for name, linear in parties.model.linears.items() if parties.model else ():
            try:
                if self.method.treats(linear):
                    self.method.check_linear(linear)
            except ValueError as error:
                raise ValueError(f"{error} ({name})") from None

    def step_on(self, execution: Execution, teacher: Shape | None) -> Running:
        """How a step of it runs, what ``auto`` means apart."""
        from tasks.train.cost import Running

        return Running.of(execution, self.length, self.batch, self.method.name != "dense", teacher)

    def forecast(self, shape: Shape, machine: Machine | None = None) -> dict[str, float]:
        seen = self.steps * self.batch * self.length
        flops = shape.training_flops(seen, self.length, self.method.expected_density(self.dense_steps))
        found = machine.expected(shape, self.step_on(machine.execution, machine.teacher), seen) if machine else {}
        return {"tokens": seen, "flops": flops, **found}

    def origin(self, context: Context) -> Path | None:
        """The directory of the model that is trained; None where it begins at random."""
        return self.incoming(context)

    def initial(self, context: Context, origin: Path | None) -> tuple[PreTrainedModel, Masks, Weights | None]:
        """The model before training, in float32 on the CPU, and the masks it came with; hollow and beside it the weights
        where the engine keeps each rank's pieces alone."""
        raise NotImplementedError

    def watchers(self, context: Context) -> list[Hook]:
        """What looks on while the regime trains."""
        return []

    def shape(self, context: Context, model: PreTrainedModel, setting: Setting) -> None:
        """What changes forward passes inside of what the regime changes."""

    def run(self, context: Context) -> dict[str, float]:
        from tasks.models.accounting import shape_of
        from tasks.models.build.building import operate
        from tasks.models.files.checkpoint import skeleton
        from tasks.models.files.trained import Origin
        from tasks.models.find.linears import find_linears
        from tasks.train.apart import may_share_rows
        from tasks.train.bill import bill
        from tasks.train.cost import check_share, micro_batch
        from tasks.train.ready import decided, ready, watch_over

        execution = context.execution
        check_share(self.batch, execution)
        directory = self.origin(context)
        model, masks, weights = self.initial(context, directory)
        for mask in masks.values():
            self.method.check_masks(mask.pattern)
        apart = may_share_rows(model, context.inputs["data"])
        if surgery := self.method.surgery():
            operate(model, surgery)
        origin = None if execution.rank else Origin.of(model, directory, context.scratch)
        shape = shape_of(model)
        taught = self.teacher_directory(context)
        how = decided(context, shape, self.step_on(execution, shape_of(skeleton(taught)) if taught else None))
        ready(model, execution, how.recompute, self.minimised.asks())
        setting = Setting(find_linears(model), masks, self.dense_steps, self.steps, self.seed, context.inputs["data"])
        names = [name for name, _ in model.named_parameters()]
        self.shape(context, model, setting)
        self.method.setup(model, setting)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        hooks = [*self.method.hooks(setting), *self.watchers(context)]
        assert context.make_engine is not None, "a training stage is given an engine"
        micro_batches = self.batch // execution.ranks // micro_batch(self.batch, execution)
        with watch_over(context, shape, how, setting.steps) as watch:
            optimizer = self.method.optimizer(model, self.betas, self.weight_decay)
            engine = context.make_engine(model, optimizer, self.gradient_clipping, micro_batches, weights)
            totals = self._fit(context, engine, hooks, setting, apart, watch)
        self.method.finish(engine, setting)
        self._write(context, engine, hooks, names, origin)
        return bill(shape, trainable, self.batch * self.length, self.length, totals, hooks, self.needs_teacher())

    def _fit(self, context: Context, engine: Engine, hooks: list[Hook], setting: Setting, apart: bool, watch: Watch) -> Totals:
        from tasks.train.apart import sampler
        from tasks.train.compiled import Compilation
        from tasks.train.cost import micro_batch
        from tasks.train.loop import Checkpoints, Telemetry, fit
        from tasks.train.ready import load_teacher
        from tasks.train.schedule import LearningRate

        execution, step_tokens = context.execution, self.batch * self.length
        compiles = execution.compile and "attentions" not in self.minimised.asks()
        telemetry = Telemetry(
            log=context.log,
            progress=lambda done, total, note: context.progress(done * step_tokens, total * step_tokens, "tokens", note),
            beat=watch.step,
            note=context.note,
            every=max(1, setting.steps // 200),
            compilation=Compilation(context.note) if compiles else None,
        )
        taught = self.teacher_directory(context)
        teacher = load_teacher(taught, execution, self.minimised.asks()) if taught else None
        objective = self.minimised.bind(teacher, execution.logits_bytes, execution.compile)
        drawn = sampler(context.inputs, self.length, self.batch, self.seed, apart, teacher, context.note)
        for hook in hooks:
            drawn, objective = hook.sampler(drawn), hook.objective(objective)
        return fit(
            engine,
            drawn,
            objective,
            hooks,
            setting.steps,
            LearningRate(self.learning_rate, setting.steps, self.warmup, self.final_learning_rate),
            seed=self.seed,
            micro_batch=micro_batch(self.batch, execution),
            checkpoints=Checkpoints(context.checkpoints, execution.checkpoint_every_seconds, execution.attempt),
            telemetry=telemetry,
        )

    def _write(self, context: Context, engine: Engine, hooks: list[Hook], names: list[str], origin: Origin | None) -> None:
        """The weights of the model itself gathered tensor by tensor on the rank that has the ``origin``, which writes."""
        from tasks.data.tokenizer import same_tokens, take_template
        from tasks.train.masking import Masking

        masks = {name: mask for hook in hooks if isinstance(hook, Masking) for name, mask in hook.masks.items()}
        weights = ((name, engine.read(name)) for name in names)
        if not origin:
            for _ in weights:  # reading is a collective
                pass
            return
        tokenizer = context.inputs["data"] / "tokenizer"
        own = origin.directory and same_tokens(origin.directory, tokenizer)
        origin.write(weights, engine.module, masks, None if own else tokenizer, context.output)
        take_template(context.inputs["data"], context.output)
