"""What the demo reads of the trainings that run beside it."""

import json
from pathlib import Path

from cli.baselines import CENTRALISED, list_baselines, read
from cli.examples import EXAMPLES, ORGANISATIONS


def test_accuracies_are_read_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "baselines"
    assert read(path) == {}

    path.write_text("")
    assert read(path) == {}
    path.write_text('["aster alone", 0.5]\n["birch al')
    assert read(path) == {"aster alone": 0.5}
    path.write_text('["birch alone", 0.25]\n["aster alone", 0.5]\n')
    assert list(read(path).items()) == [("birch alone", 0.25), ("aster alone", 0.5)]


def test_each_trains_alone_and_then_one_on_everything() -> None:
    baselines = dict(list_baselines(EXAMPLES["digits"]))

    assert list(baselines) == [
        *(f"{name} alone" for name in ORGANISATIONS),
        CENTRALISED,
    ]
    shares = [config.get("organisation") for config in baselines.values()]
    assert shares == [0, 1, 2, 3, 4, None]
    assert baselines[CENTRALISED]["num_organisations"] == 1
    assert len({json.dumps(config) for config in baselines.values()}) == len(baselines)
