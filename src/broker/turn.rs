//! Decides which thread reads the socket.
//!
//! One thread at a time has the *turn* to read. A thread that waits for a reply or a request takes
//! the turn if it is free. It reads until it has what it waits for, and passes other messages to
//! their channels. If the turn is taken, a waiting thread stands by. It is woken when something
//! arrives for it, or when the turn becomes free.
//!
//! A *reserve* thread reads while no other thread waits, so that heartbeats, notices and the end of
//! the connection are still noticed. It blocks in `poll`. A waiting thread takes the turn from it
//! and interrupts its `poll`, without waiting for the reserve to return. The reserve then checks
//! the turn once per tick. It takes the turn back only after the turn was free for a whole tick, so
//! that it does not disturb a busy caller. If one thread keeps the turn for a whole tick, the
//! reserve sleeps until that thread gives up the turn. An idle process therefore has no ticks.
//!
//! `broker/model.rs` and its scenarios test this file with a model checker.

use std::time::Duration;

use super::sync::{
    Arc, Condvar, Moment, Mutex, MutexGuard, PoisonError, after, has_passed, wait_until,
};

#[derive(Default)]
pub(super) struct ReadTurn {
    state: Mutex<State>,
    /// Notified when the reserve has to check the state.
    reserve: Condvar,
}

/// The socket that the threads read in turns.
pub(super) trait Socket {
    /// Blocks until there is something to read, until [`Socket::interrupt_poll`] is called for this
    /// reader, or until the time is up. True if there is something to read.
    fn poll(&self, reader: Reader, until: Option<Moment>) -> bool;
    /// Reads some of the available bytes, without blocking, and passes the messages to their
    /// receivers.
    fn read(&self);
    /// Makes the reader's current or next `poll` return.
    fn interrupt_poll(&self, reader: Reader);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Waiter,
    Reserve,
}

/// Identifies a waiting thread. Several threads may share it if only one of them waits at a time.
#[derive(Default)]
pub(crate) struct Waiter {
    /// Set while the waiter is removed from [`State::standby`].
    signal: Mutex<Option<Signal>>,
    signalled: Condvar,
}

/// Why a waiter that stands by is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// It may be ready.
    Check,
    /// The turn is free. The waiter takes it or passes it on.
    TakeTurn,
}

#[derive(Default)]
struct State {
    turn: Turn,
    standby: Vec<Arc<Waiter>>,
    /// The number of times that a waiter took the turn.
    turns_taken: u64,
    reserve_sleeps: bool,
    ended: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Turn {
    #[default]
    Free,
    /// The reserve blocks in `poll`. Any waiter may take the turn from it.
    Polled,
    /// A thread polls or reads.
    Taken(Reader),
}
use Turn::{Free, Polled, Taken};

/// How long the turn must be free before the reserve takes it.
const TICK: Duration = Duration::from_millis(10);

impl ReadTurn {
    /// Blocks until `is_ready`, until the connection has ended, or until `until`. Reads the socket
    /// while no other thread does. If the turn is available, it reads at least once, even if the
    /// time is up.
    pub(super) fn wait(
        &self,
        socket: &impl Socket,
        waiter: &Arc<Waiter>,
        until: Moment,
        is_ready: impl Fn() -> bool,
    ) {
        let mut has_read = false;
        let mut state = self.lock();
        while !is_ready() && !state.ended {
            if let Taken(_) = state.turn {
                if has_passed(until) {
                    break;
                }
                state.standby.push(Arc::clone(waiter));
                drop(state);
                // The thread that woke this one may still need the lock.
                if waiter.stand_by(until) == Some(Signal::Check) && is_ready() {
                    return;
                }
                state = self.lock();
                state.standby.retain(|other| !Arc::ptr_eq(other, waiter));
                lock(&waiter.signal).take();
                continue;
            }
            if has_read && has_passed(until) {
                break;
            }
            let reserve_polls = state.turn == Polled;
            state.turn = Taken(Reader::Waiter);
            state.turns_taken += 1;
            drop(state);
            if reserve_polls {
                socket.interrupt_poll(Reader::Reserve);
            }
            if socket.poll(Reader::Waiter, Some(until)) {
                socket.read();
            }
            has_read = true;
            state = self.lock();
            state.turn = Free;
        }
        self.pass_turn_on(state);
    }

