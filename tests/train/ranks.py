"""Several processes on one machine for a test: forked, one thread each, gloo over a file; errors come back as text."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(
    world: int, work: Callable[..., Any], *args: Any, folder: Any, seconds: float = 240, killed: bool = False
) -> list[Any]:
    """Call `work(rank, *args)` in `world` processes that form a process group, and return what each gave.

    Args:
        world: Number of processes.
        work: A function of a module; what it returns must be picklable.
        args: For it.
        folder: Where the processes meet.
        seconds: Until all are killed.
        killed: They are to die by SIGKILL.
    """
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    name = str(folder / f"meet-{os.urandom(4).hex()}")
    processes = [
        context.Process(target=_rank, args=(rank, world, name, pipes[rank][1], work, args)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    if killed:
        for process in processes:
            process.join(seconds)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL] * world
        return []
    results, problems = [None] * world, []
    try:
        for rank, (receive, _) in enumerate(pipes):
            if not receive.poll(seconds):
                problems.append(f"rank {rank} did not answer in {seconds} s")
                break
            ok, value = receive.recv()
            if not ok:
                problems.append(f"rank {rank}: {value}")
                break
            results[rank] = value
    finally:
        for process in processes:
            if problems and process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
    assert not problems, "\n".join(problems)
    return results


def _rank(rank: int, world: int, name: str, send: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(name, world), rank=rank, world_size=world)
        value = work(rank, *args)
        dist.destroy_process_group()
        send.send((True, value))
    except BaseException:
        send.send((False, traceback.format_exc()))
    finally:
        send.close()
        os._exit(0)
