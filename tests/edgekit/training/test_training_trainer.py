from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from softmax_engine import Clock, SoftmaxEngine, examples, trainer

from edgekit.autodiff.schedules import Schedule, learning_rate
from edgekit.training import (
    Budget,
    CheckpointError,
    CheckpointFile,
    EarlyStopping,
    EpochDone,
    Evaluation,
    Finished,
    KeptInMemory,
    Paused,
    Reading,
    Rest,
    Saved,
    Settings,
    Started,
    StepDone,
    Stretch,
    TrainingError,
    job_name,
)

FEW = Settings(epochs=4, batch=7, schedule=Schedule(peak=0.05), balance="root", checkpoint_seconds=0.25, seed=3)


def finish(made: Any) -> list[Any]:
    return list(made.run())


def same(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_the_loss_falls_and_pictures_that_were_never_seen_are_told_apart() -> None:
    made = trainer(KeptInMemory(), Settings(epochs=12, batch=8, schedule=Schedule(peak=0.05)))
    events = finish(made)
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    last = events[-1]
    assert isinstance(last, Finished) and last.score is not None and last.score > 0.9
    assert last.best_epoch == made.progress.best.epoch


def test_events_say_what_happened_in_its_order() -> None:
    events = finish(trainer(KeptInMemory(), Settings(epochs=2, batch=12, checkpoint_seconds=1e9)))
    kinds = [type(event) for event in events]
    assert kinds == [Started, StepDone, StepDone, EpochDone, Saved, StepDone, StepDone, EpochDone, Saved, Finished]
    assert events[0] == Started(step=0, steps=4, epoch=0, examples=24)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert events[3].improved and set(events[3].evaluation.figures) >= {"accuracy", "balanced_accuracy", "recall.0"}
    assert events[-1].reason == "all 2 epochs are done"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), max_size=4))
def test_a_training_that_is_killed_anywhere_gives_the_same_weights_as_one_that_is_not(kills: list[int]) -> None:
    whole = trainer(KeptInMemory(), FEW)
    finish(whole)
    checkpoints = KeptInMemory()
    for kill in kills:  # nothing is said to it: it just never runs on
        for count, _ in enumerate(trainer(checkpoints, FEW).run()):
            if count == kill:
                break
    last = trainer(checkpoints, FEW)
    events = finish(last)
    assert isinstance(events[-1], Finished)
    same(last.result(), whole.result())
    assert last.progress.step == whole.progress.step and last.progress.best == whole.progress.best


def test_a_process_that_is_killed_with_kill_9_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from softmax_engine import until_killed; until_killed({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    reached = 0
    for line in process.stdout:
        reached = int(line)
        if reached >= 20:
            process.kill()
            break
    process.wait()
    slow = Settings(epochs=100_000, batch=8, checkpoint_seconds=0.0)
    made = trainer(CheckpointFile(tmp_path / "checkpoint"), slow)
    events = made.run()
    started = next(events)
    assert isinstance(started, Started) and started.step >= reached - 1
    stop = started.step + 3
    other = trainer(KeptInMemory(), slow)
    for one, run in ((made, events), (other, other.run())):
        while one.progress.step < stop:
            next(run)
    same(made._engine.state(), other._engine.state())


def test_a_pause_saves_and_the_same_trainer_can_go_on() -> None:
    made = trainer(KeptInMemory(), FEW)
    seen: list[Any] = []
    for event in made.run():
        seen.append(event)
        if isinstance(event, StepDone) and event.step == 2:
            made.pause("the line needs the device")
    assert seen[-2:] == [Saved(2), Paused("the line needs the device")]
    again = finish(made)
    assert again[0] == Started(step=2, steps=12, epoch=0, examples=24)
    whole = trainer(KeptInMemory(), FEW)
    finish(whole)
    same(made.result(), whole.result())


def test_a_finished_training_is_not_trained_further() -> None:
    checkpoints = KeptInMemory()
    first = trainer(checkpoints, FEW)
    finish(first)
    again = trainer(checkpoints, FEW)
    assert [type(event) for event in again.run()] == [Started, Finished]
    same(again.result(), first.result())


def scores(*values: float) -> Any:
    left = list(values)

    def evaluate(weights: Any) -> Any:
        yield None
        yield Evaluation(left.pop(0))

    return evaluate


def test_training_stops_when_it_no_longer_helps_and_keeps_the_best_weights() -> None:
    rule = Settings(epochs=50, batch=8, early_stopping=EarlyStopping(patience=2, min_gain=0.01))
    made = trainer(KeptInMemory(), rule, evaluator=scores(0.5, 0.7, 0.705, 0.6))
    best: Any = None
    for event in made.run():
        if isinstance(event, EpochDone) and event.improved:
            best = made.result()
    assert event == Finished("2 evaluations in a row did not beat epoch 2", best_epoch=2, score=0.7)
    same(made.result(), best)


def test_evaluations_happen_when_they_are_due_and_at_the_end() -> None:
    rule = Settings(epochs=5, batch=8, evaluate_every=2)
    events = finish(trainer(KeptInMemory(), rule, evaluator=scores(0.1, 0.2, 0.3)))
    assert [event.epoch for event in events if isinstance(event, EpochDone) and event.evaluation] == [2, 4, 5]


def test_without_an_evaluator_the_last_weights_count() -> None:
    made = trainer(KeptInMemory(), FEW, evaluator=None)
    events = finish(made)
    assert events[-1] == Finished("all 4 epochs are done", best_epoch=None, score=None)
    same(made.result(), made._engine.weights())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 9))
