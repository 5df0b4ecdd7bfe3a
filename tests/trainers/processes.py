"""Training commands in processes of their own, for the tests that kill them or run two side by side.

They are forked from a server that has imported the package once, so that a process costs no time to begin.
"""

import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["e2e_tts.trainers.train"])
TIMEOUT = 600


def run(*targets: tuple[Callable, tuple]) -> list[int]:
    """Runs functions in new processes, at the same time; returns their exit codes, -9 after kill -9."""
    children = [CONTEXT.Process(target=function, args=arguments) for function, arguments in targets]
    for child in children:
        child.start()
    for child in children:
        child.join(TIMEOUT)
        if child.is_alive():
            child.kill()
            raise TimeoutError("A training process hangs.")
    return [child.exitcode for child in children]


def train(*arguments: str) -> None:
    """The training command."""
    import torch

    from e2e_tts.trainers import train

    # As in conftest.py: the trainer's collections of garbage need not look through what is imported.
    gc.freeze()
    torch.set_num_threads(1)
    train.main(list(arguments))


def train_until_killed(method: str, step: int, *arguments: str) -> None:
    """The training command, killed with SIGKILL when its trainer has done `method` in or after optimizer step `step`.

    After "training_step" the gradients of a step are there but not its update; "_save_optimizer_and_scheduler" is in
    the middle of the writing of a checkpoint.
    """
    from e2e_tts.trainers.stage_trainers import SpeechTrainer

    original = getattr(SpeechTrainer, method)

    def killing(self: SpeechTrainer, *args: object, **kwargs: object) -> object:
        result = original(self, *args, **kwargs)
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(SpeechTrainer, method, killing)
    train(*arguments)


def train_as_rank(rank: int, processes: int, port: int, *arguments: str) -> None:
    """The training command as torchrun starts it: one of several processes that share the batches (gloo)."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(*arguments)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
