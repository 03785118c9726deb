import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path for folder in ("experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

spec = importlib.util.spec_from_file_location("record", ROOT / "tools/record.py")
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_record_is_complete_and_made_by_this_very_script(script):
    record, module = json.loads(script.with_suffix(".json").read_text()), recorder.load(script)
    assert record["script_sha256"] == recorder.script_hash(script), f"run: {record['command']}"
    cells = [(json.dumps(v["setting"], sort_keys=True), v["seed"]) for v in record["values"]]
    wanted = [(json.dumps(s, sort_keys=True), seed) for s in module.SETTINGS for seed in module.SEEDS]
    assert sorted(cells) == sorted(wanted)
    assert {"command", "date", "python", "torch", "numpy", "machine"} <= record.keys()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_smoke_run_works_and_writes_nothing(script):
    before = script.with_suffix(".json").read_bytes()
    assert all(isinstance(values, dict) and values for values in recorder.smoke(script))
    assert script.with_suffix(".json").read_bytes() == before


def test_a_run_that_was_cut_off_goes_on_and_a_changed_script_starts_again(tmp_path):
    script, out = tmp_path / "squares.py", tmp_path / "squares.json"
    text = "SEEDS, SETTINGS = [0, 1], [{'n': 2}, {'n': 3}]\n"
    text += "def run(setting, seed): return {'value': setting['n'] ** 2 + seed}\n"
    script.write_text(text)
    whole = recorder.record(script, out)
    assert [v["value"] for v in whole["values"]] == [4, 5, 9, 10]
    whole["values"] = whole["values"][:2]
    whole["values"][0]["value"] = "kept"
    out.write_text(json.dumps(whole))
    assert [v["value"] for v in recorder.record(script, out)["values"]] == ["kept", 5, 9, 10]
    assert recorder.record(script, out, afresh=True)["values"][0]["value"] == 4
    out.write_text(json.dumps(whole))
    script.write_text(text + "\n")
    assert recorder.record(script, out)["values"][0]["value"] == 4


def test_line_ends_do_not_change_the_hash(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = 1\ny = 2\n")
    (tmp_path / "b.py").write_bytes(b"x = 1\r\ny = 2\r\n")
    assert recorder.script_hash(tmp_path / "a.py") == recorder.script_hash(tmp_path / "b.py")
