"""`python -m lipbook` says what is wrong with an installation, and how to mend it."""

import json
import subprocess
import sys

import pytest
import torch

from lipbook import __main__ as checker


def test_a_whole_installation_passes():
    run = subprocess.run([sys.executable, "-m", "lipbook"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[-1] == "Everything that the book needs is here."
    assert max(map(len, lines)) <= checker.WIDTH and "\x1b" not in run.stdout
    assert sum(line.startswith("ok ") for line in lines) == len(checker.CHECKS)


def only(monkeypatch, capsys, name, check):
    monkeypatch.setattr(checker, "CHECKS", {name: check})
    code = checker.main()
    return code, " ".join(capsys.readouterr().out.split())


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    code, said = only(monkeypatch, capsys, "notebooks", checker.CHECKS["notebooks"])
    assert code == 1
    assert "WRONG notebooks ipywidgets cannot be imported" in said and "pip install" in said
    assert said.endswith("1 of 1 are wrong.")


def test_missing_data_is_reported_in_the_words_of_its_error(monkeypatch, capsys):
    def missing():
        raise FileNotFoundError("the file a.gz is missing: restore it.")

    monkeypatch.setattr(checker, "fashion_mnist", missing)
    code, said = only(monkeypatch, capsys, "data", checker.data)
    assert code == 1 and "WRONG data the file a.gz is missing: restore it." in said


def test_an_old_python_is_named(monkeypatch, capsys):
    monkeypatch.setattr(checker, "OLDEST_PYTHON", (9, 9))
    code, said = only(monkeypatch, capsys, "Python", checker.python)
    assert code == 1 and "install Python 9.9 or newer" in said


@pytest.mark.parametrize("factor", [torch.eye(2, dtype=torch.float64), RuntimeError("no LAPACK")])
def test_a_torch_that_cannot_factorise_is_found(monkeypatch, capsys, factor):
    def cholesky(matrix):
        if isinstance(factor, Exception):
            raise factor
        return factor

    monkeypatch.setattr(torch.linalg, "cholesky", cholesky)
    code, said = only(monkeypatch, capsys, "torch", checker.torch_works)
    assert code == 1 and "Install torch again" in said


def test_a_kernel_of_another_python_is_found(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "kernels/python3"
    folder.mkdir(parents=True)
    spec = {"argv": [str(tmp_path / "python")], "display_name": "other", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    code, said = only(monkeypatch, capsys, "kernel", checker.kernel)
    assert code == 1 and "not this Python" in said and "ipykernel install" in said


def test_the_time_here_is_the_recorded_time_scaled_by_the_workload(monkeypatch, tmp_path):
    times = {"a": {"seconds": 30, "workload_seconds": 2.0}, "b": {"seconds": 10, "workload_seconds": 0.5}}
    (tmp_path / "times.json").write_text(json.dumps(times))
    monkeypatch.setattr(checker, "TIMES", tmp_path / "times.json")
    monkeypatch.setattr(checker, "workload_seconds", lambda: 1.0)
    assert checker.running_time() == "about 35 s for all, 20 s for the longest (b)"


def test_without_recorded_times_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(checker, "TIMES", tmp_path / "times.json")
    assert "not the book's folder" in checker.running_time()
    (tmp_path / "times.json").write_text("{}")
    assert "no chapter has been timed" in checker.running_time()


def test_the_workload_leaves_the_number_of_threads_alone():
    threads = torch.get_num_threads()
    assert 0.05 < checker.workload_seconds() < 60
    assert torch.get_num_threads() == threads