    /// If the turn is free, wakes a thread that can take it.
    fn pass_turn_on(&self, mut state: MutexGuard<'_, State>) {
        if state.turn != Free {
            return;
        }
        match state.standby.pop() {
            Some(next) => next.wake(state, Signal::TakeTurn),
            None if state.reserve_sleeps => self.reserve.notify_one(),
            None => {}
        }
    }

    /// The loop of the reserve thread. It ends when the connection has ended.
    pub(super) fn run_reserve(&self, socket: &impl Socket) {
        // `turns_taken` at the last check; `None` if there was no check since the last read.
        let mut last_turns_taken = None;
        let mut state = self.lock();
        while !state.ended {
            let is_stale = last_turns_taken == Some(state.turns_taken);
            if state.turn != Free || !is_stale {
                state.reserve_sleeps = state.turn != Free && is_stale;
                last_turns_taken = Some(state.turns_taken);
                let tick = (!state.reserve_sleeps).then(|| after(TICK));
                state = wait_until(&self.reserve, state, tick);
                if std::mem::take(&mut state.reserve_sleeps) {
                    last_turns_taken = None;
                }
                continue;
            }
            state.turn = Polled;
            drop(state);
            let is_readable = socket.poll(Reader::Reserve, None);
            state = self.lock();
            if state.turn != Polled {
                continue;
            }
            if is_readable {
                state.turn = Taken(Reader::Reserve);
                drop(state);
                socket.read();
                state = self.lock();
            }
            state.turn = Free;
            last_turns_taken = Some(state.turns_taken);
            if !state.standby.is_empty() {
                last_turns_taken = None;
                self.pass_turn_on(state);
                state = self.lock();
            }
        }
    }

    /// Wakes a waiter that stands by, so that it checks whether it is ready. Called by the reading
    /// thread, which checks its own condition after reading. True if the waiter stood by.
    pub(super) fn notify(&self, waiter: &Arc<Waiter>) -> bool {
        let mut state = self.lock();
        let index = state.standby.iter().position(|other| Arc::ptr_eq(other, waiter));
        let found = index.map(|index| state.standby.swap_remove(index));
        found.map(|waiter| waiter.wake(state, Signal::Check)).is_some()
    }

    /// Wakes a waiter so that it checks whether it is ready, even if it is the reading thread.
    pub(super) fn wake(&self, socket: &impl Socket, waiter: &Arc<Waiter>) {
        if !self.notify(waiter) && self.lock().turn == Taken(Reader::Waiter) {
            socket.interrupt_poll(Reader::Waiter);
        }
    }

    /// Wakes every waiter so that it checks whether it is ready.
    pub(super) fn wake_all(&self, socket: &impl Socket) {
        let mut state = self.lock();
        let standby = std::mem::take(&mut state.standby);
        standby.iter().for_each(|waiter| *lock(&waiter.signal) = Some(Signal::Check));
        let waiter_reads = state.turn == Taken(Reader::Waiter);
        drop(state);
        standby.iter().for_each(|waiter| waiter.signalled.notify_one());
        if waiter_reads {
            socket.interrupt_poll(Reader::Waiter);
        }
    }

    /// Makes the polling thread check whether there is something to write.
    pub(super) fn interrupt_poll(&self, socket: &impl Socket) {
        let turn = self.lock().turn;
        match turn {
            Free => {}
            Polled => socket.interrupt_poll(Reader::Reserve),
            Taken(reader) => socket.interrupt_poll(reader),
        }
    }

    /// Ends all waits, because the connection has ended.
    pub(super) fn end(&self, socket: &impl Socket) {
        self.lock().ended = true;
        self.wake_all(socket);
        self.reserve.notify_one();
        socket.interrupt_poll(Reader::Reserve);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Waiter {
    /// Blocks until it is woken, or until `until`.
    fn stand_by(&self, until: Moment) -> Option<Signal> {
        let mut signal = lock(&self.signal);
        while signal.is_none() && !has_passed(until) {
            signal = wait_until(&self.signalled, signal, Some(until));
        }
        signal.take()
    }

    /// Wakes a waiter that was just removed from the list. The signal is set under the lock of the
    /// list, so a waiter that is on the list has none.
    fn wake(&self, state: MutexGuard<'_, State>, signal: Signal) {
        *lock(&self.signal) = Some(signal);
        drop(state);
        self.signalled.notify_one();
    }
}

/// A panic cannot poison these locks: no code panics while it holds one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
