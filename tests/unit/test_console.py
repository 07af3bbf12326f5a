"""Progress lines, and a metrics file that a resume continues without a doubled stretch."""

import json
import math
import subprocess
import sys

from mengya.console import MetricsLog, Progress, duration, number, read_metrics, say


def _steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_resuming_cuts_away_the_steps_after_the_checkpoint(tmp_path):
    with MetricsLog(tmp_path, start_step=0) as log:
        for step in (10, 20, 30, 40):
            log.write(step, loss=1.0)
    with MetricsLog(tmp_path, start_step=20) as log:
        log.write(30, loss=0.5)
    assert _steps(tmp_path / "metrics.jsonl") == [10, 20, 30]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {"step": 30, "loss": 0.5}


def test_a_line_torn_by_a_kill_is_dropped_on_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with MetricsLog(tmp_path, start_step=5) as log:
        log.write(6, loss=1.0)
    assert _steps(tmp_path / "metrics.jsonl") == [1, 6]


def test_each_line_is_on_disk_before_the_next_is_written(tmp_path):
    log = MetricsLog(tmp_path, start_step=0)
    log.write(1, loss=3.0)
    assert _steps(tmp_path / "metrics.jsonl") == [1]
    log.close()


def test_a_diverged_loss_is_valid_json(tmp_path):
    with MetricsLog(tmp_path, start_step=0) as log:
        log.write(1, loss=math.nan, lr=1e-3, validation_loss=None)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "lr": 1e-3}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_reads_the_same_scalars_and_forgets_the_cut_steps(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, start_step=0) as log:
        for step in (1, 2, 3):
            log.write(step, loss=float(step))
    (first,) = tmp_path.glob("events.out.tfevents.*")
    # Two writers of one process within a second would be sorted by name alone; a real resume is a later process.
    first.rename(tmp_path / "events.out.tfevents.0000000001.host")
    with MetricsLog(tmp_path, start_step=1) as log:
        log.write(2, loss=20.0)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_without_tensorboard_the_metrics_are_still_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with MetricsLog(tmp_path, start_step=0) as log:
        log.write(1, loss=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_plain_progress_says_step_metrics_and_time_left(capsys):
    with Progress("pretrain", total=400, start=100) as bar:
        bar._began -= 20  # 20 seconds for the 20 steps of this process
        bar.update(120, loss=3.2149, tokens_per_second=9812.4)
    assert capsys.readouterr().err == "pretrain 120/400 · loss 3.21 · 9,812 tokens/s · 4:40 left\n"


def test_plain_progress_is_sparse_and_ends_with_the_last_step(capsys):
    with Progress("sft", total=1000) as bar:
        for step in range(1, 1001):
            bar.update(step, loss=1 / step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[-1].startswith("sft 1000/1000 · loss 0.001")


def test_say_prints_brackets_and_long_lines_as_they_are(capsys):
    text = "[bold]不是标记[/bold] " + "很长" * 100
    say(text)
    captured = capsys.readouterr()
    assert captured.err == text + "\n"
    assert captured.out == ""


def test_numbers_and_durations_read_well():
    assert [number(value) for value in (9812.4, 3.214, 0.00342, 0, 12, 128.0)] == [
        "9,812", "3.21", "0.0034", "0", "12", "128",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (41.4, 725, 11229)] == ["0:41", "12:05", "3:07:09"]


def test_importing_the_console_loads_neither_torch_nor_rich_nor_tensorboard():
    code = "import mengya.console, sys; print([m for m in ('torch', 'rich', 'tensorboard') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
