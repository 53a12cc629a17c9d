"""A launched run from start to end: its processes watched, its signals passed on, its first failure told.

No process is left when `run_launch` returns, however it returns.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Iterator, Optional

from mindmodel.errors import MindModelError
from mindmodel.machine import is_stopped
from mindmodel.parallel.heartbeat import STACK_SIGNAL, host_name, read_heartbeat
from mindmodel.parallel.launch import Launch
from mindmodel.supervise.failures import Failure, failure_of, first_failure
from mindmodel.supervise.hang import Sign, hanging_rank, stack_of
from mindmodel.supervise.link import Prepare, link_of
from mindmodel.supervise.peers import Peers, node_failure
from mindmodel.supervise.processes import Exit, Processes
from mindmodel.supervise.screen import Screen
from mindmodel.supervise.signals import Interrupts, signal_to_pass_on
from mindmodel.supervise.start import Rank, own_logs, start_workers
from mindmodel.terminal import Terminal
from mindmodel.train.stopping import SIGNALS

POLL_S = 0.1
SETTLE_S = 3.0
"""After a lost connection: until the rank that it was lost to must have said why."""

SETTLE_OTHERS_S = 1.0
"""After any other failure: until a rank that failed earlier must have said so."""

SAVING_S = 5.0
"""That a rank which is saving gets to finish, when another has failed."""

NEEDED_S = 3.0
"""For the workers to say that they are done, once the scheduler has ended."""

LEAVE_S = 20.0
"""After a signal: for the other ranks, once one has left that had nothing to save."""

INTERRUPTED = 130
STOPPED = {-number for number in SIGNALS}
"""Exit codes of a worker that a signal has met before there was anything to save."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: exit code, and why when it failed."""

    code: int
    failure: Optional[Failure] = None


def run_launch(
    launch: Launch, terminal: Terminal, *, timeout_s: float, hang_limit_s: float, prepare: Prepare
) -> Outcome:
    """Start the processes of this node, and return when all of the job have ended.

    Args:
        prepare: what node 0 does once all nodes are there and before a process starts.
        timeout_s: until all nodes must be there, and then until msrun must have started the processes.
        hang_limit_s: until a rank that shows no sign of life is taken for dead.

    Raises:
        CheckpointError: if another process writes to the run.
        KeyboardInterrupt: when a signal comes before the workers run.
        LaunchError: if the logs cannot be written, a node does not come or has another recipe, or msrun fails.
        MindModelError: if `prepare` does.
    """
    screen = Screen(terminal, launch.log_of(0) if launch.nodes.rank == 0 else None)
    with Interrupts() as interrupts, ExitStack() as logs, Processes() as processes:

        def waiting(text: str) -> None:
            if interrupts.first:
                raise KeyboardInterrupt
            screen.waiting(text)

        def starting(text: str) -> None:
            waiting(text)
            peers.hear(stopping=False)
            peers.tell_signs(())

        link = link_of(launch)
        try:
            link.meet(timeout_s, waiting, prepare)
            peers = Peers(launch, link)
            try:
                logs.enter_context(own_logs(launch))  # after the preparation: what is refused there writes nothing
                pids = start_workers(launch, processes, timeout_s, starting)
            except MindModelError as error:
                peers.tell_failure(node_failure(launch.nodes.rank, host_name(), str(error)))
                raise
            except KeyboardInterrupt:
                peers.tell_stop(str(interrupts.first))
                raise
            return Watch(launch, pids, processes, peers, screen, interrupts, hang_limit_s).run()
        finally:
            screen.finish()
            if left := processes.end_all():
                screen.say(f"processes that cannot be ended, since the kernel holds them: {', '.join(map(str, left))}")
            link.close()


