# SPDX-License-Identifier: GPL-2.0-or-later
"""An io_uring ring that trio tasks read and write through.

The work per piece and per completion is C (engine.h); this file is about tasks. A task starts a
request with one call into C and parks. One pump task waits for the ring's eventfd, reaps, and
wakes each task whose request is complete: one wake-up a request, however many pieces it had. A read
may be told of what is there already, while it is the oldest request.

A ring belongs to the thread that made it. So trio's own thread submits and reaps, and no lock is
needed anywhere. A thread per ring would take the submissions off trio's thread, but each request
would then cost two hand-overs between threads, which is more than the submission of a chunk.

Ownership of memory: from its start until its completion, a request's part of the buffer belongs to
the kernel. Cancelling the task that waits cannot shorten that, because a transfer that a device has
accepted cannot be recalled. So a cancelled task keeps waiting: the pieces not yet submitted are
dropped, those with the kernel are waited for, and only then does trio.Cancelled come out of
read() or write(). Whoever holds a buffer may reuse it as soon as the call is over, however it ended.

The exception is a device that stalls: nobody should have to wait for it who has something better to
do. A call that is abandoned (Ring.abandon_writes(), Ring.stalled) ends at once, while the kernel
keeps the request for as long as it likes. That is safe for memory and files, though not for what is
in them: the kernel has its own references to the file and, from registration on, to the pages of a
fixed buffer, so both may be removed from the ring, unmapped and closed. But the device may yet write
the region of the file, or the pages, so these are not to be used for anything else before `late` is
called. Pages that are not fixed are looked up whenever the kernel gets to it, which would put late
bytes into whatever is mapped there by then. So a read into such a buffer is never abandoned. A write
from one may be: bytes of another kind then reach a region that holds nothing.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

import outcome
import trio

from tierd.model import Poll

from ._uring import lib
from .call import Abandoned, Call
from .errors import RingError
from .ringsetup import cannot_poll
from .ringtables import RingBuffer, RingFile, RingTables

__all__ = [
    "DEFAULT_ENTRIES",
    "DEFAULT_PIECE",
    "DEFAULT_WINDOW",
    "Abandoned",
    "Poll",
    "Ring",
    "RingBuffer",
    "RingFile",
    "RingStatistics",
    "open_ring",
]

DEFAULT_ENTRIES = 64
DEFAULT_PIECE = 16 << 20
"""Bytes. Every piece is a wake-up of 50 to 100 us: through a daemon, chunks of 16 MiB cost 0.15 core a
GB/s in pieces of 2 MiB and 0.13 in one, and chunks of 32 MiB in two pieces were the nearest to fio.
Smaller ones would let a request that was cancelled end sooner.
"""

DEFAULT_WINDOW = 64 << 20
"""Bytes. What a device has at a time it works on in turn: four chunks of 64 MiB, all sent, arrived
together after 160 ms, and while they were checked the device had nothing to do; one after the other
the first arrives after 40. As much as a device of 14 GB/s reads in 5 ms, in which the next is sent.
"""

_PIECES_ALONE = 4
_LEAST_PIECE, _MOST_PIECE = 512 << 10, 4 << 20
"""Bytes. A read that is alone is cut so that little is left to do when its last piece has come, and
each piece still takes a device longer than its wake-up takes the processor."""

_LATE_POLL = 0.01
"""Seconds between looks at what was abandoned on a ring that polls for completions."""


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """A ring at one moment."""

    entries: int  #: pieces with the kernel, and requests, at most
    piece: int  #: bytes
    setup_flags: int  #: IORING_SETUP_*, as far as the kernel had them
    requests: int  #: started and not complete, those abandoned not counted
    abandoned: int  #: requests that the kernel has and nobody waits for
    wakeups: int  #: times that the pump ran
    completed: int  #: requests


class Ring(RingTables):
    """One io_uring instance, for use from the thread that makes it.

    `entries` bounds the pieces that are with the kernel and the requests that are started; further
    requests wait their turn, first come first served. `piece` is the size, in bytes, at which
    requests are cut, and no more is sent of reads while `window` bytes of them are with the kernel, and
    of writes likewise. `buffers` bounds the buffers, counted by GiB begun, and `files` the files that can
    be added.

    `poll` says who looks after the device. "none": it interrupts when it is done. "io": run() asks it
    again and again while requests are under way, and trio's other tasks in turn; that keeps one core
    busy, and works only with O_DIRECT and a device that has queues for it. "sq": a thread of the
    kernel's submits, so that this one seldom enters the kernel; it spins while there is work and a
    little longer.

    Raises RingError where io_uring cannot be used.
    """

    def __init__(
        self,
        *,
        entries: int = DEFAULT_ENTRIES,
        piece: int = DEFAULT_PIECE,
        window: int = DEFAULT_WINDOW,
        buffers: int = 4096,
        files: int = 16,
        poll: Poll = "none",
    ) -> None:
        super().__init__(entries, piece, window, buffers, files, poll)
        self._entries = entries
        self._piece = piece
        self._unused = entries  # request numbers
        self._queue: deque[Call] = deque()  # calls without a number, while none is unused
        self._waiting: dict[int, Call] = {}  # by number, in the order in which they were started
        self._abandoned: dict[int, Call] = {}  # by number: the kernel has them still
        self._late: deque[Callable[[], None]] = deque()  # to be called by the pump
        self._stalled = False
        self._wakeups = 0
        self._completed = 0

    def close(self) -> None:
        """Gives the ring back to the kernel; closing twice is allowed.

        Raises trio.BusyResourceError while a request is under way: run() ends only when none is.
        Requests that were abandoned do not count. The kernel takes the ring apart when it is done
        with them, of which nobody is told: `late` is not called any more.
        """
        if self._waiting:
            raise trio.BusyResourceError(f"{len(self._waiting)} requests are under way on this ring")
        super().close()

    def statistics(self) -> RingStatistics:
        """What the ring is and does now."""
        return RingStatistics(
            entries=self._entries,
            piece=self._piece,
            setup_flags=self._setup_flags,
            requests=len(self._waiting),
            abandoned=len(self._abandoned),
            wakeups=self._wakeups,
            completed=self._completed,
        )

    # Transfers

    async def read(
        self,
        file: RingFile,
        buffer: RingBuffer,
        buffer_offset: int,
        length: int,
        file_offset: int,
        *,
        arrived: Callable[[int], None] | None = None,
        late: Callable[[], None] | None = None,
    ) -> None:
        """Reads exactly `length` bytes at `file_offset` into the buffer at `buffer_offset`.

        On a file opened with O_DIRECT all three are multiples of the block size. Raises OSError;
        what the buffer then holds is undefined. The end of the file is an error too (EIO).

        `arrived` is called, by run(), with how many of the first bytes are there, as long as no request
        that began before is under way: so the caller can work on them while the device brings the
        rest. With it a read that begins alone comes in smaller pieces. It must not raise, and is not
        called once the read has ended.

        `late`, which must not raise, is called once if the request was abandoned, as soon as the
        kernel is done with it: only then may the memory be used for something else. It is called by
        run(), after this call has raised, and not at all when the call ended in any other way; owes()
        tells which of them it was.
        """
        call = Call(False, late, arrived=arrived)
        await self._transfer(call, 0, file, buffer, buffer_offset, length, file_offset)

    async def write(
        self,
        file: RingFile,
        buffer: RingBuffer,
        buffer_offset: int,
        length: int,
        file_offset: int,
        *,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
        late: Callable[[], None] | None = None,
        sync: bool = False,
        patient: bool = False,
    ) -> None:
        """Writes exactly `length` bytes at `file_offset` from the buffer at `buffer_offset`.

        `meanwhile` is awaited once, when the kernel has the request: it may read the same bytes
        while the device does, and the call ends when both are through. Raises OSError; what the file
        then holds there is undefined.

        `late` is as in read(): until it is called, the file may still change there. Raises Abandoned,
        which is an OSError with ETIMEDOUT, when abandon_writes() ends the call; with `patient` it does not.

        With `sync` the bytes are durable when the call returns: an fdatasync of the file follows the
        last of them, and its failure is the call's. A ring that polls for completions cannot do that
        (ValueError).
        """
        if sync and self._poll == "io":
            raise ValueError("no fdatasync can be sent on a ring that polls for completions")
        flags = lib.GB_WRITE | (lib.GB_SYNC if sync else 0)
        call = Call(True, late, patient, meanwhile)
        await self._transfer(call, flags, file, buffer, buffer_offset, length, file_offset)

    async def _transfer(
        self,
        call: Call,
        flags: int,
        file: RingFile,
        buffer: RingBuffer,
        buffer_offset: int,
        length: int,
        file_offset: int,
    ) -> None:
        if length <= 0 or buffer_offset < 0 or buffer_offset + length > buffer.length or file_offset < 0:
            place = f"{buffer_offset} of a buffer of {buffer.length}, at {file_offset} of the file"
            raise ValueError(f"no transfer of {length} bytes at {place}")
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._unused:
            self._unused -= 1
        else:
            await self._queue_for_number(call)
        try:
            self._check_open()
            if file.index < 0 or buffer.first < 0:
                raise ValueError("the file or the buffer was removed from the ring")
            piece = 0  # the ring's own
            if call.arrived is not None and not self._waiting:
                piece = _piece_alone(length)
            number = lib.gb_ring_start(
                self._ring, flags, file.index, buffer.first, buffer_offset, length, file_offset, piece
            )
            if number < 0:
                raise OSError(-number, os.strerror(-number))
        except BaseException:
            self._number_is_unused()
            raise
        call.number = number
        call.keeps = not (call.write or buffer.fixed)
        file.busy += 1
        buffer.busy += 1
        self._waiting[number] = call
        if self._poll == "io" and len(self._waiting) == 1:
            self._wake_pump()
        try:
            await self._complete(call)
        finally:
            file.busy -= 1
            buffer.busy -= 1

    async def _queue_for_number(self, call: Call) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._queue.remove(call)
            return trio.lowlevel.Abort.SUCCEEDED

        self._check_open()
        self._queue.append(call)
        try:
            call.parked = True
            await trio.lowlevel.wait_task_rescheduled(abort)
        except Abandoned:
            self._has_left(call)
            raise
        call.started = trio.current_time()

    def _number_is_unused(self) -> None:
        """It goes to the call that has waited longest, if any does."""
        if self._queue:
            self._queue.popleft().end(outcome.Value(0))
        else:
            self._unused += 1

    async def _complete(self, call: Call) -> None:
        try:
            if call.meanwhile is not None:
                await call.meanwhile()
        finally:  # the kernel has the buffer: whatever happened above, wait
            await self._wait(call)

    async def _wait(self, call: Call) -> None:
        def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            call.cancelled = raise_cancel
            if self._stalled and not call.keeps:
                self._abandon(call)
                return trio.lowlevel.Abort.SUCCEEDED
            lib.gb_ring_cancel(self._ring, call.number)
            return trio.lowlevel.Abort.FAILED

        try:
            if call.result is None:
                call.parked = True
                error = -(await trio.lowlevel.wait_task_rescheduled(abort))
            else:
                error = -call.result.unwrap()
        finally:
            if call.abandoned:
                self._has_left(call)
        if error == errno.ECANCELED:
            if call.cancelled is not None:
                call.cancelled()
            raise trio.ClosedResourceError("the ring was closed")
        if error == errno.EOPNOTSUPP and self._poll == "io":
            raise cannot_poll()
        if error:
            raise OSError(error, os.strerror(error))

    # Abandoning

    @property
    def oldest(self) -> float | None:
        """trio's time at which the oldest request under way was started; None when there is none.

        Not counted are requests that were abandoned and calls that wait for a free entry.
        """
        for call in self._waiting.values():
            return call.started
        return None

    def abandon_writes(self, before: float) -> int:
        """Ends every write() that was started before `before`, of trio's time, and is not `patient`.

        Returns how many. Each raises Abandoned, and nothing of it is sent any more. The kernel keeps
        what it has; see `late` of write(). A write() that waits for a free entry counts from when it
        was called.
        """
        queued = [call for call in self._queue if call.gives_up(before)]
        for call in queued:
            self._queue.remove(call)
            call.abandoned = call.done = True  # the kernel never had it
        started = [call for call in self._waiting.values() if call.gives_up(before)]
        for call in started:
            self._abandon(call)
        for call in queued + started:
            error = Abandoned(errno.ETIMEDOUT, "the device has not answered in time")
            call.end(outcome.Error(error))
        return len(queued) + len(started)

    def owes(self, late: Callable[[], None]) -> bool:
        """Whether `late` is still to be called, so that the kernel may have the request it came with.

        For who handles an exception of read() or write(): trio.Cancelled does not tell whether the
        request was abandoned. Asked before the next checkpoint the answer is exact.
        """
        return late in self._late or any(call.late == late for call in self._abandoned.values())

    @property
    def stalled(self) -> bool:
        """Whether a task in read() or write() that is cancelled is let go at once. The owner sets it.

        Setting it lets go those too that were cancelled before and still wait for the kernel, and,
        once run() was cancelled, all others, with trio.ClosedResourceError.
        """
        return self._stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        if stalled:
            self._let_go()

    def _let_go(self) -> None:
        closed = trio.ClosedResourceError("the ring was closed")
        for call in [call for call in self._waiting.values() if not call.keeps]:
            if call.cancelled is not None:
                result: outcome.Outcome[int] = outcome.capture(call.cancelled)
            elif not self._open:
                result = outcome.Error(closed)
            else:
                continue
            self._abandon(call)
            call.end(result)

    def _abandon(self, call: Call) -> None:
        call.abandoned = True
        self._abandoned[call.number] = self._waiting.pop(call.number)
        lib.gb_ring_abandon(self._ring, call.number)
        self._wake_pump()  # which may wait for nothing but this call

    def _has_left(self, call: Call) -> None:
        """The task of an abandoned call goes on from here."""
        call.left = True
        if call.done:
            self._is_late(call)

    def _is_late(self, call: Call) -> None:
        # Through the pump, so that the caller has handled its exception by then.
        if call.late is not None:
            self._late.append(call.late)
            self._wake_pump()

    def _wake_pump(self) -> None:
        if self._eventfd != -1:
            os.eventfd_write(self._eventfd, 1)

    # The pump

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wakes the tasks whose requests are complete, until it is cancelled.

        Requests make progress only while this runs, so it is the first task to be started and the
        last to end: once cancelled it refuses new requests, drops what the kernel does not have,
        and returns when the kernel has let go of every buffer, requests that were abandoned aside.
        The ring can be closed then.
        """
        self._check_open()
        task_status.started()
        try:
            while True:
                await self._wait_for_kernel()
                self._reap()
        finally:
            self._open = False
            while self._queue:
                closed = trio.ClosedResourceError("the ring was closed")
                self._queue.popleft().end(outcome.Error(closed))
            if self._stalled:
                self._let_go()
            for number in self._waiting:
                lib.gb_ring_cancel(self._ring, number)
            with trio.CancelScope(shield=True):
                while self._waiting:
                    await self._wait_for_kernel()
                    self._reap()

    async def _wait_for_kernel(self) -> None:
        """Until there is something to reap, or, where that has to be found out, until others had a turn."""
        if self._poll != "io" or not (self._waiting or self._abandoned):
            await trio.lowlevel.wait_readable(self._eventfd)
        elif self._waiting:
            await trio.lowlevel.checkpoint()
        else:  # nobody waits for what was abandoned, so it is no reason to keep a core busy
            with trio.move_on_after(_LATE_POLL):
                await trio.lowlevel.wait_readable(self._eventfd)

    def _reap(self) -> None:
        self._wakeups += 1
        ended = lib.gb_ring_reap(self._ring, self._ended, self._results)
        if ended < 0:
            self._break(-ended)
        for i in range(ended):
            self._end(self._ended[i], self._results[i])
        self._completed += ended
        for call in self._waiting.values():
            if call.arrived is not None:  # of the oldest alone: what it waits for comes first
                call.arrived(lib.gb_ring_arrived(self._ring, call.number))
            break
        while self._late:
            self._late.popleft()()

    def _end(self, number: int, result: int) -> None:
        self._number_is_unused()
        call = self._waiting.pop(number, None)
        if call is not None:
            call.end(outcome.Value(result))
            return
        call = self._abandoned.pop(number)
        call.done = True
        if call.left:
            self._is_late(call)

    def _break(self, error: int) -> NoReturn:
        """The kernel refuses the ring itself, which only a fault of this program can bring about."""
        self._open = False
        for call in self._waiting.values():
            call.end(outcome.Value(-error))
        self._waiting.clear()
        raise RingError(error, f"the kernel refuses the ring: {os.strerror(error)}")


def _piece_alone(length: int) -> int:
    """Bytes of a piece of a read that nothing else is under way beside."""
    piece = length // _PIECES_ALONE // _LEAST_PIECE * _LEAST_PIECE
    return min(max(piece, _LEAST_PIECE), _MOST_PIECE)


@asynccontextmanager
async def open_ring(
    *,
    entries: int = DEFAULT_ENTRIES,
    piece: int = DEFAULT_PIECE,
    window: int = DEFAULT_WINDOW,
    buffers: int = 4096,
    files: int = 16,
    poll: Poll = "none",
) -> AsyncIterator[Ring]:
    """A ring with its pump running; for those who have no nursery to start Ring.run() in."""
    with Ring(entries=entries, piece=piece, window=window, buffers=buffers, files=files, poll=poll) as ring:
        async with trio.open_nursery() as nursery:
            await nursery.start(ring.run)
            yield ring
            nursery.cancel_scope.cancel()
