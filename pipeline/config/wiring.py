"""Whether the components of a configuration fit together: the rules about pipelines, each broken one as a located problem.

A disabled component is not counted as the buffer or the decoder of a pipeline. Every other rule is about what is written, so
that enabling a component or a whole pipeline does not bring new problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.component import Buffer, Component, Decoder, Processor, Receiver
from pipeline.config.pipelines import Reference, Written
from pipeline.config.problems import Problems
from pipeline.data import Signal
from pipeline.registry import Registry


def check_pipelines(pipelines: Sequence[Written], registry: Registry, problems: Problems) -> None:
    """Every rule about one pipeline, and those about several."""
    for pipeline in pipelines:
        _check_repeats(pipeline, problems)
        _check_signals(pipeline, problems)
        if pipeline.shaped:
            _check_buffer(pipeline, registry, problems)
            _check_decoder(pipeline, registry, problems)
    _check_receivers_shared(pipelines, problems)
    _check_connectors(pipelines, problems)
    _check_cycles(pipelines, problems)


def _check_repeats(pipeline: Written, problems: Problems) -> None:
    for references in (pipeline.receivers, pipeline.processors, pipeline.exporters):
        seen: set[str] = set()
        for reference in references:
            if reference.id in seen:
                message = (
                    f"names {reference.id!r} twice (a second instance needs an id of its own: {reference.id}/name)"
                )
                problems.add(reference.mark, reference.steps, message)
            seen.add(reference.id)


def _check_signals(pipeline: Written, problems: Problems) -> None:
    for reference in pipeline.references:
        declaration = reference.found and reference.found.declaration
        if not declaration or pipeline.signal is None:
            continue
        gives = reference in pipeline.receivers
        signals = declaration.gives if gives else declaration.takes
        if pipeline.signal not in signals:
            verb = "give" if gives else "take"
            message = (
                f"{declaration.kind} {reference.id!r} does not {verb} {pipeline.signal} (it {verb}s {_listed(signals)})"
            )
            problems.add(reference.mark, reference.steps, message)


def _check_buffer(pipeline: Written, registry: Registry, problems: Problems) -> None:
    buffers = _types(registry, Buffer)
    processors = [reference for reference in pipeline.processors if reference.enabled]
    for reference in processors[:-1]:
        if _is(reference, Buffer):
            problems.add(reference.mark, reference.steps, f"{reference.id!r} must be the last processor")
    if not processors or not (_is(processors[-1], Buffer) or _component(processors[-1]) is None):
        if any(_is(reference, Buffer) for reference in processors):
            return
        mark = processors[-1].mark if processors else pipeline.mark
        message = f"must end with an enabled buffer, which keeps the data until it is exported (known: {buffers})"
        problems.add(mark, (*pipeline.steps, "processors"), message)


def _check_decoder(pipeline: Written, registry: Registry, problems: Problems) -> None:
    giver = next((one for one in pipeline.receivers if one.enabled and _gives_documents(one, pipeline.signal)), None)
    processors = [reference for reference in pipeline.processors if reference.enabled]
    unknown = any(_component(reference) is None for reference in processors)
    decoder = next((index for index, one in enumerate(processors) if _is(one, Decoder)), None)
    if giver is None or (decoder is None and unknown):
        return
    if decoder is None:
        message = (
            f"must hold a decoder, since receiver {giver.id!r} gives documents (known: {_types(registry, Decoder)})"
        )
        problems.add(pipeline.mark, (*pipeline.steps, "processors"), message)
        return
    for reference in processors[:decoder]:
        component = _component(reference)
        if component and getattr(component, "process", None) is not Processor.process:
            message = (
                f"{reference.id!r} looks at batches (must come behind {processors[decoder].id!r}, which decodes them)"
            )
            problems.add(reference.mark, reference.steps, message)
    for reference in processors[decoder + 1 :]:
        if _is(reference, Decoder):
            message = f"{reference.id!r} decodes what {processors[decoder].id!r} decodes already (must be one decoder)"
            problems.add(reference.mark, reference.steps, message)


def _check_receivers_shared(pipelines: Sequence[Written], problems: Problems) -> None:
    first: dict[str, str] = {}
    for pipeline in pipelines:
        for reference in pipeline.receivers:
            if first.setdefault(reference.id, pipeline.id) == pipeline.id:
                continue
            kind = "connector" if reference.is_connector else "receiver"
            message = (
                f"{kind} {reference.id!r} already feeds the pipeline {first[reference.id]!r} "
                f"(a {kind} feeds one pipeline; fan out with exporters and connectors)"
            )
            problems.add(reference.mark, reference.steps, message)


def _check_connectors(pipelines: Sequence[Written], problems: Problems) -> None:
    inputs = Counter(one.id for pipeline in pipelines for one in pipeline.exporters if one.is_connector)
    outputs = Counter(one.id for pipeline in pipelines for one in pipeline.receivers if one.is_connector)
    for reference in _connectors(pipelines):
        if reference.id not in outputs:
            message = f"connector {reference.id!r} leads nowhere (must also be among the receivers of a pipeline)"
            problems.add(reference.mark, reference.steps, message)
        elif reference.id not in inputs:
            message = f"connector {reference.id!r} is fed by nothing (must also be among the exporters of a pipeline)"
            problems.add(reference.mark, reference.steps, message)


def _connectors(pipelines: Sequence[Written]) -> Iterator[Reference]:
    return (one for pipeline in pipelines for one in pipeline.references if one.is_connector)


def _check_cycles(pipelines: Sequence[Written], problems: Problems) -> None:
    """Depth first; each cycle is named once, from the pipeline at which it was entered."""
    done: set[str] = set()

    def visit(pipeline: Written, way: list[str], seen: list[str]) -> None:
        if pipeline.id in seen:
            cycle = way[2 * seen.index(pipeline.id) :]
            message = f"data would go round in a circle: {' -> '.join([*cycle, pipeline.id])}"
            problems.add(pipeline.mark, pipeline.steps, message)
            return
        if pipeline.id in done:
            return
        for other in pipelines:
            for connector in pipeline.feeds(other):
                visit(other, [*way, pipeline.id, connector], [*seen, pipeline.id])
        done.add(pipeline.id)

    for pipeline in pipelines:
        visit(pipeline, [], [])


def _component(reference: Reference) -> type[Component[Any]] | None:
    if reference.found is None or reference.found.declaration is None:
        return None
    return reference.found.declaration.component


def _is(reference: Reference, base: type[Component[Any]]) -> bool:
    component = _component(reference)
    return component is not None and issubclass(component, base)


def _gives_documents(reference: Reference, signal: Signal | None) -> bool:
    declaration = reference.found and reference.found.declaration
    if not declaration or signal not in declaration.gives:
        return False
    return issubclass(declaration.component, Receiver) and declaration.component.gives_documents


def _types(registry: Registry, base: type[Component[Any]]) -> str:
    names = sorted(one.type for one in registry.declarations.values() if issubclass(one.component, base))
    return ", ".join(names) or "none"


def _listed(signals: frozenset[Signal]) -> str:
    return ", ".join(sorted(signals)) or "nothing"