def test_stretches_after_each_other_are_one_training_however_often_they_are_killed(cut: list[int], kill: int) -> None:
    whole = trainer(KeptInMemory(), FEW, evaluator=None, stretch=Stretch(steps=sum(cut), skip=0, whole=30))
    rates = [event.learning_rate for event in finish(whole) if isinstance(event, StepDone)]
    skip, state, found = 0, None, []
    for steps in cut:
        checkpoints = KeptInMemory()
        stretch = Stretch(steps=steps, skip=skip, whole=30)

        def part(checkpoints: Any = checkpoints, stretch: Stretch = stretch, state: Any = state) -> Any:
            made = trainer(checkpoints, FEW, evaluator=None, stretch=stretch)
            if state is not None:
                made._engine.restore(state)
            return made

        for count, _ in enumerate(part().run()):
            if count == kill:
                break
        made = part()
        events = finish(made)
        assert events[-1].reason == f"all {steps} steps are done" and made.progress.step == steps
        found += [learning_rate(FEW.schedule, skip + step, 30) for step in range(steps)]
        state, skip = made._engine.state(), skip + steps
    assert state is not None
    same(state, whole._engine.state())
    assert rates == found


def test_the_loss_of_an_epoch_that_a_stretch_begins_in_the_middle_is_that_of_its_own_steps() -> None:
    stretch = Stretch(steps=3, skip=2, whole=9)  # three batches of seven an epoch
    events = finish(trainer(KeptInMemory(), FEW, evaluator=None, stretch=stretch))
    losses = [event.loss for event in events if isinstance(event, StepDone)]
    first, last = (event.loss for event in events if isinstance(event, EpochDone))
    assert first == losses[0] and last == pytest.approx(np.mean(losses[1:]))


def test_time_that_is_up_ends_the_epoch_with_an_evaluation() -> None:
    rule = Settings(epochs=50, batch=2, max_seconds=0.45, evaluate_every=10)
    made = trainer(KeptInMemory(), rule)
    events = finish(made)
    assert made.progress.step == 5 and events[-1].score is not None
    assert events[-1].reason == "0.45 seconds of computing were allowed"


def rested(budget: Budget, **other: Any) -> tuple[list[Any], Clock]:
    clock = Clock()
    made = trainer(KeptInMemory(), Settings(epochs=3, batch=4, budget=budget), clock, **other)
    events = []
    for event in made.run():
        events.append(event)
        if isinstance(event, Rest):
            clock.now += event.seconds
    return events, clock


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_training_takes_its_share_of_the_time_and_no_more(share: float) -> None:
    events, clock = rested(Budget(cpu_share=share))
    resting = sum(event.seconds for event in events if isinstance(event, Rest))
    assert 1 - resting / clock.now == pytest.approx(share, rel=0.1)


