"""The labels of a model's outputs, from the files that its configuration names, or from its graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastinfer.config.model import ConfigError, ModelConfig, read_labels
from fastinfer.tensor.top_k import Labels

log = logging.getLogger(__name__)


def labels_of(directory: Path, config: ModelConfig) -> dict[str, Labels]:
    """Reads the labels, by output; outputs that share a file share its labels.

    Args:
        directory: the model's directory.
        config: its configuration.

    Raises:
        ConfigError: a file cannot be read, or holds no labels.
    """
    made: dict[str, Labels] = {}
    files = {output.name: output.label_filename for output in config.outputs}
    for output, text in read_labels(directory, config).items():
        try:
            if files[output] not in made:
                made[files[output]] = Labels(text)
        except ValueError as error:
            raise ConfigError(f"the labels of output '{output[:60]}': {files[output]}, {error}") from None
    return {output: made[name] for output, name in files.items() if name}


def labels_of_classes(classes: Mapping[str, Sequence[str]]) -> dict[str, Labels]:
    """Make the labels of the classes that a graph names, by output; an output has none if one is too long."""
    made: dict[str, Labels] = {}
    for output, names in classes.items():
        try:
            made[output] = Labels("".join(f"{' '.join(name.split(chr(10)))}\n" for name in names))
        except ValueError as error:
            log.warning("the classes of output '%s' have no labels: those of the graph, %s", output[:60], error)
    return made
