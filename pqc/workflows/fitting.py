"""`pqc fit`, and the phase `fit` of a schedule: search bit widths and masks, and go on with what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pqc import files, graph, metrics, pipeline, schedule
from pqc.errors import Interrupted, SearchError, UsageError
from pqc.fit import fragment, network
from pqc.fit.fisher import Estimator
from pqc.fit.goal import MEASURES
from pqc.fit.journal import Journal
from pqc.fit.nodes import PRUNE, Neighbourhood, Node
from pqc.fit.search import Outcome, search
from pqc.fit.settings import Fit
from pqc.fit.space import FLOAT, Space
from pqc.schedule import Schedule
from pqc.schedule_sections import Phases, Pruning, Target
from pqc.workflows.compression import compress, floating_pipeline
from pqc.workflows.job import Job, Listener, RunOptions
from pqc.workflows.sources import Source


def fit(
    source: Source,
    plan: Schedule,
    data_path: Path | None,
    out: Path,
    options: RunOptions = RunOptions(),
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Search, and write the schedule `out`, its masks beside it, and `<stem>.json` with the way there.

    Args:
        source: the network; where the schedule pretrains, what came of it is written to `<stem>.onnx`.
        plan: must have `phases.fit`.
        data_path: rows to measure gradients on.
        out: the YAML file; the journal lies in the folder `<stem>.search` beside it.
        options: `resume`, `device` and `threads` count.
        listener: told how it goes.

    Raises:
        SearchError: nothing meets the goal.
        UsageError: the schedule has no search.
    """
    if plan.phases.fit is None:
        raise UsageError("there is no goal", hint="give --goal rate=0.1, or a schedule with phases.fit")
    folder = out.with_name(f"{out.stem}.search")
    job = Job.start(source, plan, data_path, folder, replace(options, hls=False), listener)
    found = prepare(job, out)
    assert found is not None
    if plan.phases.pretraining.epochs:
        graph.save(job.model, out.with_suffix(".onnx"))
    return found


def prepare(job: Job, out: Path | None = None) -> dict[str, Any] | None:
    """Let a run go on with what a search finds, where its schedule has one: `job` gets another model and plan.

    Args:
        job: what was read.
        out: the schedule to write; `fit.yaml` in the run's folder by default.

    Returns:
        what was found, or None without a search.
    """
    settings = job.plan.phases.fit
    if settings is None:
        return None
    files.write_text(job.folder / "schedule.yaml", job.plan.text())  # listeners read it when the first stage begins
    if job.plan.phases.pretraining.epochs:
        with job.clock.part("pretrain", job.listener):
            job.model = _pretrained(job)
    with job.clock.part("fit", job.listener):
        found = _Search(job, settings).run(out or job.folder / "fit.yaml")
    job.plan = schedule.load(found["schedule"]).changed(name=job.plan.name)
    return found


def _pretrained(job: Job) -> ir.Model:
    """The float network after pretraining, which has a folder and a checkpoint of its own."""
    options = replace(job.options, hls=False)
    pretraining = job.plan.phases.pretraining
    if pretraining.rates is not None:
        pretraining = pretraining.model_copy(update={"rates": _of_parameters(pretraining.rates)})
    plan = _unpruned(job.plan, Phases(pretraining=pretraining)).changed(quantization=None)
    folder = job.folder / "pretraining"
    return Job(job.source, plan, job.data, job.model, folder, options, job.listener, [], job.teacher).train()


def _unpruned(plan: Schedule, phases: Phases) -> Schedule:
    """The plan without a pruning method, and without what goes with one."""
    rates = {name: _of_parameters(getattr(plan.training, name)) for name in ("rates", "decays")}
    training = plan.training.model_copy(update=rates)
    return plan.changed(pruning=Pruning(), target=Target(), training=training, controls={}, phases=phases)


def _of_parameters(by_role: Mapping[str, Any]) -> dict[str, Any]:
    """Rates or decays of weights and biases, without those of states and bits."""
    return {role: rate for role, rate in by_role.items() if role in ("weight", "bias")}


