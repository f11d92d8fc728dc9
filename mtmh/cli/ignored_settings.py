"""Refuses ``--set`` of what an earlier stage has decided: the verb would take the artifact as it is."""

from __future__ import annotations

from mtmh.artifacts import open_artifact
from mtmh.chain.stages import Stage, stages_of
from mtmh.config import Config, StageName, decisive, load_config
from mtmh.config.recorded import recorded_decisive


def load_for(stage: StageName, recipe: str, overrides: list[str] | None) -> Config:
    """The recipe for the verb of a stage, or for one that asks the index (``evaluate``).

    Raises:
        ValueError: it does not fit, or an override changes what is in an artifact that the verb reads and does not
            write; the message names the setting, the artifact and the verb that would heed it.
    """
    config = load_config(recipe, overrides)
    keys = [override.partition("=")[0] for override in overrides or []]
    if not keys:
        return config
    stages = {found.name: found for found in stages_of(config)}
    if stage not in stages:
        return config
    own = decisive(config, stages[stage].kind)
    for source in _before(stages[stage], stages):
        paths = [path for path in source.find(config) if path.is_dir()]
        if not paths:
            continue
        try:
            artifact = open_artifact(paths[0], source.kind)
        except ValueError:  # the verb says what is wrong with it
            continue
        before, now = recorded_decisive(artifact, source.kind), decisive(config, source.kind)
        for key in keys:
            changed = [
                name
                for name in before.keys() | now.keys()
                if (name == key or name.startswith(f"{key}.")) and before.get(name) != now.get(name)
            ]
            if changed and not any(name == key or name.startswith(f"{key}.") for name in own):
                name = min(changed)
                raise ValueError(
                    f"--set {key}: would be ignored. {paths[0]} was made with {name} = {before.get(name, 'not set')};"
                    f" mtmh {_verb(source.name)} heeds it, and mtmh run does all that follows"
                )
    return config


def _before(stage: Stage, stages: dict[StageName, Stage]) -> list[Stage]:
    """All stages whose artifacts lead to this one, the nearest first."""
    found: dict[StageName, Stage] = {}
    todo = list(stage.inputs.values())
    while todo:
        name = todo.pop(0)
        if name in stages and name not in found:
            found[name] = stages[name]
            todo += stages[name].inputs.values()
    return list(found.values())


def _verb(stage: StageName) -> str:
    return stage.replace("content_", "content ").replace("_", "-")
