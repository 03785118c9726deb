"""How large a random network LipSDP can certify in ten minutes of two cores.

20 inputs, 5 or 10 hidden layers of one width with ReLU, 10 outputs, Gaussian weights over the square root of
the number of inputs, no biases. Each network gets one call of `lipsdp` in a process of its own, on two
threads, which the system ends after `limit` seconds of processor time, 1,200 for ten minutes of two cores:
then `finished` is false, and wider networks of that depth are not tried. `seconds` are those of the clock,
which other work on the machine lengthens. Chapter: sdp/scaling.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from lipbook.sdp import lipsdp

THREADS = 2
SEEDS = [0]
SETTINGS = [
    *[{"layers": 5, "width": width, "limit": 1200} for width in (128, 256, 512)],
    *[{"layers": 10, "width": width, "limit": 1200} for width in (64, 128, 256)],
]
SMOKE = [{"layers": 2, "width": 4, "limit": 60}]
narrowest_unfinished = {}  # by depth


def certify(setting, seed):
    resource.setrlimit(resource.RLIMIT_CPU, (setting["limit"], setting["limit"]))
    torch.set_num_threads(THREADS)
    generator, model = torch.Generator().manual_seed(seed), nn.Sequential()
    for inputs, outputs in pairwise([20, *[setting["width"]] * setting["layers"], 10]):
        layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
        layer.weight.data = weight / math.sqrt(inputs)
        model.extend([layer, nn.ReLU()])
    start = time.perf_counter(), time.process_time()
    bound = lipsdp(model[:-1])
    return {
        "seconds": time.perf_counter() - start[0],
        "processor_seconds": time.process_time() - start[1],
        "value": bound.value,
        **{key: getattr(bound.certificate, key) for key in ("dual_value", "gap", "iterations")},
    }


def run(setting, seed):
    depth, width = setting["layers"], setting["width"]
    if width > narrowest_unfinished.get(depth, math.inf):
        return {"finished": False}
    command = [sys.executable, str(Path(__file__)), json.dumps(setting), str(seed)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # a thread that waits does not spin
    job = subprocess.run(command, capture_output=True, text=True, env=environment)
    if job.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        narrowest_unfinished[depth] = width
        return {"finished": False}
    job.check_returncode()
    return {"finished": True, **json.loads(job.stdout)}


if __name__ == "__main__":
    print(json.dumps(certify(json.loads(sys.argv[1]), int(sys.argv[2]))))
