"""Run an experiment or a benchmark and keep every raw value in the JSON beside the script.

A script defines SETTINGS (a list of dicts), SEEDS (a list of ints) and `run(setting, seed) -> dict` of raw
values; SMOKE is the list of settings small enough for a test. The record says what made it: command,
versions, date, processor, and the script's hash. A run that was cut off goes on where it stopped, and a
changed script starts again.

    python tools/record.py experiments/bounds/gram_rounding.py [--smoke | --afresh]
"""

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import platform
from pathlib import Path

import numpy
import torch


def script_hash(script: Path) -> str:
    """SHA-256 of the script's text, line ends normalised, so that Windows and Linux agree."""
    return hashlib.sha256(script.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def load(script: Path):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(script: Path, out: Path, afresh: bool = False) -> dict:
    """Run what is missing from `out` (or everything), writing after every value; return the whole record."""
    torch.set_num_threads(1)
    module, digest = load(script), script_hash(script)
    threads = "two threads" if getattr(module, "THREADS", 1) == 2 else "one thread"
    kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() and not afresh else {}
    values = kept["values"] if kept.get("script_sha256") == digest else []
    done = {json.dumps([v["setting"], v["seed"]], sort_keys=True) for v in values}
    for setting in module.SETTINGS:
        for seed in module.SEEDS:
            if json.dumps([setting, seed], sort_keys=True) in done:
                continue
            values.append({"setting": setting, "seed": seed, **module.run(setting, seed)})
            content = {
                "command": f"python tools/record.py {script.as_posix()}",
                "script_sha256": digest,
                "date": datetime.date.today().isoformat(),
                "python": platform.python_version(),
                "torch": torch.__version__.split("+")[0],
                "numpy": numpy.__version__,
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {threads} used",
                "seeds": module.SEEDS,
                "values": values,
            }
            partial = out.with_suffix(".partial")
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(out)
            print(setting, seed, flush=True)
    return json.loads(out.read_text(encoding="utf-8"))


def smoke(script: Path) -> list[dict]:
    """The smallest run of the same code; writes nothing."""
    torch.set_num_threads(1)
    module = load(script)
    return [module.run(setting, seed) for setting in module.SMOKE for seed in module.SEEDS[:1]]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scripts", nargs="+", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a small run that writes nothing")
    parser.add_argument("--afresh", action="store_true", help="run everything again")
    arguments = parser.parse_args()
    for script in arguments.scripts:
        if arguments.smoke:
            print(json.dumps(smoke(script), indent=1))
        else:
            record(script, script.with_suffix(".json"), arguments.afresh)


if __name__ == "__main__":
    main()
