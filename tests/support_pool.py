"""A sweep whose main.py is a stand-in, and a pool that runs it.

One test kills a pool: the process that runs the pool imports this module.
"""

from dataclasses import replace
from pathlib import Path

from support import make_sweep

from steve.sweeps.pool import Pool
from steve.sweeps.record import Sweep

# Alone on its GPU, or it fails. What it does is in a file of its run's name.
MAIN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent
name = sys.argv[sys.argv.index("--name") + 1]
def end(*_):
    (folder / f"{name}.saved").touch()
    mine.unlink()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
mine = folder / f"gpu{os.environ.get('CUDA_VISIBLE_DEVICES')}"
mine.touch(exist_ok=False)
print("this is", name, flush=True)
(folder / f"{name}.started").touch()
task = (folder / name).read_text()
if task.startswith("stubborn"):  # ends at the second signal, or after so many seconds
    def hear(*_):
        heard.append(1)
        (folder / f"{name}.heard").touch()
    heard = []
    signal.signal(signal.SIGTERM, hear)
    (folder / f"{name}.deaf").touch()
    until = time.monotonic() + float(task.split()[1])
    while len(heard) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    task = "1" if len(heard) == 2 else "0"
if task == "wait":
    signal.pause()
if task == "die":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.05)
mine.unlink()
sys.exit(int(task))
"""


def make(folder: Path, **tasks: str) -> Sweep:
    """A sweep of the stand-in: a run for each name, and what it does."""
    (folder / "main.py").write_text(MAIN)
    for name, task in tasks.items():
        (folder / name).write_text(task)
    sweep = make_sweep(folder / "output", *tasks)
    runs = [replace(run, arguments=("--name", run.experiment)) for run in sweep.runs]
    return replace(sweep, working_folder=str(folder), runs=tuple(runs))


def work(sweep: Sweep, places: list[dict[str, str]], tell=lambda line: None) -> list:
    runs = [(sweep, index) for index in range(len(sweep.runs))]
    main = Path(sweep.working_folder) / "main.py"
    return Pool(runs, places, tell, main).run()