def test_a_shell_that_rests_longer_is_not_asked_to_rest_again() -> None:
    clock = Clock()
    made = trainer(KeptInMemory(), Settings(epochs=1, batch=4, budget=Budget(cpu_share=0.5)), clock)
    rests = 0
    for event in made.run():
        if isinstance(event, Rest):
            rests += 1
            clock.now += 1000
    assert rests == 9  # after each of 6 batches and 3 of the evaluation's 4 looks


def test_a_hot_device_cools_before_training_goes_on() -> None:
    heat = iter([60.0, 81.0, 78.0, 76.0, 74.0] + [60.0] * 200)
    events, _ = rested(Budget(max_celsius=80, cool_by=5), sensors=lambda: Reading(celsius=next(heat)))
    rests = [event for event in events if isinstance(event, Rest)]
    assert [rest.reason for rest in rests] == [
        "81 °C; training waits until 75 °C",
        "78 °C; training waits until 75 °C",
        "76 °C; training waits until 75 °C",
    ]
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(max_memory=100 << 20), "training holds 200 MiB of memory; 100 MiB are allowed"),
        (Budget(min_free_memory=64 << 20), "50 MiB of memory are free; training has to leave 64 MiB"),
    ],
)
def test_memory_that_is_short_pauses_the_training_and_loses_nothing(budget: Budget, words: str) -> None:
    readings = iter([Reading(memory=50 << 20, free_memory=1 << 30)] * 3 + [Reading(200 << 20, 50 << 20)] * 2)
    events, _ = rested(budget, sensors=lambda: next(readings))
    assert events[-2:] == [Saved(3), Paused(words)]


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_last_checkpoint() -> None:
    class Diverging(SoftmaxEngine):
        def step(self, feeds: Any, learning_rate: float) -> float:
            loss = super().step(feeds, learning_rate)
            return loss if self._clock is None or self._clock.now < 0.45 else float("nan")

    checkpoints, clock = KeptInMemory(), Clock()
    made = trainer(checkpoints, Settings(epochs=2, batch=4, checkpoint_seconds=0.0), clock)
    made._engine = Diverging(clock)
    with pytest.raises(TrainingError, match=r"the loss of step 5 is nan: the learning rate \(0\.0"):
        finish(made)
    assert next(trainer(checkpoints, Settings(epochs=2, batch=4, checkpoint_seconds=0.0)).run()).step == 4  # type: ignore[union-attr]


def test_a_full_disk_stops_the_training_and_the_checkpoint_before_it_stands() -> None:
    class FullDisk(KeptInMemory):
        writes = 0

        def write(self, data: bytes) -> None:
            self.writes += 1
            if self.writes == 3:
                raise OSError(28, "No space left on device")
            super().write(data)

    checkpoints = FullDisk()
    rule = Settings(epochs=2, batch=4, checkpoint_seconds=0.0)
    with pytest.raises(OSError, match="No space left"):
        finish(trainer(checkpoints, rule))
    made = trainer(checkpoints, rule)
    events = finish(made)
    assert events[0].step == 2 and isinstance(events[-1], Finished)


def test_a_checkpoint_of_another_job_is_refused() -> None:
    checkpoints = KeptInMemory()
    finish(trainer(checkpoints, FEW))
    made = trainer(checkpoints, FEW)
    made._job = "other"
    with pytest.raises(CheckpointError, match="belongs to the job job, not to other"):
        finish(made)


def test_fewer_examples_than_a_batch_are_one_batch() -> None:
    made = trainer(KeptInMemory(), Settings(epochs=2, batch=100), examples=examples(0, 6))
    assert [event.step for event in made.run() if isinstance(event, StepDone)] == [1, 2]


def test_a_job_is_named_by_all_that_changes_it() -> None:
    name = job_name([FEW], ["data", "graph"])
    assert name == job_name([FEW], ["data", "graph"])
    others = [
        job_name([Settings(epochs=5, batch=7)], ["data", "graph"]),
        job_name([FEW], ["data2", "graph"]),
        job_name([FEW], ["datagraph"]),
        job_name([FEW, FEW], ["data", "graph"]),
    ]
    assert len({name, *others}) == 5