class Watch:
    """Over the processes of this node, and what is heard from the others."""

    def __init__(
        self,
        launch: Launch,
        pids: dict[Rank, int],
        processes: Processes,
        peers: Peers,
        screen: Screen,
        interrupts: Interrupts,
        hang_limit_s: float,
    ) -> None:
        self.launch, self.pids, self.processes, self.peers = launch, pids, processes, peers
        self.screen, self.interrupts, self.hang_limit_s = screen, interrupts, hang_limit_s
        self.start_s = time.time()
        self.stopping = self.is_done = False
        self.leave_at_s = float("inf")

    def run(self) -> Outcome:
        """Until the job has ended."""
        while True:
            self._look()
            outcome = self._outcome()
            self.screen.update(self.signs())
            if outcome is not None:
                return outcome
            time.sleep(POLL_S)

    def _look(self) -> None:
        self.processes.reap()
        self.peers.hear(self.stopping)

    def exit_of(self, rank: Rank) -> Optional[Exit]:
        """How a process ended; None while it runs."""
        return self.processes.exits.get(self.pids[rank])

    def running(self) -> list[int]:
        """Process ids of the workers that run."""
        return [self.pids[rank] for rank in self.launch.ranks if self.exit_of(rank) is None]

    def signs(self) -> list[Sign]:
        """Of the workers that run here."""
        return [self._sign(rank) for rank in self.launch.ranks if self.exit_of(rank) is None]

    def _sign(self, rank: int) -> Sign:
        beat, now_s = read_heartbeat(self.launch.heartbeat_of(rank)), time.time()
        if beat is None:
            return Sign(rank=rank, phase="starting", step=0, age_s=now_s - self.start_s)
        stopped = is_stopped(beat.pid)
        return Sign(rank=rank, phase=beat.phase, step=beat.step, age_s=now_s - beat.time_s, stopped=stopped)

    def _outcome(self) -> Optional[Outcome]:
        """The end, when it has come; on the way there, what a turn has to do."""
        if self.interrupts.at_once or time.monotonic() > self.leave_at_s:
            self.screen.say("ended at once: nothing was saved since the last line that says so.")
            return Outcome(code=INTERRUPTED)
        self._pass_on_signals()
        if self.peers.verdict or self.peers.failures or self._failed():
            return self._fail()
        if not self.running():
            return self._all_ended()
        self.peers.tell_signs(self.signs())
        self._look_for_hang()
        return None

    def _pass_on_signals(self) -> None:
        """Let the workers save, on all nodes."""
        reason = self.interrupts.first or self.peers.stop
        if any(self._is_interrupted(rank) for rank in self.launch.ranks):
            reason = reason or "a rank received a signal"
        if reason and not self.stopping:
            self.stopping = True
            self.screen.say(f"{reason}: the ranks stop after their step and save; the same again ends them at once.")
            self.processes.send(self.running(), signal_to_pass_on(reason))
            self.peers.tell_stop(reason)
        if self.stopping and self.leave_at_s == float("inf") and (self.peers.gone or self._has_left_unsaved()):
            self.leave_at_s = time.monotonic() + LEAVE_S

    def _is_interrupted(self, rank: int) -> bool:
        """Whether it has ended and saved, as after a signal."""
        ended = self.exit_of(rank)
        return ended is not None and ended.code == INTERRUPTED

    def _has_left_unsaved(self) -> bool:
        """Whether a rank had nothing to save: then the others cannot finish their step without it."""
        exits = [self.exit_of(rank) for rank in self.launch.ranks]
        return any(ended is not None and ended.code in STOPPED for ended in exits)

    def _failed(self) -> bool:
        """Whether a process has ended as it should not have; the scheduler matters as long as workers run."""
        ranks = self.pids if self.running() else self.launch.ranks
        return any(not self._is_well(rank) for rank in ranks)

    def _is_well(self, rank: Rank) -> bool:
        ended = self.exit_of(rank)
        if ended is None:
            return True
        if rank is None and ended.code == 0 and time.time() - ended.time_s > NEEDED_S:
            return all(sign.phase == "done" for sign in self.signs())  # a scheduler that gets SIGTERM says no more
        if ended.code in (0, INTERRUPTED):
            return True
        return self.stopping and ended.code in STOPPED

    def _all_ended(self) -> Optional[Outcome]:
        """The workers of this node have ended well; wait for those of the others. Then nobody needs the scheduler."""
        if not self.is_done:
            self.is_done = True
            self.peers.tell_done()
        self.peers.tell_signs(())
        if self.peers.is_first and self.peers.all_done:
            self.peers.tell_finished()
        if not self.peers.finished:
            return None
        codes = {self.processes.exits[self.pids[rank]].code for rank in self.launch.ranks}
        if codes <= STOPPED:
            self.screen.say("interrupted before the first step was done: there was nothing to save.")
        return Outcome(code=0 if codes == {0} else INTERRUPTED)

    def _look_for_hang(self) -> None:
        """Node 0 finds the rank; its own node makes it show its stack."""
        if self.peers.hang is not None:
            rank, self.peers.hang = self.peers.hang, None
            self.peers.failures.append(self._hang_of(self._sign(rank)))
        sign = hanging_rank([*self.signs(), *self.peers.signs()], self.hang_limit_s) if self.peers.is_first else None
        if sign is not None and sign.rank in self.launch.ranks:
            self.peers.failures.append(self._hang_of(sign))
        elif sign is not None:
            self.peers.ask_for_stack(sign)

    def _hang_of(self, sign: Sign) -> Failure:
        """With the stacks of the rank."""
        log = self.launch.log_of(sign.rank)
        stack = stack_of(log, lambda: self.processes.send([self.pids[sign.rank]], STACK_SIGNAL))
        return sign.failure(host_name(), stack or ("it does not show its stack",), str(log))

    def _fail(self) -> Outcome:
        """Find the first failure of the job, tell it, and end the processes of this node."""
        first = self._first_failure()
        self.peers.tell_failure(first)
        self._end_workers()
        if not self.peers.is_first:
            first = self.peers.wait_for_verdict() or first
        return Outcome(code=2 if first.bad_input else 3, failure=first)

    def _first_failure(self) -> Failure:
        """Of the job, as far as this node knows; ranks get a moment to say why."""
        start = time.monotonic()
        while True:
            self._look()
            first = self.peers.verdict or first_failure([*self.peers.failures, *self._failures_here()])
            waited_s = time.monotonic() - start
            enough_s = SETTLE_S if first is None or first.lost else SETTLE_OTHERS_S
            if first is not None and (self.peers.verdict or waited_s > enough_s):
                return first
            time.sleep(POLL_S)

    def _failures_here(self) -> Iterator[Optional[Failure]]:
        """Of all processes of this node, those included that run and have said that they fail."""
        for rank in self.pids:
            if self.exit_of(rank) is None or not self._is_well(rank):
                who = "scheduler" if rank is None else f"rank {rank}"
                yield failure_of(who, self.launch.log_of(rank), self.exit_of(rank))

    def _end_workers(self) -> None:
        """Wait for a rank that is saving, then end all."""
        self.processes.send(self.running(), signal.SIGTERM)
        end = time.monotonic() + SAVING_S
        while time.monotonic() < end and any(sign.phase == "saving" for sign in self.signs()):
            time.sleep(POLL_S)
            self.processes.reap()
        self.processes.end_all()