class _Search:
    """One search: the weights of a network, and what they may become."""

    def __init__(self, job: Job, settings: Fit) -> None:
        self.job, self.settings = job, settings
        plan = job.plan
        self.plan = _unpruned(plan, Phases())
        self.kinds: network.Kinds = {}
        if plan.quantization is not None:
            self.kinds = network.calibrated(
                self._compressed(self.plan).graph, plan.quantization, settings.min_frac_bits
            )
        self.compressible = self._compressed(self._with(self.kinds))
        costs = metrics.Probe(self.compressible).costs({})
        self.space: Space = network.space(self.compressible.graph, plan, settings, costs)

    def _with(self, kinds: network.Kinds) -> Schedule:
        """The plan without masks whose layers have these types."""
        quantization = self.plan.quantization
        if quantization is None:
            return self.plan
        layers = {**quantization.layers}
        for pattern, found in kinds.items():
            layers[pattern] = {**layers.pop(pattern, {}), **found}
        changed = quantization.model_copy(update={"layers": layers, "calibrate_layers": False})
        return self.plan.changed(quantization=changed)

    def _compressed(self, plan: Schedule) -> ir.Model:
        return compress(self.job.model, plan, self.job.data.train, self.job.folder, verify_each=False)[0]

    @cached_property
    def estimator(self) -> Estimator:
        """Measures the float network."""
        model = graph.copy(self.job.model)
        pipeline.run(model, floating_pipeline(self.plan))
        names = [weight.name for weight in self.space.weights]
        settings, split = self.settings.fisher, self.job.data.train
        return Estimator(model, names, self.plan, split, settings, threads=self.job.options.threads)

    def run(self, out: Path) -> dict[str, Any]:
        """Search and write what was found.

        Raises:
            SearchError: nothing meets the goal.
            Interrupted: Ctrl-C; every finished expansion is in the journal.
        """
        neighbourhood = Neighbourhood(self.space, self.settings.goal, self.estimator, self.settings)
        start = neighbourhood.start()
        fingerprint = hashlib.sha256(f"fit {self.job.fingerprint()}".encode()).hexdigest()
        folder, resume = self.job.folder / "expansions", self.job.options.resume
        journal = Journal(neighbourhood, folder, fingerprint, resume=resume, listener=self._listener(start))
        try:
            outcome = search(start, journal.expand, self.settings.goal, self.settings)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped after {journal.expanded} expansions",
                at=str(folder),
                hint="the same command with --resume goes on from there",
            ) from None
        if outcome.node is None:
            raise self._failure(outcome)
        return self._write(out, outcome, outcome.node, neighbourhood.shares)

    def _listener(self, start: Node) -> Callable[[int, Node], None] | None:
        listener, goal = self.job.listener, self.settings.goal
        if listener is None:
            return None

        def told(done: int, node: Node) -> None:
            way = max(start.value - goal.bound, 1e-30)
            listener.expansion(f"{goal.measure} {node.value:.5g}", done, min((start.value - node.value) / way, 1.0))

        return told

    def _failure(self, outcome: Outcome) -> SearchError:
        goal, nearest = self.settings.goal, outcome.nearest
        reason = (
            "all that may change was changed" if outcome.exhausted else f"{outcome.expansions} expansions were made"
        )
        hint = "raise the goal, or allow more in phases.fit: fewer widths, prune, sparsities; or exclude fewer layers"
        if not outcome.exhausted:
            hint = "raise the goal, or allow more phases.fit.expansions"
        return SearchError(
            f"nothing meets {goal}: the nearest is {goal.measure}={nearest.value:.5g}; {reason}",
            at="phases.fit.goal",
            hint=hint,
        )

    def _write(self, out: Path, outcome: Outcome, node: Node, shares: list[float]) -> dict[str, Any]:
        plan, goal = self.job.plan, self.settings.goal
        kinds = {pattern: dict(found) for pattern, found in self.kinds.items()}
        if plan.quantization is not None:
            for pattern, kind in network.chosen(self.compressible.graph, plan.quantization, self.space, node.levels):
                kinds[pattern] = {"weight": kind, **kinds.get(pattern, {})}
        line = (
            f"pqc fit {self.job.source.name}, {goal}: {goal.measure} {node.value:.5g}, {outcome.expansions} expansions"
        )
        keep = self.settings.keep_masks
        masks = fragment.write(
            out,
            plan,
            line,
            kinds,
            self.space.by_weight(node.mask) if keep else {},
            None if keep else self._pruned_share(node),
        )
        found = {
            "schedule": str(out),
            "masks": None if masks is None else str(masks),
            "goal": {goal.measure: goal.bound},
            **self._measured(node),
            "search": self.settings.search,
            "expansions": outcome.expansions,
            "exhausted": outcome.exhausted,
            "length": node.length,
            "path": [self._step(one, shares) for one in node.path()],
            "layers": self._layers(node),
        }
        if self.settings.fisher.activations:
            found["activations"] = self.estimator.measure(self.space.numbers).activations
        files.write_text(out.with_suffix(".json"), json.dumps(found, indent=1))
        return found

    def _measured(self, node: Node) -> dict[str, float]:
        counts = self.space.counts(node.levels, self.space.values(node.levels, node.mask))
        return {name: measure(counts) for name, measure in MEASURES.items()}

    def _pruned_share(self, node: Node) -> float:
        """How much of what may be pruned is zero, rounded away or masked."""
        values = self.space.values(node.levels, node.mask)[self.space.prunable]
        return 1 - float(np.mean(values != 0))

    def _layers(self, node: Node) -> list[dict[str, Any]]:
        values = self.space.by_weight(self.space.values(node.levels, node.mask))
        return [
            {
                "layer": weight.layer,
                "bits": weight.bits(level),
                "type": None if level == FLOAT else str(weight.types[level]),
                "weights": weight.numbers.size,
                "nonzero": int((values[weight.name] != 0).sum()),
            }
            for weight, level in zip(self.space.weights, node.levels, strict=True)
        ]

    def _step(self, node: Node, shares: list[float]) -> Mapping[str, Any]:
        """A node of the path for JSON."""
        weights = self.space.weights
        what = None if node.step is None else "prune" if node.step == PRUNE else weights[node.step].layer
        bits = {weight.layer: weight.bits(level) for weight, level in zip(weights, node.levels, strict=True)}
        return {"step": what, "value": node.value, "length": node.length, "pruned": shares[node.share], "bits": bits}
