"""Import packages, one after the other, and say how it went: one JSON object per line.

Run as a script in a process of its own: a package that crashes on import (built for another
processor, say) then ends this process and not the one that wants to report it.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from typing import Any


def torch_facts() -> dict[str, Any]:
    """Return what this build of PyTorch can use here."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
    }


def onnxruntime_facts() -> dict[str, Any]:
    """Return the execution providers of this build of ONNX Runtime."""
    import onnxruntime

    return {"providers": list(onnxruntime.get_available_providers())}


FACTS = {"torch": torch_facts, "onnxruntime": onnxruntime_facts}


def main() -> None:
    """Import the modules named on the command line."""
    warnings.simplefilter("ignore")
    # What a package prints while it is imported must not mix with the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for module in sys.argv[1:]:
        answer: dict[str, Any] = {"module": module, "problem": None, "facts": {}}
        try:
            importlib.import_module(module)
            if module in FACTS:
                answer["facts"] = FACTS[module]()
        # Anything may go wrong in code we do not know, and all of it is the answer.
        except BaseException as err:
            answer["problem"] = f"{type(err).__name__}: {err}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
