"""Measure ONNX models on the machine this runs on: one JSON job in, one JSON answer out.

    python probe.pyz < job.json

This room stands alone: it imports the standard library, numpy and a runtime, and works with Python
3.8. `devices/bundle.py` packs it into one file, and that file runs here and on a board alike.
Standard output carries the answer and nothing else. Standard error carries one JSON object
{"stage", "model", "done"} per line for whoever shows progress, among what the runtime logs. The
answer's "status" is "ok", "interrupted" or "error"; "error" then holds kind, message, model and
signal. job.py says what a job may hold.

What happens, in this order:
  alone    Each model in a child process of its own: load, first run, peak memory. No model is
           disturbed by another there, and a crash of the runtime names the model.
  warmup   All models loaded side by side; each runs for a time *and* until its median settles.
  measure  A block gives every model two turns in mirrored order (A B B A), which cancels linear
           drift. Blocks come in pairs, the second in reverse (B A A B), so that no model has the
           outer turns more often; the order of each pair is drawn. A turn waits until the
           worker threads of the model before it rest, and starts with untimed runs, because the
           caches still hold that model. The calls per turn are fixed
           after the warm-up: they must not depend on what is being measured. A process beside it
           (watch.py) records clocks, temperatures and the like meanwhile.
  energy   Where the machine can tell its power: an idle time, then each model for itself.
"""
